"""What is logged of attempts to deliver."""

from __future__ import annotations

from attrs import evolve
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.attempt_log import Allowances, AttemptLog, log_suppressed
from routemaster.delivery.batch import Batch
from routemaster.interfaces import Outcome, Verdict
from routemaster.metrics.meter import Meter
from routemaster.model import EventID
from routemaster.testing.script_sender import ACKNOWLEDGED
from routemaster.util.log_throttle import MAX_ALL


class AttemptLogTests(SynchronousTestCase):
    """The log lines of attempts."""

    batch = Batch.of((("cats", EventID(7, 1), b'{"n":1}'), ("cats", EventID(8, 2), b'{"n":2}')))
    failed = Outcome(Verdict.FAILED, 503, "answered 503", reused=True)

    def end(self, log: AttemptLog, outcome: Outcome, at: float) -> None:
        log.ended(self.batch, outcome, 1, at - 1, at - 0.25, at)

    def test_each_attempt(self) -> None:
        """Each attempt is logged at debug level with all its fields."""
        log = AttemptLog(Meter(), "svc", Allowances())
        with capturedLogs() as events:
            self.end(log, ACKNOWLEDGED, 10)
            for at in range(20, 25):
                self.end(log, self.failed, at)
        debug = [event for event in events if event["log_level"] is LogLevel.debug]
        self.assertEqual(len(debug), 6)
        fields = {"name": "svc", "events": 2, "first": "7-1", "last": "8-2", "attempt": 1, "status": 503,
                "ms": 250.0, "bytes": 17, "reused": True, "error": "answered 503"}  # fmt: skip
        self.assertEqual({name: debug[-1][name] for name in fields}, fields)

    def test_lines(self) -> None:
        """A failure, its repetitions and the recovery are one line each."""
        log = AttemptLog(Meter(), "svc", Allowances())
        with capturedLogs() as events:
            for at in range(200):
                self.end(log, self.failed, at)
            self.end(log, evolve(self.failed, status=500, error="answered 500"), 200)
            self.end(log, ACKNOWLEDGED, 201)
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

    def test_reasons(self) -> None:
        """Each new reason is logged at once; an answer whose text changes with each attempt is no new reason."""
        log = AttemptLog(Meter(), "svc", Allowances())
        with capturedLogs() as events:
            for number in range(13):
                self.end(log, evolve(self.failed, error=f"answered {500 + number}"), number)
            for number in range(40):
                failed = evolve(self.failed, error=f"answered 500: request {number}", reason="answered 500")
                self.end(log, failed, 13 + number)
        self.assertEqual(len([event for event in events if event["log_level"] is LogLevel.warn]), 13)

    def test_thousands(self) -> None:
        """Thousands of subscribers that fail and recover together cost a few dozen lines a minute."""
        allowances = Allowances()
        logs = [AttemptLog(Meter(), f"svc{number}", allowances) for number in range(2000)]
        with capturedLogs() as events:
            for second in range(0, 360, 30):
                log_suppressed(allowances, second)
                for log in logs:
                    self.end(log, self.failed, second)
            log_suppressed(allowances, 360)
            for log in logs:
                self.end(log, ACKNOWLEDGED, 361)
            log_suppressed(allowances, 420)
        lines = [event["log_format"].format(**event)
                 for event in events if event["log_level"] is not LogLevel.debug]  # fmt: skip
        sums = [line for line in lines if "further" in line]
        self.assertEqual(len(sums), 7)
        self.assertRegex(sums[0], r"^3\d{3} further deliveries failed in the last minute, to 1940 subscribers, "
                                  r"most often: answered 503$")  # fmt: skip
        self.assertRegex(sums[-1], r"^deliveries to 1\d{3} further subscribers succeed again$")
        self.assertLessEqual(len(lines) - len(sums), 7 * MAX_ALL)
