"""Which repeated failures are logged, of deliveries above all."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.log_throttle import (
    MAX_EACH,
    MAX_NEW,
    PERIOD,
    Allowance,
    Allowances,
    LogThrottle,
    Since,
    Summary,
)

# The outcomes of one target, and what is logged: (time, reason or "" for a success, what was before or None)
HISTORIES = {
    "a first failure is logged at once, a repeated one once a minute, and the success after them": [
        (0, "a", Since(1, 0)), (1, "a", None), (59, "a", None), (60, "a", Since(3, 60)), (61, "a", None),
        (119, "a", None), (121, "a", Since(3, 121)), (125, "", Since(7, 125)), (126, "", None),
    ],
    "another reason is logged at once": [
        (0, "a", Since(1, 0)), (1, "a", None), (2, "b", Since(2, 2)), (3, "b", None), (61, "b", None),
        (62, "b", Since(3, 62)),
    ],
    "alternating reasons are logged once a minute each": [
        (0, "a", Since(1, 0)), (1, "b", Since(1, 1)), (2, "a", None), (3, "b", None), (59, "a", None),
        (60, "a", Since(4, 60)), (60.5, "b", None), (61, "b", Since(2, 61)),
    ],
    "each of many reasons is logged at once": [
        *((n, f"reason {n}", Since(1, n)) for n in range(20)), *((20 + n, f"reason {n}", None) for n in range(20)),
    ],
    "failures with always new reasons are limited": [
        *((n, f"reason {n}", Since(1, n)) for n in range(MAX_NEW)), (31, "reason x", None), (32, "reason y", None),
        (61, "reason z", Since(3, 61)),
    ],
    "alternating failures and successes are limited": [
        (0, "a", Since(1, 0)), (1, "", Since(1, 1)), (2, "a", Since(1, 0)), (3, "", Since(1, 1)),
        (4, "a", Since(1, 0)), (5, "", Since(1, 1)), (6, "a", None), (7, "", None), (8, "a", None), (9, "", None),
        (60, "a", Since(3, 0)),
    ],
    "failures in a row whose first one was over the limit are logged later": [
        (0, "a", Since(1, 0)), (1, "", Since(1, 1)), (2, "a", Since(1, 0)), (3, "", Since(1, 1)),
        (4, "a", Since(1, 0)), (5, "", Since(1, 1)), (6, "a", None), (63, "a", None), (64, "a", Since(3, 58)),
        (65, "", Since(3, 59)),
    ],
    "a clock that is set back suppresses no failure": [
        (1000, "a", Since(1, 0)), (5, "a", Since(1, 0)), (6, "a", None), (7, "", Since(3, 0)),
    ],
}  # fmt: skip


class LogThrottleTests(SynchronousTestCase):
    """One target."""

    def test_histories(self) -> None:
        """A new failure is logged at once, a repeated one with a count, and only a few in a minute."""
        for rule, history in HISTORIES.items():
            throttle = LogThrottle("svc", Allowances())
            for moment, reason, logged in history:
                found = throttle.failed(moment, reason) if reason else throttle.succeeded(moment)
                self.assertEqual(found, logged, f"{rule}: {moment} {reason!r}")

    def test_unshared(self) -> None:
        """A throttle without shared allowances logs a failure every minute."""
        throttle = LogThrottle()
        logged = [throttle.failed(60 * minute, "a") for minute in range(1000)]
        self.assertNotIn(None, logged)
        self.assertEqual(throttle.succeeded(60_000), Since(1000, 60_000))

    def test_limit(self) -> None:
        """At most MAX_EACH failures are logged in a minute, and no more successes than failures."""
        for rhythm in ("a", "ab", "a.", "ab.", "abc..", "aab.c."):
            throttle = LogThrottle("svc", Allowances(Allowance(10**6), Allowance(10**6)))
            failed = succeeded = 0
            for tick in range(36_000):
                sign = rhythm[tick % len(rhythm)]
                if sign == ".":
                    succeeded += throttle.succeeded(tick / 10) is not None
                else:
                    failed += throttle.failed(tick / 10, sign) is not None
            self.assertLessEqual(succeeded, failed, rhythm)
            self.assertLessEqual(failed, MAX_EACH * (3600 / PERIOD + 1), rhythm)
            self.assertGreaterEqual(failed, 3600 / PERIOD, rhythm)


class AllowanceTests(SynchronousTestCase):
    """Lines that many targets share."""

    def test_sum(self) -> None:
        """The lines that a period suppressed are in one summary at its end; the next period has lines again."""
        allowance = Allowance(2)
        self.assertIsNone(allowance.sum_up(1000))
        self.assertEqual([allowance.take(name, "a") for name in "abc"], [True, True, False])
        allowance.take("c", "b")
        allowance.take("d", "b")
        self.assertIsNone(allowance.sum_up(1059.9))
        self.assertEqual(allowance.sum_up(1060), Summary(3, 2, "b"))
        self.assertTrue(allowance.take("c", "a"))
        self.assertIsNone(allowance.sum_up(1120))

    def test_clock_set_back(self) -> None:
        """A period ends even if the clock is set back in it."""
        allowance = Allowance(0)
        allowance.sum_up(10_000)
        allowance.take("a", "x")
        self.assertEqual(allowance.sum_up(5), Summary(1, 1, "x"))

    def test_endless_reasons(self) -> None:
        """Only a limited number of different reasons is counted."""
        allowance = Allowance(0)
        for number in range(10_000):
            allowance.take("a", str(number))
        self.assertLess(allowance.reasons, 200)

    def test_suppressed(self) -> None:
        """If only the summary contains the failures of a target, only the summary contains its success."""
        allowances = Allowances(Allowance(1), Allowance(1))
        first, second, third = (LogThrottle(name, allowances) for name in "abc")
        self.assertEqual([each.failed(0, "x") for each in (first, second)], [Since(1, 0), None])
        self.assertEqual(second.failed(1, "x"), None)
        self.assertEqual([each.succeeded(2) for each in (first, second, third)], [Since(1, 2), None, None])
        self.assertEqual(allowances.failures.sum_up(60), Summary(2, 1, "x"))
        self.assertEqual(allowances.successes.sum_up(60), Summary(1, 1, ""))
