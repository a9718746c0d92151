"""Long answers are written in parts, in turns, and hold bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.task import Clock

from routemaster.web.http_server import body_writer
from routemaster.web.http_server.body_writer import PART, SECONDS, TURN, Whole
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.request import BusRequest
from tests.web.wire import Case, Wire, get

LONG = 20 * TURN


class BodyWriterTests(Case):
    """Connections that request long answers."""

    def setUp(self) -> None:
        super().setUp()
        self.api.long_body = Whole(b"x" * LONG)

    def several(self, count: int) -> tuple[Wire, list[Any]]:
        """Connections to one site, on which a long answer was requested."""
        wire, transports = self.wire(), []
        for number in range(count):
            if number:
                wire.connect()
            wire.channel.dataReceived(get(b"/long"))
            transports.append(wire.transport)
        return wire, transports

    def drain(self, wire: Wire) -> None:
        for _ in range(10_000):
            if not any(call.getTime() <= wire.clock.seconds() for call in wire.clock.getDelayedCalls()):
                return
            wire.clock.advance(0)
        self.fail("the writer does not end")

    def test_whole(self) -> None:
        """All bytes come in order, with their length, and the next request on the connection is answered."""
        self.api.long_body = Whole(bytes(range(256)) * 4096)
        wire, _ = self.several(1)
        wire.channel.dataReceived(get(b"/hello"))
        self.drain(wire)
        first, second = wire.answers()
        self.assertEqual((first.status, first.body), (200, bytes(range(256)) * 4096))
        self.assertEqual(second.body, b"hello")
        self.assertEqual(wire.site.writer.under_way, 0)

    def test_short_and_head(self) -> None:
        """A short body is written at once; HEAD has the length of a long one, and no body."""
        self.api.long_body = Whole(b"short")
        wire, _ = self.several(1)
        self.assertEqual(wire.answers()[0].body, b"short")
        self.api.long_body = Whole(b"x" * LONG)
        wire.connect()
        wire.channel.dataReceived(get(b"/long").replace(b"GET", b"HEAD"))
        self.assertIn(b"Content-Length: %d\r\n" % LONG, wire.transport.value())
        self.assertTrue(wire.transport.value().endswith(b"\r\n\r\n"))

    def test_old_clients(self) -> None:
        """An HTTP/1.0 client gets the length and the plain bytes."""
        wire = self.wire()
        wire.channel.dataReceived(b"GET /long HTTP/1.0\r\n\r\n")
        self.drain(wire)
        head, _, body = wire.transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % LONG, head)
        self.assertEqual(body, b"x" * LONG)

    def test_turns(self) -> None:
        """One turn of the reactor writes TURN bytes at most and a part more, however many answers there are."""
        wire, transports = self.several(1)
        turns: list[Any] = []
        self.patch(wire.site.writer, "_reactor", Clock())
        self.patch(wire.site.writer._reactor, "callLater", lambda delay, turn: turns.append(turn))
        wire.clock.advance(0)
        for _ in range(99):
            wire.connect()
            wire.channel.dataReceived(get(b"/long"))
            transports.append(wire.transport)
        before = sum(len(each.value()) for each in transports)
        while wire.site.writer.under_way:
            turns.pop()()
            written = sum(len(each.value()) for each in transports)
            self.assertLessEqual(written - before, TURN + PART)
            before = written
        self.assertEqual({len(each.value().partition(b"\r\n\r\n")[2]) for each in transports}, {LONG})

    def test_time(self) -> None:
        """One turn of the reactor writes for SECONDS at most, however small the parts are."""
        wire, transports = self.several(10)
        write = BusRequest.write_part

        def slow_write(request: BusRequest, part: bytes) -> None:
            wire.clock.rightNow += SECONDS / 2
            write(request, part)

        self.patch(BusRequest, "write_part", slow_write)
        before = wire.clock.seconds()
        turn = wire.clock.calls.pop(0)
        turn.func()
        self.assertAlmostEqual(wire.clock.seconds() - before, SECONDS)
        self.assertEqual(sum(len(each.value()) > PART for each in transports), 0)
        for _ in range(10_000):
            wire.clock.advance(SECONDS)
        self.assertEqual({len(each.value().partition(b"\r\n\r\n")[2]) for each in transports}, {LONG})

    def test_slow_clients(self) -> None:
        """A client that does not read gets no further part, and delays no other; when it reads, the rest comes."""
        wire, (slow, fast) = self.several(2)
        wire.clock.advance(0)
        slow.channel.pauseProducing()
        received = len(slow.value())
        self.drain(wire)
        self.assertEqual(len(slow.value()), received)
        self.assertEqual(len(fast.value().partition(b"\r\n\r\n")[2]), LONG)
        slow.channel.resumeProducing()
        self.drain(wire)
        self.assertEqual(len(slow.value().partition(b"\r\n\r\n")[2]), LONG)

    def test_parts_are_not_made_early(self) -> None:
        """A part is made when it is written: answers that wait for their clients hold none."""
        made: list[int] = []

        class Body(Whole):
            def __iter__(self) -> Iterator[bytes]:
                for part in super().__iter__():
                    made.append(len(part))
                    yield part

        self.api.long_body = Body(b"x" * LONG)
        wire, (slow,) = self.several(1)
        wire.clock.advance(0)
        slow.channel.pauseProducing()
        self.drain(wire)
        self.assertEqual(sum(made), len(slow.value().partition(b"\r\n\r\n")[2]))
        slow.channel.resumeProducing()
        self.drain(wire)
        self.assertEqual(sum(made), LONG)

    def test_wrong_length(self) -> None:
        """A body that is not as long as it says ends its connection, and no other's answer."""
        for wrong in (-1, 1):
            body = Whole(b"x" * LONG)
            body.length += wrong
            self.api.long_body = body
            wire, (bad,) = self.several(1)
            self.api.long_body = Whole(b"x" * LONG)
            wire.connect()
            wire.channel.dataReceived(get(b"/long"))
            self.drain(wire)
            self.assertTrue(bad.aborted)
            self.assertEqual(len(wire.transport.value().partition(b"\r\n\r\n")[2]), LONG)

    def test_time_limits(self) -> None:
        """An answer may take longer than `handling` while it proceeds; a client that stops reading is aborted."""
        wire = Wire(self.api.app.resource(), Limits(handling=10.0, response=5.0))
        wire.channel.dataReceived(get(b"/long"))
        wire.clock.pump([0.25] * 80)  # a turn each: 20 s
        self.assertFalse(wire.transport.aborted)
        self.assertEqual(wire.site.writer.under_way, 0)
        wire.connect()
        wire.channel.dataReceived(get(b"/long"))
        wire.clock.advance(0)
        wire.channel.pauseProducing()
        wire.pass_time(6)
        self.assertTrue(wire.transport.aborted)
        self.assertEqual(wire.site.writer.under_way, 0)

    def test_held_memory(self) -> None:
        """Of clients that do not read, those of the oldest lists are aborted when too much is held for them."""
        self.patch(body_writer, "HELD", 3 * LONG)
        wire, transports = self.wire(), []
        for number in range(5):
            if number % 2 == 0:
                self.api.long_body = Whole(b"x" * LONG)
            wire.connect()
            wire.channel.dataReceived(get(b"/long"))
            wire.channel.pauseProducing()
            transports.append(wire.transport)
        self.assertFalse(any(each.aborted for each in transports))
        self.api.long_body = Whole(b"x" * LONG)
        wire.connect()
        wire.channel.dataReceived(get(b"/long"))
        self.assertEqual([each.aborted for each in transports], [True, True, False, False, False])
        self.api.long_body = Whole(b"x" * LONG * 10)  # one list alone may be larger
        wire.connect()
        wire.channel.dataReceived(get(b"/long"))
        self.drain(wire)
        self.assertEqual(len(wire.transport.value().partition(b"\r\n\r\n")[2]), LONG * 10)

    def test_lost_connection(self) -> None:
        """What is under way to a client that disconnects is forgotten."""
        wire, (first, second) = self.several(2)
        wire.clock.advance(0)
        first.lose()
        self.drain(wire)
        self.assertEqual(len(second.value().partition(b"\r\n\r\n")[2]), LONG)
        self.assertEqual(wire.site.writer.under_way, 0)
