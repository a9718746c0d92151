"""What an attempt does with servers that break, stall or overdo it, over real TLS: a table for each fault.

Of every server the tests say what the attempt's verdict and reason are, when it
ends, and whether its connection is kept. `HostileCase.attempt` checks for each
that nothing is logged, and that neither sockets nor objects are left.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from attrs import frozen
from cryptography.x509 import IPAddress
from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from routemaster.interfaces import Outcome
from routemaster.sender.exchange import REFUSAL_BODY_TIMEOUT, Exchange
from routemaster.testing import zoo
from routemaster.testing.hostile_answers import ZOO, answering
from routemaster.testing.hostile_tls import BEFORE_TLS, renegotiates
from routemaster.testing.zoo import Answer, Authority, Behaviour, ScriptedServer, Wire
from tests.sender.case import AUTHORITY, SERVER, UUID, PostingSender, SenderCase
from tests.sender.timed_reactor import TimedReactor

BODY = b"[]"
LARGE = bytes(20_000_000)  #: more than the kernel's buffers hold
TLS_1_2 = {"lowerMaximumSecurityTo": ssl.TLSVersion.TLSv1_2}
MOMENT = 2**-10  #: seconds; the clock adds it without rounding
TIMEOUT, CONNECT_TIMEOUT = 20.0, 2.0  #: the defaults


def sockets() -> int:
    """How many sockets the process has."""
    return sum(each.is_socket() for each in Path("/dev/fd").iterdir())


def held(contexts: Collection[SSL.Context]) -> list[Any]:
    """What takes memory: exchanges with their batch, and TLS connections of these contexts."""
    return [
        each for each in gc.get_objects()
        if (isinstance(each, Exchange) and each._body)
        or (isinstance(each, SSL.Connection) and each.get_context() in contexts)
    ]  # fmt: skip


@frozen
class Attempt:
    """An attempt at a server, under way."""

    server: ScriptedServer
    sender: PostingSender
    exchange: Exchange | None

    @property
    def received(self) -> int:
        """Bytes of the answer that have come."""
        connection = self.exchange and self.exchange.connection
        return connection.received if connection else 0


class HostileCase(SenderCase):
    """Attempts on a clock of their own: a server that ends one does so while time stands still."""

    def setUp(self) -> None:
        super().setUp()
        gc.disable()
        self.addCleanup(gc.enable)
        self.contexts: list[SSL.Context] = []
        self.addCleanup(lambda: self.assertEqual(held(self.contexts), []))
        self.time = TimedReactor()
        self.logged: list[Any] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def timed(self, **options: Any) -> PostingSender:
        sender = PostingSender(
            self.time, user_agent="routemaster/9", timeout=TIMEOUT, connect_timeout=CONNECT_TIMEOUT,
            ca_files=[self.ca_file], **options,
        )  # fmt: skip
        self.addCleanup(lambda: ensureDeferred(sender.close()))
        self.contexts.append(sender.pool._trust.options.getContext())
        return sender

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait, at most for the test's timeout."""
        while not condition():
            await deferLater(reactor, 0.001)

    async def attempt(
        self, behaviour: Behaviour, error: str, *, options: Any = SERVER, kept: bool = False, attempts: int = 1,
        body: bytes = BODY, ends: float = 0.0, when: Callable[[Attempt], object] | None = None,
    ) -> tuple[Outcome, ScriptedServer]:  # fmt: skip
        """Make attempts at a new server, and check all that holds for any.

        `error`: what the reason contains; empty: acknowledged. `kept`: whether the
        connection is kept. `ends`: the attempt ends so many seconds after `when` holds.
        """
        before = sockets()
        server = self.server(behaviour, options)
        sender = self.timed()
        self.logged.clear()  # that the server listens
        for _ in range(attempts):
            posting = ensureDeferred(sender.post(server.url, UUID, body))
            if when is not None:
                seen = Attempt(server, sender, next(iter(sender._exchanges), None))
                await self.until(lambda seen=seen: when(seen))
                self.time.clock.advance(ends - MOMENT)
                self.assertNoResult(posting)
                self.time.clock.advance(MOMENT)
            outcome = await posting
            if error:
                self.assertFailed(outcome, error)
            else:
                self.assertAcknowledged(outcome)
        self.assertEqual(sender.pool.idle, kept, "kept")
        if not kept:
            await server.empty()
        await sender.close()
        self.assertEqual(self.logged, [])
        await server.stop()
        self.assertEqual(self.time.clock.getDelayedCalls(), [])
        self.assertEqual(sockets(), before)
        return outcome, server


