"""Which repeated failures are logged, of deliveries above all."""

from __future__ import annotations

from attrs import evolve
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.attempt_log import Allowances, AttemptLog, sum_up
from routemaster.delivery.backlog import Batch
from routemaster.interfaces import Outcome, Verdict
from routemaster.metrics.meter import Meter
from routemaster.model import EventID
from routemaster.testing.script_sender import ACKNOWLEDGED
from routemaster.util.log_throttle import MAX_ALL, MAX_EACH, PERIOD, Allowance, LogThrottle, Since, Summary

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
    "failures with always new reasons are limited": [
        (0, "a", Since(1, 0)), (1, "b", Since(1, 1)), (2, "c", Since(1, 2)), (3, "d", None), (4, "e", None),
        (60, "f", Since(3, 60)), (60.5, "g", None), (61, "h", Since(2, 61)),
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


class TellingTests(SynchronousTestCase):
    """The lines themselves."""

    batch = Batch.of((("cats", EventID(7, 1), b"1"), ("cats", EventID(8, 2), b"2")))
    failed = Outcome(Verdict.FAILED, 503, "answered 503", reused=True)

    def tell(self, telling: AttemptLog, outcome: Outcome, at: float) -> None:
        telling.ended(self.batch, outcome, 1, at - 1, at - 0.25, at)

    def test_each_attempt(self) -> None:
        """Each attempt is a debug line with all that there is to know of it."""
        telling = AttemptLog(Meter(), "svc", Allowances())
        with capturedLogs() as events:
            self.tell(telling, ACKNOWLEDGED, 10)
            for at in range(20, 25):
                self.tell(telling, self.failed, at)
        debug = [event for event in events if event["log_level"] is LogLevel.debug]
        self.assertEqual(len(debug), 6)
        told = {"name": "svc", "events": 2, "first": "7-1", "last": "8-2", "attempt": 1, "status": 503,
                "ms": 250.0, "bytes": 5, "reused": True, "error": "answered 503"}  # fmt: skip
        self.assertEqual({name: debug[-1][name] for name in told}, told)

    def test_lines(self) -> None:
        """A failure, its repeats and the success after them are a line each."""
        telling = AttemptLog(Meter(), "svc", Allowances())
        with capturedLogs() as events:
            for at in range(200):
                self.tell(telling, self.failed, at)
            self.tell(telling, evolve(self.failed, status=500, error="answered 500"), 200)
            self.tell(telling, ACKNOWLEDGED, 201)
        lines = [(event["log_level"].name, event["log_format"].format(**event))
                 for event in events if event["log_level"] is not LogLevel.debug]  # fmt: skip
        began = "failed to deliver 2 events to 'svc'"
        self.assertEqual(lines, [
            ("warn", f"{began}: answered 503"),
            ("warn", f"{began}, 60 failures since the last line, failing for 60 s: answered 503"),
            ("warn", f"{began}, 60 failures since the last line, failing for 120 s: answered 503"),
            ("warn", f"{began}, 60 failures since the last line, failing for 180 s: answered 503"),
            ("warn", f"{began}, 20 failures since the last line, failing for 200 s: answered 500"),
            ("info", "deliveries to 'svc' succeed again, after 201 failures in 201 s"),
        ])  # fmt: skip

    def test_thousands(self) -> None:
        """Thousands that fail for minutes and come back together are a few dozen lines a minute and a sum."""
        allowances = Allowances()
        tellings = [AttemptLog(Meter(), f"svc{number}", allowances) for number in range(2000)]
        with capturedLogs() as events:
            for second in range(0, 360, 30):
                sum_up(allowances, second)
                for telling in tellings:
                    self.tell(telling, self.failed, second)
            sum_up(allowances, 360)
            for telling in tellings:
                self.tell(telling, ACKNOWLEDGED, 361)
            sum_up(allowances, 420)
        lines = [event["log_format"].format(**event)
                 for event in events if event["log_level"] is not LogLevel.debug]  # fmt: skip
        sums = [line for line in lines if "further" in line]
        self.assertEqual(len(sums), 7)
        self.assertRegex(sums[0], r"^3\d{3} further deliveries failed in the last minute, to 1940 subscribers, "
                                  r"most often: answered 503$")  # fmt: skip
        self.assertRegex(sums[-1], r"^deliveries to 1\d{3} further subscribers succeed again$")
        self.assertLessEqual(len(lines) - len(sums), 7 * MAX_ALL)
