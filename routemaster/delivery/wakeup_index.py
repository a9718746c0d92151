"""Who has to be woken when a log grows.

A courier that sleeps names, for each of its topics, the running number at
which it wants to look again: the next event if it is idle, the event that
fills its batch if it waits. So an accepted event costs what the couriers that
must act cost, not what all subscribers of the topic would.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Protocol

from routemaster.model import EventID

ROOM = 16  #: wishes that were replaced stay in the heap until they are more than the others and this


class Sleeper(Protocol):
    """Who can be woken."""

    def woken(self, topic: str, first: EventID | None) -> None:
        """`topic` has reached the number asked for; `first` is the first of the
        events just accepted, if it is known."""


class _Log:
    """One log: who attends to it, where it ends, who wants to be woken at which number."""

    def __init__(self) -> None:
        self.tail: EventID | None = None
        self.wishes: dict[Sleeper, tuple[int, int] | None] = {}  #: every sleeper; (number, order of asking)
        self.heap: list[tuple[int, int, Sleeper]] = []           #: by number; some are no wishes any more

    def wake_at(self, n: int, order: int, sleeper: Sleeper) -> None:
        self.wishes[sleeper] = (n, order)
        heappush(self.heap, (n, order, sleeper))
        if len(self.heap) > 2 * len(self.wishes) + ROOM:
            self.heap = [(*wish, sleeper) for sleeper, wish in self.wishes.items() if wish is not None]
            heapify(self.heap)

    def due(self, n: float) -> list[Sleeper]:
        """Whose number is reached by `n`; their wishes are fulfilled with this."""
        due = []
        while self.heap and self.heap[0][0] <= n:
            number, order, sleeper = heappop(self.heap)
            if self.wishes.get(sleeper) == (number, order):
                self.wishes[sleeper] = None
                due.append(sleeper)
        return due


class WakeupIndex:
    """The last ID of every log that somebody here attends to, as far as hints and sweeps have told."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._asked = 0

    def topics(self) -> list[str]:
        """The topics that somebody attends to."""
        return list(self._logs)

    def attended(self, topic: str) -> bool:
        """Whether somebody attends to the topic."""
        return topic in self._logs

    def tail(self, topic: str) -> EventID | None:
        """The last ID that is known."""
        log = self._logs.get(topic)
        return None if log is None else log.tail

    def attend(self, topic: str, sleeper: Sleeper) -> None:
        """Follow the topic's log from now on; an earlier wish to be woken is dropped."""
        self._logs.setdefault(topic, _Log()).wishes[sleeper] = None

    def leave(self, topic: str, sleeper: Sleeper) -> None:
        """Follow it no longer; a wish to be woken goes with it."""
        log = self._logs.get(topic)
        if log is not None:
            log.wishes.pop(sleeper, None)
            if not log.wishes:
                del self._logs[topic]

    def wake_at(self, topic: str, n: int, sleeper: Sleeper) -> None:
        """Wake `sleeper`, who attends, once when the log reaches number `n`; replaces its earlier wish."""
        self._asked += 1
        self._logs[topic].wake_at(n, self._asked, sleeper)

    def advance(self, topic: str, first: EventID | None, last: EventID) -> None:
        """The log ends with `last` now; `first` is the first of the events that were added, if known."""
        log = self._logs.get(topic)
        if log is None or (log.tail is not None and last <= log.tail):
            return
        # a topic that was deleted and made again counts from 1: its sleepers look for themselves
        begun_again = log.tail is not None and last.n < log.tail.n
        log.tail = last
        for sleeper in log.due(float("inf") if begun_again else last.n):
            sleeper.woken(topic, first)

    def correct(self, topic: str, told: EventID | None, tail: EventID | None) -> None:
        """The log ended with `tail` when `told` was known already: so a tail before that has gone back.

        A store that lost its last writes does that; without this its couriers
        would look for the missing events for ever.
        """
        log = self._logs.get(topic)
        if log is not None and told is not None and tail is not None and tail < told == log.tail:
            log.tail = tail
