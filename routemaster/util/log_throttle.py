"""Which failures the log tells: what is new at once, what repeats itself seldom, and never a flood.

Of one thing that may fail again and again (deliveries to a subscriber, a
periodic part), `LogThrottle`: a failure is told if it is the first after a
success, or if its reason was not told within the last `PERIOD`; at most `EACH`
are told in one, so that it is no flood either if it flaps between reasons, or
between failure and success. The next line tells how many were left out. A
success after failures is told if these were.

Of all subscribers of a process, `Allowance`: there are so many lines for a
period. What is beyond them is counted, and told in one line at its end; so
thousands that fail behind one dead proxy cost no more than a few dozen do.
"""

from __future__ import annotations

from collections import Counter

from attrs import field, frozen

PERIOD = 60.0   #: seconds
EACH = 3        #: failures of one thing told in a period
ALL = 60        #: failures of all subscribers told in a period, and as many successes
REASONS = 100   #: different reasons counted in a period


@frozen
class Since:
    """What came before the failure or success that is told."""

    failures: int   #: not told yet, and this one; with a success, all in a row
    lasting: float  #: seconds since the first in a row


@frozen
class Sum:
    """What was beyond the allowance of a period."""

    times: int
    subscribers: int
    reason: str  #: the most frequent


class Allowance:
    """Lines for all subscribers of a process, until the period is over."""

    def __init__(self, lines: int = ALL) -> None:
        self._lines = self._left = lines
        self._ends: float | None = None
        self._names: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._times = 0

    def take(self, name: str, reason: str) -> bool:
        """Whether there is a line left; it is taken, or `sum_up` will tell."""
        if self._left:
            self._left -= 1
            return True
        self.leave_out(name, reason)
        return False

    def leave_out(self, name: str, reason: str) -> None:
        """Have it told by `sum_up`."""
        self._times += 1
        self._names.add(name)
        if reason in self._reasons or len(self._reasons) < REASONS:
            self._reasons[reason] += 1

    def sum_up(self, now: float) -> Sum | None:
        """Begin another period if one is over; what was beyond the last. To be called every second or so."""
        if self._ends is not None and 0 < self._ends - now <= PERIOD:
            return None
        found = None
        if self._times:
            found = Sum(self._times, len(self._names), self._reasons.most_common(1)[0][0])
        self._left, self._ends, self._times = self._lines, now + PERIOD, 0
        self._names.clear()
        self._reasons.clear()
        return found


@frozen
class Allowances:
    """What the couriers of a process share."""

    failures: Allowance = field(factory=Allowance)
    successes: Allowance = field(factory=Allowance)
    leases: Allowance = field(factory=Allowance)  #: that were lost


@frozen
class _Run:
    """Failures in a row."""

    since: float  #: when the first ended
    failures: int = 0
    told: bool = False
    left_out: bool = False  #: a sum has told, or will


class LogThrottle:
    """The failures of one thing; moments in seconds by one clock."""

    def __init__(self, name: str = "", allowances: Allowances | None = None) -> None:
        """`name` stands for it in the sums of `allowances`; None: it has lines of its own."""
        self._name, self._allowances = name, allowances
        self._told: list[tuple[float, str]] = []  #: within the last period: when, and which reason
        self._untold = 0
        self._run: _Run | None = None

    def failed(self, now: float, reason: str) -> Since | None:
        """It failed; what to tell with it, None if nothing is to be told."""
        run = self._run or _Run(now)
        self._untold += 1
        self._told = [told for told in self._told if 0 <= now - told[0] < PERIOD]
        again = run.failures > 0 and any(reason == why for _, why in self._told)
        since = None
        told, left_out = run.told, run.left_out
        if not again and len(self._told) < EACH:
            if self._allowances is None or self._allowances.failures.take(self._name, reason):
                since, told = Since(self._untold, max(0.0, now - run.since)), True
                self._told.append((now, reason))
                self._untold = 0
            else:
                left_out = True
        self._run = _Run(run.since, run.failures + 1, told, left_out)
        return since

    def succeeded(self, now: float) -> Since | None:
        """It succeeded; what to tell with it, None if nothing is to be told."""
        run, self._run = self._run, None
        if run is None:
            return None
        shared = self._allowances
        if run.told and (shared is None or shared.successes.take(self._name, "")):
            return Since(run.failures, max(0.0, now - run.since))
        if run.left_out and not run.told and shared is not None:
            shared.successes.leave_out(self._name, "")
        return None
