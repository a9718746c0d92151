"""Long computations in short steps."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.turns import STEP, TOGETHER, Turns


class TurnsTests(SynchronousTestCase):
    """`Turns`, with a clock that only the computations advance."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)

    def values(self, count: int, seconds: float = STEP / 4) -> Iterator[int]:
        """So many values, each of which takes this time."""
        for each in range(count):
            self.clock.rightNow += seconds
            yield each

    def collect(self, values: Iterator[int]) -> Deferred[list[int]]:
        return Deferred.fromCoroutine(self.turns.collect(values))

    def turn(self) -> float:
        """One turn of the reactor, which calls what was due before it; the seconds that it took."""
        began = self.clock.seconds()
        for call in self.clock.getDelayedCalls():
            self.clock.calls.remove(call)
            call.called = 1
            call.func()
        return self.clock.seconds() - began

    def test_short(self) -> None:
        """A computation that takes less than a step is done at once."""
        self.assertEqual(self.successResultOf(self.collect(self.values(3))), [0, 1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_long(self) -> None:
        """A longer one takes a step in each turn, and its values are complete and in order."""
        began = self.clock.seconds()
        result = self.collect(self.values(10))
        self.assertAlmostEqual(self.clock.seconds() - began, STEP)
        self.assertAlmostEqual(self.turn(), STEP)
        self.assertNoResult(result)
        self.assertAlmostEqual(self.turn(), STEP / 2)
        self.turn()
        self.assertEqual(self.successResultOf(result), list(range(10)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_share(self) -> None:
        """Several take one step in each turn together, in turns; none starts at once while others wait."""
        results = [self.collect(self.values(8)) for _ in range(3)]
        for _ in range(5):
            self.assertLess(self.turn(), STEP * 1.01)
        self.assertEqual([len(self.successResultOf(each)) for each in results if each.called], [8])
        for _ in range(5):
            self.assertLess(self.turn(), STEP * 1.01)
        self.assertEqual([self.successResultOf(each) for each in results[1:]], [list(range(8))] * 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_together(self) -> None:
        """No more than so many have begun, in the order in which they came; a cancelled one takes no place."""
        begun: list[int] = []

        def long(number: int) -> Iterator[int]:
            begun.append(number)
            yield from self.values(12)

        results = [self.collect(long(number)) for number in range(3 * TOGETHER)]
        cancelled = results.pop(TOGETHER + 1)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        while not all(each.called for each in results):
            done = sum(each.called for each in results)
            self.assertLessEqual(len(begun) - done, TOGETHER + 1)  # the first had a step at once
            self.turn()
        self.assertEqual(begun, [number for number in range(3 * TOGETHER) if number != TOGETHER + 1])
        self.assertEqual([self.successResultOf(each) for each in results], [list(range(12))] * len(results))

    def test_fails(self) -> None:
        """An exception of a computation is raised, at once or later, and the others go on."""
        def failing(count: int) -> Iterator[int]:
            yield from self.values(count)
            raise ValueError

        self.failureResultOf(self.collect(failing(1)), ValueError)
        result, other = self.collect(failing(6)), self.collect(self.values(6))
        for _ in range(6):
            self.turn()
        self.failureResultOf(result, ValueError)
        self.assertEqual(self.successResultOf(other), list(range(6)))

    def test_cancelled(self) -> None:
        """A cancelled computation ends."""
        result = self.collect(self.values(100))
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.successResultOf(self.collect(self.values(1))), [0])
