"""Turns at reading events from the store and making an answer or a batch of them, for a few at a time.

One event can wake ten thousand polls, or a hundred couriers that all read a thousand events. Without turns the
requests of others would wait for all of these, here and at Redis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred

from routemaster.interfaces import Clock, Timer

TOGETHER = 8  #: turns taken at the same time
STEP = 0.001  #: seconds of one iteration of the reactor in which turns begin, if several wait
PATIENCE = 0.25  #: seconds without an end of a turn, after which others begin though none is free
MOST_EXTRA = 8  #: times that so many begin beside those that hang


class ReadTurns:
    """`async with turns:` waits for a turn, in order. For `together`, `step` and `patience` see above.

    One that has ended is free again in the next iteration of the reactor: between turns that never
    wait for the store, too, the reactor does everything else. While more wait than begin in a `step`, the
    reactor has as much time for everything else as these turns took.

    All may wait for a node of Redis that does not answer. Others do not wait for them longer than `patience`, and
    while others wait, each turn that ends makes room for the next, until `MOST_EXTRA` times as many hang.
    """

    def __init__(
        self, clock: Clock, together: int = TOGETHER, step: float = STEP, patience: float = PATIENCE
    ) -> None:
        self._clock, self._together, self._step, self._patience = clock, together, step, patience
        self._free = together
        self._ended = 0  # turns that are free in the next iteration
        self._extra = 0  # turns beyond `together`: so many are not free any more when nobody waits
        self._waiting: deque[Callable[[], None]] = deque()
        self._next = False  # whether what is called now takes the turn that has become free for it
        self._timer: Timer | None = None
        self._due = 0.0  # when it calls
        self._not_before = 0.0  # until then everything else has the reactor
        self._iterating = False

    def add(self, call: Callable[[], None]) -> None:
        """Call it when it is its turn; the turn is its own if it asks for one at once. Never calls it now."""
        self._waiting.append(call)
        self._schedule(0.0 if self._free or self._ended else self._patience)

    async def __aenter__(self) -> None:
        while not self._free or (self._waiting and not self._next):
            turn: Deferred[None] = Deferred()
            self.add(partial(_fire, turn))
            await turn
        self._next = False
        self._free -= 1

    async def __aexit__(self, *_: object) -> None:
        if self._extra and not self._waiting:
            self._extra -= 1
        else:
            self._ended += 1
            self._schedule(0.0)

    def _schedule(self, seconds: float) -> None:
        """Have `_iterate` called, at the earliest of the times that were given."""
        due = max(self._clock.seconds() + seconds, self._not_before)
        if self._iterating or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._iterate)

    def _iterate(self) -> None:
        self._timer, self._iterating = None, True
        if self._waiting and not (self._free or self._ended) and self._extra < MOST_EXTRA * self._together:
            self._free, self._extra = self._together, self._extra + self._together
        self._free, self._ended = self._free + self._ended, 0
        began, took = self._clock.seconds(), 0.0
        try:
            for _ in range(min(self._free, len(self._waiting))):
                self._next = True
                self._waiting.popleft()()
                took = self._clock.seconds() - began
                if took >= self._step:
                    break
        finally:
            self._next = self._iterating = False
            if self._waiting:
                self._not_before = began + 2 * took
            if self._waiting or self._ended:
                self._schedule(0.0 if self._free or self._ended else self._patience)


def _fire(turn: Deferred[None]) -> None:
    if not turn.called:  # otherwise it was cancelled
        turn.callback(None)