class StallTests(HostileCase):
    """Servers that let an attempt wait: it ends exactly at its deadline."""

    async def test_before_tls(self) -> None:
        """A handshake that does not begin, stops or drips ends at the deadline."""
        for name in ("no_handshake", "stops_in_handshake", "drips_handshake"):
            await self.attempt(
                BEFORE_TLS[name], "no TLS handshake within 20 s", options=None, ends=TIMEOUT,
                when=lambda attempt: attempt.server.heard,
            )  # fmt: skip

    async def test_in_answer(self) -> None:
        """An answer that does not come, stops or drips ends at the deadline; the reason says how far it came."""
        for name, received, error in (
            ("silent", 0, "no answer within 20 s"),
            ("dripped_head", 4, "no complete answer within 20 s"),
            ("dripped_interim", 30, "no complete answer within 20 s"),
            ("half_head", 20, "no complete answer within 20 s"),
            ("dripped_body", 50, "answered 200, but its body was not complete within 20 s"),
            ("half_body", 40, "answered 200, but its body was not complete within 20 s"),
            ("half_chunk", 50, "answered 200, but its body was not complete within 20 s"),
            ("no_last_chunk", 50, "answered 200, but its body was not complete within 20 s"),
            ("no_end", 20, "answered 200, but its body was not complete within 20 s"),
        ):
            await self.attempt(
                ZOO[name], error, ends=TIMEOUT,
                when=lambda attempt, least=received: attempt.server.received and attempt.received >= least,
            )  # fmt: skip

    async def test_refusal(self) -> None:
        """The body of a refusal has a second; its status is the reason."""
        await self.attempt(
            ZOO["endless_refusal"], "answered 500", ends=REFUSAL_BODY_TIMEOUT,
            when=lambda attempt: attempt.received > 50,
        )  # fmt: skip

    async def test_request_not_read(self) -> None:
        """A server that does not read the request ends the attempt at the deadline."""
        await self.attempt(
            ZOO["never_reads"], "no answer within 20 s", body=LARGE, ends=TIMEOUT,
            when=lambda attempt: attempt.exchange.connection and attempt.exchange.connection.sending,
        )  # fmt: skip

    async def test_no_connection(self) -> None:
        """A port that does not answer, and a name that is looked up for too long, end at `connect_timeout`."""
        looked_up = Event()
        self.addCleanup(looked_up.set)
        sender = self.timed(resolve=lambda _: (looked_up.wait(60) and []) or [])
        with zoo.black_hole() as port:
            for url, error in (
                (f"https://127.0.0.1:{port}/", "no connection within 2 s"),
                ("https://slow.example/", "the DNS look-up of slow.example took over 2 s"),
            ):
                before = sockets()
                posting = ensureDeferred(sender.post(url, UUID, BODY))
                self.time.clock.advance(CONNECT_TIMEOUT - MOMENT)
                self.assertNoResult(posting)
                self.time.clock.advance(MOMENT)
                self.assertFailed(await posting, error)
                self.assertEqual(sockets(), before)
        await sender.close()
        self.assertEqual(self.time.clock.getDelayedCalls(), [])

    async def test_success_at_the_last_moment(self) -> None:
        """An answer just before the deadline acknowledges."""
        late = Deferred[None]()

        async def slow(wire: Wire) -> None:
            await wire.request()
            await late
            wire.write(b"HTTP/1.1 204 N\r\n\r\n")

        server, sender = self.server(slow), self.timed()
        posting = ensureDeferred(sender.post(server.url, UUID, BODY))
        await self.until(lambda: server.received)
        self.time.clock.advance(TIMEOUT - MOMENT)
        late.callback(None)
        self.assertAcknowledged(await posting)
        await sender.close()


class HeadTests(HostileCase):
    """Heads without end cost 64 KiB, and no time."""

    async def test_heads(self) -> None:
        """A head over 64 KiB in any form, and a switch of protocols, fail at once; a large one does not."""
        for name, error, kept in (
            ("endless_head", "malformed answer: its head is over 65536 bytes", False),
            ("long_line", "malformed answer: its head is over 65536 bytes", False),
            ("endless_interim", "malformed answer: its head is over 65536 bytes", False),
            ("empty_lines", "malformed answer: its head is over 65536 bytes", False),
            ("switches", "answered 101 (no protocol switch was requested)", False),
            ("interim_then_done", "", True),
            ("long_head", "", True),
        ):
            await self.attempt(ZOO[name], error, kept=kept)


