"""Turns at reading from the store."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.read_turns import MOST_EXTRA, PATIENCE, STEP, TOGETHER, ReadTurns


class ReadTurnsTests(SynchronousTestCase):
    """`ReadTurns`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = ReadTurns(self.clock)
        self.begun: list[int] = []
        self.most = 0  # that were under way at the same time
        self.under_way = 0

    def iterate(self) -> None:
        """One iteration of the reactor: what it schedules comes in the next one."""
        calls, self.clock.calls = self.clock.calls, []
        for call in calls:
            call.func()

    async def read(self, number: int, reading: Deferred[None] | None = None, seconds: float = 0.0) -> None:
        async with self.turns:
            self.begun.append(number)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.clock.rightNow += seconds
            if reading is not None:
                await reading
            self.under_way -= 1

    def start(self, number: int, *how: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self.read(number, *how))

    def test_together(self) -> None:
        """So many have turns at the same time; the others wait, in order, for one to end."""
        readings = [Deferred[None]() for _ in range(2 * TOGETHER)]
        reads = [self.start(number, reading) for number, reading in enumerate(readings)]
        self.assertEqual(self.begun, [*range(TOGETHER)])
        for reading in readings:
            reading.callback(None)
            self.iterate()
        for read in reads:
            self.successResultOf(read)
        self.assertEqual((self.begun, self.most), ([*range(2 * TOGETHER)], TOGETHER))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_a_wait(self) -> None:
        """Those that never wait for the store do not run on and on: so many begin in one iteration."""
        reads = [self.start(number) for number in range(3 * TOGETHER)]
        counts = [len(self.begun)]
        while self.clock.getDelayedCalls():
            self.iterate()
            counts.append(len(self.begun))
        self.assertEqual(counts, [TOGETHER, 2 * TOGETHER, 3 * TOGETHER, 3 * TOGETHER])
        for read in reads:
            self.successResultOf(read)

    def test_long_ones(self) -> None:
        """When those that begin take long, fewer begin in one iteration."""
        for number in range(TOGETHER):
            self.start(number)
        late = [self.start(number, None, STEP) for number in range(4)]
        for count in (1, 2, 3, 4):
            self.iterate()
            self.assertEqual(len(self.begun) - TOGETHER, count)
        for each in late:
            self.successResultOf(each)

    def test_cancelled(self) -> None:
        """A wait that is cancelled takes no turn."""
        readings = [Deferred[None]() for _ in range(TOGETHER)]
        for number, reading in enumerate(readings):
            self.start(number, reading)
        first, second = self.start(100), self.start(101)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        readings[0].callback(None)
        self.clock.advance(0)
        self.successResultOf(second)
        self.assertEqual(self.begun[TOGETHER:], [101])

    def test_patience(self) -> None:
        """When turns take long others begin beside them; as they end, as many as before are at the same time."""
        readings = [Deferred[None]() for _ in range(TOGETHER)]
        slow = [self.start(number, reading) for number, reading in enumerate(readings)]
        hung = [Deferred[None]() for _ in range(TOGETHER)]
        others = [self.start(100 + number, reading) for number, reading in enumerate(hung)]
        self.clock.advance(PATIENCE - 0.01)
        self.assertEqual(len(self.begun), TOGETHER)
        self.clock.advance(0.02)
        self.assertEqual(len(self.begun), 2 * TOGETHER)
        for reading in readings:
            reading.callback(None)
        self.clock.advance(0)
        last = self.start(200)
        self.clock.advance(0)
        self.assertNoResult(last)
        for reading in hung:
            reading.callback(None)
        self.clock.advance(0)
        for each in (*slow, *others, last):
            self.successResultOf(each)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hung(self) -> None:
        """Beside turns that hang others go on, each when one has ended, not so many in each `PATIENCE`."""
        hung = [self.start(number, Deferred[None]()) for number in range(TOGETHER)]
        others = [self.start(100 + number) for number in range(5 * TOGETHER)]
        self.clock.advance(PATIENCE)
        for _ in range(5):
            self.clock.advance(0)
        for each in others:
            self.successResultOf(each)
        for each in hung:
            self.assertNoResult(each)

    def test_all_hang(self) -> None:
        """However long all hang, at most `MOST_EXTRA` times as many begin beside them."""
        hung = [self.start(number, Deferred[None]()) for number in range(2 * MOST_EXTRA * TOGETHER)]
        for _ in range(2 * MOST_EXTRA):
            self.clock.advance(PATIENCE)
        self.assertEqual(len(self.begun), (1 + MOST_EXTRA) * TOGETHER)
        for each in hung:
            self.assertNoResult(each)

    def test_pause(self) -> None:
        """While more wait, the reactor is left alone for as long as turns took, whatever ends or comes."""
        for number in range(TOGETHER):
            self.start(number)
        for number in range(2):
            self.start(100 + number, None, STEP)
        self.clock.advance(0)
        self.assertEqual(len(self.begun), TOGETHER + 1)
        self.start(200)
        self.clock.advance(0.9 * STEP)
        self.assertEqual(len(self.begun), TOGETHER + 1)
        self.clock.advance(0.2 * STEP)
        self.assertEqual(len(self.begun), TOGETHER + 2)

    def test_failure(self) -> None:
        """A turn that ends with an exception is free again."""
        readings = [Deferred[None]() for _ in range(TOGETHER)]
        reads = [self.start(number, reading) for number, reading in enumerate(readings)]
        last = self.start(TOGETHER)
        readings[3].errback(ValueError())
        self.failureResultOf(reads[3], ValueError)
        self.clock.advance(0)
        self.successResultOf(last)

    def test_woken(self) -> None:
        """Who is called when it is its turn has that turn, and is not passed by others; it may leave it."""
        done: list[str] = []

        async def read(name: str) -> None:
            async with self.turns:
                done.append(name)

        for number in range(TOGETHER):
            self.start(number)
        self.turns.add(lambda: Deferred.fromCoroutine(read("woken")))
        self.turns.add(lambda: done.append("leaves it"))
        Deferred.fromCoroutine(read("last"))
        self.assertEqual(done, [])
        self.iterate()
        self.assertEqual(done, ["woken", "leaves it", "last"])
