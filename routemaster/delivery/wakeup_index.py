"""Which courier to wake when a log grows.

A waiting courier names, for each of its topics, the number of the event at
which it wants to be woken: the next event if nothing waits for it, the event
that fills its batch otherwise. So an accepted event costs as much as the
couriers that have to act on it, not as much as all subscribers of the topic.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Protocol

from routemaster.model import EventID

SLACK = 16  #: outdated entries that a heap may hold beyond its current ones


class Waiter(Protocol):
    """What can be woken."""

    def wake(self, topic: str, first: EventID | None) -> None:
        """`topic` has reached the number; `first` is the first event just accepted, if that is known."""


class _Log:
    """One log: who follows it, where it ends, and who is to be woken at which number."""

    def __init__(self) -> None:
        self.tail: EventID | None = None
        self.waiters: dict[Waiter, tuple[int, int] | None] = {}  #: all followers; (number, serial number)
        self.heap: list[tuple[int, int, Waiter]] = []            #: by number; some entries are outdated

    def wake_at(self, n: int, serial: int, waiter: Waiter) -> None:
        self.waiters[waiter] = (n, serial)
        heappush(self.heap, (n, serial, waiter))
        if len(self.heap) > 2 * len(self.waiters) + SLACK:
            self.heap = [(*entry, waiter) for waiter, entry in self.waiters.items() if entry is not None]
            heapify(self.heap)

    def due(self, n: float) -> list[Waiter]:
        """Remove and return those whose number is at most `n`."""
        due = []
        while self.heap and self.heap[0][0] <= n:
            number, serial, waiter = heappop(self.heap)
            if self.waiters.get(waiter) == (number, serial):
                self.waiters[waiter] = None
                due.append(waiter)
        return due


class WakeupIndex:
    """The last event ID of each log that a courier here follows, as far as hints and reconciliation say."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._serial = 0

    def topics(self) -> list[str]:
        """The topics that a waiter follows."""
        return list(self._logs)

    def tail(self, topic: str) -> EventID | None:
        """The last ID that is known."""
        log = self._logs.get(topic)
        return None if log is None else log.tail

    def follow(self, topic: str, waiter: Waiter) -> None:
        """Follow the topic's log; an earlier `wake_at` is dropped."""
        self._logs.setdefault(topic, _Log()).waiters[waiter] = None

    def unfollow(self, topic: str, waiter: Waiter) -> None:
        """Follow it no longer; an earlier `wake_at` is dropped."""
        log = self._logs.get(topic)
        if log is not None:
            log.waiters.pop(waiter, None)
            if not log.waiters:
                del self._logs[topic]

    def wake_at(self, topic: str, n: int, waiter: Waiter) -> None:
        """Wake a follower once, when the log reaches number `n`; replaces an earlier `wake_at`."""
        self._serial += 1
        self._logs[topic].wake_at(n, self._serial, waiter)

    def advance(self, topic: str, first: EventID | None, last: EventID) -> None:
        """The log ends with `last` now; `first` is the first of the events that were added, if known."""
        log = self._logs.get(topic)
        if log is None or (log.tail is not None and last <= log.tail):
            return
        # a topic that was deleted and created again counts from 1: wake all its followers
        recreated = log.tail is not None and last.n < log.tail.n
        log.tail = last
        for waiter in log.due(float("inf") if recreated else last.n):
            waiter.wake(topic, first)

    def step_back(self, topic: str, known: EventID | None, tail: EventID | None) -> None:
        """A read found `tail` as the end of the log, when `known` had been announced before the read.

        An end before that means that the store lost its last writes; without
        this step, couriers would search for the lost events without end.
        """
        log = self._logs.get(topic)
        if log is not None and known is not None and tail is not None and tail < known == log.tail:
            log.tail = tail
