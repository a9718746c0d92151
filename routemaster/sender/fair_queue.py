"""A fair queue: limits what runs at the same time, in total and for each key, and serves the keys round robin.

It has no clock and does no I/O. The sender queues attempts (key: host and
port), the DNS cache queues look-ups (key: the host name).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from twisted.internet.defer import Deferred


class QueueFull(Exception):
    """`max_waiting` entries wait already."""


class QueueClosed(Exception):
    """The queue is closed."""


class _KeyQueue:
    """The entries of one key."""

    __slots__ = ("active", "healthy", "key", "waiting")

    def __init__(self, key: Hashable, healthy: bool | None) -> None:
        self.key = key
        self.healthy = healthy  #: whether the last entry succeeded; None: unknown
        self.active = 0
        self.waiting: deque[Deferred[None]] = deque()


class FairQueue:
    """Admits entries up to `total`, and up to `per_key` of one key.

    A key is *healthy* if its last entry succeeded, *failing* if it failed, and
    *unknown* before. Failing and unknown keys together have at most half of
    `total`, so that unreachable servers, however many, leave capacity for the
    others. If the queue is `paced`, one entry of a failing key is admitted per
    `tick`: entries that start together also time out together, and would hold
    up the process at that moment.

    Waiting entries are served round robin: first among the healthy, unknown
    and failing keys as three groups, then by key. At most `max_waiting` wait;
    the health of at most `max_known` keys is remembered.
    """

    def __init__(
        self,
        total: int,
        per_key: int,
        *,
        paced: bool = False,
        max_waiting: int | None = None,
        max_known: int = 10_000,
    ) -> None:
        self._total = total
        self._per_key = per_key
        self._not_healthy_total = max(1, total // 2)
        self._paced = paced
        self._max_waiting = max_waiting
        self._max_known = max_known
        self._keys: dict[Hashable, _KeyQueue] = {}  # those with entries
        self._health: dict[Hashable, bool] = {}  # oldest first
        # Keys whose next entry could be served, in round robin order, by health; the groups take turns, too.
        self._ready: dict[bool | None, dict[_KeyQueue, None]] = {True: {}, None: {}, False: {}}
        self._groups = deque(self._ready)
        self._failing_admitted = False  # since the last tick
        self._serving = False
        self.closed = False
        self.active = 0
        self.not_healthy = 0  #: active entries of failing and unknown keys
        self.waiting = 0

    @property
    def known(self) -> int:
        """How many keys are remembered."""
        return len(self._keys.keys() | self._health.keys())

    def enter(self, key: Hashable) -> Deferred[None] | None:
        """Admit an entry: None if at once, else a Deferred that fires then; cancelling it withdraws the entry.

        Errors: `QueueFull`; `QueueClosed`, also by the Deferred.
        """
        if self.closed:
            raise QueueClosed
        queue = self._keys.get(key)
        if queue is None:
            queue = self._keys[key] = _KeyQueue(key, self._health.get(key))
        if not queue.waiting and queue.active < self._per_key and self._has_capacity(queue.healthy):
            self._admit(queue)
            return None
        if self._max_waiting is not None and self.waiting >= self._max_waiting:
            self._update(queue)
            raise QueueFull
        entry: Deferred[None] = Deferred(lambda entry: self._withdraw(queue, entry))
        queue.waiting.append(entry)
        self.waiting += 1
        self._update(queue)
        return entry

    def leave(self, key: Hashable, succeeded: bool | None) -> None:
        """End an active entry; `succeeded` sets the key's health, None leaves it as it was."""
        queue = self._keys[key]
        queue.active -= 1
        self.active -= 1
        if not queue.healthy:
            self.not_healthy -= 1
        if succeeded is not None and succeeded != queue.healthy:
            self._ready[queue.healthy].pop(queue, None)
            if bool(queue.healthy) != succeeded:
                self.not_healthy += -queue.active if succeeded else queue.active
            queue.healthy = self._health[key] = succeeded
            if len(self._health) > self._max_known:
                del self._health[next(iter(self._health))]
        self._update(queue)
        self._serve()

    @property
    def needs_tick(self) -> bool:
        """Whether `tick` is to be called after the pause between two entries of failing keys."""
        return self._failing_admitted and not self.closed

    def tick(self) -> None:
        """Allow the next entry of a failing key."""
        self._failing_admitted = False
        self._serve()

    def close(self) -> None:
        """Fail all waiting entries, and every later `enter`, with `QueueClosed`."""
        self.closed = True
        waiting = [entry for queue in self._keys.values() for entry in queue.waiting]
        self.waiting = 0
        for queue in tuple(self._keys.values()):
            queue.waiting.clear()
            self._update(queue)
        for entry in waiting:
            entry.errback(QueueClosed())

    def _has_capacity(self, healthy: bool | None) -> bool:
        if self.active >= self._total:
            return False
        if healthy:
            return True
        return self.not_healthy < self._not_healthy_total and not (healthy is False and self._failing_admitted)

    def _admit(self, queue: _KeyQueue) -> None:
        queue.active += 1
        self.active += 1
        if not queue.healthy:
            self.not_healthy += 1
        self._failing_admitted = self._failing_admitted or (self._paced and queue.healthy is False)

    def _update(self, queue: _KeyQueue) -> None:
        """Add the key to the ready ones, or remove it; forget it if it has no entries."""
        if queue.waiting and queue.active < self._per_key:
            self._ready[queue.healthy].setdefault(queue)
            return
        self._ready[queue.healthy].pop(queue, None)
        if not queue.active and not queue.waiting:
            self._keys.pop(queue.key, None)

    def _serve(self) -> None:
        """Admit what has capacity now; an admitted entry that leaves at once calls this again."""
        if self._serving:
            return  # the loop below goes on: nested calls would exhaust the stack
        self._serving = True
        try:
            while queue := self._next():
                entry = queue.waiting.popleft()
                self.waiting -= 1
                self._admit(queue)
                self._update(queue)
                entry.callback(None)
        finally:
            self._serving = False

    def _next(self) -> _KeyQueue | None:
        """Take the next key out of the ready ones; None if there is none, or no capacity."""
        for group in self._groups:
            if self._ready[group] and self._has_capacity(group):
                self._groups.remove(group)
                self._groups.append(group)
                queue = next(iter(self._ready[group]))
                del self._ready[group][queue]
                return queue
        return None

    def _withdraw(self, queue: _KeyQueue, entry: Deferred[None]) -> None:
        queue.waiting.remove(entry)
        self.waiting -= 1
        self._update(queue)
