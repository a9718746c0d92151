"""One POST and its answer, over real TLS on loopback."""

from __future__ import annotations

import os
from base64 import b64encode
from unittest.mock import Mock

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from routemaster.interfaces import Verdict
from routemaster.sender import exchange, pool
from routemaster.sender.exchange import retry_after
from routemaster.sender.target import Target
from routemaster.testing import zoo
from routemaster.testing.odd_answers import LENIENT, MALFORMED
from routemaster.testing.zoo import Answer
from routemaster.util.work_queue import STEP, WorkQueue
from tests.sender.case import UUID, SenderCase


class BodyTests(SynchronousTestCase):
    """How a body is written."""

    def exchange(self, clock: Clock, body: bytes, writing: WorkQueue | None = None) -> exchange.Exchange:
        target = Target.parse("https://127.0.0.1/events", None, "routemaster/9")
        acknowledging, writing = exchange.Acknowledging((200,)), WorkQueue(clock) if writing is None else writing
        sent = exchange.Exchange(None, clock, writing, 20, acknowledging, target, body, 1)
        self.addCleanup(sent.abort)
        return sent

    def test_no_faster_than_it_is_read(self) -> None:
        """A receiver that reads slowly has one piece of the body waiting for it, not the whole body."""
        written, body = bytearray(), os.urandom(3 * exchange.PIECE + 5)
        sent = self.exchange(Clock(), body)

        class Slow:
            def write(self, data: bytes) -> None:
                written.extend(data)
                sent.pauseProducing()

        done = sent.startProducing(Slow())
        for pieces in (1, 2, 3):
            self.assertEqual(len(written), pieces * exchange.PIECE)
            self.assertNoResult(done)
            sent.resumeProducing()
        self.successResultOf(done)
        self.assertEqual(bytes(written), body)
        sent.abort()


    def test_in_turns(self) -> None:
        """Many long bodies are written a little in each turn of the reactor; a short one is written at once."""
        clock, written = Clock(), list[int]()
        writing = WorkQueue(clock)

        class Consumer:
            def write(self, data: bytes) -> None:
                written.append(len(data))
                clock.rightNow += STEP

        def start(size: int) -> None:
            self.exchange(clock, bytes(size), writing).startProducing(Consumer())

        start(exchange.PIECE + 1)
        for _ in range(3):
            start(exchange.PIECE + 2)
        self.assertEqual(written, [exchange.PIECE, 1], "the second waits for its turn")
        start(100)
        self.assertEqual(written[2:], [100])
        clock.advance(0)
        self.assertEqual(written[3:], 3 * [exchange.PIECE, 2])

    def test_ended(self) -> None:
        """A body whose exchange has ended before its turn is not written."""
        clock, written = Clock(), list[bytes]()
        writing = WorkQueue(clock)
        writing.add(lambda: None)
        sent = self.exchange(clock, bytes(2 * exchange.PIECE), writing)
        sent.startProducing(Mock(write=written.append))
        sent.abort()
        clock.advance(0)
        self.assertEqual(written, [])


class RequestTests(SenderCase):
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
            b"accept": b"*/*",
            b"routemaster-attempt": b"1",
            b"content-length": b"6",
            b"user-agent": b"routemaster/9",
            b"accept-encoding": b"identity",
            b"authorization": b"Basic " + b64encode(f"{UUID}:{UUID}".encode()),
        })

    async def test_attempt(self) -> None:
        """Each request carries the number of its attempt."""
        sink, sender = self.sink(), self.sender()
        for number in (2, 1, 35):
            async with sender.turn(sink.url, UUID) as turn:
                self.assertAcknowledged(await turn.post(b"[]", number))
        self.assertEqual([each.headers[b"routemaster-attempt"] for each in sink.received], [b"2", b"1", b"35"])

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

    async def test_scheme_in_upper_case(self) -> None:
        """A callback in upper case with an empty port leads to port 443, and its text is not in the request."""
        ports: list[int] = []
        sender = self.sender()
        connect = sender.pool.connect
        self.patch(sender.pool, "connect", lambda key: ports.append(key[1]) or connect((key[0], sink.port)))
        sink = self.sink()
        self.assertAcknowledged(await sender.post("HTTPS://127.0.0.1:/callback", UUID, b"[]"))
        [request] = sink.received
        self.assertEqual((request.line, request.headers[b"host"]), (b"POST /callback HTTP/1.1", b"127.0.0.1"))
        self.assertEqual(ports, [443])

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


