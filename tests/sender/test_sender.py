"""The sender against real TLS on loopback: which answers acknowledge, and that no connection stays open."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path
from threading import Event
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Outcome, Verdict
from routemaster.sender import TreqSender, exchange, pool
from routemaster.sender import dns_cache as names_module
from routemaster.sender.client import STOPPING
from routemaster.sender.dns_cache import NoAddress
from routemaster.sender.exchange import retry_after
from routemaster.sender.failure_reasons import MAX_REASON
from routemaster.testing import zoo
from routemaster.testing.zoo import MALFORMED, ZOO, Answer, Authority, Beast, HttpsSink

AUTHORITY = Authority()
SERVER = AUTHORITY.issue()
UUID = "canary-8f14e45f"
HEAD = b"HTTP/1.1 %b X\r\n"


class PostingSender(TreqSender):
    """A sender that posts a given body."""

    async def post(self, callback: str, uuid: str | None, body: bytes) -> Outcome:
        async with self.turn(callback, uuid) as turn:
            return await turn.post(body)


class SenderCase(TestCase):
    """Makes senders and servers, and checks that each test leaves no connection open."""

    timeout = 20

    def setUp(self) -> None:
        self.ca_file = AUTHORITY.write(Path(self.mktemp()))

    def sender(self, **options: Any) -> PostingSender:
        options = {"user_agent": "routemaster/9", "timeout": 5.0, "ca_files": [self.ca_file], **options}
        sender = PostingSender(reactor, **options)

        async def close() -> None:
            await sender.close()
            self.assertEqual((sender.pool.open, sender.queue.active, sender.queue.waiting), (0, 0, 0))

        self.addCleanup(lambda: ensureDeferred(close()))
        return sender

    def sink(self, *script: Answer, **options: Any) -> HttpsSink:
        return self._stopped(HttpsSink(reactor, SERVER, *script, **options))

    def beast(self, behaviour: Any, options: Any = SERVER) -> Beast:
        return self._stopped(Beast(reactor, options, ZOO.get(behaviour, behaviour)))

    def saying(self, answer: bytes, close: bool = False) -> Beast:
        async def say(wire: zoo.Wire) -> None:
            while True:
                await wire.request()
                wire.write(answer)
                if close:
                    wire.close()

        return self.beast(say)

    def _stopped(self, beast: Any) -> Any:
        self.addCleanup(lambda: ensureDeferred(beast.stop()))
        return beast

    async def gone(self, beast: Beast) -> None:
        """Wait until the server has seen every connection close."""
        await beast.empty()

    def assertAcknowledged(self, outcome: Outcome) -> None:
        self.assertEqual((outcome.verdict, outcome.error), (Verdict.ACKNOWLEDGED, ""), outcome)

    def assertFailed(self, outcome: Outcome, error: str) -> None:
        self.assertEqual(outcome.verdict, Verdict.FAILED, outcome)
        self.assertIn(error, outcome.error)
        self.assertLessEqual(len(outcome.error), MAX_REASON)
        self.assertNotIn(UUID, outcome.error)


class Request(SenderCase):
    """What is sent."""

    async def test_request(self) -> None:
        """A delivery is one POST: documented headers, the uuid as user name and password, the exact body."""
        sink = self.sink()
        self.assertAcknowledged(await self.sender().post(sink.url, UUID, b"[1, 2]"))
        [request] = sink.received
        self.assertEqual(request.line, b"POST /callback HTTP/1.1")
        self.assertEqual(request.body, b"[1, 2]")
        self.assertEqual(request.headers, {
            b"host": b"127.0.0.1:%d" % sink.port,
            b"content-type": b"application/json",
            b"content-length": b"6",
            b"user-agent": b"routemaster/9",
            b"accept-encoding": b"identity",
            b"authorization": b"Basic " + b64encode(f"{UUID}:{UUID}".encode()),
        })

    async def test_no_uuid(self) -> None:
        """Without a uuid there is no Authorization header, even after a delivery that had one."""
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        await sender.post(sink.url, None, b"[]")
        self.assertNotIn(b"authorization", sink.received[1].headers)

    async def test_large_body(self) -> None:
        """A body of 3 MB arrives complete."""
        sink, body = self.sink(), os.urandom(3_000_000)
        self.assertAcknowledged(await self.sender().post(sink.url, None, body))
        self.assertEqual(sink.received[0].body, body)

    async def test_no_cookies(self) -> None:
        """A cookie set by a response is not sent in later requests."""
        sink, sender = self.sink(Answer(headers=(("Set-Cookie", "a=b; Path=/"),))), self.sender()
        for _ in range(2):
            await sender.post(sink.url, None, b"[]")
        self.assertNotIn(b"cookie", sink.received[1].headers)

    async def test_reuse(self) -> None:
        """The connection is used again, and the outcome reports it."""
        sink, sender = self.sink(Answer(200, b"fine"), Answer(500, b"no")), self.sender()
        outcomes = [await sender.post(sink.url, None, b"[]") for _ in range(3)]
        self.assertEqual([outcome.reused for outcome in outcomes], [False, True, True])
        self.assertEqual([request.connection for request in sink.received], [1, 1, 1])
        self.assertEqual(outcomes[0].received, 4)

    async def test_bad_callback(self) -> None:
        """An invalid callback is a failed attempt, not an exception."""
        self.assertFailed(await self.sender().post("http://x/", None, b"[]"), "expected an https:// URL")


class Answers(SenderCase):
    """Which answers acknowledge."""

    async def test_statuses(self) -> None:
        """200 and 204 acknowledge; no other status does."""
        sender = self.sender()
        for status in (200, 201, 202, 206, 299, 400, 404, 410, 500, 503):
            outcome = await sender.post(self.sink(Answer(status)).url, UUID, b"[]")
            self.assertEqual(outcome.status, status)
            if status == 200:
                self.assertAcknowledged(outcome)
            else:
                self.assertFailed(outcome, f"answered {status}")
        self.assertAcknowledged(await sender.post(self.sink().url, UUID, b"[]"))

    async def test_redirects(self) -> None:
        """No redirect is followed: no connection is opened to its target."""
        other, sender = self.sink(), self.sender()
        for status in (301, 302, 303, 307, 308):
            sink = self.sink(Answer(status, headers=(("Location", other.url),)))
            self.assertFailed(await sender.post(sink.url, UUID, b"[]"), "redirects are not followed")
        self.assertEqual(other.connections, 0)

    async def test_unusual_but_valid(self) -> None:
        """Responses that are valid but unusual acknowledge."""
        sender = self.sender()
        for name in ("interim_then_done", "chunked", "says_close", "old_version", "closed_at_end", "stray_bytes"):
            self.assertAcknowledged(await sender.post(self.beast(name).url, UUID, b"[]"))

    async def test_malformed(self) -> None:
        """A response that is not valid HTTP/1.x never acknowledges, and its connection is closed."""
        sender = self.sender()
        for name, answer in MALFORMED.items():
            beast = self.saying(answer)
            outcome = await sender.post(beast.url, UUID, b"[]")
            self.assertEqual(outcome.verdict, Verdict.FAILED, (name, outcome))
            self.assertNotIn("within", outcome.error, name)
            await self.gone(beast)

    async def test_not_decoded(self) -> None:
        """A compressed body is counted, and never decompressed."""
        outcome = await self.sender().post(self.beast("gzip_bomb").url, UUID, b"[]")
        self.assertAcknowledged(outcome)
        self.assertEqual(outcome.received, 4)

    async def test_cut_short(self) -> None:
        """A body that is cut short does not acknowledge."""
        sender = self.sender()
        for name in ("cut_in_length", "reset_in_length", "cut_in_chunks", "closed_without_notify"):
            beast = self.beast(name)
            outcome = await sender.post(beast.url, UUID, b"[]")
            self.assertFailed(outcome, "cut short")
            self.assertEqual(outcome.status, 200)
            await self.gone(beast)

    async def test_body_over_limit(self) -> None:
        """A valid 200 acknowledges when its body exceeds the limit, and the connection is aborted."""
        beast = self.beast("endless_body")
        outcome = await self.sender().post(beast.url, UUID, b"[]")
        self.assertAcknowledged(outcome)
        self.assertGreater(outcome.received, 65536)
        self.assertLess(outcome.received, 65536 + 32768)
        await self.gone(beast)

    async def test_not_reusable(self) -> None:
        """A connection is aborted, not kept, after `Connection: close`, HTTP/1.0, or bytes after the response."""
        sender = self.sender()
        for name in ("says_close", "stray_bytes", "old_version"):
            beast = self.beast(name)
            await sender.post(beast.url, UUID, b"[]")
            self.assertEqual(sender.pool.idle, 0, name)
            await self.gone(beast)

    async def test_switching(self) -> None:
        """101 is a failure."""
        beast = self.beast("switches")
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "answered 101")
        await self.gone(beast)

    async def test_retry_after(self) -> None:
        """Retry-After of 429 and 503 is returned in seconds; for other statuses it is ignored."""
        sender, later = self.sender(), (("Retry-After", "7"),)
        for status, expected in ((429, 7.0), (503, 7.0), (500, None)):
            outcome = await sender.post(self.sink(Answer(status, headers=later)).url, UUID, b"[]")
            self.assertEqual(outcome.retry_after, expected)


class Limits(SenderCase):
    """Whatever the server does, an attempt ends, and its socket is closed."""

    async def late(self, behaviour: Any, error: str, options: Any = SERVER) -> Outcome:
        beast = self.beast(behaviour, options)
        sender = self.sender(timeout=0.2)
        outcome = await sender.post(beast.url, UUID, b"[]" * 1000)
        self.assertFailed(outcome, error)
        await self.gone(beast)
        self.assertEqual(sender.pool.open, 0)
        return outcome

    async def test_silent(self) -> None:
        """A server that does not respond ends the attempt at the deadline."""
        await self.late("silent", "no answer within 0.2 s")

    async def test_dripped_head(self) -> None:
        """A dripped head ends at the deadline."""
        await self.late("dripped_head", "no complete answer within 0.2 s")

    async def test_dripped_body(self) -> None:
        """A body that arrives byte by byte ends at the deadline and does not acknowledge."""
        outcome = await self.late("dripped_body", "not complete within 0.2 s")
        self.assertEqual(outcome.status, 200)

    async def test_endless_error_body(self) -> None:
        """After an error status whose body does not end, the status is the reason."""
        await self.late("endless_refusal", "answered 500")

    async def test_refusal_is_not_waited_for(self) -> None:
        """The body of a refusal gets a short time of its own, not the rest of the deadline."""
        self.patch(exchange, "REFUSAL_BODY_TIMEOUT", 0.1)
        beast, start = self.beast("endless_refusal"), reactor.seconds()
        self.assertFailed(await self.sender(timeout=9.0).post(beast.url, UUID, b"[]"), "answered 500")
        self.assertLess(reactor.seconds() - start, 5.0)
        await self.gone(beast)

    async def test_no_handshake(self) -> None:
        """A server that does not start TLS ends the attempt at the deadline."""
        await self.late(zoo.silent_port, "no TLS handshake within 0.2 s", None)

    async def test_never_reads(self) -> None:
        """A server that does not read a large body ends the attempt at the deadline."""
        beast, sender = self.beast("never_reads"), self.sender(timeout=0.3)
        self.assertFailed(await sender.post(beast.url, UUID, bytes(20_000_000)), "within 0.3 s")
        self.assertEqual(sender.pool.open, 1)  # the abort takes effect in the reactor's next turn
        await deferLater(reactor, 0)
        self.assertEqual(sender.pool.open, 0)

    async def test_head_limit(self) -> None:
        """An endless head, line or series of 1xx responses ends at 64 KiB, and nothing is logged."""
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        sender = self.sender()
        for name in ("endless_head", "long_line", "endless_interim"):
            beast = self.beast(name)
            self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "over 65536 bytes")
            await self.gone(beast)
        self.assertEqual([line for line in lines if "Ignoring" in str(line.get("log_format"))], [])

    async def test_long_head(self) -> None:
        """A complete head acknowledges up to 64 KiB."""
        sender = self.sender()
        for size, expected in ((65000, Verdict.ACKNOWLEDGED), (66000, Verdict.FAILED)):
            padding = b"X: " + b"x" * 995 + b"\r\n"
            beast = self.saying(b"HTTP/1.1 204 N\r\n" + padding * (size // 1000) + b"\r\n")
            self.assertEqual((await sender.post(beast.url, UUID, b"[]")).verdict, expected)

    async def test_black_hole(self) -> None:
        """A connection attempt without an answer ends at `connect_timeout`."""
        with zoo.black_hole() as port:
            outcome = await self.sender(connect_timeout=0.2).post(f"https://127.0.0.1:{port}/", UUID, b"[]")
        self.assertFailed(outcome, "no connection within 0.2 s")

    async def test_refused(self) -> None:
        """A refused connection is reported as such."""
        with zoo.closed_port() as port:
            outcome = await self.sender().post(f"https://127.0.0.1:{port}/", UUID, b"[]")
        self.assertFailed(outcome, "connection refused")

    async def test_closed_before_answer(self) -> None:
        """A new connection that closes before the response fails the attempt without a second POST."""
        beast = self.beast("closes_before_answer")
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(beast.connections, 1)


class Stale(SenderCase):
    """A kept connection that the server closes while it is used."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(pool, "IDLE", 600.0)  # a slow machine must not close it before

    async def test_retried_on_a_new_connection(self) -> None:
        """If a kept connection closes before a byte of the response, the POST is repeated on a new one."""
        for name in ("closes_on_reuse", "resets_on_reuse"):
            beast, sender = self.beast(name), self.sender()
            outcomes = [await sender.post(beast.url, UUID, b"[]") for _ in range(2)]
            for outcome in outcomes:
                self.assertAcknowledged(outcome)
            self.assertEqual([outcome.reused for outcome in outcomes], [False, False])
            self.assertEqual(beast.connections, 2)

    async def test_not_retried_after_a_byte(self) -> None:
        """After one byte of the response the attempt fails, and nothing is posted twice."""
        async def byte_on_reuse(wire: zoo.Wire) -> None:
            await wire.request()
            wire.write(b"HTTP/1.1 204 N\r\n\r\n")
            await wire.request()
            wire.write(b"H")
            wire.close()

        beast, sender = self.beast(byte_on_reuse), self.sender()
        await sender.post(beast.url, UUID, b"[]")
        self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual((beast.connections, len(beast.received)), (1, 2))

    async def test_retried_once_only(self) -> None:
        """The POST is repeated once only."""
        async def first_only(wire: zoo.Wire) -> None:
            await wire.request()
            if wire.number == 1:
                wire.write(b"HTTP/1.1 204 N\r\n\r\n")
                await wire.more()
            wire.close()

        beast, sender = self.beast(first_only), self.sender()
        await sender.post(beast.url, UUID, b"[]")
        self.assertFailed(await sender.post(beast.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(beast.connections, 2)


class Sharing(SenderCase):
    """Many deliveries at once."""

    async def test_limit_per_server(self) -> None:
        """A server has at most `max_per_server` attempts; another port of its host is another server."""
        hanging, sink = self.beast("silent"), self.sink()
        sender = self.sender(max_per_server=2, max_open=8, timeout=5.0)
        stuck = [ensureDeferred(sender.post(hanging.url, UUID, b"[]")) for _ in range(6)]
        self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
        self.assertEqual((sender.queue.active, sender.queue.waiting), (2, 4))
        for each in reversed(stuck):
            each.cancel()
        for success, result in await DeferredList(stuck, consumeErrors=True):
            self.assertFalse(success)
            self.assertTrue(result.check(CancelledError))

    async def test_turn_comes_before_the_body(self) -> None:
        """A second turn at a full server waits until the first ends; a turn may end without a POST."""
        sink, sender, ready = self.sink(), self.sender(max_per_server=1), Deferred[bytes]()
        entered: list[str] = []

        async def first() -> Outcome:
            async with sender.turn(sink.url, UUID) as turn:
                entered.append("first")
                return await turn.post(await ready)

        async def second() -> None:
            async with sender.turn(sink.url, UUID):
                entered.append("second")

        posting, waiting = ensureDeferred(first()), ensureDeferred(second())
        self.assertEqual((entered, sender.queue.active, sender.queue.waiting), (["first"], 1, 1))
        ready.callback(b"[1]")
        self.assertAcknowledged(await posting)
        await waiting
        self.assertEqual((entered, [request.body for request in sink.received]), (["first", "second"], [b"[1]"]))

    async def test_error_inside_a_turn(self) -> None:
        """An exception inside a turn is raised, and the turn is free again."""
        sender, url = self.sender(), self.sink().url

        async def fail() -> None:
            async with sender.turn(url, UUID):
                raise StoreUnavailable("the store is away")

        await self.assertFailure(ensureDeferred(fail()), StoreUnavailable)
        self.assertEqual((sender.queue.active, sender.pool.open), (0, 0))

    async def test_closed_inside_a_turn(self) -> None:
        """A sender that was closed during a turn opens no connection."""
        sink, sender, ready = self.sink(), self.sender(), Deferred[bytes]()

        async def post() -> Outcome:
            async with sender.turn(sink.url, UUID) as turn:
                return await turn.post(await ready)

        posting = ensureDeferred(post())
        await sender.close()
        ready.callback(b"[1]")
        self.assertEqual((await posting, sink.connections), (STOPPING, 0))

    async def test_waiting_is_not_timed(self) -> None:
        """Waiting in the queue is not part of the deadline."""
        sink = self.sink(default=Answer(delay=0.25))
        sender = self.sender(max_per_server=1, timeout=1.0)
        outcomes = await gatherResults([ensureDeferred(sender.post(sink.url, UUID, b"[]")) for _ in range(6)])
        for outcome in outcomes:
            self.assertAcknowledged(outcome)
        self.assertEqual(sink.connections, 1)

    async def test_idle_makes_room(self) -> None:
        """At `max_open`, an idle connection is closed for a new one."""
        sinks, sender = [self.sink() for _ in range(4)], self.sender(max_open=2, max_per_server=2)
        for sink in sinks:
            self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
            self.assertLessEqual(len([wire for each in sinks for wire in each.wires]), 3)
        await self.gone(sinks[0])
        self.assertLessEqual(sender.pool.open, 2)

    async def test_cancel(self) -> None:
        """Cancelling a delivery closes its socket in every phase, and raises only CancelledError."""
        for behaviour, options in ((zoo.silent_port, None), ("silent", SERVER), ("dripped_body", SERVER)):
            beast, sender = self.beast(behaviour, options), self.sender()
            sending = ensureDeferred(sender.post(beast.url, UUID, b"[]"))
            await deferLater(reactor, 0.05)
            self.assertEqual(beast.connections, 1)
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            await self.gone(beast)

    async def test_cancel_connecting(self) -> None:
        """Cancelling during the TCP connect frees the place in the queue."""
        with zoo.black_hole() as port:
            sender = self.sender()
            sending = ensureDeferred(sender.post(f"https://127.0.0.1:{port}/", UUID, b"[]"))
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            self.assertEqual(sender.queue.active, 0)

    async def test_close(self) -> None:
        """Closing ends active, waiting and later attempts with LOCAL."""
        beast = self.beast("silent")
        sender = self.sender(max_per_server=1)
        sending = [ensureDeferred(sender.post(beast.url, UUID, b"[]")) for _ in range(2)]
        await sender.close()
        for outcome in [*(await gatherResults(sending)), await sender.post(beast.url, UUID, b"[]")]:
            self.assertEqual((outcome.verdict, outcome.error), (Verdict.LOCAL, "the bus is stopping"))
        await self.gone(beast)

    async def test_idle_timeout(self) -> None:
        """An idle connection is closed after `IDLE` seconds."""
        self.patch(pool, "IDLE", 0.05)
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        self.assertEqual(sender.pool.idle, 1)
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))

    async def test_peer_closes_idle(self) -> None:
        """An idle connection that the server closes leaves the pool."""
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        for wire in tuple(sink.wires):
            wire.close()
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))


