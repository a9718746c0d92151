"""What one connection may hold, and what all may hold together."""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server.buffers import (
    BUFFERS,
    HELD,
    LEAST,
    LINGERING,
    MOST,
    PIPELINED,
    REQUEST,
    Held,
    share,
)
from routemaster.web.http_server.connection import AT_ONCE
from routemaster.web.http_server.request_head import MAX_HEAD
from tests.web.wire import CHUNKED, PUBLISH, Case, Wire, get, post


class Connection:
    """One that can be aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class HeldTests(SynchronousTestCase):
    """`Held`."""

    def test_oldest_first(self) -> None:
        """Above the limit those that have held bytes for longest are aborted, no more than necessary."""
        held, connections = Held(100), [Connection() for _ in range(6)]
        for connection in connections[:2]:
            held.add(connection, 10)
            held.add(connection, 40)
        held.discard(connections[0])
        for connection in connections[2:4]:
            held.add(connection, 40)
        self.assertEqual([each.aborted for each in connections[:4]], [False, True, False, False])
        self.assertEqual(held.size, 80)
        held.add(connections[4], 100)
        self.assertEqual([each.aborted for each in connections[:5]], [False, True, True, True, False])
        for connection in connections:
            held.discard(connection)
        self.assertEqual(held.size, 0)
        for lines in (["aborted 3 connections"], []):
            with capturedLogs() as logged:
                held.report()
            self.assertEqual([formatEvent(event).partition(":")[0] for event in logged], lines)


class ShareTests(Case):
    """Shares of the buffers."""

    def crowd(self, count: int) -> Wire:
        """One of so many connections."""
        wire: Any = self.wire()
        for _ in range(count - 1):
            wire.connect()
        return wire

    def test_sum(self) -> None:
        """All shares together are at most BUFFERS, unless each is the least."""
        for count in (0, 1, 100, 256, 257, 1000, 4000, 4096, 5000, 100_000):
            self.assertTrue(LEAST <= share(count) <= MOST)
            self.assertTrue(share(count) * count <= BUFFERS or share(count) == LEAST, count)
        self.assertEqual((share(1), share(5000)), (MOST, LEAST))

    def test_lingering(self) -> None:
        """One that waits for its client to close counts until it is lost; the first makes way for others."""
        wires = [self.wire() for _ in range(3)]
        held = Held(2 * LINGERING)
        for count, wire in enumerate(wires, 1):
            wire.site.held = held
            wire.send(b"no HTTP\r\n\r\n")
            self.assertEqual(held.size, min(count, 2) * LINGERING)
        self.assertEqual([wire.transport.aborted for wire in wires], [True, False, False])
        closing = self.wire()
        closing.site.held = held
        closing.send(get(b"/hello")[:-2] + b"Connection: close\r\n\r\n")
        self.assertEqual(held.size, 2 * LINGERING, "one that was answered does not count")
        for wire in wires:
            wire.transport.lose()
        self.assertEqual(held.size, 0)

    def test_unread_in_a_body(self) -> None:
        """While a client does not read, its body costs no turns; it goes on when the client has read."""
        wire = self.wire()
        wire.send(post(CHUNKED))
        wire.channel.pauseProducing()
        wire.channel.dataReceived(b"1\r\na\r\n0\r\n\r\n")
        self.assertEqual((len(wire.site.queue), self.api.published), (0, []))
        wire.channel.resumeProducing()
        self.assertEqual([len(each[1]) for each in self.api.published], [1])

    def test_unread(self) -> None:
        """What a client does not read, and requests behind one that is handled, count until it goes on."""
        wire = self.wire()
        wire.channel.pauseProducing()
        self.assertGreaterEqual(wire.site.held.size, REQUEST)
        wire.channel.resumeProducing()
        self.assertEqual(wire.site.held.size, 0)
        wire.send(get(b"/wait") + PUBLISH * 200)
        self.assertGreaterEqual(wire.site.held.size, REQUEST + PIPELINED // 2)
        self.api.waiting.pop().callback(b"")
        wire.clock.advance(1)
        self.assertEqual((len(self.api.published), wire.site.held.size), (200, 0))

    def test_divided(self) -> None:
        """Every connection, old or new, reads and writes by its share; a second after others have left by more."""
        wire = self.crowd(1)
        transports = [wire.transport]
        for _ in range(1024):
            wire.connect()
            transports.append(wire.transport)
        self.assertEqual({each.bufferSize for each in transports}, {share(1025)})
        for each in transports[2:]:
            each.lose()
        wire.pass_time(1.25)
        self.assertEqual({each.bufferSize for each in transports[:2]}, {MOST})

    def test_heads(self) -> None:
        """With many connections the incomplete head of one may not be longer than its share: 503."""
        start = get(b"/hello")[:-2] + b"X: "
        for count, held, status in ((10, MAX_HEAD - 10, None), (4096, 4000, None), (4096, 4200, 503)):
            wire = self.crowd(count)
            answers = wire.send(start + b"x" * (held - len(start)))
            self.assertEqual([answer.status for answer in answers], [status] if status else [])
            wire.send(b"\r\n\r\n")
            self.assertEqual([answer.status for answer in wire.answers()], [status or 200])

    def test_pipelined(self) -> None:
        """Behind a request that is handled a connection keeps half of its share of further ones, and one read."""
        for count, most in ((1, PIPELINED), (4096, LEAST)):
            wire = self.crowd(count)
            wire.send(get(b"/wait"))
            size = wire.transport.bufferSize
            while wire.transport.producerState == "producing":
                wire.send((PUBLISH * 1000)[:size])
            self.assertLessEqual(len(wire.channel._inbox), most // 2 + size)

    def test_behind_a_wait(self) -> None:
        """What is pipelined behind a request that waits for over a second is held, until that is answered."""
        wire = self.wire()
        other = Wire(self.api.app.resource())
        other.clock, other.site = wire.clock, wire.site
        other.connect()
        wire.channel.dataReceived(get(b"/wait") + get(b"/hello"))
        other.channel.dataReceived(get(b"/wait"))
        wire.pass_time(1)
        self.assertEqual(wire.site.held.size, 0)
        wire.pass_time(2)
        self.assertEqual(wire.site.held.size, REQUEST + len(get(b"/hello")))
        wire.site.held.add(Connection(), HELD)
        wire.pass_time(1)
        self.assertEqual((wire.transport.aborted, other.transport.aborted), (True, False))
        self.assertEqual(wire.site.held.size, HELD)

    def test_turns(self) -> None:
        """A client has AT_ONCE pipelined requests handled at once, and the rest when others had their turn."""
        for known in (False, True):
            wire = self.wire()
            wire.channel.known = known
            wire.channel.dataReceived(get(b"/hello") * 35)
            for count in (AT_ONCE, 35):
                self.assertEqual(len(wire.answers()), count)
                wire.clock.advance(0)

    def test_strangers(self) -> None:
        """A connection that has shown no token waits while strangers have used up their time; another does not."""
        stranger = self.wire()
        client = Wire(self.api.app.resource())
        client.clock, client.site = stranger.clock, stranger.site
        client.connect()
        client.site.keep(client.channel)
        busy = stranger.site.queue
        busy.run(lambda: setattr(stranger.clock, "rightNow", 0.1))
        for wire in (stranger, client):
            wire.channel.dataReceived(get(b"/hello"))
        self.assertEqual([len(wire.answers()) for wire in (stranger, client)], [0, 1])
        self.assertEqual(
            [wire.transport.producerState for wire in (stranger, client)], ["paused", "producing"],
            "one that waits for its turn is not read",
        )  # fmt: skip
        stranger.clock.advance(1)
        self.assertEqual((len(stranger.answers()), stranger.transport.producerState), (1, "producing"))
