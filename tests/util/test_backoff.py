"""The pause after failures."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.backoff import backoff

# failures, jitter, Retry-After -> seconds, with a shortest pause of 0.1 and a longest of 60
TABLE = [
    (1, 0.0, None, 0.1),
    (2, 0.0, None, 0.2),
    (3, 0.0, None, 0.4),
    (4, 0.0, None, 0.8),
    (10, 0.0, None, 51.2),
    (11, 0.0, None, 60.0),
    (12, 0.0, None, 60.0),
    (1000, 0.0, None, 60.0),   # no overflow, no end
    (10**9, 0.0, None, 60.0),
    (1, 0.5, None, 0.125),     # half as long again at the most while it grows
    (4, 1.0, None, 1.2),
    (10, 1.0, None, 60.0),     # never longer than the longest
    (11, 1.0, None, 45.0),     # a quarter less at the most at the end
    (1, 0.0, 7.0, 7.0),        # Retry-After
    (10, 0.0, 7.0, 51.2),      # but not less than without
    (1, 0.0, 3600.0, 60.0),    # and not more than the longest
    (11, 1.0, 44.0, 55.0),     # up to a quarter longer
    (11, 1.0, 50.0, 60.0),
    (1, 0.0, 0.0, 0.1),
    (1, 0.0, -5.0, 0.1),
]


class BackoffTests(SynchronousTestCase):
    """`backoff` as a table."""

    def test_table(self) -> None:
        """Pauses double up to the longest, jitter spreads them, Retry-After lengthens them up to the longest."""
        for failures, jitter, asked, seconds in TABLE:
            self.assertAlmostEqual(
                backoff(failures, 0.1, 60.0, jitter, asked), seconds, 9, f"{failures} {jitter} {asked}"
            )

    def test_bounds(self) -> None:
        """With any jitter, a pause is at least the shortest and at most the longest."""
        for failures in range(1, 80):
            for jitter in (0.0, 0.3, 0.999999):
                self.assertGreaterEqual(backoff(failures, 0.1, 60.0, jitter), 0.1)
                self.assertLessEqual(backoff(failures, 0.1, 60.0, jitter), 60.0)

    def test_jitter_spreads(self) -> None:
        """What failed at the same time is retried at different times, however often it failed."""
        for failures in (1, 5, 10, 11, 50):
            pauses = [backoff(failures, 0.1, 60.0, jitter / 10) for jitter in range(10)]
            self.assertGreater(len(set(pauses)), 1, failures)

    def test_shortest_over_longest(self) -> None:
        """A longest pause below the shortest wins."""
        self.assertEqual(backoff(1, 5.0, 2.0, 0.0), 2.0)
