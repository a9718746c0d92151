"""Which of the live workers delivers to a subscriber.

Rendezvous hashing: each worker has a weight for each subscriber, and the
heaviest is preferred. Workers that know the same peers agree without
communication, each gets an equal share, and one that joins or leaves moves only
its own share.

A preference is no lease: two workers may differ for a moment about who is
alive, and the lease still keeps deliveries single.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b


def preferred(subscriber: str, workers: Iterable[str]) -> str:
    """The worker, of at least one, that is to deliver to a subscriber."""

    def weight(worker: str) -> tuple[bytes, str]:
        return blake2b(f"{worker} {subscriber}".encode(), digest_size=8).digest(), worker

    return max(workers, key=weight)


class LiveWorkers:
    """The live workers as far as this one knows, itself included."""

    def __init__(self, worker: str) -> None:
        """`worker`: the name of this one."""
        self._worker = worker
        self._until: dict[str, float] = {}     #: of each peer: when it counts as dead
        self._preferred: dict[str, bool] = {}  #: cached answers of `is_preferred`

    def update(self, left: Mapping[str, float], now: float) -> bool:
        """Take all live workers from the store, with the seconds left to each; whether the peers changed."""
        until = {worker: now + seconds for worker, seconds in left.items() if worker != self._worker}
        return self._replace(until)

    def joined(self, worker: str, until: float) -> bool:
        """A worker is alive; whether that is new."""
        if worker == self._worker or worker in self._until:
            return False
        return self._replace({**self._until, worker: until})

    def left(self, worker: str) -> bool:
        """A worker has stopped; whether that is new."""
        return self._replace({name: until for name, until in self._until.items() if name != worker})

    def expire(self, now: float) -> bool:
        """Remove peers whose time is over; whether there were any."""
        return self._replace({worker: until for worker, until in self._until.items() if until > now})

    def is_preferred(self, subscriber: str) -> bool:
        """Whether this worker is to deliver to a subscriber."""
        if not self._until:
            return True
        answer = self._preferred.get(subscriber)
        if answer is None:
            answer = preferred(subscriber, (self._worker, *self._until)) == self._worker
            self._preferred[subscriber] = answer
        return answer

    def adopt(self, subscriber: str) -> None:
        """Deliver to a subscriber that its preferred worker neglects, until the peers change."""
        self._preferred[subscriber] = True

    def retain(self, subscribers: set[str]) -> None:
        """Drop what is cached about all other subscribers."""
        for gone in self._preferred.keys() - subscribers:
            del self._preferred[gone]

    def _replace(self, until: dict[str, float]) -> bool:
        changed = until.keys() != self._until.keys()
        self._until = until
        if changed:
            self._preferred.clear()
        return changed
