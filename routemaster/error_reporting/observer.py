"""The log observer that selects exceptions, folds repeated ones, and puts reports into the queue."""

from __future__ import annotations

from threading import Lock

from attrs import define, evolve
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface.declarations import implementer

from routemaster.error_reporting.queue import ReportQueue
from routemaster.error_reporting.report import Fingerprint, Report, fingerprint, read
from routemaster.error_reporting.scrub import Scrubber
from routemaster.interfaces import Clock

WINDOW = 60.0   #: seconds in which one fingerprint is reported once
MAX_FINGERPRINTS = 1000  #: kept at a time
STOP_TIMEOUT = 4.0     #: seconds for the stop
POLL_INTERVAL = 0.05   #: seconds between two checks whether the queue is empty

REPORTED_LEVELS = (LogLevel.error, LogLevel.critical)


@define
class Window:
    """The time after a report in which exceptions with its fingerprint are only counted."""

    since: float
    report: Report  #: that was sent at the start
    count: int = 0  #: of repetitions


class Deduplicator:
    """Allows one report for each fingerprint in a window."""

    def __init__(self) -> None:
        self._table: dict[Fingerprint, Window] = {}

    def count_repeated(self, key: Fingerprint, now: float) -> bool:
        """Whether the fingerprint has an open window; if so, count the repetition."""
        window = self._table.get(key)
        if window is None or now - window.since >= WINDOW:
            return False
        window.count += 1
        return True

    def open(self, key: Fingerprint, report: Report, now: float) -> Report | None:
        """Open a window; returns the report to send, or None if there are too many fingerprints."""
        window = self._table.pop(key, None)
        if window is None and len(self._table) >= MAX_FINGERPRINTS:
            return None
        self._table[key] = Window(now, report)
        return evolve(report, folded=window.count) if window is not None else report

    def close_windows(self, now: float) -> list[Report]:
        """Close windows that are over; each with repetitions returns a report, which opens the next window."""
        due = []
        for key, window in list(self._table.items()):
            if now - window.since >= WINDOW:
                del self._table[key]
                if window.count:
                    # the report is one of the repetitions itself
                    due.append(evolve(window.report, folded=window.count - 1))
                    self._table[key] = Window(now, window.report)
        return due


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class RemoteReporter:
    """Reports exceptions to a service; may be called in any thread."""

    _log = Logger()

    def __init__(self, name: str, queue: ReportQueue, scrubber: Scrubber, clock: Clock) -> None:
        """Starts a timer for the end of windows, which `stop` cancels."""
        self._name, self._queue, self._scrubber, self._clock = name, queue, scrubber, clock
        self._lock = Lock()
        self._deduplicator = Deduplicator()
        self._stopped = False
        self._timer = clock.callLater(WINDOW, self._each_minute)

    def __call__(self, event: LogEvent) -> None:
        """Report the event if it is an exception; never raises, never waits."""
        failure = event.get("log_failure")
        if self._stopped or event.get("log_level") not in REPORTED_LEVELS or not isinstance(failure, Failure):
            return
        try:
            self._report(event, failure)
        except Exception as error:
            # without a failure, so that this event is not reported in turn
            self._log.warn("reporting an exception failed: {error}", error=type(error).__name__)

    async def stop(self) -> None:
        """Send the remaining reports, within STOP_TIMEOUT; later exceptions are not reported."""
        if self._stopped:
            return
        self._stopped = True
        self._timer.cancel()
        self._report_repeated(self._clock.seconds())
        self._queue.close()
        deadline = self._clock.seconds() + STOP_TIMEOUT
        while self._queue.busy and self._clock.seconds() < deadline:
            checked: Deferred[None] = Deferred()
            self._clock.callLater(POLL_INTERVAL, checked.callback, None)
            await checked
        self._queue.abandon()
        self._log_lost()

    def _report(self, event: LogEvent, failure: Failure) -> None:
        key, now = fingerprint(failure), self._clock.seconds()
        with self._lock:
            if self._deduplicator.count_repeated(key, now):
                return
        report = read(event, failure, self._scrubber)
        with self._lock:
            if self._deduplicator.count_repeated(key, now):
                return  # another thread has opened the window meanwhile
            opened = self._deduplicator.open(key, report, now)
        if opened is None:
            self._queue.count_lost(1)
        else:
            self._queue.put(opened)

    def _each_minute(self) -> None:
        self._timer = self._clock.callLater(WINDOW, self._each_minute)
        self._report_repeated(self._clock.seconds())
        self._log_lost()

    def _report_repeated(self, now: float) -> None:
        with self._lock:
            due = self._deduplicator.close_windows(now)
        for report in due:
            self._queue.put(report)

    def _log_lost(self) -> None:
        lost = self._queue.take_lost()
        if lost:
            self._log.warn(
                "{lost} exception reports to {service} were lost; the log has every exception",
                lost=lost,
                service=self._name,
            )
