"""A fair queue: limits what runs at the same time, in total and for each key, and serves the keys round robin.

It has no clock and does no I/O. The sender queues attempts (key: host and
port), the DNS cache queues look-ups (key: the host name).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from twisted.internet.defer import Deferred

from routemaster.interfaces import LastAttempt

SUCCEEDED, NONE, FAILED = LastAttempt.SUCCEEDED, LastAttempt.NONE, LastAttempt.FAILED

#: entries that are admitted per tick: at least, and at most
BURSTS = {NONE: (4, 10), FAILED: (1, 5)}
LINE = 100  #: waiting entries of that kind for each further one that is admitted per tick


class QueueFull(Exception):
    """`max_waiting` entries wait already."""


class QueueClosed(Exception):
    """The queue is closed."""


class _Places:
    """A number of places, of which those whose last attempt failed, or that had none, have a part."""

    __slots__ = ("_elastic", "_failed", "_not_proven", "_total", "taken")

    def __init__(self, total: int, elastic: bool) -> None:
        """`elastic`: entries that failed take no more than their part, though more are active."""
        self._total, self._elastic = total, elastic
        self._failed, self._not_proven = max(1, total // 2), max(1, total - total // 4)
        self.taken = {SUCCEEDED: 0, NONE: 0, FAILED: 0}

    def admits(self, last: LastAttempt) -> bool:
        failed = self.taken[FAILED]
        not_proven = self.taken[NONE] + (min(failed, self._failed) if self._elastic else failed)
        if self.taken[SUCCEEDED] + not_proven >= self._total:
            return False
        if last is SUCCEEDED:
            return True
        return not_proven < self._not_proven and (last is NONE or failed < self._failed)


class _KeyQueue:
    """The entries of one key."""

    __slots__ = ("key", "places", "waiting")

    def __init__(self, key: Hashable, per_key: int) -> None:
        self.key = key
        self.places = _Places(per_key, elastic=True)
        self.waiting: dict[LastAttempt, deque[Deferred[None]]] = {last: deque() for last in LastAttempt}


class FairQueue:
    """Admits entries up to `total`, and up to `per_key` of one key.

    Entries whose last attempt failed have at most half of the places, in total
    and of each key; together with those that had none yet, three quarters. So
    an entry whose last attempt succeeded waits for none of the others, and one
    that had none waits for none that failed. If the queue is `paced`, entries
    that failed are admitted one by one, a few per `tick` if many wait, and those that had none
    a few more: each may cost a connection with its handshake, those that start together also time out
    together, and either would hold up the process at that moment.

    Waiting entries are served round robin: first among the three kinds, then by
    key. At most `max_waiting` wait.
    """

    def __init__(
        self, total: int, per_key: int, *, paced: bool = False, max_waiting: int | None = None
    ) -> None:  # fmt: skip
        self._per_key, self._paced, self._max_waiting = per_key, paced, max_waiting
        self._places = _Places(total, elastic=False)
        self._keys: dict[Hashable, _KeyQueue] = {}  # those with entries
        self._waiting = dict.fromkeys(LastAttempt, 0)
        # Keys whose next entry of a kind could be served, in round robin order; the kinds take turns, too.
        self._ready: dict[LastAttempt, dict[_KeyQueue, None]] = {last: {} for last in LastAttempt}
        self._turns = deque(LastAttempt)
        self._burst = {kind: least for kind, (least, _) in BURSTS.items()}  # admitted per tick
        self._admitted = dict.fromkeys(BURSTS, 0)  # since the last tick
        self._serving = False
        self.closed = False

    @property
    def active(self) -> int:
        """Entries that are admitted."""
        return sum(self._places.taken.values())

    @property
    def waiting(self) -> int:
        """Entries that wait."""
        return sum(self._waiting.values())

    @property
    def delays_others(self) -> bool:
        """Whether an entry whose last attempt did not fail waits for a place."""
        return self._waiting[SUCCEEDED] > 0 or (self._waiting[NONE] > 0 and not self._pauses(NONE))

    def enter(self, key: Hashable, last: LastAttempt) -> Deferred[None] | None:
        """Admit an entry: None if at once, else a Deferred that fires then; cancelling it withdraws the entry.

        Errors: `QueueFull`; `QueueClosed`, also by the Deferred.
        """
        if self.closed:
            raise QueueClosed
        queue = self._keys.get(key)
        if queue is None:
            queue = self._keys[key] = _KeyQueue(key, self._per_key)
        if not queue.waiting[last] and queue.places.admits(last) and self._admits(last):
            self._admit(queue, last)
            return None
        if self._max_waiting is not None and self.waiting >= self._max_waiting:
            self._update(queue)
            raise QueueFull
        entry: Deferred[None] = Deferred(lambda entry: self._withdraw(queue, last, entry))
        queue.waiting[last].append(entry)
        self._waiting[last] += 1
        self._update(queue)
        return entry

    def leave(self, key: Hashable, last: LastAttempt) -> None:
        """End an active entry."""
        queue = self._keys[key]
        queue.places.taken[last] -= 1
        self._places.taken[last] -= 1
        self._update(queue)
        self._serve()

    def demote(self, key: Hashable, last: LastAttempt) -> bool:
        """Count an active entry that takes long as one that failed; False if too many of the key are.

        So it leaves its place at the key to another one, and a key has at most twice `per_key` entries.
        """
        queue = self._keys[key]
        if queue.places.taken[FAILED] >= self._per_key:
            return False
        for places in (queue.places, self._places):
            places.taken[last] -= 1
            places.taken[FAILED] += 1
        self._update(queue)
        self._serve()
        return True

    @property
    def needs_tick(self) -> bool:
        """Whether `tick` is to be called after the pause between two paced entries."""
        return any(self._admitted.values()) and not self.closed

    def tick(self) -> None:
        """Allow the next paced entries."""
        for kind, (least, most) in BURSTS.items():
            self._burst[kind] = min(most, least + self._waiting[kind] // LINE)
            self._admitted[kind] = 0
        self._serve()

    def close(self) -> None:
        """Fail all waiting entries, and every later `enter`, with `QueueClosed`."""
        self.closed = True
        waiting: list[Deferred[None]] = []
        for queue in tuple(self._keys.values()):
            for entries in queue.waiting.values():
                waiting += entries
                entries.clear()
            self._update(queue)
        self._waiting = dict.fromkeys(LastAttempt, 0)
        for entry in waiting:
            entry.errback(QueueClosed())

    def _pauses(self, last: LastAttempt) -> bool:
        return self._paced and last in BURSTS and self._admitted[last] >= self._burst[last]

    def _admits(self, last: LastAttempt) -> bool:
        return not self._pauses(last) and self._places.admits(last)

    def _admit(self, queue: _KeyQueue, last: LastAttempt) -> None:
        queue.places.taken[last] += 1
        self._places.taken[last] += 1
        if self._paced and last in BURSTS:
            self._admitted[last] += 1
        self._update(queue)

    def _update(self, queue: _KeyQueue) -> None:
        """Add the key to the ready ones of each kind, or remove it; forget it if it has no entries."""
        entries = any(queue.places.taken.values())
        for last, waiting in queue.waiting.items():
            if waiting and queue.places.admits(last):
                self._ready[last].setdefault(queue)
            else:
                self._ready[last].pop(queue, None)
            entries = entries or bool(waiting)
        if not entries:
            self._keys.pop(queue.key, None)

    def _serve(self) -> None:
        """Admit what has a place now; an admitted entry that leaves at once calls this again."""
        if self._serving:
            return  # the loop below goes on: nested calls would exhaust the stack
        self._serving = True
        try:
            while (found := self._next()) is not None:
                queue, last = found
                entry = queue.waiting[last].popleft()
                self._waiting[last] -= 1
                self._admit(queue, last)
                entry.callback(None)
        finally:
            self._serving = False

    def _next(self) -> tuple[_KeyQueue, LastAttempt] | None:
        """The next key, put behind the other ready ones, and the kind of its entry; None if there is none."""
        for last in self._turns:
            ready = self._ready[last]
            if ready and self._admits(last):
                self._turns.remove(last)
                self._turns.append(last)
                queue = next(iter(ready))
                del ready[queue]
                return queue, last
        return None

    def _withdraw(self, queue: _KeyQueue, last: LastAttempt, entry: Deferred[None]) -> None:
        queue.waiting[last].remove(entry)
        self._waiting[last] -= 1
        self._update(queue)
