"""Bytes that many hold together; what attempts make of it is in `tests.delivery.test_attempt_budget`."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.byte_budget import PART, SMALLEST, ByteBudget

MIB = 1024 * 1024


class ByteBudgetTests(SynchronousTestCase):
    """`ByteBudget`."""

    def setUp(self) -> None:
        self.budget = ByteBudget(MIB)

    def take(self, wanted: int) -> int:
        size: int = self.successResultOf(self.budget.reserve(wanted))
        return size

    def take_all(self) -> list[int]:
        """Take until nothing is left for the next one, which waits."""
        taken: list[int] = []
        while (share := self.budget.reserve(MIB)).called:
            taken.append(self.successResultOf(share))
        self.waiting = share
        return taken

    def test_shares(self) -> None:
        """The first may have an eighth, others ever less, down to the smallest share; together not too much."""
        taken = self.take_all()
        self.assertEqual(taken[0], MIB // PART)
        self.assertEqual(taken, sorted(taken, reverse=True))
        self.assertEqual(taken[-1], SMALLEST)
        self.assertLessEqual(sum(taken), MIB)

    def test_order(self) -> None:
        """Bytes that come back go to those that wait, in order, as far as they suffice."""
        self.take_all()
        others = [self.budget.reserve(SMALLEST) for _ in range(2)]
        self.budget.release(2 * SMALLEST)
        self.assertEqual([self.successResultOf(each) for each in (self.waiting, others[0])], 2 * [SMALLEST])
        self.assertNoResult(others[1])

    def test_corrected(self) -> None:
        """Where shares may turn out larger, the next one that waits is served when the last is corrected."""
        self.budget = ByteBudget(MIB, corrected=True)
        self.take_all()
        other = self.budget.reserve(SMALLEST)
        self.budget.release(3 * SMALLEST)
        self.assertEqual(self.successResultOf(self.waiting), SMALLEST)
        self.assertNoResult(other)
        self.budget.release(-SMALLEST)
        self.assertEqual(self.successResultOf(other), SMALLEST)

    def test_small(self) -> None:
        """A share that is small enough does not wait behind large ones."""
        self.take_all()
        self.budget.release(100)
        self.assertNoResult(self.waiting)
        self.assertEqual(self.take(100), 100)

    def test_cancelled(self) -> None:
        """Who does not wait any more gets nothing."""
        self.take_all()
        other = self.budget.reserve(SMALLEST)
        self.waiting.cancel()
        self.failureResultOf(self.waiting, CancelledError)
        self.budget.release(SMALLEST)
        self.assertEqual(self.successResultOf(other), SMALLEST)
