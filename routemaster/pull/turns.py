"""Work of many that became due at the same moment, a little of it in each turn of the reactor.

One event can wake ten thousand waiting polls. Requests of others are answered between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from routemaster.interfaces import Clock

AT_ONCE = 20  #: calls in one turn


class Turns:
    """Calls what is added in the next turn, in order, at most `AT_ONCE`, and the rest in those that follow."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def add(self, call: Callable[[], None]) -> None:
        """Call it soon."""
        self._waiting.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        for call in [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]:
            call()
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._clock.callLater(0, self._turn)
