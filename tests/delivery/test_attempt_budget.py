"""What attempts may take together."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.attempt_budget import CONNECTS, LARGE_READS, STARTS, AttemptBudget
from routemaster.delivery.batch import PIECE
from routemaster.util.byte_budget import SMALLEST

MIB = 1024 * 1024


class AttemptBudgetTests(SynchronousTestCase):
    """Who may start, and gets how many bytes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = AttemptBudget(self.clock, 64 * MIB)

    def start(self, wanted: int) -> Deferred[int]:
        """Reserve in an iteration of the reactor in which nothing else starts."""
        self.clock.advance(0)
        return Deferred.fromCoroutine(self.budget.reserve(wanted))

    def reserve(self, wanted: int) -> int:
        reserved: int = self.successResultOf(self.start(wanted))
        return reserved

    def test_enough(self) -> None:
        """A small body gets what it needs, a large one at most an eighth of all."""
        self.assertEqual(self.reserve(100 * MIB), 8 * MIB)
        self.assertEqual(self.reserve(100), 100)
        self.assertEqual(self.reserve(6 * MIB), 6 * MIB)

    def test_scarce(self) -> None:
        """Hundreds of receivers with large backlogs leave room for small bodies, and none gets next to nothing."""
        taken = [self.reserve(8 * MIB) for _ in range(300)]
        self.assertLess(sum(taken), 63 * MIB)
        self.assertGreater(taken[60], 64 * 1024)
        self.assertEqual(self.reserve(2000), 2000)

    def test_waits(self) -> None:
        """Who finds nothing left waits until something is given back; the first in the queue is served first."""
        taken = []
        while (waiting := self.start(8 * MIB)).called:
            taken.append(self.successResultOf(waiting))
        self.assertLessEqual(sum(taken), 64 * MIB)
        second = self.start(8 * MIB)
        self.budget.release(SMALLEST)
        self.assertEqual(self.successResultOf(waiting), SMALLEST)
        self.assertNoResult(second)
        self.budget.release(SMALLEST)
        self.assertEqual(self.successResultOf(second), SMALLEST)

    def test_bytes_given_back(self) -> None:
        """When many bytes come back at once, those that waited start a few in each iteration, too."""
        iteration: list[Callable[[], object]] = []
        budget = AttemptBudget(Mock(callLater=lambda _delay, call: iteration.append(call)), MIB)
        self.successResultOf(Deferred.fromCoroutine(budget.reserve(MIB)))
        budget.release(MIB // 8 - MIB)  # one event that is larger than what was reserved
        waiting = [Deferred.fromCoroutine(budget.reserve(1)) for _ in range(STARTS - 1)]
        iteration.pop()()
        waiting += [Deferred.fromCoroutine(budget.reserve(1)) for _ in range(STARTS)]
        iteration.pop()()
        budget.release(MIB)
        self.assertEqual(sum(each.called for each in waiting), STARTS)
        iteration.pop()()
        self.assertEqual(sum(each.called for each in waiting), 2 * STARTS - 1)

    def test_cancelled(self) -> None:
        """A wait that is cancelled takes nothing."""
        small = AttemptBudget(self.clock, SMALLEST)
        self.successResultOf(Deferred.fromCoroutine(small.reserve(SMALLEST)))
        first, second = (Deferred.fromCoroutine(small.reserve(SMALLEST)) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        small.release(SMALLEST)
        self.assertEqual(self.successResultOf(second), SMALLEST)

    def test_larger_than_all(self) -> None:
        """A single event that is larger than the bound is sent when nothing else is under way."""
        small = AttemptBudget(self.clock, 10)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(small.reserve(100))), 100)
        small.release(100 - 500)
        waiting = Deferred.fromCoroutine(small.reserve(1))
        self.assertNoResult(waiting)
        small.release(500)
        self.assertEqual(self.successResultOf(waiting), 1)

    def test_connected_ones_do_not_wait(self) -> None:
        """Two attempts that have to connect start in one iteration; connected ones do not wait for them."""
        calls: list[Callable[[], object]] = []
        budget = AttemptBudget(Mock(callLater=lambda _delay, call: calls.append(call)), MIB)

        def reserve(connected: bool) -> Deferred[int]:
            return Deferred.fromCoroutine(budget.reserve(1, connected))

        others, found = [reserve(False) for _ in range(200)], []
        for _ in range(5):
            mine = [reserve(True) for _ in range(STARTS)]
            found.append((sum(each.called for each in others), all(each.called for each in mine)))
            calls.pop()()
        self.assertEqual(found, [(CONNECTS * number, True) for number in range(1, 6)])
        while calls:
            calls.pop()()
        self.assertTrue(all(each.called for each in others))

    def test_starts(self) -> None:
        """Only a few attempts start in one iteration of the reactor, in order; cancelled ones do not count."""
        iteration: list[Callable[[], object]] = []
        clock = Mock(callLater=lambda _delay, call: iteration.append(call))
        budget, started = AttemptBudget(clock, MIB), []

        async def start(number: int) -> None:
            await budget.reserve(1)
            started.append(number)

        def iterate() -> None:
            calls = iteration[:]
            iteration.clear()
            for call in calls:
                call()

        starts = [Deferred.fromCoroutine(start(number)) for number in range(3 * STARTS)]
        self.assertEqual(started, [*range(STARTS)])
        cancelled = starts.pop(STARTS + 2)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        iterate()
        expected = [number for number in range(3 * STARTS) if number != STARTS + 2]
        self.assertEqual(started, expected[: 2 * STARTS])
        starts.append(Deferred.fromCoroutine(start(99)))
        iterate()
        self.assertEqual(started, [*expected, 99])
        for each in starts:
            self.successResultOf(each)
        iterate()
        self.assertEqual(iteration, [])

    def test_reads(self) -> None:
        """Large batches have turns of their own: a small one is read though many large ones wait."""
        reading, begun = Deferred[None](), list[int]()

        async def read(events: int) -> None:
            async with self.budget.reads(events):
                begun.append(events)
                await reading

        for _ in range(10):
            Deferred.fromCoroutine(read(PIECE + 1))
        Deferred.fromCoroutine(read(PIECE))
        self.assertEqual(begun, LARGE_READS * [PIECE + 1] + [PIECE])
