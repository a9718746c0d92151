"""Authentication: all forms of Authorization headers, and tokens that are added and removed."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreUnavailable
from routemaster.model import ApiToken
from routemaster.store.memory_store import MemoryStore
from routemaster.web.auth import ROOT, Authenticator, Principal, Role

ROOT_KEY = "the root key, 1"
CLIENTS = ("demo", "svc--0123", "a:b", "a", "t" * 64, ":", "x:y:z")


def basic(user: str, password: str = "") -> bytes:
    return b"Basic " + b64encode(f"{user}:{password}".encode())


def encoded(text: bytes, scheme: bytes = b"Basic ") -> bytes:
    return scheme + b64encode(text)


#: invalid headers
MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "the scheme alone": b"Basic",
    "the scheme and a space": b"Basic ",
    "the token in the clear": b"demo",
    "the token in the clear, with a scheme": b"Basic demo",
    "the pair in the clear": b"Basic demo:",
    "Bearer": encoded(b"demo:", b"Bearer "),
    "Digest": b'Digest username="demo"',
    "another scheme that ends alike": encoded(b"demo:", b"XBasic "),
    "no space": encoded(b"demo:", b"Basic"),
    "a tab for a space": encoded(b"demo:", b"Basic\t"),
    "an empty pair": encoded(b":x"),
    "nothing in base64": encoded(b""),
    "padding only": b"Basic ====",
    "padding first": b"Basic =ZGVtbzo",
    "junk inside": b"Basic ZGVt*bzo=",
    "a space inside": b"Basic ZGVt bzo=",
    "a line feed inside": b"Basic ZGVt\nbzo=",
    "more behind": encoded(b"demo:") + b" x",
    "more behind the padding": encoded(b"demo:") + b"ZGVtbzo=",
    "a second parameter": encoded(b"demo:") + b", realm=x",
    "quotes": b'Basic "ZGVtbzo="',
    "the alphabet for URLs": b"Basic " + b"-_8_Og==",
    "bytes beyond ASCII": b"Basic \xff\xfe",
    "UTF-16": encoded("demo:".encode("utf-16")),
    "8 KB": encoded(b"x" * 8192 + b":"),
    "8 KB of colons": encoded(b"y" + b":" * 8192),
    "capitals": encoded(b"DEMO:"),
    "a space before": encoded(b" demo:"),
    "a space after": encoded(b"demo :"),
    "a line feed after": encoded(b"demo\n:"),
    "a NUL after": encoded(b"demo\0:"),
    "half the token": encoded(b"dem:"),
    "more than the token": encoded(b"demo2:"),
    "the token as password": encoded(b"x:demo"),
    "part of the root key": encoded(b"the root key:"),
    "65 characters": encoded(b"t" * 65 + b":"),
}  # fmt: skip


class Case(SynchronousTestCase):
    """A store in memory and an authenticator."""

    def setUp(self) -> None:
        self.store = MemoryStore(Clock(), 10)
        self.auth = Authenticator(CLIENTS, ROOT_KEY, self.store)

    def done(self, call: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(call))

    def token_of(self, token: str, password: str = "") -> str | None:
        principal = self.auth.identify(basic(token, password))
        return None if principal is None else principal.token


class IdentifyTests(Case):
    """`identify`."""

    def setUp(self) -> None:
        super().setUp()
        self.done(self.auth.poll())

    def test_configured_clients(self) -> None:
        """A configured token identifies its client, with any password; tokens may contain colons."""
        for token in CLIENTS:
            for password in ("", "x", "pass word", "é", "Basic ", "!:!", "p" * 8000):
                self.assertEqual(self.auth.identify(basic(token, password)), Principal(Role.CLIENT, token))

    def test_forms_of_clients(self) -> None:
        """The token alone, without a colon, is accepted, and so is base64 without padding."""
        for credentials in (b"demo", b"demo:", b"demo:x"):
            for encoding in (encoded(credentials), encoded(credentials).rstrip(b"=")):
                self.assertEqual(self.auth.identify(encoding), Principal(Role.CLIENT, "demo"), encoding)

    def test_split(self) -> None:
        """The user name is the longest part before a colon that has a token's form, whichever tokens exist."""
        tokens = ("a", "a:b", "a:b:" + "c" * 60, "d" * 63 + ":")
        self.auth = Authenticator(tokens, ROOT_KEY, self.store)
        self.done(self.auth.poll())
        for token in tokens:
            for password in ("", "x", "X:y", "p" * 64 + ":"):
                self.assertEqual(self.token_of(token, password), token)
        for user, password in (("a:b:c", "x"), ("a", "x:y"), ("a", "b:c:d"), ("d" * 63, "x"), ("a:b--gone", "")):
            self.assertIsNone(self.token_of(user, password), (user, password))
        self.assertEqual(self.auth.identify(encoded(b"a:b")), Principal(Role.CLIENT, "a"))  # b is the password
        self.assertIs(self.auth.identify(basic(ROOT_KEY, "a:b")), ROOT)

    def test_removed_token_with_a_colon(self) -> None:
        """When a token is removed, its holder is not accepted as the client whose token is its beginning."""
        for token in ("a:b--secret", "a:b:c--secret"):
            self.done(self.store.add_token(ApiToken("x", token)))
            self.done(self.auth.poll())
            self.assertEqual(self.token_of(token, "x"), token)
            self.done(self.store.remove_token(token))
            self.done(self.auth.poll())
            for password in ("", "x"):
                self.assertIsNone(self.token_of(token, password))

    def test_root(self) -> None:
        """The root key identifies root, with any password; it may contain any character."""
        for password in ("", "x", "demo", "a:b"):
            self.assertIs(self.auth.identify(basic(ROOT_KEY, password)), ROOT)

    def test_malformed(self) -> None:
        """A malformed or unknown credential identifies nobody and raises no exception."""
        for name, header in MALFORMED.items():
            self.assertIsNone(self.auth.identify(header), name)

    def test_scheme(self) -> None:
        """The scheme is case-insensitive; several spaces may follow it."""
        for scheme in (b"Basic ", b"basic ", b"BASIC ", b"bAsIc   "):
            self.assertIsNotNone(self.auth.identify(encoded(b"demo:", scheme)))

    @given(st.binary(max_size=100), st.booleans())
    def test_any_bytes(self, text: bytes, coded: bool) -> None:
        """No bytes raise an exception, and only those of a known token identify a client."""
        auth = Authenticator(["demo"], None, self.store)
        self.done(auth.poll())
        principal = auth.identify(encoded(text) if coded else b"Basic " + text)
        known = re.match(rb"demo:(?![a-z0-9:_-]{0,59}:)", text)
        self.assertEqual(principal is not None, coded and known is not None)

    def test_no_root_key(self) -> None:
        """Without a root key, or with an empty one, no credential identifies root."""
        for key in (None, ""):
            auth = Authenticator(["demo"], key, self.store)
            self.done(auth.poll())
            for user in ("", "None", ROOT_KEY):
                self.assertIsNone(auth.identify(basic(user)))

    def test_repr_holds_no_token(self) -> None:
        """The repr of a principal does not contain its token."""
        self.assertNotIn("svc", repr(self.auth.identify(basic("svc--0123"))))


