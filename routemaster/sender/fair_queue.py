"""Who may go now: at most so many at once, in turn by key, with room kept for the proven.

Pure: no time, no I/O. The sender uses it for attempts (key: host and port), the
resolver for look-ups (key: the name).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from twisted.internet.defer import Deferred


class Full(Exception):
    """The queue has no room for another."""


class Closed(Exception):
    """Whoever waited will not be served: the sender is closing."""


class _Lane:
    """What belongs to one key."""

    __slots__ = ("active", "key", "proven", "waiting")

    def __init__(self, key: Hashable, proven: bool | None) -> None:
        self.key = key
        self.proven = proven  #: how the last stay ended; None: there was none
        self.active = 0
        self.waiting: deque[Deferred[None]] = deque()


class FairQueue:
    """Admission in turn.

    `total` may be inside at once, `per_key` for one key. Keys which are not
    proven (the last stay ended badly, or there was none) hold at most half of
    `total` together. Where it is `paced`, those that ended badly enter one by
    one, the next when `turn` is called: what begins together ends together,
    and many that time out in one moment hold everybody up. Those who wait are
    served round robin by key, and the proven, the unknown and the failed in turn.
    `max_waiting` bounds the queue, `max_known` how many idle keys are remembered.
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
        self._doubtful_total = max(1, total // 2)
        self._max_waiting = max_waiting
        self._max_known = max_known
        self._lanes: dict[Hashable, _Lane] = {}
        self._known: dict[Hashable, bool] = {}  # how stays ended, oldest first
        self._ready: dict[bool | None, dict[_Lane, None]] = {True: {}, None: {}, False: {}}  # in turn
        self._kinds = deque(self._ready)  # in turn, too
        self._paced = paced
        self._begun = False  # whether one that failed has entered since the last turn
        self.closed = False
        self.active = 0
        self.doubtful = 0  #: of these, for keys not proven
        self.waiting = 0

    def enter(self, key: Hashable) -> Deferred[None] | None:
        """Go in at once (None), or wait for the Deferred; it may be cancelled.

        Errors: `Full`; `Closed`, also by the Deferred.
        """
        if self.closed:
            raise Closed
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, self._known.get(key))
        if not lane.waiting and lane.active < self._per_key and self._room(lane.proven):
            self._admit(lane)
            return None
        if self._max_waiting is not None and self.waiting >= self._max_waiting:
            self._tidy(lane)
            raise Full
        turn: Deferred[None] = Deferred(lambda turn: self._withdraw(lane, turn))
        lane.waiting.append(turn)
        self.waiting += 1
        self._enlist(lane)
        return turn

    def leave(self, key: Hashable, proven: bool | None) -> None:
        """Go out; `proven` tells whether the stay speaks for the key, or against it; None: neither."""
        lane = self._lanes[key]
        lane.active -= 1
        self.active -= 1
        if not lane.proven:
            self.doubtful -= 1
        if proven is not None and proven != lane.proven:
            self._ready[lane.proven].pop(lane, None)
            if bool(lane.proven) != proven:
                self.doubtful += -lane.active if proven else lane.active
            lane.proven = self._known[key] = proven
            if len(self._known) > self._max_known:
                del self._known[next(iter(self._known))]
        self._enlist(lane)
        self._tidy(lane)
        self._serve()

    @property
    def restless(self) -> bool:
        """Whether there is something for `turn` to do."""
        return self._begun and not self.closed

    def turn(self) -> None:
        """A while has passed: let the next of those enter whose last stay ended badly."""
        self._begun = False
        self._serve()

    def close(self) -> None:
        """Turn away all who wait, and all who come."""
        self.closed = True
        lanes = [lane for lane in self._lanes.values() if lane.waiting]
        for ready in self._ready.values():
            ready.clear()
        for lane in lanes:
            waiting, lane.waiting = lane.waiting, deque()
            self.waiting -= len(waiting)
            self._tidy(lane)
            for turn in waiting:
                turn.errback(Closed())

    def _room(self, proven: bool | None) -> bool:
        if self.active >= self._total:
            return False
        return proven or (self.doubtful < self._doubtful_total and not (proven is False and self._begun))

    def _admit(self, lane: _Lane) -> None:
        lane.active += 1
        self.active += 1
        if not lane.proven:
            self.doubtful += 1
        self._begun = self._begun or (self._paced and lane.proven is False)

    def _enlist(self, lane: _Lane) -> None:
        """Put the lane in the round if it could go on when its turn comes."""
        if lane.waiting and lane.active < self._per_key:
            self._ready[lane.proven].setdefault(lane)
        else:
            self._ready[lane.proven].pop(lane, None)

    def _serve(self) -> None:
        while lane := self._next():
            turn = lane.waiting.popleft()
            self.waiting -= 1
            self._admit(lane)
            self._enlist(lane)
            turn.callback(None)

    def _next(self) -> _Lane | None:
        """The lane whose turn it is; it is not in the round any more."""
        for kind in self._kinds:
            if self._ready[kind] and self._room(kind):
                self._kinds.remove(kind)
                self._kinds.append(kind)
                lane = next(iter(self._ready[kind]))
                del self._ready[kind][lane]
                return lane
        return None

    def _withdraw(self, lane: _Lane, turn: Deferred[None]) -> None:
        lane.waiting.remove(turn)
        self.waiting -= 1
        self._enlist(lane)
        self._tidy(lane)

    def _tidy(self, lane: _Lane) -> None:
        if not lane.active and not lane.waiting:
            self._lanes.pop(lane.key, None)
