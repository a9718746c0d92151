"""The log observer which picks the exceptions, folds what repeats, and hands reports to the outbox."""

from __future__ import annotations

from threading import Lock

from attrs import define, evolve
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface.declarations import implementer

from routemaster.error_reporting.queue import Outbox
from routemaster.error_reporting.report import Fingerprint, Report, fingerprint, read
from routemaster.error_reporting.scrub import Scrubber
from routemaster.interfaces import Clock

WINDOW = 60.0   #: seconds in which one fingerprint is reported once
MOST = 1000     #: fingerprints remembered
GRACE = 4.0     #: seconds that a stop may take
GLANCE = 0.05   #: seconds between two looks whether the outbox is done

WORTHY = (LogLevel.error, LogLevel.critical)


@define
class Folded:
    """A fingerprint within its window."""

    since: float
    report: Report  #: the one that was sent
    count: int = 0  #: how often it has happened again


class Folding:
    """Remembers which fingerprints were reported, so that each is at most once in a window."""

    def __init__(self) -> None:
        """Nothing was reported yet."""
        self._table: dict[Fingerprint, Folded] = {}

    def folds(self, mark: Fingerprint, now: float) -> bool:
        """Whether this one belongs to a report which was sent; it is counted then."""
        folded = self._table.get(mark)
        if folded is None or now - folded.since >= WINDOW:
            return False
        folded.count += 1
        return True

    def open(self, mark: Fingerprint, report: Report, now: float) -> Report | None:
        """The report to send, which opens a window; None if there are too many already."""
        folded = self._table.pop(mark, None)
        if folded is None and len(self._table) >= MOST:
            return None
        self._table[mark] = Folded(now, report)
        return evolve(report, folded=folded.count) if folded is not None else report

    def over(self, now: float) -> list[Report]:
        """What was folded into windows that are over, each again as a report, which opens its next window."""
        due = []
        for mark, folded in list(self._table.items()):
            if now - folded.since >= WINDOW:
                del self._table[mark]
                if folded.count:
                    # it stands for itself, and for the others
                    due.append(evolve(folded.report, folded=folded.count - 1))
                    self._table[mark] = Folded(now, folded.report)
        return due


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class RemoteReporter:
    """Reports exceptions to a service; may be called in any thread."""

    _log = Logger()

    def __init__(self, name: str, outbox: Outbox, scrubber: Scrubber, clock: Clock) -> None:
        """Looks once a minute for what is left to tell, until stopped."""
        self._name, self._outbox, self._scrubber, self._clock = name, outbox, scrubber, clock
        self._lock = Lock()
        self._folding = Folding()
        self._stopped = False
        self._timer = clock.callLater(WINDOW, self._look)

    def __call__(self, event: LogEvent) -> None:
        """Report the event if it is an exception; never raises, never waits."""
        failure = event.get("log_failure")
        if self._stopped or event.get("log_level") not in WORTHY or not isinstance(failure, Failure):
            return
        try:
            self._report(event, failure)
        except Exception as error:
            # without a failure, or it would come back here
            self._log.warn("an exception could not be reported: {error}", error=type(error).__name__)

    async def stop(self) -> None:
        """Report what is still to be told, within a few seconds; what comes later is not reported."""
        if self._stopped:
            return
        self._stopped = True
        self._timer.cancel()
        self._put_over(self._clock.seconds())
        self._outbox.close()
        deadline = self._clock.seconds() + GRACE
        while self._outbox.busy and self._clock.seconds() < deadline:
            glance: Deferred[None] = Deferred()
            self._clock.callLater(GLANCE, glance.callback, None)
            await glance
        self._outbox.abandon()
        self._tell_lost()

    def _report(self, event: LogEvent, failure: Failure) -> None:
        mark, now = fingerprint(failure), self._clock.seconds()
        with self._lock:
            if self._folding.folds(mark, now):
                return
        report = read(event, failure, self._scrubber)
        with self._lock:
            if self._folding.folds(mark, now):
                return  # another thread was quicker with the same
            opened = self._folding.open(mark, report, now)
        if opened is None:
            self._outbox.lose(1)
        else:
            self._outbox.put(opened)

    def _look(self) -> None:
        self._timer = self._clock.callLater(WINDOW, self._look)
        self._put_over(self._clock.seconds())
        self._tell_lost()

    def _put_over(self, now: float) -> None:
        with self._lock:
            due = self._folding.over(now)
        for report in due:
            self._outbox.put(report)

    def _tell_lost(self) -> None:
        lost = self._outbox.take_lost()
        if lost:
            self._log.warn(
                "{service} did not get {lost} of the exception reports; the log has every exception",
                lost=lost,
                service=self._name,
            )
