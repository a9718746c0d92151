"""Which repeated failures are logged: a new one at once, a repeated one seldom, and never a flood.

`LogThrottle` serves one thing that may fail again and again (a target, a
periodic task). A failure is logged if its reason was not logged within the last
`PERIOD`, or if it is the first after a success. Of the latter at most `MAX_EACH`
are logged in a period, if failure and success alternate; of different reasons at
most `MAX_NEW`. A success after failures is logged if these were logged.

`Allowance` limits the lines of many such things together: so many lines in a
period. Further lines are suppressed and counted, and a summary of them is
logged at the end of the period.
"""

from __future__ import annotations

from collections import Counter

from attrs import field, frozen

PERIOD = 60.0      #: seconds
MAX_EACH = 3       #: failures of one thing logged in a period, if the reason is not new
MAX_NEW = 30       #: different reasons of one thing logged in a period
MAX_ALL = 60       #: lines of an allowance in a period
MAX_REASONS = 100  #: different reasons counted in a period


@frozen
class Since:
    """What came before the failure or success that is logged."""

    failures: int   #: since the last logged line, this one included; for a success: all in a row
    lasting: float  #: seconds since the first in a row


@frozen
class Summary:
    """The lines that an allowance suppressed in a period."""

    times: int
    names: int   #: how many different ones
    reason: str  #: the most frequent


class Allowance:
    """Log lines that many things share, for one period after another."""

    def __init__(self, lines: int = MAX_ALL) -> None:
        self._lines = self._left = lines
        self._ends: float | None = None
        self._names: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._times = 0

    @property
    def reasons(self) -> int:
        """How many different reasons are counted."""
        return len(self._reasons)

    def take(self, name: str, reason: str) -> bool:
        """Whether a line is left. If so, it is used up; if not, the line is counted as suppressed."""
        if self._left:
            self._left -= 1
            return True
        self.suppress(name, reason)
        return False

    def suppress(self, name: str, reason: str) -> None:
        """Count a line for the next summary."""
        self._times += 1
        self._names.add(name)
        if reason in self._reasons or len(self._reasons) < MAX_REASONS:
            self._reasons[reason] += 1

    def sum_up(self, now: float) -> Summary | None:
        """If a period is over, start the next; what the last one suppressed. To be called about every second."""
        if self._ends is not None and 0 < self._ends - now <= PERIOD:
            return None
        summary = None
        if self._times:
            summary = Summary(self._times, len(self._names), self._reasons.most_common(1)[0][0])
        self._left, self._ends, self._times = self._lines, now + PERIOD, 0
        self._names.clear()
        self._reasons.clear()
        return summary


@frozen
class Allowances:
    """The lines that several throttles share."""

    failures: Allowance = field(factory=Allowance)
    successes: Allowance = field(factory=Allowance)


@frozen
class _Run:
    """Failures in a row."""

    since: float  #: when the first ended
    failures: int = 0
    logged: bool = False
    suppressed: bool = False  #: part of a summary


class LogThrottle:
    """Decides which failures and successes of one thing are logged; times in seconds by one clock."""

    def __init__(self, name: str = "", allowances: Allowances | None = None) -> None:
        """`name` identifies it in the summaries of `allowances`; None: no shared limit."""
        self._name, self._allowances = name, allowances
        self._logged: list[tuple[float, str]] = []  #: time and reason, within the last period
        self._unlogged = 0
        self._run: _Run | None = None

    def failed(self, now: float, reason: str) -> Since | None:
        """Note a failure; what to log with it, None if it is not logged."""
        run = self._run or _Run(now)
        self._unlogged += 1
        self._logged = [line for line in self._logged if 0 <= now - line[0] < PERIOD]
        is_new = all(reason != logged for _, logged in self._logged)
        most = MAX_NEW if is_new else 0 if run.failures else MAX_EACH
        since = None
        logged, suppressed = run.logged, run.suppressed
        if len(self._logged) < most:
            if self._allowances is None or self._allowances.failures.take(self._name, reason):
                since, logged = Since(self._unlogged, max(0.0, now - run.since)), True
                self._logged.append((now, reason))
                self._unlogged = 0
            else:
                suppressed = True
        self._run = _Run(run.since, run.failures + 1, logged, suppressed)
        return since

    def succeeded(self, now: float) -> Since | None:
        """Note a success; what to log with it, None if it is not logged."""
        run, self._run = self._run, None
        if run is None:
            return None
        shared = self._allowances
        if run.logged and (shared is None or shared.successes.take(self._name, "")):
            return Since(run.failures, max(0.0, now - run.since))
        if run.suppressed and not run.logged and shared is not None:
            shared.successes.suppress(self._name, "")
        return None
