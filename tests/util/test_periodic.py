"""Periodic work survives exceptions, never overlaps, and misses no call of hasten."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreUnavailable, WrongType
from routemaster.util.periodic import Periodic


class PeriodicTests(SynchronousTestCase):
    """One periodic task on a clock that the test advances."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.runs: list[float] = []
        self.outcome: Any = None  #: an exception to raise, or what to wait for
        self.part = Periodic("the work", self.work, 10, self.clock)

    def tearDown(self) -> None:
        self.outcome = None
        self.ended()
        self.assertEqual(self.clock.getDelayedCalls(), [], "no timer is left")

    def work(self) -> Awaitable[None] | None:
        self.runs.append(self.clock.seconds())
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def ended(self) -> bool:
        """Stop; whether the stop has finished."""
        stopped = Deferred.fromCoroutine(self.part.stop())
        stopped.addErrback(self.fail)
        return stopped.called

    def test_interval(self) -> None:
        """The work runs at once, and then once in each interval."""
        self.part.start()
        self.clock.pump([5] * 5)
        self.assertEqual(self.runs, [0, 10, 20])

    def test_survives(self) -> None:
        """An exception is logged with its traceback, and the next run is on time."""
        self.outcome = ValueError("broken")
        self.part.start()
        self.clock.advance(10)
        self.assertEqual(self.runs, [0, 10])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_survives_late(self) -> None:
        """An exception after an await is logged too, and the next run is on time."""
        self.outcome = waiting = Deferred()
        self.part.start()
        self.clock.advance(3)
        self.outcome = None
        waiting.errback(ValueError("broken"))
        self.clock.advance(7)
        self.assertEqual(self.runs, [0, 10])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_fails_for_hours(self) -> None:
        """A repeated failure is logged at once, then once a minute with a count; then the recovery is logged."""
        with capturedLogs() as events:
            self.outcome = ValueError("broken")
            self.part.start()
            self.clock.pump([10] * 12)
            self.outcome = None
            self.clock.advance(10)
        self.assertEqual([formatEvent(event) for event in events], [
            "the work failed; it will run again",
            *["the work failed, 6 times since the last line; it will run again"] * 2,
            "the work resumed",
        ])  # fmt: skip
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 3)

    def test_store_unavailable(self) -> None:
        """A store that cannot serve is logged in one line without traceback, and its return in another."""
        for error, why in (
            (StoreUnavailable("connection lost"), "Redis unavailable: connection lost"),
            (WrongType("a key is wrong"), "a key is wrong"),
        ):
            with capturedLogs() as events:
                self.outcome = error
                self.part.start()
                self.clock.advance(10)
                self.outcome = None
                self.clock.advance(10)
                self.clock.advance(10)
            lines = [(event["log_level"].name, formatEvent(event)) for event in events]
            self.assertEqual(lines, [("warn", f"the work paused: {why}"), ("info", "the work resumed")])
            self.successResultOf(Deferred.fromCoroutine(self.part.stop()))
        self.assertEqual(self.runs, [0, 10, 20, 30, 30, 40, 50, 60])

    def test_no_overlap(self) -> None:
        """After a run that takes longer than the interval the next follows at once; they never overlap."""
        self.outcome = waiting = Deferred()
        self.part.start()
        self.clock.advance(25)
        self.assertEqual(self.runs, [0])
        self.outcome = None
        waiting.callback(None)
        self.clock.advance(0)
        self.assertEqual(self.runs, [0, 25])
        self.clock.advance(10)
        self.assertEqual(self.runs, [0, 25, 35])

    def test_hasten(self) -> None:
        """`hasten` runs the work at once, and the interval starts again."""
        self.part.start()
        self.clock.advance(4)
        self.part.hasten()
        self.assertEqual(self.runs, [0, 4])
        self.clock.advance(9)
        self.assertEqual(self.runs, [0, 4])
        self.clock.advance(1)
        self.assertEqual(self.runs, [0, 4, 14])

    def test_hasten_during_run(self) -> None:
        """Any number of calls of `hasten` during a run causes one more run."""
        self.outcome = waiting = Deferred()
        self.part.start()
        self.part.hasten()
        self.part.hasten()
        self.assertEqual(self.runs, [0])
        self.outcome = None
        waiting.callback(None)
        self.assertEqual(self.runs, [0, 0])

    def test_hasten_while_stopped(self) -> None:
        """`hasten` before the start or after the stop starts no run."""
        self.part.hasten()
        self.assertEqual(self.runs, [])
        self.part.start()
        self.assertTrue(self.ended())
        self.part.hasten()
        self.clock.advance(20)
        self.assertEqual(self.runs, [0])

    def test_stop_waits(self) -> None:
        """`stop` waits for the current run, and no other follows, hastened or not."""
        self.outcome = waiting = Deferred()
        self.part.start()
        self.part.hasten()
        stopped = Deferred.fromCoroutine(self.part.stop())
        self.assertNoResult(stopped)
        waiting.callback(None)
        self.successResultOf(stopped)
        self.clock.advance(30)
        self.assertEqual(self.runs, [0])

    def test_clock_set_back(self) -> None:
        """A clock that is set back an hour delays the next run by no more than the interval."""
        self.outcome = waiting = Deferred()
        self.part.start()
        self.clock.rightNow -= 3600
        self.outcome = None
        waiting.callback(None)
        self.clock.advance(10)
        self.assertEqual(len(self.runs), 2)