class Resolving(SenderCase):
    """Host names."""

    async def test_hanging_look_ups(self) -> None:
        """While many look-ups hang, a cached name is still used; each hanging one ends at `connect_timeout`."""
        dead = Event()
        self.addCleanup(dead.set)
        sink = self.sink()

        def ask(name: str) -> list[str]:
            if name != "localhost":
                dead.wait(10)
            return ["127.0.0.1"]

        self.patch(names_module, "STALE", 0.0)
        sender = self.sender(resolve=ask, connect_timeout=0.3)
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        stuck = [ensureDeferred(sender.post(f"https://dead{n}.example/", UUID, b"[]")) for n in range(40)]
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertFalse(any(each.called for each in stuck))
        for outcome in await gatherResults(stuck):
            self.assertFailed(outcome, "took over 0.3 s")

    async def test_second_address(self) -> None:
        """If the first address refuses, the second one is tried, and tried first afterwards."""
        sink = self.sink()
        sender = self.sender(resolve=lambda _: ["127.0.0.2", "127.0.0.1"])
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual((await sender._dns.addresses("localhost", 1.0))[0], "127.0.0.1")

    async def test_unknown_name(self) -> None:
        """A name that does not resolve is reported as such."""
        def ask(name: str) -> list[str]:
            raise NoAddress(f"the name {name} does not resolve")

        outcome = await self.sender(resolve=ask).post("https://no.example/", UUID, b"[]")
        self.assertFailed(outcome, "does not resolve")


class RetryAfterTests(SynchronousTestCase):
    """The Retry-After header."""

    def test_retry_after(self) -> None:
        """Seconds and HTTP dates are read, a date relative to the response's Date; other values are ignored."""
        date = "Mon, 02 Nov 2026 10:00:00 GMT"
        for value, expected in {
            "120": 120.0, "0": 0.0, "Mon, 02 Nov 2026 10:01:30 GMT": 90.0, "Mon, 02 Nov 2026 09:00:00 GMT": 0.0,
            "-1": None, "soon": None, "1.5": None, "": None, "9" * 5000: 999999999.0,
        }.items():
            self.assertEqual(retry_after(Headers({"retry-after": [value], "date": [date]})), expected)
        self.assertIsNone(retry_after(Headers({"retry-after": [date]})))
        self.assertIsNone(retry_after(Headers()))
