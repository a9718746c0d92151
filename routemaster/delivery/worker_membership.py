"""Which of the live workers a subscriber belongs to.

Rendezvous hashing: each worker has a weight for each subscriber, and the
heaviest is preferred. So workers that know of the same peers agree without
talking, each gets an equal share, and one that comes or goes moves only the
share that is its own.

A preference is no lease: two workers may disagree for a moment about who
lives, and the lease still keeps attempts single.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b


def preferred(subscriber: str, workers: Iterable[str]) -> str:
    """Which of the workers, of whom there is one at least, is to deliver to a subscriber."""

    def weight(worker: str) -> tuple[bytes, str]:
        return blake2b(f"{worker} {subscriber}".encode(), digest_size=8).digest(), worker

    return max(workers, key=weight)


class WorkerMembership:
    """The workers that live as far as this one knows; it counts itself among them."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._until: dict[str, float] = {}  #: of the others
        self._mine: dict[str, bool] = {}    #: what has been worked out for these peers

    def heard(self, left: Mapping[str, float], now: float) -> bool:
        """All who live, and for how many seconds more; whether they are others than before."""
        until = {worker: now + seconds for worker, seconds in left.items() if worker != self._me}
        changed = until.keys() != self._until.keys()
        self._replace(until, changed)
        return changed

    def came(self, worker: str, until: float) -> bool:
        """One lives; whether that is new."""
        new = worker != self._me and worker not in self._until
        if new:
            self._replace({**self._until, worker: until}, True)
        return new

    def left(self, worker: str) -> bool:
        """One lives no more; whether that is new."""
        known = worker in self._until
        if known:
            self._replace({name: until for name, until in self._until.items() if name != worker}, True)
        return known

    def expire(self, now: float) -> bool:
        """Forget those of whom nothing was heard in time; whether there were any."""
        until = {worker: until for worker, until in self._until.items() if until > now}
        changed = len(until) < len(self._until)
        self._replace(until, changed)
        return changed

    def is_mine(self, subscriber: str) -> bool:
        """Whether this worker is the one to deliver to a subscriber."""
        if not self._until:
            return True
        mine = self._mine.get(subscriber)
        if mine is None:
            mine = self._mine[subscriber] = preferred(subscriber, (self._me, *self._until)) == self._me
        return mine

    def adopt(self, subscriber: str) -> None:
        """Count a subscriber as one's own, until the peers change."""
        self._mine[subscriber] = True

    def forget_all_but(self, subscribers: set[str]) -> None:
        """Keep nothing about subscribers that are gone."""
        for gone in self._mine.keys() - subscribers:
            del self._mine[gone]

    def _replace(self, until: dict[str, float], changed: bool) -> None:
        self._until = until
        if changed:
            self._mine.clear()
