"""The part of the reactor's time for work that may wait."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.work_queue import AHEAD, PART, STEP, WorkQueue


class WorkQueueTests(SynchronousTestCase):
    """`WorkQueue`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = WorkQueue(self.clock)
        self.done: list[int] = []

    def work(self, count: int, seconds: float) -> None:
        """Run so much work that takes so long."""

        def one(number: int) -> None:
            self.done.append(number)
            self.clock.rightNow += seconds

        for number in range(count):
            self.queue.run(lambda number=number: one(number))  # type: ignore[misc]

    def test_little(self) -> None:
        """Work is done at once while there is little of it, and needs no timer."""
        for _ in range(10):
            self.work(1, STEP / 2)
            self.clock.advance(STEP * PART / 2)
        self.assertEqual((len(self.done), self.clock.getDelayedCalls()), (10, []))

    def test_much(self) -> None:
        """Much work is done in order, STEP in each turn of the reactor; then it is the others' turn."""
        seen = []

        def others() -> None:
            seen.append(len(self.done))
            if len(self.done) < 1000:
                self.clock.callLater(0, others)

        self.work(1000, STEP / 4)
        self.assertEqual(len(self.done), 4)
        others()
        self.clock.advance(0)
        self.assertEqual(self.done, list(range(1000)))
        self.assertLessEqual(max(after - before for before, after in pairwise(seen)), 5)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_begins(self) -> None:
        """What begins something makes way for AHEAD pieces of other work at a time, and no more."""
        self.queue.add(lambda: None)
        for number in range(3):
            begin = partial(self.done.append, -number)
            self.queue.run(begin, begins=True)
        self.work(2 * AHEAD, 0.0)
        self.assertEqual(len(self.queue), 4 + 2 * AHEAD)
        self.clock.advance(0)
        others = list(range(2 * AHEAD))  # the first piece of other work is none of these
        expected = [*others[: AHEAD - 1], 0, *others[AHEAD - 1 : -1], -1, others[-1], -2]
        self.assertEqual(self.done, expected)

    def test_ends(self) -> None:
        """What ends something comes before all that waits."""
        self.queue.add(partial(self.done.append, 1))
        self.queue.run(partial(self.done.append, 2), begins=True)
        for number in (3, 4):
            self.queue.run(partial(self.done.append, number), ends=True)
        self.assertEqual((self.done, len(self.queue)), ([], 4))
        self.clock.advance(0)
        self.assertEqual(self.done, [3, 4, 1, 2])

    def test_brought(self) -> None:
        """Work that takes no longer than what brings it is not done at once without end."""
        for _ in range(100):
            self.work(1, STEP / 4)
            self.clock.rightNow += STEP / 4  # it is received
        self.assertLess(len(self.done), 10)
        self.clock.advance(0)
        self.assertEqual(self.done, 100 * [0])

    def test_stop(self) -> None:
        """What was stopped is not done, and no timer stays."""
        self.work(100, STEP)
        for how in ("begins", "ends"):
            self.queue.run(partial(self.done.append, 1), **{how: True})
        self.queue.stop()
        self.assertEqual((self.done, len(self.queue), self.clock.getDelayedCalls()), ([0], 0, []))

    def test_later(self) -> None:
        """What is added is not done at once, though there is time."""
        self.queue.add(lambda: self.done.append(1))
        self.assertEqual(self.done, [])
        self.clock.advance(0)
        self.assertEqual(self.done, [1])

    def test_failure(self) -> None:
        """An exception does not end the queue."""
        self.queue.add(lambda: 1 // 0)
        self.queue.add(lambda: self.done.append(1))
        self.assertRaises(ZeroDivisionError, self.clock.advance, 0)
        self.clock.advance(0)
        self.assertEqual(self.done, [1])
