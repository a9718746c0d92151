"""Tokens that are kept as hashes, through the API: made, listed, replaced, removed; clients from before."""

from __future__ import annotations

import json
from typing import Any

from routemaster.token_hash import digest, hashed
from routemaster.web.auth import Authenticator
from tests.web.test_api import MONITOR_KEY, ROOT_KEY, Case, Wire

TOKEN = "svc--0123456789abcdef0123456789abcdef"
OLD = "old--fedcba9876543210fedcba9876543210"


def key_hash(key: str) -> str:
    """What stands in the configuration in the place of a key."""
    return f"sha256:{digest(key).hex()}"


class HashedCase(Case):
    """A bus that keeps tokens as hashes."""

    refreshed = False
    clients: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.restart(*self.clients)

    def restart(self, *clients: str, hash_tokens: bool = True) -> None:
        """Another process with the same store."""
        self.auth = Authenticator(
            clients, key_hash(ROOT_KEY), self.store, [key_hash(MONITOR_KEY)], hash_tokens,  # type: ignore[arg-type]
        )  # fmt: skip
        self.wire = Wire(self.make_api().app.resource())
        self.done(self.auth.poll())

    def make(self, **body: Any) -> Any:
        return json.loads(self.expect(201, "POST", "/api_tokens", body, ROOT_KEY).body)


class HashedTokenTests(HashedCase):
    """New tokens."""

    def test_shown_once(self) -> None:
        """A new token is answered once; then lists show null, and root its hash, which the store has alone."""
        made = self.make(name="svc")
        token = made["token"]
        self.assertEqual(made, {"name": "svc", "token": token})
        listed = {"name": "svc", "token": None, "hash": hashed(token)}
        self.assertEqual(self.read("/api_tokens", ROOT_KEY), [listed])
        self.assertEqual(self.read("/api_tokens", MONITOR_KEY), [{"name": "svc", "token": None}])
        self.assertEqual(self.done(self.store.tokens()).names, {hashed(token): "svc"})

    def test_at_work(self) -> None:
        """A client with such a token publishes, subscribes, and is shown by its hash; its hash is no token."""
        self.make(name="svc", token=TOKEN)
        self.publish(user=TOKEN)
        self.subscribe("cats", user=TOKEN, uuid="secret")
        self.publish(user=TOKEN)
        self.assertEqual(self.read("/subscription", TOKEN)["uuid"], "secret")
        [topic] = self.read("/topics", ROOT_KEY)
        self.assertEqual(topic["publisher"], hashed(TOKEN))
        self.assertEqual(self.done(self.store.subscribers()), {hashed(TOKEN)})
        for name in ("svc", TOKEN, hashed(TOKEN)):
            self.assertEqual(self.read(f"/subscriptions/{name}", ROOT_KEY)["subscriber"], hashed(TOKEN))
        self.expect(401, "GET", "/topics", user=hashed(TOKEN))
        self.expect(401, "GET", "/topics", user=hashed(TOKEN)[-64:])

    def test_removed(self) -> None:
        """A token is removed by itself or by its hash, and made again speaks for the same client."""
        for name in (TOKEN, hashed(TOKEN)):
            self.make(name="svc", token=TOKEN)
            self.publish(user=TOKEN)
            self.expect(204, "DELETE", f"/api_tokens/{name}", user=ROOT_KEY)
            self.expect(401, "GET", "/topics", user=TOKEN)
        self.assertEqual(len(self.done(self.store.topics())), 1)

    def test_replaced(self) -> None:
        """A token replaces one that is named by itself or by its hash; one that does not exist is 404."""
        self.make(name="svc", token=TOKEN)
        self.publish(user=TOKEN)
        for number, name in enumerate((TOKEN, hashed(TOKEN))):
            token = f"svc--{number}"
            self.make(name="svc", token=token, replaces=name)
            self.publish(user=token)
        for name in ("svc--9", hashed("svc--9")):
            self.expect(404, "POST", "/api_tokens", {"name": "svc", "replaces": name}, ROOT_KEY)

    def test_configured(self) -> None:
        """A configured hash is listed as such, and cannot be removed (409) by itself or by its token."""
        self.restart(hashed(TOKEN))
        self.publish(user=TOKEN)
        listed = {"name": "svc", "token": None, "hash": hashed(TOKEN)}
        self.assertEqual(self.read("/api_tokens", ROOT_KEY), [listed])
        for name in (TOKEN, hashed(TOKEN)):
            self.expect(409, "DELETE", f"/api_tokens/{name}", user=ROOT_KEY)
            self.expect(409, "POST", "/api_tokens", {"name": "x", "token": TOKEN, "replaces": TOKEN}, ROOT_KEY)
        self.expect(204, "GET", "/pulse", user=TOKEN)

    def test_keys(self) -> None:
        """The hash of a key is not the key."""
        self.expect(204, "GET", "/pulse", user=ROOT_KEY)
        self.expect(401, "GET", "/pulse", user=key_hash(ROOT_KEY))
        self.expect(400, "POST", "/api_tokens", {"name": "x", "token": MONITOR_KEY}, ROOT_KEY)


