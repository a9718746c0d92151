"""Which courier to wake when a log grows.

A waiting courier names, for each of its topics, the number of the event at
which it wants to be woken: the next event if nothing waits for it, the event
that fills its batch otherwise. So an accepted event costs as much as the
couriers that have to act on it, not as much as all subscribers of the topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from math import inf
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
    """The last event ID of each log that a courier here follows, as far as hints and reconciliation say.

    Hints come in the order in which one Redis accepts events. So those known
    here are all that were accepted until the last hint, unless one was missed.
    """

    def __init__(self, ordered: bool = True) -> None:
        """`ordered`: hints of different logs come in order, as from one Redis but not from a cluster."""
        self.ordered = ordered
        self._logs: dict[str, _Log] = {}
        self._serial = 0
        self._growth: dict[str, int] = {}  #: followed topics by their last growth: its serial number
        self._missed = 1        #: how often hints may have been missed
        self._caught_up = 0     #: up to which of those times the logs were read since
        self._last_hint = 0     #: microseconds

    def missed(self) -> None:
        """Hints may have been missed."""
        self._missed += 1

    def caught_up(self, missed: int) -> None:
        """The ends of all logs were read after hints were missed for the `missed`-th time."""
        self._caught_up = missed

    @property
    def times_missed(self) -> int:
        """How often hints may have been missed."""
        return self._missed

    @property
    def horizon(self) -> float:
        """All events accepted until then are known here, microseconds by the store's clock; -inf: not known."""
        return self._last_hint if self.ordered and self._caught_up == self._missed else -inf

    def changes(self, topics: Mapping[str, object], since: int) -> tuple[Iterable[str], int]:
        """Those of the topics that have grown since a serial number, and the number for the next call.

        Costs as much as the topics given, or those that have grown, whichever are fewer.
        """
        serial = self._serial
        if serial - since >= len(topics):
            return [topic for topic in topics if self._growth.get(topic, 0) > since], serial
        grown = []
        for topic, number in reversed(self._growth.items()):
            if number <= since:
                break
            if topic in topics:
                grown.append(topic)
        return grown, serial

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
                self._growth.pop(topic, None)

    def wake_at(self, topic: str, n: int, waiter: Waiter) -> None:
        """Wake a follower once, when the log reaches number `n`; replaces an earlier `wake_at`."""
        self._serial += 1
        self._logs[topic].wake_at(n, self._serial, waiter)

    def advance(self, topic: str, first: EventID | None, last: EventID) -> None:
        """The log ends with `last` now; `first` is the first of the events that were added, if known."""
        if first is not None:
            self._last_hint = max(self._last_hint, last.us)
        log = self._logs.get(topic)
        if log is None or (log.tail is not None and last <= log.tail):
            return
        # a topic that was deleted and created again counts from 1: wake all its followers
        recreated = log.tail is not None and last.n < log.tail.n
        log.tail = last
        self._growth.pop(topic, None)  # to the end
        self._serial += 1
        self._growth[topic] = self._serial
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
