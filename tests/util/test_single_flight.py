"""One run serves all who ask at the same time."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreUnavailable
from routemaster.util.chunks import PAUSE
from routemaster.util.single_flight import AT_ONCE, SingleFlight


class SingleFlightTests(SynchronousTestCase):
    """Work whose runs a test ends."""

    def setUp(self) -> None:
        self.runs: list[Deferred[int]] = []
        self.clock = Clock()
        self.ask = SingleFlight(self.work, self.clock)

    async def work(self) -> int:
        self.runs.append(Deferred())
        return await self.runs[-1]

    def test_the_next_run_serves_who_came_during_one(self) -> None:
        """A request during a run gets nothing of that run; one more run serves all who came meanwhile."""
        first = self.ask()
        later = [self.ask(), self.ask(), self.ask()]
        self.runs[0].callback(1)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertEqual(len(self.runs), 2)
        for each in later:
            self.assertNoResult(each)
        self.runs[1].callback(2)
        self.assertEqual([self.successResultOf(each) for each in later], [2, 2, 2])
        self.assertEqual(len(self.runs), 2)
        again = self.ask()
        self.runs[2].callback(3)
        self.assertEqual(self.successResultOf(again), 3)

    def test_many(self) -> None:
        """Of many who wait, some go on at a time, with a pause between; who comes meanwhile gets the next run."""
        results = [self.ask() for _ in range(2 * AT_ONCE + 2)][1:]
        self.runs[0].callback(1)
        self.runs[1].callback(2)
        self.assertEqual(sum(each.called for each in results), AT_ONCE)
        late = self.ask()
        self.clock.advance(PAUSE)
        self.assertEqual(sum(each.called for each in results), 2 * AT_ONCE)
        self.clock.advance(PAUSE)
        self.assertEqual([self.successResultOf(each) for each in results], [2] * len(results))
        self.runs[2].callback(3)
        self.assertEqual(self.successResultOf(late), 3)

    def test_failures(self) -> None:
        """A failure of the store reaches each who waits as an exception of its own; the next run is tried."""
        self.ask().addErrback(lambda _: None)
        later = [self.ask(), self.ask()]
        self.runs[0].errback(StoreUnavailable("away"))
        self.runs[1].errback(StoreUnavailable("away", outcome_unknown=True))
        errors = [self.failureResultOf(each, StoreUnavailable).value for each in later]
        self.assertIsNot(errors[0], errors[1])
        self.assertEqual([(str(error), error.outcome_unknown) for error in errors], [("away", True)] * 2)

    def test_who_gave_up(self) -> None:
        """A cancelled request ends no run that others wait for, and starts none for itself."""
        first, second, third = self.ask(), self.ask(), self.ask()
        for each in (first, third):
            each.addErrback(lambda _: None).cancel()
        self.runs[0].callback(1)
        self.runs[1].callback(2)
        self.assertEqual(self.successResultOf(second), 2)
        gone = self.ask()
        waits = self.ask()
        waits.addErrback(lambda _: None).cancel()
        self.runs[2].callback(3)
        self.assertEqual(self.successResultOf(gone), 3)
        self.assertEqual(len(self.runs), 3)
