"""How fast events go out when the subscription has a `rate`. Pure; time is an argument.

In no second more events go out than that. A quarter of the rate goes out at
once, and the next attempt is planned for when these events have taken their
share of the second. An attempt that starts late, because a timer is late or the
receiver takes a moment, does not move the plan: so the rate is held. After a
longer pause the plan starts anew: time without attempts saves nothing up.

What counts is when events reach the receiver. An attempt that has to connect
first may be there as late as when it ends, so it counts from then, unless all
attempts have to. For smaller differences a second is counted as a little more:
else the receiver would see one batch too many in some of its own seconds.
"""

from __future__ import annotations

from collections import deque

PARTS = 4      #: a batch carries at most this part of a second's events
SECOND = 1.02  #: seconds in which no more events go out than the rate
LATE = 0.05    #: seconds by which an attempt may start after its planned time without moving the plan


def most_at_once(maximum: int, rate: int | None) -> int:
    """The most events in a batch of a subscription that allows `maximum`, with a `rate` or without."""
    return maximum if rate is None else min(maximum, max(1, rate // PARTS))


class Pace:
    """One subscriber's attempts of the last second; times in seconds by one clock."""

    def __init__(self) -> None:
        self._rate: int | None = None
        self._planned = 0.0  #: when the next attempt may start
        self._recent: deque[tuple[float, int]] = deque()  #: attempts of the last second: when, how many events
        self._carried = 0    #: events in them
        self._kept = True    #: whether the connection of the last attempt had been used before

    def limit(self, rate: int | None) -> None:
        """The subscription allows so many events a second; None: any number."""
        if rate is None:
            self._recent.clear()
            self._planned, self._carried = 0.0, 0
        self._rate = rate

    def until(self, now: float) -> float:
        """No attempt before this."""
        if self._rate is None:
            return 0.0
        while self._recent and self._recent[0][0] + SECOND <= now:
            self._carried -= self._recent.popleft()[1]
        return self._planned if self._carried < self._rate else max(self._planned, self._recent[0][0] + SECOND)

    def most(self, maximum: int) -> int:
        """The most events in an attempt that may start now by `until`, of a batch that may have `maximum`."""
        return maximum if self._rate is None else min(maximum, max(1, self._rate - self._carried))

    def started(self, events: int, now: float) -> None:
        """An attempt with so many events starts."""
        if self._rate is None:
            return
        begin = self._planned if now - self._planned <= LATE else now
        self._planned = begin + events * SECOND / self._rate
        self._recent.append((now, events))
        self._carried += events

    def ended(self, reused: bool, now: float) -> None:
        """The attempt that started last has ended; whether its connection had been used before."""
        if self._kept and not reused and self._recent:
            self._recent[-1] = now, self._recent[-1][1]
        self._kept = reused