class TokenTests(Case):
    """API tokens."""

    MADE = ApiToken("new", "new--1")

    def test_never_read(self) -> None:
        """Before the first refresh an unknown valid token raises StoreUnavailable; malformed ones are unknown."""
        self.assertEqual(self.token_of("demo"), "demo")
        self.assertIs(self.auth.identify(basic(ROOT_KEY)), ROOT)
        error = self.assertRaises(StoreUnavailable, self.auth.identify, basic("new--1"))
        self.assertFalse(error.outcome_unknown)
        for name, header in MALFORMED.items():
            if name not in ("half the token", "more than the token", "the token as password", "8 KB of colons"):
                self.assertIsNone(self.auth.identify(header), name)

    def test_changes(self) -> None:
        """A poll adds the tokens that were added to the store and removes those that were removed."""
        self.done(self.auth.poll())
        self.assertIsNone(self.token_of("new--1"))
        self.done(self.store.add_token(self.MADE))
        self.done(self.auth.poll())
        self.assertEqual(self.token_of("new--1"), "new--1")
        self.done(self.store.remove_token("new--1"))
        self.done(self.auth.poll())
        self.assertIsNone(self.token_of("new--1"))

    def counted(self, name: str) -> list[Any]:
        """The results of a method of the store from now on."""
        results: list[Any] = []
        method = getattr(self.store, name)

        async def call(*args: Any) -> Any:
            results.append(await method(*args))
            return results[-1]

        setattr(self.store, name, call)
        return results

    def test_cost(self) -> None:
        """All tokens are read once; then a poll reads what changed since the last one, in any process."""
        other = Authenticator(CLIENTS, ROOT_KEY, self.store)
        whole, changes = self.counted("tokens"), self.counted("token_changes")
        for number in range(300):
            self.done(self.store.add_token(ApiToken("n", f"n--{number}")))
            self.done(self.auth.poll())
            if number % 150 == 100:
                self.done(other.poll())
        self.assertEqual(len(whole), 2)
        self.assertLessEqual(max(len(found) for found, _mark in changes), 100)
        self.done(other.poll())
        for auth in (self.auth, other):
            self.assertEqual(len(auth.names), 300)
            self.assertIsNotNone(auth.identify(basic("n--299")))

    def test_changes_not_known(self) -> None:
        """If the store does not know the changes any more, or may not, all tokens are read again."""
        self.done(self.auth.poll())
        self.done(self.store.add_token(self.MADE))
        changes, whole = self.store.token_changes, self.counted("tokens")

        async def unknown(_mark: bytes) -> Any:
            return None

        self.store.token_changes = unknown  # type: ignore[method-assign,assignment]
        self.done(self.auth.poll())
        self.assertEqual((len(whole), self.token_of("new--1")), (1, "new--1"))
        self.store.token_changes = changes  # type: ignore[method-assign]
        self.auth.distrust()
        self.done(self.auth.poll())
        self.done(self.auth.poll())
        self.assertEqual(len(whole), 2)

    def test_store_fails(self) -> None:
        """While the store is unavailable, known tokens stay valid."""
        self.done(self.store.add_token(self.MADE))
        self.done(self.auth.poll())

        async def unavailable(_mark: bytes) -> Any:
            raise StoreUnavailable("Redis is unavailable")

        self.store.token_changes = unavailable  # type: ignore[method-assign,assignment]
        self.failureResultOf(Deferred.fromCoroutine(self.auth.poll()), StoreUnavailable)
        self.assertEqual(self.token_of("new--1"), "new--1")
        self.assertIsNone(self.token_of("new--2"))

    def test_configured_tokens_stay(self) -> None:
        """API tokens neither replace nor remove configured tokens."""
        for token in ("demo", ROOT_KEY):
            self.done(self.store.add_token(ApiToken("x", token)))
            self.done(self.auth.poll())
        self.assertIs(self.auth.identify(basic(ROOT_KEY)), ROOT)
        self.done(self.store.remove_token("demo"))
        self.done(self.auth.poll())
        self.assertEqual(self.token_of("demo"), "demo")

    def test_concurrent_polls(self) -> None:
        """Polls run one after the other, so that a late reply undoes nothing."""
        self.done(self.auth.poll())
        changes, gates = self.store.token_changes, list[Deferred[None]]()

        async def slow(mark: bytes) -> Any:
            found = await changes(mark)
            gates.append(Deferred())
            await gates[-1]
            return found

        self.store.token_changes = slow  # type: ignore[method-assign]
        self.done(self.store.add_token(self.MADE))
        first = Deferred.fromCoroutine(self.auth.poll())
        self.done(self.store.remove_token("new--1"))
        second = Deferred.fromCoroutine(self.auth.poll())
        self.assertEqual(len(gates), 1)
        while gates:
            gates.pop().callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertIsNone(self.token_of("new--1"))


