"""Open answers: bodies without a length, whose parts come over time."""

from __future__ import annotations

from collections import deque
from typing import Any

from routemaster.web.http_server.body_writer import PART, READ_CHECK, TURN, Outlet
from routemaster.web.http_server.limits import Limits
from tests.web.wire import Case, Wire, get


class Feed:
    """A body whose parts a test adds."""

    length = None
    source = None

    def __init__(self) -> None:
        self.parts: deque[bytes | None] = deque()
        self.outlet: Any = None
        self.asked = self.over = 0

    def begin(self, outlet: Outlet) -> None:
        self.outlet = outlet

    def next_part(self) -> bytes | None:
        self.asked += 1
        return self.parts.popleft() if self.parts else b""

    def lost(self) -> None:
        self.over += 1

    def add(self, *parts: bytes | None) -> None:
        """Add parts; None ends the body."""
        self.parts += parts
        self.outlet.more()


class OpenAnswerTests(Case):
    """Connections on which an open answer was requested."""

    def setUp(self) -> None:
        super().setUp()
        self.feed = self.api.long_body = Feed()
        self.wire_ = self.open()

    def open(self, version: bytes = b"HTTP/1.1", method: bytes = b"GET", limits: Limits | None = None) -> Wire:
        wire = self.wire(limits)
        wire.channel.dataReceived(get(b"/long").replace(b"HTTP/1.1", version).replace(b"GET", method))
        wire.clock.advance(0)
        return wire

    def text(self, wire: Wire | None = None) -> bytes:
        """What was written after the head."""
        return (wire or self.wire_).transport.value().partition(b"\r\n\r\n")[2]

    def turn(self, wire: Wire | None = None) -> None:
        (wire or self.wire_).clock.advance(0)

    def test_chunks(self) -> None:
        """The head is written at once, each part as a chunk when it comes, and the last chunk at the end."""
        self.assertIn(b"Transfer-Encoding: chunked\r\n", self.wire_.transport.value())
        self.assertNotIn(b"Content-Length", self.wire_.transport.value())
        self.assertEqual(self.text(), b"")
        self.feed.add(b"one", b"two" * 6)
        self.turn()
        self.assertEqual(self.text(), b"3\r\none\r\n12\r\n" + b"two" * 6 + b"\r\n")
        self.feed.add(b"x")
        self.turn()
        self.feed.add(None)
        self.turn()
        self.assertTrue(self.text().endswith(b"1\r\nx\r\n0\r\n\r\n"))
        self.assertEqual((self.feed.over, self.wire_.site.writer.under_way), (1, 0))

    def test_next_request(self) -> None:
        """The next request on the connection is answered after the end, not before."""
        self.wire_.channel.dataReceived(get(b"/hello"))
        self.feed.add(b"one")
        self.turn()
        self.assertNotIn(b"hello", self.text())
        self.feed.add(None)
        self.turn()
        self.assertIn(b"0\r\n\r\nHTTP/1.1 200 OK\r\n", self.text())
        self.assertTrue(self.text().endswith(b"\r\n\r\nhello"))
        self.assertFalse(self.wire_.closing)

    def test_old_version(self) -> None:
        """To HTTP/1.0 the parts are written as they are, and the end closes the connection."""
        wire = self.open(b"HTTP/1.0")
        self.assertNotIn(b"Transfer-Encoding", wire.transport.value())
        self.feed.add(b"one")
        self.turn(wire)
        self.assertEqual((self.text(wire), wire.closing), (b"one", False))
        self.feed.add(b"two", None)
        self.turn(wire)
        self.assertEqual((self.text(wire), wire.closing), (b"onetwo", True))

    def test_head(self) -> None:
        """HEAD gets the headers, and the body never begins."""
        self.feed = self.api.long_body = Feed()
        wire = self.open(method=b"HEAD")
        self.assertIn(b"Transfer-Encoding: chunked\r\n", wire.transport.value())
        self.assertEqual((self.text(wire), self.feed.outlet, self.feed.asked), (b"", None, 0))

    def test_asked_when_written(self) -> None:
        """The body is asked for a part when the one before is written, and not while the client does not read."""
        asked = self.feed.asked
        self.wire_.channel.pauseProducing()
        self.feed.add(b"one")
        self.turn()
        self.assertEqual((self.text(), self.feed.asked), (b"", asked))
        self.wire_.channel.resumeProducing()
        self.turn()
        self.assertEqual(self.text(), b"3\r\none\r\n")

    def test_fair(self) -> None:
        """One turn of the reactor writes so many bytes over all connections, open answers included."""
        self.feed.add(*[b"x" * PART] * 40)
        now = self.wire_.clock.seconds()
        [call] = [call for call in self.wire_.clock.getDelayedCalls() if call.getTime() <= now]
        call.func(*call.args)
        call.cancel()
        self.assertEqual(len(self.text()) // PART, TURN // PART)

    def test_lives_long(self) -> None:
        """An open answer lasts as long as parts come, and is aborted when none comes for a minute."""
        for _ in range(20):
            self.wire_.pass_time(50)
            self.feed.add(b"x")
            self.turn()
        self.assertFalse(self.wire_.closing)
        self.wire_.pass_time(62)
        self.assertTrue(self.wire_.transport.aborted)
        self.assertEqual(self.feed.over, 1)

    def test_disconnected(self) -> None:
        """When the client disconnects the body is told, once, and later parts are dropped."""
        self.wire_.transport.lose()
        self.assertEqual((self.feed.over, self.wire_.site.writer.under_way), (1, 0))
        self.feed.add(b"late")
        self.turn()
        self.assertEqual(self.text(), b"")

    def test_client_that_stops_reading(self) -> None:
        """A client that reads nothing is aborted in the time that other answers have, and no timer stays."""
        self.feed.add(b"one")
        self.turn()
        self.wire_.channel.pauseProducing()
        self.wire_.pass_time(29)
        self.assertFalse(self.wire_.transport.aborted)
        self.wire_.pass_time(3)
        self.assertTrue(self.wire_.transport.aborted)
        self.assertEqual((self.feed.over, self.wire_.clock.getDelayedCalls()), (1, []))

    def test_client_that_reads_slowly(self) -> None:
        """A client that still reads keeps its connection, though it never reads everything."""
        transport: Any = self.wire_.transport
        transport.dataBuffer = b"x" * 1000
        self.wire_.channel.pauseProducing()
        for _ in range(60):
            self.wire_.pass_time(READ_CHECK)
            transport.dataBuffer = transport.dataBuffer[1:]
        self.assertFalse(transport.aborted)
        self.wire_.pass_time(40)
        self.assertTrue(transport.aborted)

    def test_stop(self) -> None:
        """An open answer that ends while the site stops is complete, and its connection closes soon."""
        self.wire_.site.draining = True
        self.feed.add(b"bye", None)
        self.turn()
        self.assertEqual(self.text(), b"3\r\nbye\r\n0\r\n\r\n")
        self.wire_.pass_time(2)
        self.assertTrue(self.wire_.closing)

    def test_unsent(self) -> None:
        """The outlet counts what the client's TCP has not taken."""
        transport: Any = self.wire_.transport
        self.assertEqual(self.feed.outlet.unsent, 0)
        transport.dataBuffer, transport.offset, transport._tempDataLen = b"x" * 10, 4, 3
        self.assertEqual(self.feed.outlet.unsent, 9)
