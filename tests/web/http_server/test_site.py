"""The site: answers, pipelining, deadlines, draining."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.places import Places
from routemaster.web.http_server.refusal import Refused
from routemaster.web.klein_resource import BusApp
from tests.web.wire import CHUNKED, PUBLISH, Api, Case, Wire, get, head, post, request


class AnswerTests(Case):
    """Answers to valid requests."""

    def test_common_headers(self) -> None:
        """Every answer has Date, Server, nosniff and Content-Length."""
        for data in (get(b"/hello"), PUBLISH, get(b"/nowhere"), get(b"/%ff"), get(b"/pieces")):
            (answer,) = self.wire().send(data)
            self.assertEqual(answer.headers["server"], "routemaster")
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
            self.assertEqual(answer.headers["date"], "Thu, 01 Jan 1970 00:00:00 GMT")
            self.assertEqual("content-length" in answer.headers, answer.status != 204)
            self.assertNotIn("transfer-encoding", answer.headers)

    def test_phrases(self) -> None:
        """A status has its phrase of the registry, those too that Twisted does not know."""
        wire = self.wire()
        wire.send(get(b"/" + b"x" * 100_000))
        self.assertTrue(wire.transport.value().startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"))

    def test_date(self) -> None:
        """Date is at most a second old."""
        wire = self.wire()
        wire.send(get(b"/hello"))
        wire.pass_time(30)
        self.assertEqual(wire.send(get(b"/hello"))[-1].headers["date"], "Thu, 01 Jan 1970 00:00:30 GMT")

    def test_segments(self) -> None:
        """The answer does not depend on how a request is split into segments."""
        in_chunks = post(CHUNKED, body=b"3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n")
        for data in (PUBLISH, get(b"/hello"), get(b"/pieces"), in_chunks):
            written = set()
            for segment in (0, 1, 2, 3, 5, 17):
                wire = self.wire()
                wire.send(data, segment)
                written.add(wire.transport.value())
            self.assertEqual(len(written), 1)
        self.assertEqual({body for _, body in self.api.published}, {b'{"type":"noop"}', b"abc"})

    def test_empty_lines(self) -> None:
        """Empty lines before a request line are passed over, in any segments; a lone CR or LF is refused."""
        for segment in (0, 1, 2, 3):
            for lines in (b"\r\n", b"\r\n" * 3, b"\n", b"\r"):
                statuses = [204, 200] if len(lines) > 1 else [400]
                answers = self.wire().send(lines + PUBLISH + lines + get(b"/hello"), segment)
                self.assertEqual([each.status for each in answers], statuses, (segment, lines))

    def test_keep_alive(self) -> None:
        """A connection stays open until a request has `Connection: close` or is HTTP/1.0."""
        wire = self.wire()
        for count in range(1, 6):
            self.assertEqual(len(wire.send(b"\r\n" + PUBLISH)), count)
        self.assertFalse(wire.closing)
        for last in (
            request("GET", "/hello", b"", "Connection: close"),
            request("GET", "/hello", b"", "Connection: x, Close"),
            request("GET", "/hello", b"", "Connection: x", "Connection: close"),
            head(b"GET /hello HTTP/1.0"),
            head(b"GET /hello HTTP/1.0", b"Connection: keep-alive"),
        ):
            wire = self.wire()
            (answer,) = wire.send(last + PUBLISH)
            self.assertEqual((answer.body, answer.headers["connection"]), (b"hello", "close"))
            self.assertTrue(wire.closing)

    def test_head(self) -> None:
        """HEAD is answered with the Content-Length of GET and no body."""
        wire = self.wire()
        wire.channel.dataReceived(request("HEAD", "/hello"))
        self.assertIn(b"Content-Length: 5\r\n", wire.transport.value())
        self.assertTrue(wire.transport.value().endswith(b"\r\n\r\n"))

    def test_pieces_of_unknown_length(self) -> None:
        """An answer written in parts without a length is sent in chunks, in HTTP/1.0 until the close."""
        app = BusApp()

        @app.route("/")
        def handler(request: Any) -> None:
            request.write(b"ab")
            request.write(b"cde")

        for data, body in [(get(b"/"), b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"), (head(b"GET / HTTP/1.0"), b"abcde")]:
            wire = Wire(app.resource())
            wire.channel.dataReceived(data)
            self.assertEqual(wire.transport.value().partition(b"\r\n\r\n")[2], body)
            self.assertEqual(wire.closing, data != get(b"/"))

    def test_trailing_slash_of_its_own(self) -> None:
        """A route may end in a slash."""
        (answer,) = self.wire().send(get(b"/dir/"))
        self.assertEqual(answer.body, b"dir")

    def test_escapes_in_a_name(self) -> None:
        """A percent-encoded name reaches the handler decoded."""
        wire = self.wire()
        for name in ("c%61ts", "caf%C3%A9", "a%2Bb", "a+b", "a%20b", "%2525"):
            wire.send(request("POST", f"/topics/{name}"))
        self.assertEqual([name for name, _ in self.api.published], ["cats", "café", "a+b", "a+b", "a b", "%25"])

    def test_many_paths(self) -> None:
        """The cache of routes is bounded, and a full cache changes no answer."""
        resource = self.api.app.resource()
        wire = Wire(resource)
        for number in range(3000):
            wire.channel.dataReceived(request("POST", f"/topics/t{number}"))
        self.assertEqual([name for name, _ in self.api.published], [f"t{number}" for number in range(3000)])
        self.assertLessEqual(resource.cached_routes, 1024)

    def test_error_handlers(self) -> None:
        """An application's error handlers come before the default one."""
        (answer,) = self.wire().send(get(b"/invalid"))
        self.assertEqual((answer.status, answer.body), (400, b"no good"))

    def test_bugs(self) -> None:
        """An exception in a handler is answered 500 without its text and logged once."""
        for target, error in [(b"/bug", ValueError), (b"/bug-at-once", ValueError), (b"/not-bytes", TypeError)]:
            wire = self.wire()
            (answer,) = wire.send(get(target))
            self.assertEqual(answer.status, 500)
            self.assertNotIn("secret", answer.error)
            self.assertEqual(len(self.flushLoggedErrors(error)), 1)
            self.assertEqual(wire.send(get(b"/hello"))[-1].status, 200)

    def test_bug_in_the_middle(self) -> None:
        """An exception after a part of the answer aborts the connection."""
        wire = self.wire()
        wire.channel.dataReceived(get(b"/half-written"))
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_host_is_not_seen(self) -> None:
        """Handlers do not see the client's Host."""
        seen = []
        app = BusApp()
        app.route("/")(lambda request: seen.append((request.getRequestHostname(), request.prePathURL())))
        for host in (b"a", b"evil.test", b"[::1]:80", b"127.0.0.1:17890"):
            Wire(app.resource()).send(head(b"GET / HTTP/1.1", b"Host: " + host))
        self.assertEqual(len(seen), 4)
        self.assertEqual(len(set(seen)), 1)


    def test_failed_request_is_freed(self) -> None:
        """A request that is refused after a wait is free at once, body included, though its connection stays."""
        app, waiting = BusApp(), list[Deferred[None]]()

        @app.route("/", methods=["POST"])
        async def handler(request: Any) -> None:
            waiting.append(Deferred())
            await waiting[-1]

        @app.handle_errors(ValueError)
        def refuse(request: Any, failure: Any) -> bytes:
            request.setResponseCode(503)
            return b""

        gc.disable()
        self.addCleanup(gc.enable)
        for error, status in ((ValueError(), 503), (Refused(409, "no"), 409)):
            wire = Wire(app.resource())
            wire.channel.dataReceived(request("POST", "/", b"x" * 1000))
            kept = weakref.ref(wire.channel.requests[0])
            waiting.pop().errback(error)
            self.assertEqual(([answer.status for answer in wire.answers()], kept()), ([status], None))