class FormerTokenTests(HashedCase):
    """Clients and tokens from before tokens were kept as hashes."""

    def setUp(self) -> None:
        super().setUp()
        self.restart("conf--1", hash_tokens=False)
        self.make(name="old", token=OLD)
        for user, topic in ((OLD, "olds"), ("conf--1", "confs")):
            self.publish(topic, user=user)
            self.subscribe(topic, user=user)

    def test_tokens_stay(self) -> None:
        """A token that was kept as itself stays valid, for the same client, and can be renamed and removed."""
        self.restart(hashed("conf--1"))
        self.assertEqual(self.auth.in_clear(), 2)
        self.publish("olds", user=OLD)
        self.make(name="renamed", token=OLD)
        self.assertIn({"name": "renamed", "token": OLD}, self.read("/api_tokens", ROOT_KEY))
        self.expect(204, "DELETE", f"/api_tokens/{OLD}", user=ROOT_KEY)
        self.expect(401, "GET", "/pulse", user=OLD)

    def test_configured(self) -> None:
        """A client that is configured by its hash now owns what it owned by its token, in later processes too."""
        self.restart(hashed("conf--1"))
        self.publish("confs", user="conf--1")
        self.expect(204, "DELETE", "/subscriber", user="conf--1")
        self.restart(hashed("conf--1"), hash_tokens=False)
        self.publish("confs", user="conf--1")

    def test_replaced(self) -> None:
        """A hash replaces a token from before, which then opens nothing; its client is the same."""
        self.restart(hashed("conf--1"))
        new = self.make(name="old", replaces=OLD)["token"]
        self.expect(204, "DELETE", f"/api_tokens/{OLD}", user=ROOT_KEY)
        self.publish("olds", user=new)
        self.expect(401, "GET", "/pulse", user=OLD)
        self.assertEqual(self.auth.in_clear(), 1)
        self.assertEqual(self.read("/subscription", new)["topics"], ["olds"])

    def test_made_again(self) -> None:
        """A token that was removed and is made again, as a hash, speaks for its client of before."""
        self.restart(hashed("conf--1"))
        self.expect(204, "DELETE", f"/api_tokens/{OLD}", user=ROOT_KEY)
        self.make(name="old", token=OLD)
        self.publish("olds", user=OLD)
        self.assertNotIn(OLD, self.done(self.store.tokens()).names)

    def test_in_use_again(self) -> None:
        """Without hash_tokens again, tokens that are kept as hashes stay valid, and are removed."""
        self.restart(hashed("conf--1"))
        self.make(name="svc", token=TOKEN)
        self.restart("conf--1", hash_tokens=False)
        self.publish(user=TOKEN)
        self.publish("confs", user="conf--1")
        self.make(name="again", token=TOKEN)
        self.expect(204, "DELETE", f"/api_tokens/{TOKEN}", user=ROOT_KEY)
        self.expect(401, "GET", "/pulse", user=TOKEN)