class ReplacedTests(Case):
    """Tokens that replace others."""

    def fresh(self, clients: Any) -> Authenticator:
        """Another process, or the same one after a restart."""
        self.auth = Authenticator(clients, ROOT_KEY, self.store)
        self.done(self.auth.poll())
        return self.auth

    def test_configured(self) -> None:
        """NEW=OLD speaks for OLD's client, also when OLD is removed, and the store keeps it for the time after."""
        self.fresh({"b--1": "a--1", "a--1": "a--1"})
        for token in ("a--1", "b--1"):
            self.assertEqual(self.token_of(token), "a--1")
        for clients in ({"b--1": "a--1"}, {"b--1": "b--1"}, {"c--1": "b--1"}, ["c--1"], {"d--1": "c--1"}):
            self.fresh(clients)
            for token in clients:
                self.assertEqual(self.token_of(token), "a--1", clients)
        self.fresh({"d--1": "e--1"})
        self.assertEqual(self.token_of("d--1"), "e--1")  # the configuration decides

    def test_both(self) -> None:
        """An API token may replace a configured one, and the other way round."""
        self.fresh(["a--1"])
        self.done(self.store.add_token(ApiToken("b", "b--1", "a--1"), "a--1"))
        self.fresh({"c--1": "b--1"})
        self.done(self.store.add_token(ApiToken("d", "d--1", "c--1"), self.auth.client_of("c--1")))
        self.done(self.auth.poll())
        for token in ("b--1", "c--1", "d--1"):
            self.assertEqual(self.token_of(token), "a--1")

    def test_assigned_by_another_process(self) -> None:
        """What a token of the configuration replaces is known to other processes."""
        other = self.fresh([])
        self.done(self.store.add_token(ApiToken("b", "b--1")))
        self.fresh({"b--1": "a--1"})
        self.done(other.poll())
        self.assertEqual(other.client_of("b--1"), "a--1")