class AnswerTests(SenderCase):
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

    async def test_other_acknowledging_statuses(self) -> None:
        """Which statuses acknowledge is an option; the reason of another 2xx says which do."""
        for acknowledge, accepted, refused, why in (
            ((200, 204), 204, 202, "answered 202 (only 200 and 204 acknowledge)"),
            ((204, 201, 200), 201, 202, "answered 202 (only 200, 201 and 204 acknowledge)"),
            ((202,), 202, 200, "answered 200 (only 202 acknowledges)"),
            (range(200, 300), 226, 400, "answered 400"),
        ):
            sender = self.sender(acknowledge=acknowledge)
            self.assertAcknowledged(await sender.post(self.sink(Answer(accepted)).url, UUID, b"[]"))
            outcome = await sender.post(self.sink(Answer(refused)).url, UUID, b"[]")
            self.assertEqual((outcome.verdict, outcome.error), (Verdict.FAILED, why))

    async def test_quoted_body(self) -> None:
        """The reason of a refusal has the first line of its body, with the uuid masked."""
        sender, secret = self.sender(), b64encode(f"{UUID}:{UUID}".encode())
        for status, body, why in (
            (500, b"\r\n no database\r\nTraceback", "answered 500: no database"),
            (202, b"queued", "answered 202 (only 200 and 204 acknowledge): queued"),
            (401, b"no user " + UUID.encode() + b", " + secret, "answered 401: no user ********, ********"),
            (400, b"\x1f\x8b\x08", "answered 400"),
            (400, "\ufeffbad\tvalue\x00".encode(), "answered 400: bad value"),
            (500, "Größe ungültig: ошибка\u202e".encode(), "answered 500: Größe ungültig: ошибка"),
            (500, "Größe".encode("latin-1"), "answered 500: Gr"),
            (400, b"x" * 70_000, "answered 400: " + "x" * 120),
        ):
            outcome = await sender.post(self.sink(Answer(status, body)).url, UUID, b"[]")
            self.assertEqual((outcome.verdict, outcome.error), (Verdict.FAILED, why))
            self.assertEqual(outcome.reason, why.partition(":")[0])
        self.assertAcknowledged(await sender.post(self.sink(Answer(200, b"fine")).url, UUID, b"[]"))

    async def test_beginning_of_the_answer(self) -> None:
        """The outcome has the answer's first 200 characters as text, the uuid masked, whatever the status."""
        sender, secret = self.sender(), b64encode(f"{UUID}:{UUID}".encode())
        for body, answer in (
            (b"", ""), (b"fine", "fine"), (b" a\tb\r\nc\x00\xff", " a\tb\r\nc\ufffd\ufffd"),
            (b"x" * 70_000, "x" * 200), ("\u00e9".encode() * 300, "\u00e9" * 200),
            (b"x" * 190 + UUID.encode(), "x" * 190 + "*" * 8),
            (b"x" * 190 + secret, "x" * 190 + "*" * 8), (b"x" * 199 + UUID.encode(), "x" * 199 + "*"),
        ):  # fmt: skip
            for status in (200, 400, 503):
                outcome = await sender.post(self.sink(Answer(status, body)).url, UUID, b"[]")
                self.assertEqual((outcome.status, outcome.answer), (status, answer))

    async def test_unusual_but_valid(self) -> None:
        """Responses that are valid but unusual acknowledge."""
        sender = self.sender()
        for name in ("interim_then_done", "chunked", "says_close", "old_version", "long_head", "stray_bytes"):
            self.assertAcknowledged(await sender.post(self.server(name).url, UUID, b"[]"))

    async def test_lenient(self) -> None:
        """An answer that a browser reads acknowledges, and its connection is not used again."""
        for name in LENIENT:
            sender, server = self.sender(), self.server(name)
            for _ in range(3):
                self.assertAcknowledged(await sender.post(server.url, UUID, b"[]"))
            self.assertEqual([each.connection for each in server.received], [1, 2, 3], name)
            self.assertEqual(len(server.received), 3)

    async def test_malformed(self) -> None:
        """A response that cannot be read never acknowledges, and its connection is closed."""
        sender = self.sender()
        for name, answer in MALFORMED.items():
            server = self.saying(answer)
            outcome = await sender.post(server.url, UUID, b"[]")
            self.assertEqual(outcome.verdict, Verdict.FAILED, (name, outcome))
            self.assertNotIn("within", outcome.error, name)
            self.assertNotIn(":", outcome.reason, name)  # nothing of the answer
            await self.gone(server)

    async def test_not_reusable(self) -> None:
        """A connection is aborted, not kept, after `Connection: close`, HTTP/1.0, or bytes after the response."""
        sender = self.sender()
        for name in ("says_close", "stray_bytes", "old_version"):
            server = self.server(name)
            await sender.post(server.url, UUID, b"[]")
            self.assertEqual(sender.pool.idle, 0, name)
            await self.gone(server)

    async def test_retry_after(self) -> None:
        """Retry-After of 429 and 503 is returned in seconds; for other statuses it is ignored."""
        sender, later = self.sender(), (("Retry-After", "7"),)
        for status, expected in ((429, 7.0), (503, 7.0), (500, None)):
            outcome = await sender.post(self.sink(Answer(status, headers=later)).url, UUID, b"[]")
            self.assertEqual(outcome.retry_after, expected)


