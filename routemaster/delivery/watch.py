"""Who has to be woken when a log grows.

A courier that sleeps names, for each of its topics, the running number at
which it wants to look again: the next event if it is idle, the event that
fills its batch if it waits. So an accepted event costs what the couriers that
must act cost, not what all subscribers of the topic would.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol

from routemaster.model import EventID


class Sleeper(Protocol):
    """Who can be woken."""

    def woken(self, topic: str, first: EventID | None) -> None:
        """`topic` has reached the number asked for; `first` is the first of the
        events just accepted, if it is known."""


class Watch:
    """The last ID of every log that somebody here attends to, as far as hints and sweeps have told."""

    def __init__(self) -> None:
        self._attending: dict[str, set[Sleeper]] = {}
        self._tails: dict[str, EventID] = {}
        self._wishes: dict[str, list[tuple[int, int, Sleeper]]] = {}
        self._latest: dict[tuple[str, Sleeper], int] = {}
        self._count = 0

    def topics(self) -> list[str]:
        """The topics that somebody attends to."""
        return list(self._attending)

    def tail(self, topic: str) -> EventID | None:
        """The last ID that is known."""
        return self._tails.get(topic)

    def attend(self, topic: str, sleeper: Sleeper) -> None:
        """Follow the topic's log from now on."""
        self._attending.setdefault(topic, set()).add(sleeper)

    def leave(self, topic: str, sleeper: Sleeper) -> None:
        """Follow it no longer; a wish to be woken goes with it."""
        self._latest.pop((topic, sleeper), None)
        attending = self._attending.get(topic)
        if attending is not None:
            attending.discard(sleeper)
            if not attending:
                del self._attending[topic]
                self._tails.pop(topic, None)
                self._wishes.pop(topic, None)

    def wake_at(self, topic: str, n: int, sleeper: Sleeper) -> None:
        """Wake `sleeper` once when the log reaches number `n`; replaces its earlier wish for the topic."""
        self._count += 1
        self._latest[topic, sleeper] = self._count
        heappush(self._wishes.setdefault(topic, []), (n, self._count, sleeper))

    def advance(self, topic: str, first: EventID | None, last: EventID) -> None:
        """The log ends with `last` now; `first` is the first of the events that were added, if known."""
        if topic not in self._attending:
            return
        known = self._tails.get(topic)
        if known is not None and last <= known:
            return
        self._tails[topic] = last
        wishes = self._wishes.get(topic, [])
        # a topic that was deleted and made again counts from 1: its sleepers look for themselves
        begun_again = known is not None and last.n < known.n
        due = []
        while wishes and (begun_again or wishes[0][0] <= last.n):
            _, number, sleeper = heappop(wishes)
            if self._latest.get((topic, sleeper)) == number:
                del self._latest[topic, sleeper]
                due.append(sleeper)
        for sleeper in due:
            sleeper.woken(topic, first)
