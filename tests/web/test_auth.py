"""Who is let in: every shape of an Authorization header, and tokens that come and go."""

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


#: headers that let nobody in
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
    "no colon": encoded(b"demo"),
    "an empty pair": encoded(b":x"),
    "nothing in base64": encoded(b""),
    "no padding": encoded(b"demo:").rstrip(b"="),
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
    """A store in memory and a doorkeeper before it."""

    def setUp(self) -> None:
        self.store = MemoryStore(Clock(), 10)
        self.door = Authenticator(CLIENTS, ROOT_KEY, self.store)

    def done(self, call: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(call))

    def let_in(self, token: str, password: str = "") -> str | None:
        principal = self.door.identify(basic(token, password))
        return None if principal is None else principal.token


class IdentifyTests(Case):
    """One header."""

    def setUp(self) -> None:
        super().setUp()
        self.done(self.door.refresh())

    def test_configured_clients(self) -> None:
        """Every configured token is let in as itself, colons or not, whatever the password."""
        for token in CLIENTS:
            for password in ("", "x", "pass word", "é", "Basic ", "!:!", "p" * 8000):
                self.assertEqual(self.door.identify(basic(token, password)), Principal(Role.CLIENT, token))

    def test_longest_token_wins(self) -> None:
        """Of tokens that begin alike the longest one that the credential holds is meant, up to 64 characters."""
        tokens = ("a", "a:b", "a:b:" + "c" * 60, "d" * 63 + ":")
        self.door = Authenticator(tokens, None, self.store)
        self.done(self.door.refresh())
        for token in tokens:
            self.assertEqual(self.let_in(token, "x"), token)
        self.assertEqual(self.let_in("a:b:c"), "a:b")
        self.assertEqual(self.let_in("a", "x:y"), "a")
        self.assertIsNone(self.let_in("d" * 63))

    def test_root(self) -> None:
        """The root key is let in as root, whatever the password; it may hold what no token may."""
        for password in ("", "x", "demo", "a:b"):
            self.assertIs(self.door.identify(basic(ROOT_KEY, password)), ROOT)

    def test_malformed(self) -> None:
        """Whatever is no Basic credential of somebody known lets nobody in, and raises nothing."""
        for name, header in MALFORMED.items():
            self.assertIsNone(self.door.identify(header), name)

    def test_scheme(self) -> None:
        """The scheme is known in any case, and may be parted by more than one space."""
        for scheme in (b"Basic ", b"basic ", b"BASIC ", b"bAsIc   "):
            self.assertIsNotNone(self.door.identify(encoded(b"demo:", scheme)))

    @given(st.binary(max_size=100), st.booleans())
    def test_any_bytes(self, text: bytes, coded: bool) -> None:
        """No bytes raise anything, and none let in but those of a known token."""
        door = Authenticator(["demo"], None, self.store)
        self.done(door.refresh())
        principal = door.identify(encoded(text) if coded else b"Basic " + text)
        self.assertEqual(principal is not None, coded and text.startswith(b"demo:"))

    def test_no_root_key(self) -> None:
        """Without a root key, or with an empty one, nobody is root."""
        for key in (None, ""):
            door = Authenticator(["demo"], key, self.store)
            self.done(door.refresh())
            for user in ("", "None", ROOT_KEY):
                self.assertIsNone(door.identify(basic(user)))

    def test_nothing_shows_tokens(self) -> None:
        """Who asks can be printed without its token."""
        self.assertNotIn("svc", repr(self.door.identify(basic("svc--0123"))))


