"""What follows from failed attempts."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.decision import Rules
from routemaster.delivery.retries import Retries
from routemaster.interfaces import LastAttempt, LeaseGrant, Outcome, Verdict
from routemaster.testing.script_sender import ACKNOWLEDGED, refused

CUT = Outcome(Verdict.FAILED, error="closed", cut=True)
#: outcomes of attempts with as many events as allowed, of at most 100; then the size of the next batch
TABLE: dict[str, tuple[list[Outcome], int]] = {
    "nothing failed": ([], 100),
    "too large": ([refused(413)], 50),
    "bad request": ([refused(400)], 50),
    "unprocessable": ([refused(422)], 50),
    "down to one": ([refused(400)] * 9, 1),
    "doubled by a success": ([refused(413)] * 3 + [ACKNOWLEDGED], 24),
    "doubled up to the maximum": ([refused(413)] * 3 + [ACKNOWLEDGED] * 4, 100),
    "halved again": ([refused(413)] * 3 + [ACKNOWLEDGED, refused(413)], 12),
    "other statuses": ([refused(500), refused(404), refused(429), refused(503)], 100),
    "another failure between": ([refused(413), refused(500)], 50),
    "cut once": ([CUT], 100),
    "cut twice in a row": ([CUT, CUT], 50),
    "cut three times in a row": ([CUT, CUT, CUT], 25),
    "cut twice, but not in a row": ([CUT, refused(500), CUT], 100),
    "cut again after a success": ([CUT, CUT, ACKNOWLEDGED, CUT], 100),
}


class RetriesTests(SynchronousTestCase):
    """Pauses and sizes of batches."""

    def retries(self) -> Retries:
        return Retries(Rules(retry_delay=1.0, max_backoff=60.0), lambda: 0.0)

    def grant(self, **changed: int) -> LeaseGrant:
        return evolve(LeaseGrant(7, 5_000_000, 1, None, {}, 0, 0), **changed)

    def test_sizes(self) -> None:
        """Refusals of a batch halve the next one, down to one event; each success doubles it again."""
        for name, (outcomes, size) in TABLE.items():
            retries = self.retries()
            for outcome in outcomes:
                if outcome is ACKNOWLEDGED:
                    retries.succeeded(100)
                else:
                    retries.failed(outcome, retries.most(100), 0.0)
            self.assertEqual(retries.most(100), size, name)

    def test_successor(self) -> None:
        """The next holder of the lease goes on with the stored size, failures and pause."""
        retries = self.retries()
        retries.load(self.grant(failures=3, retry_at=9_000_000, batch_limit=12), 100.0)
        self.assertEqual((retries.most(100), retries.most(5), retries.failures, retries.until), (12, 5, 3, 104.0))

    def test_last(self) -> None:
        """How the last attempt ended is known from what is stored, and from each outcome."""
        retries, seen = self.retries(), []
        for change in (
            lambda: retries.load(self.grant(), 0.0),
            lambda: retries.failed(refused(), 1, 0.0),
            lambda: retries.succeeded(1),
            lambda: retries.load(self.grant(epoch=8, succeeded=True), 0.0),
            lambda: retries.load(self.grant(epoch=8, succeeded=True, failures=1), 0.0),
        ):
            change()
            seen.append(retries.last)
        one, failed, good = LastAttempt.NONE, LastAttempt.FAILED, LastAttempt.SUCCEEDED
        self.assertEqual(seen, [one, failed, good, good, failed])