class BodyTests(HostileCase):
    """Bodies that are too long, or cut."""

    async def test_too_long(self) -> None:
        """After 64 KiB of a body, or many small pieces, the status decides; its connection is not kept."""
        for name, error in (
            ("endless_body", ""), ("endless_small_chunks", ""), ("endless_small_records", ""), ("large_body", ""),
            ("unannounced_without_end", ""), ("large_body_of_500", "answered 500"),
        ):  # fmt: skip
            outcome, _ = await self.attempt(ZOO[name], error)
            self.assertLess(outcome.received, 2 * 65536)

    async def test_bomb(self) -> None:
        """What is compressed is not decoded: a body of 64 MB in 64 kB is 64 kB."""
        outcome, _ = await self.attempt(ZOO["gzip_bomb"], "", kept=True)
        self.assertLess(outcome.received, 70_000)

    async def test_ends(self) -> None:
        """What is cut short fails, whatever ends it; a body of unannounced length ends with its connection."""
        for framing, error in (
            (b"Content-Length: 9\r\n\r\nhalf", "answered 200, but its body was cut short"),
            (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "answered 200, but its body was cut short"),
            (b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf", "answered 200, but its body was cut short"),
            (b"Content-Length: 4\r\n\r\nhalf", ""),
            (b"\r\nhalf", ""),
        ):
            for version, end in product((b"1.1", b"1.0"), (Wire.close, Wire.cut)):
                answer = b"HTTP/%b 200 OK\r\nConnection: close\r\n%b" % (version, framing)
                await self.attempt(answering(answer, end), error)

    async def test_reset(self) -> None:
        """A connection that is reset within a body whose length is known fails the attempt."""
        await self.attempt(ZOO["reset_in_length"], "answered 200, but its body was cut short")

    async def test_behind_204(self) -> None:
        """Bytes behind a 204 change nothing but that its connection is not kept."""
        for name in ("body_behind_204", "announced_behind_204", "stray_bytes"):
            await self.attempt(ZOO[name], "")


class RedirectTests(HostileCase):
    """Redirects."""

    async def test_not_followed(self) -> None:
        """No redirect is followed, wherever it leads; the connection is as good as another."""
        other = self.sink()
        for status, target in product((300, 301, 302, 303, 305, 307, 308), (
            other.url, f"//127.0.0.1:{other.port}/", "/callback", "", "http://169.254.169.254/latest/meta-data/",
            "https://user:password@127.0.0.1/", "file:///etc/passwd", "https://" + "a" * 25_000, "\x7f\xff",
        )):  # fmt: skip
            answer = Answer(status, headers=(("Location", target), ("Refresh", f"0; url={target}")))
            outcome, server = await self.attempt(
                answering(answer.encode()), f"answered {status} (redirects are not followed)", kept=True
            )
            self.assertEqual((len(server.received), server.connections, outcome.answer), (1, 1, ""))
        self.assertEqual(other.connections, 0)


class CertificateTests(HostileCase):
    """Servers that are not the intended one: they get no byte of a request."""

    async def test_refused(self) -> None:
        """Each fault of a certificate, a version or a handshake has its reason."""
        now, day = datetime.now(UTC), timedelta(days=1)
        past = {"not_before": now - 2 * day, "not_after": now - day}
        future = {"not_before": now + day, "not_after": now + 2 * day}
        own = [IPAddress(ip_address("127.0.0.1"))]
        for issue, error in (
            (partial(AUTHORITY.issue, **past), "the certificate has expired"),
            (partial(AUTHORITY.issue, **future), "the certificate is not yet valid"),
            (partial(AUTHORITY.issue, "other.example"), "the certificate is not for 127.0.0.1"),
            (Authority().issue, "the certificate is from an unknown authority"),
            (partial(zoo.certificate, own), "the certificate is self-signed"),
        ):
            for options in (TLS_1_2, {}):
                _, server = await self.attempt(ZOO["silent"], error, options=issue(**options))
                self.assertEqual(server.heard, 0, error)

    async def test_handshake(self) -> None:
        """A handshake that fails ends the attempt at once, with TLS's own text where there is one."""
        for name, error in (
            ("closes_in_handshake", "the connection was closed before"),
            ("resets_in_handshake", "the connection was closed before"),
            ("chooses_tls_1_1", "TLS failed: "),
            ("speaks_first", "TLS failed: "),
            ("speaks_plain_http", "TLS failed: "),
        ):
            await self.attempt(BEFORE_TLS[name], error, options=None)

    async def test_client_certificate(self) -> None:
        """A server that demands a certificate where there is none gets no request."""
        for options, error in ((TLS_1_2, "TLS failed: "), ({}, "certificate required")):
            demanding = zoo.demand_certificate(AUTHORITY.issue(**options))
            _, server = await self.attempt(ZOO["silent"], error, options=demanding)
            self.assertEqual(server.heard, 0)

    async def test_renegotiation(self) -> None:
        """A new handshake on the connection is refused: a server could keep the processor busy with them."""
        options = AUTHORITY.issue(**TLS_1_2)
        _, server = await self.attempt(renegotiates, "TLS failed: ", options=options)
        self.assertEqual(len(server.received), 1)


class StaleTests(HostileCase):
    """A kept connection that the server ends: at each point of a race, what happens to the second batch."""

    async def test_race_points(self) -> None:
        """Unless a byte of an answer came, the batch is sent again on a new connection; no attempt fails."""
        ends = ("close", "cut", "reset")
        for name, connections, requests in (
            *((f"{end}s_when_idle", 2, 2) for end in ends),
            *((f"{end}s_on_reuse", 2, 2) for end in ends),
            *((f"{end}s_when_sent", 2, 3) for end in ends),  # the server has it twice: the bus cannot know
            ("only_notifies_when_idle", 2, 2),
            ("only_notifies_on_reuse", 2, 2),
        ):
            _, server = await self.attempt(ZOO[name], "", attempts=2, kept=True)
            self.assertEqual((server.connections, len(server.received)), (connections, requests), name)