class PipelineTests(Case):
    """Several requests on one connection, slow clients, disconnects."""

    def test_order(self) -> None:
        """Pipelined requests are handled one at a time and answered in order."""
        for segment in (0, 1, 40):
            self.api = Api()
            wire = self.wire()
            wire.send(b"".join(get(b"/wait") + PUBLISH for _ in range(25)), segment)
            for number in range(25):
                self.assertEqual((len(self.api.waiting), len(self.api.published)), (number + 1, number))
                self.api.waiting[-1].callback(b"%d" % number)
            answers = [(answer.status, answer.body) for answer in wire.answers()]
            self.assertEqual(answers, [e for n in range(25) for e in ((200, b"%d" % n), (204, b""))])

    def test_backpressure(self) -> None:
        """Reading pauses when too much is pipelined behind a request, and resumes after its answer."""
        wire = self.wire()
        wire.send(get(b"/wait"))
        wire.send(PUBLISH * 1000)
        self.assertEqual(wire.transport.producerState, "paused")
        self.api.waiting[0].callback(b"")
        wire.pass_time(1)
        self.assertEqual(wire.transport.producerState, "producing")
        self.assertEqual(len(self.api.published), 1000)

    def test_unread_answers(self) -> None:
        """While a client does not read, none of its requests is handled; after 30 s it is aborted."""
        wire = self.wire()
        wire.send(get(b"/wait"))
        wire.channel.pauseProducing()
        self.api.waiting[0].callback(b"x" * 100_000)
        wire.send(PUBLISH * 10)
        self.assertEqual(self.api.published, [])
        self.assertEqual(wire.transport.value(), b"")
        wire.channel.resumeProducing()
        wire.clock.advance(0)
        self.assertEqual(len(self.api.published), 10)
        wire.channel.pauseProducing()
        wire.send(PUBLISH)
        wire.pass_time(29)
        self.assertFalse(wire.transport.aborted)
        wire.pass_time(2)
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(len(self.api.published), 10)

    def test_disconnect(self) -> None:
        """A disconnect cancels the handler once, without a log entry."""
        wire = self.wire()
        wire.send(get(b"/wait") + PUBLISH)
        wire.transport.lose()
        self.assertEqual((self.api.cancelled, self.api.published), (1, []))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_answer_after_disconnect(self) -> None:
        """A handler may return after a disconnect; the answer is discarded."""
        stubborn: Deferred[None] = Deferred(lambda _: None)
        later: Deferred[bytes] = Deferred()
        app = BusApp()

        @app.route("/")
        async def handler(request: Any) -> bytes:
            try:
                await stubborn
            except CancelledError:
                return await later
            return b""

        wire = Wire(app.resource())
        wire.send(get(b"/"))
        wire.transport.lose()
        later.callback(b"too late")
        self.assertEqual((wire.transport.value(), self.flushLoggedErrors()), (b"", []))


