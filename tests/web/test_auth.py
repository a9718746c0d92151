"""Authentication: all forms of Authorization headers, and tokens that are added and removed."""

from __future__ import annotations

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
        self.done(self.auth.refresh())

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

    def test_longest_token_wins(self) -> None:
        """If several tokens match a credential, the longest one wins, up to 64 characters."""
        tokens = ("a", "a:b", "a:b:" + "c" * 60, "d" * 63 + ":")
        self.auth = Authenticator(tokens, None, self.store)
        self.done(self.auth.refresh())
        for token in tokens:
            self.assertEqual(self.token_of(token, "x"), token)
        self.assertEqual(self.token_of("a:b:c"), "a:b")
        self.assertEqual(self.token_of("a", "x:y"), "a")
        self.assertIsNone(self.token_of("d" * 63))

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
        self.done(auth.refresh())
        principal = auth.identify(encoded(text) if coded else b"Basic " + text)
        self.assertEqual(principal is not None, coded and text.startswith(b"demo:"))

    def test_no_root_key(self) -> None:
        """Without a root key, or with an empty one, no credential identifies root."""
        for key in (None, ""):
            auth = Authenticator(["demo"], key, self.store)
            self.done(auth.refresh())
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

    def test_refresh(self) -> None:
        """A refresh adds the tokens of the store and removes those that it no longer has."""
        self.done(self.auth.refresh())
        self.assertIsNone(self.token_of("new--1"))
        self.done(self.store.add_token(self.MADE))
        self.done(self.auth.refresh())
        self.assertEqual(self.token_of("new--1"), "new--1")
        self.done(self.store.remove_token("new--1"))
        self.done(self.auth.refresh())
        self.assertIsNone(self.token_of("new--1"))

    def test_poll(self) -> None:
        """A poll reads the tokens only if they changed or were never read."""
        reads: list[None] = []
        tokens = self.store.tokens

        async def counted() -> Any:
            reads.append(None)
            return await tokens()

        self.store.tokens = counted  # type: ignore[method-assign]
        for change, total in ((None, 1), (None, 1), (self.MADE, 2), (None, 2)):
            if change is not None:
                self.done(self.store.add_token(change))
            self.done(self.auth.poll())
            self.assertEqual(len(reads), total)
        self.assertEqual(self.token_of("new--1"), "new--1")

    def test_store_fails(self) -> None:
        """While the store is unavailable, known tokens stay valid."""
        self.done(self.store.add_token(self.MADE))
        self.done(self.auth.refresh())

        async def away() -> Any:
            raise StoreUnavailable("away")

        self.store.tokens_version = away  # type: ignore[method-assign]
        self.failureResultOf(Deferred.fromCoroutine(self.auth.poll()), StoreUnavailable)
        self.assertEqual(self.token_of("new--1"), "new--1")
        self.assertIsNone(self.token_of("new--2"))

    def test_configured_tokens_stay(self) -> None:
        """API tokens neither replace nor remove configured tokens."""
        for token in ("demo", ROOT_KEY):
            self.done(self.store.add_token(ApiToken("x", token)))
            self.auth.add(ApiToken("x", token))
            self.done(self.auth.refresh())
        self.assertIs(self.auth.identify(basic(ROOT_KEY)), ROOT)
        self.done(self.store.remove_token("demo"))
        self.auth.remove("demo")
        self.assertEqual(self.token_of("demo"), "demo")
        self.done(self.auth.refresh())
        self.assertEqual(self.token_of("demo"), "demo")

    def test_local_change(self) -> None:
        """`add` and `remove` have effect at once, without the store."""
        self.done(self.auth.refresh())
        self.auth.add(self.MADE)
        self.assertEqual(self.token_of("new--1"), "new--1")
        self.auth.remove("new--1")
        self.assertIsNone(self.token_of("new--1"))

    def held(self) -> list[Deferred[None]]:
        """Have `tokens` read at once and return when the test fires a Deferred."""
        gates: list[Deferred[None]] = []
        tokens = self.store.tokens

        async def slow() -> Any:
            read, gate = await tokens(), Deferred()
            gates.append(gate)
            await gate
            return read

        self.store.tokens = slow  # type: ignore[method-assign]
        return gates

    def test_refresh_and_a_local_change(self) -> None:
        """A refresh that started before a local change does not undo it; the next poll refreshes again."""
        self.done(self.store.add_token(self.MADE))
        self.done(self.auth.refresh())
        gates = self.held()
        reading = Deferred.fromCoroutine(self.auth.refresh())
        self.done(self.store.remove_token("new--1"))
        self.auth.remove("new--1")
        gates.pop().callback(None)
        self.successResultOf(reading)
        self.assertIsNone(self.token_of("new--1"))
        polling = Deferred.fromCoroutine(self.auth.poll())
        gates.pop().callback(None)
        self.successResultOf(polling)
        self.assertIsNone(self.token_of("new--1"))

    def test_concurrent_refreshes(self) -> None:
        """Of two concurrent refreshes, the one that started later wins."""
        gates = self.held()
        first = Deferred.fromCoroutine(self.auth.refresh())
        self.done(self.store.add_token(self.MADE))
        second = Deferred.fromCoroutine(self.auth.refresh())
        gates[1].callback(None)
        gates[0].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.token_of("new--1"), "new--1")