class TokenTests(Case):
    """Tokens made through the API."""

    MADE = ApiToken("new", "new--1")

    def test_never_read(self) -> None:
        """Before the store was read a well-formed unknown token is not judged; all others are."""
        self.assertEqual(self.let_in("demo"), "demo")
        self.assertIs(self.door.identify(basic(ROOT_KEY)), ROOT)
        error = self.assertRaises(StoreUnavailable, self.door.identify, basic("new--1"))
        self.assertFalse(error.outcome_unknown)
        for name, header in MALFORMED.items():
            if name not in ("half the token", "more than the token", "the token as password", "8 KB of colons"):
                self.assertIsNone(self.door.identify(header), name)

    def test_refresh(self) -> None:
        """A token that the store knows is let in from the next refresh on, until one after it ended."""
        self.done(self.door.refresh())
        self.assertIsNone(self.let_in("new--1"))
        self.done(self.store.add_token(self.MADE))
        self.done(self.door.refresh())
        self.assertEqual(self.let_in("new--1"), "new--1")
        self.done(self.store.remove_token("new--1"))
        self.done(self.door.refresh())
        self.assertIsNone(self.let_in("new--1"))

    def test_poll(self) -> None:
        """A poll reads tokens only if they changed, or were never read."""
        reads: list[None] = []
        tokens = self.store.tokens

        async def counted() -> Any:
            reads.append(None)
            return await tokens()

        self.store.tokens = counted  # type: ignore[method-assign]
        for change, total in ((None, 1), (None, 1), (self.MADE, 2), (None, 2)):
            if change is not None:
                self.done(self.store.add_token(change))
            self.done(self.door.poll())
            self.assertEqual(len(reads), total)
        self.assertEqual(self.let_in("new--1"), "new--1")

    def test_store_fails(self) -> None:
        """While the store is away, what was known stays known."""
        self.done(self.store.add_token(self.MADE))
        self.done(self.door.refresh())

        async def away() -> Any:
            raise StoreUnavailable("away")

        self.store.tokens_version = away  # type: ignore[method-assign]
        self.failureResultOf(Deferred.fromCoroutine(self.door.poll()), StoreUnavailable)
        self.assertEqual(self.let_in("new--1"), "new--1")
        self.assertIsNone(self.let_in("new--2"))

    def test_configuration_is_stronger(self) -> None:
        """A token that is configured keeps its meaning, whatever is made or removed."""
        for token in ("demo", ROOT_KEY):
            self.done(self.store.add_token(ApiToken("x", token)))
            self.door.add(ApiToken("x", token))
            self.done(self.door.refresh())
        self.assertIs(self.door.identify(basic(ROOT_KEY)), ROOT)
        self.done(self.store.remove_token("demo"))
        self.door.remove("demo")
        self.assertEqual(self.let_in("demo"), "demo")
        self.done(self.door.refresh())
        self.assertEqual(self.let_in("demo"), "demo")

    def test_change_here_counts_at_once(self) -> None:
        """A token that this process made or removed is known or unknown at once, without the store."""
        self.done(self.door.refresh())
        self.door.add(self.MADE)
        self.assertEqual(self.let_in("new--1"), "new--1")
        self.door.remove("new--1")
        self.assertIsNone(self.let_in("new--1"))

    def held(self) -> list[Deferred[None]]:
        """From now on `tokens` reads at once and answers when the test says so."""
        gates: list[Deferred[None]] = []
        tokens = self.store.tokens

        async def slow() -> Any:
            read, gate = await tokens(), Deferred()
            gates.append(gate)
            await gate
            return read

        self.store.tokens = slow  # type: ignore[method-assign]
        return gates

    def test_reading_overtaken_by_a_change(self) -> None:
        """A reading that began before a change was made here does not undo it; the next poll reads again."""
        self.done(self.store.add_token(self.MADE))
        self.done(self.door.refresh())
        gates = self.held()
        reading = Deferred.fromCoroutine(self.door.refresh())
        self.done(self.store.remove_token("new--1"))
        self.door.remove("new--1")
        gates.pop().callback(None)
        self.successResultOf(reading)
        self.assertIsNone(self.let_in("new--1"))
        polling = Deferred.fromCoroutine(self.door.poll())
        gates.pop().callback(None)
        self.successResultOf(polling)
        self.assertIsNone(self.let_in("new--1"))

    def test_reading_overtaken_by_another(self) -> None:
        """Of two readings, the one that began later is believed, whichever ends last."""
        gates = self.held()
        first = Deferred.fromCoroutine(self.door.refresh())
        self.done(self.store.add_token(self.MADE))
        second = Deferred.fromCoroutine(self.door.refresh())
        gates[1].callback(None)
        gates[0].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.let_in("new--1"), "new--1")
