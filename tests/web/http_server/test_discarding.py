"""What a refused client still sends is read in turns."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.work_queue import STEP, WorkQueue
from routemaster.web.http_server.discarding import MOST, Discarding


class Socket:
    """A connection of which `pending` bytes have not been read; to read a piece takes `seconds`."""

    connected, bufferSize = True, 4096

    def __init__(self, clock: Clock, pending: int, seconds: float = 0.0) -> None:
        self.clock, self.pending, self.seconds = clock, pending, seconds
        self.reading, self.reads = True, 0
        self.discarding: Any = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def doRead(self) -> None:
        """As the reactor calls it, and as a turn does."""
        size = min(65536, self.pending)
        self.pending -= size
        self.clock.rightNow += self.seconds
        if size:
            self.reads += 1
            self.discarding.received(size)


class DiscardingTests(SynchronousTestCase):
    """`Discarding`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = WorkQueue(self.clock)

    def socket(self, pending: int, seconds: float = 0.0) -> Socket:
        connection = Socket(self.clock, pending, seconds)
        connection.discarding = Discarding(connection, connection, self.queue)
        return connection

    def test_all(self) -> None:
        """Everything is read, and the reactor reads again when the client pauses."""
        connection = self.socket(300_000)
        connection.doRead()
        self.assertFalse(connection.reading)
        self.clock.advance(0)
        self.assertEqual((connection.pending, connection.reading), (0, True))
        connection.pending = 100
        connection.doRead()
        self.clock.advance(0)
        self.assertEqual((connection.pending, connection.reading), (0, True))

    def test_turns(self) -> None:
        """Many clients that send without end are read for STEP in each turn of the reactor, in order."""
        connections = [self.socket(10**9, STEP / 2) for _ in range(100)]
        for each in connections:
            each.doRead()
        for turn in range(1, 51):
            calls, self.clock.calls = self.clock.calls, []
            for call in calls:
                call.func()
            self.assertEqual(sum(each.reads - 1 for each in connections), 2 * turn)
        self.assertEqual({each.reads for each in connections}, {2})

    def test_most(self) -> None:
        """After MOST bytes the connection is not read any more."""
        connection = self.socket(MOST + 10**6)
        connection.doRead()
        self.clock.advance(0)
        self.assertLess(connection.pending, 10**6)
        self.assertGreater(connection.pending, 10**6 - 65537)
        self.assertFalse(connection.reading)

    def test_lost(self) -> None:
        """A connection that is lost before its turn is not read."""
        connection = self.socket(300_000)
        connection.doRead()
        connection.connected = False
        self.clock.advance(0)
        self.assertEqual(connection.reads, 1)