class LimitTests(SenderCase):
    """Whatever the server does, an attempt ends, and its socket is closed."""

    async def test_long_head(self) -> None:
        """A complete head acknowledges up to 64 KiB."""
        sender = self.sender()
        for size, expected in ((65000, Verdict.ACKNOWLEDGED), (66000, Verdict.FAILED)):
            for lines in (1, 65):
                padding = b"X: " + b"x" * (size // lines - 5) + b"\r\n"
                server = self.saying(b"HTTP/1.1 204 N\r\n" + padding * lines + b"\r\n")
                self.assertEqual((await sender.post(server.url, UUID, b"[]")).verdict, expected)

    async def test_empty_lines_limit(self) -> None:
        """Empty lines before a status line count as a part of the head."""
        server = self.saying(b"\r\n" * 33_000 + b"HTTP/1.1 204 N\r\n\r\n")
        self.assertFailed(await self.sender().post(server.url, UUID, b"[]"), "over 65536 bytes")

    async def test_closed_while_sending(self) -> None:
        """The outcome tells a connection that was closed before the request was sent from other failures."""
        sender, large = self.sender(), bytes(1_000_000)
        for name, body, cut in (
            ("closes_while_reading", large, True), ("closes_before_answer", large, False),
            ("closes_before_answer", b"[]", False), ("cut_in_length", large, False),
        ):  # fmt: skip
            outcome = await sender.post(self.server(name).url, UUID, body)
            self.assertFailed(outcome, "closed while the request" if cut else "")
            self.assertEqual(outcome.cut, cut, name)

    async def test_answer_while_sending(self) -> None:
        """An answer that comes before the request is sent counts, and the connection is not used again."""
        sender = self.sender()
        for name in ("refuses_while_reading", "refuses_and_reads_no_more"):
            outcome = await sender.post(self.server(name).url, UUID, bytes(1_000_000))
            self.assertFailed(outcome, "answered 413: huge")
            self.assertEqual((outcome.status, sender.pool.idle), (413, 0))

    async def test_closed_before_answer(self) -> None:
        """A new connection that closes before the response fails the attempt without a second POST."""
        server = self.server("closes_before_answer")
        self.assertFailed(await self.sender().post(server.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(server.connections, 1)


class StaleTests(SenderCase):
    """A kept connection that the server closes while it is used."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(pool, "IDLE", 600.0)  # a slow machine must not close it before

    async def test_second_connection_fails(self) -> None:
        """If the new connection cannot be opened, the outcome says that none was used again."""
        server, sender = self.server("closes_on_reuse"), self.sender()
        callback = server.url
        self.assertAcknowledged(await sender.post(callback, UUID, b"[]"))
        await server.close_port()
        outcome = await sender.post(callback, UUID, b"[]")
        self.assertFailed(outcome, "connection refused")
        self.assertFalse(outcome.reused)

    async def test_not_retried_after_a_byte(self) -> None:
        """After one byte of the response the attempt fails, and nothing is posted twice."""
        async def byte_on_reuse(wire: zoo.Wire) -> None:
            await wire.request()
            wire.write(b"HTTP/1.1 204 N\r\n\r\n")
            await wire.request()
            wire.write(b"H")
            wire.close()

        server, sender = self.server(byte_on_reuse), self.sender()
        await sender.post(server.url, UUID, b"[]")
        self.assertFailed(await sender.post(server.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual((server.connections, len(server.received)), (1, 2))

    async def test_retried_once_only(self) -> None:
        """The POST is repeated once only."""
        async def first_only(wire: zoo.Wire) -> None:
            await wire.request()
            if wire.number == 1:
                wire.write(b"HTTP/1.1 204 N\r\n\r\n")
                await wire.more()
            wire.close()

        server, sender = self.server(first_only), self.sender()
        await sender.post(server.url, UUID, b"[]")
        self.assertFailed(await sender.post(server.url, UUID, b"[]"), "closed before the answer")
        self.assertEqual(server.connections, 2)


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