class DeadlineTests(Case):
    """Deadlines, which are late by at most a second."""

    def assert_ends(self, wire: Wire, seconds: float, drip: bytes = b"") -> None:
        """The channel closes after this time and not before, while a byte arrives each second or not."""
        for _ in range(int(seconds) - 1):
            self.assertFalse(wire.closing)
            wire.send(drip)
            wire.pass_time(1)
        self.assertFalse(wire.closing)
        wire.pass_time(2.25)
        self.assertTrue(wire.closing)
        wire.pass_time(7)
        self.assertTrue(wire.transport.lost)
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_silence(self) -> None:
        """A connection without a request is closed after 10 s."""
        wire = self.wire()
        self.assert_ends(wire, 10)
        self.assertEqual(wire.answers(), [])

    def test_dripping_head(self) -> None:
        """A head must be complete 10 s after its first byte."""
        for start in (b"G", b"GET /hello HTTP/1.1\r\nX: "):
            wire = self.wire()
            wire.send(start)
            self.assert_ends(wire, 10, b"E")
            self.assertEqual([answer.status for answer in wire.answers()], [408])

    def test_dripping_body(self) -> None:
        """A body must be complete 30 s after its head, by length or in chunks."""
        for start in (post(b"Content-Length: 1000"), post(CHUNKED, body=b"fff\r\n")):
            wire = self.wire()
            wire.send(start)
            self.assert_ends(wire, 30, b"a")
            self.assertEqual([answer.status for answer in wire.answers()], [408])
        self.assertEqual(self.api.published, [])

    def test_refused(self) -> None:
        """After a refusal the client has 5 s to close, from its last byte on, at most 30 s in all."""
        for drip, seconds in ((b"", 5), (b"x", 30)):
            wire = self.wire()
            wire.send(post(b"Content-Length: 99999999"))
            self.assertEqual([answer.status for answer in wire.answers()], [413])
            for _ in range(seconds - 1):
                wire.send(drip)
                wire.pass_time(1)
                self.assertFalse(wire.transport.lost)
            wire.pass_time(2.25)
            self.assertTrue(wire.transport.aborted)

    def test_idle(self) -> None:
        """An idle connection is closed after 60 s without a request; empty lines do not extend the time."""
        for drip in (b"", b"\r\n"):
            wire = self.wire()
            wire.send(PUBLISH)
            self.assert_ends(wire, 60, drip)
            self.assertEqual(len(wire.answers()), 1)

    def test_handler(self) -> None:
        """A handler that does not answer within 60 s is cancelled and its connection aborted."""
        wire = self.wire()
        wire.send(get(b"/wait"))
        self.assert_ends(wire, 60)
        self.assertEqual(self.api.cancelled, 1)

    def test_busy_connection(self) -> None:
        """A busy connection stays open, and its requests set no timers."""
        wire = self.wire()
        for _ in range(300):
            wire.send(PUBLISH)
            wire.pass_time(1)
            self.assertEqual(len(wire.clock.getDelayedCalls()), 1)
        self.assertEqual(len(self.api.published), 300)


    def test_many(self) -> None:
        """Connections whose time is over end in turns, and one that goes on before its turn stays."""
        wire = self.wire()
        channels = [wire.channel]
        for _ in range(4):
            wire.connect()
            channels.append(wire.channel)
        wire.clock.rightNow = 9.5
        wire.site.queue.run(lambda: setattr(wire.clock, "rightNow", 11.0))
        lost: list[Any] = []
        for channel in channels:
            self.patch(channel, "expire", partial(lost.append, channel))
        wire.site._tick()
        self.assertEqual((lost, len(wire.site.queue)), ([], 5))
        wire.channel.deadline = 100.0
        wire.clock.advance(0)
        self.assertEqual(len(lost), 4)
        self.assertNotIn(wire.channel, lost)


