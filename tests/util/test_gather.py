"""Steps that run at the same time, a few at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreUnavailable
from routemaster.util.gather import AT_ONCE, gather, gather_available, gather_outcomes

GONE = StoreUnavailable("gone")


class GatherTests(SynchronousTestCase):
    """The three forms."""

    def setUp(self) -> None:
        self.started: list[Deferred[int]] = []

    def steps(self, count: int) -> Iterator[Deferred[int]]:
        for _ in range(count):
            step: Deferred[int] = Deferred()
            self.started.append(step)
            yield step

    def test_a_few_at_once(self) -> None:
        """Only so many steps of a generator are under way; the results are in the order of the steps."""
        for form in (gather, lambda steps: Deferred.fromCoroutine(gather_outcomes(steps))):
            self.started.clear()
            results = form(self.steps(2 * AT_ONCE + 3))
            for done in range(0, 2 * AT_ONCE + 3, AT_ONCE):
                self.assertEqual(len(self.started), min(done + AT_ONCE, 2 * AT_ONCE + 3))
                self.assertNoResult(results)
                for number in reversed(range(done, len(self.started))):
                    self.started[number].callback(number)
            self.assertEqual(self.successResultOf(results), [*range(2 * AT_ONCE + 3)])

    def test_error(self) -> None:
        """An error is raised when the steps under way have ended; no further step is started."""
        results = gather(self.steps(AT_ONCE + 1))
        self.started[5].errback(GONE)
        self.assertNoResult(results)
        for number, step in enumerate(self.started):
            if number != 5:
                step.callback(number)
        self.assertIs(self.failureResultOf(results).value, GONE)
        self.assertEqual(len(self.started), AT_ONCE)

    def test_error_in_a_list(self) -> None:
        """Steps in a list are under way: however many fail, no failure is left unhandled."""
        steps = list(self.steps(2 * AT_ONCE))
        results = gather(steps)
        for step in self.started:
            step.errback(StoreUnavailable("gone"))
        self.failureResultOf(results, StoreUnavailable)
        del steps, results
        self.started.clear()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_outcomes(self) -> None:
        """Each outcome is a result or an exception."""
        results = Deferred.fromCoroutine(gather_outcomes(self.steps(2)))
        self.started[0].errback(GONE)
        self.started[1].callback(1)
        self.assertEqual(self.successResultOf(results), [GONE, 1])

    def test_available(self) -> None:
        """An unavailable store leaves None, unless all are unavailable; any other error is raised."""
        cases = (([1, GONE], [1, None]), ([GONE, GONE], GONE), ([1, ValueError("x"), GONE], ValueError))
        for outcomes, expected in cases:
            self.started.clear()
            results = Deferred.fromCoroutine(gather_available(self.steps(len(outcomes))))
            for step, outcome in zip(self.started, outcomes, strict=True):
                (step.errback if isinstance(outcome, Exception) else step.callback)(outcome)
            if isinstance(expected, list):
                self.assertEqual(self.successResultOf(results), expected)
            else:
                self.failureResultOf(results, expected if isinstance(expected, type) else StoreUnavailable)