class SiteTests(Case):
    """Limits, logs and draining."""

    def test_connection_cap(self) -> None:
        """Connections over the limit are rejected, and accepted again later."""
        wire = self.wire(Limits(places=Places(3)))
        wire.site.keep(wire.channel)
        first = wire.transport
        for accepted in [True] * 2 + [False] * 8:
            self.assertEqual(wire.connect(), accepted)
            wire.site.keep(wire.channel)
        first.lose()
        self.assertEqual((wire.site.live, wire.connect()), (2, True))

    def test_alpn(self) -> None:
        """The site offers HTTP/1.1 alone."""
        self.assertEqual(self.wire().site.acceptableProtocols(), [b"http/1.1"])

    def test_no_access_log(self) -> None:
        """Starting the site sets no timer, and valid requests log nothing."""
        wire, events = self.wire(), self.log_lines()
        wire.site.startFactory()
        wire.send(PUBLISH)
        wire.transport.lose()
        wire.site.stopFactory()
        self.assertEqual((events, wire.clock.getDelayedCalls()), ([], []))

    def test_drain(self) -> None:
        """Draining closes idle connections soon, others after their answer, and ends with the last one."""
        wire = self.wire()
        wire.send(PUBLISH)
        idle = wire.transport
        wire.connect()
        busy, busy_channel = wire.transport, wire.channel
        wire.send(get(b"/wait"))
        wire.connect()
        wire.send(PUBLISH[:20])
        done = ensureDeferred(wire.site.drain(30))
        wire.pass_time(0.5)
        self.assertEqual([idle.disconnecting, busy.disconnecting, wire.closing], [True, False, False])
        self.assertIsNone(wire.site.buildProtocol(wire.peer))
        (answer,) = wire.send(PUBLISH[20:] + PUBLISH)
        self.assertEqual((answer.status, answer.headers["connection"], wire.closing), (204, "close", True))
        self.api.waiting[0].callback(b"at last")
        self.assertIn(b"Connection: close", busy.value())
        for transport in (idle, wire.transport):
            transport.lose()
        self.assertNoResult(done)
        self.assertIs(busy_channel.transport, busy)
        busy.lose()
        self.successResultOf(done)
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_drain_and_a_request_on_its_way(self) -> None:
        """A request that arrives just after draining started is answered, on new and on idle connections."""
        for before, patience in ((b"", 1.75), (PUBLISH, 0.125)):
            wire = self.wire()
            done = wire.send(before)
            drained = ensureDeferred(wire.site.drain(30))
            wire.clock.pump([0.125] * int(patience / 0.125))
            self.assertFalse(wire.closing)
            answer = wire.send(PUBLISH[:10])[len(done):]
            wire.pass_time(1)  # an incomplete request has its usual deadline
            self.assertEqual((answer, wire.closing), ([], False))
            (answer,) = wire.send(PUBLISH[10:])[len(done):]
            self.assertEqual((answer.status, answer.headers["connection"], wire.closing), (204, "close", True))
            wire.transport.lose()
            self.successResultOf(drained)

    def test_drain_without_requests(self) -> None:
        """Draining waits 2 s for a first request, and a quarter of a second for another one."""
        for limits, before, longest in (
            (None, b"", 2.1), (None, PUBLISH, 0.35), (Limits(fresh=0.5, idle=0.125), b"", 0.6),
            (Limits(fresh=0.5, idle=0.125), PUBLISH, 0.225),
        ):  # fmt: skip
            wire = self.wire(limits)
            wire.send(before)
            ensureDeferred(wire.site.drain(30))
            wire.clock.pump([0.0625] * int(longest / 0.0625 - 3))
            self.assertFalse(wire.closing, (limits, before))
            wire.clock.pump([0.0625] * 3)
            self.assertTrue(wire.closing, (limits, before))
            wire.transport.lose()

    def test_drain_of_a_slow_reader(self) -> None:
        """A client that still reads its last answer is not aborted."""
        wire = self.wire()
        wire.send(PUBLISH)
        wire.channel.pauseProducing()
        drained = ensureDeferred(wire.site.drain(60))
        wire.pass_time(29)
        self.assertEqual((wire.transport.disconnecting, wire.transport.aborted), (True, False))
        wire.transport.lose()
        self.successResultOf(drained)

    def test_drain_in_time(self) -> None:
        """Connections still open at the end of the time limit are aborted and their handlers cancelled."""
        wire = self.wire()
        wire.send(get(b"/wait"))
        done = ensureDeferred(wire.site.drain(5))
        wire.pass_time(4)
        self.assertNoResult(done)
        wire.pass_time(1)
        self.successResultOf(done)
        self.assertEqual((self.api.cancelled, wire.transport.aborted), (1, True))
        self.assertEqual(wire.clock.getDelayedCalls(), [])

    def test_drain_nothing(self) -> None:
        """A site without connections drains at once."""
        wire = self.wire()
        wire.transport.lose()
        self.successResultOf(ensureDeferred(wire.site.drain(5)))
