"""Work for clients that may wait for that of others: a little of it in each turn of the reactor.

Handshakes, requests of connections that have not authenticated themselves, pipelined requests and long bodies are
done here. However many of them come, other clients' requests wait for little more than one `STEP` of such work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

STEP = 2**-12  #: seconds (0.24 ms) of such work in one turn, and then for the piece of work that is begun
PART = 4      #: one part of so many of the time that passes is for work done at once
AHEAD = 2     #: pieces of other work that are done before one that begins something, if both wait


class WorkQueue:
    """Runs work at once if little was done just before, otherwise in one of the next turns, in order.

    What `begins` something, such as the first step of a handshake, waits for itself, and makes way for the rest:
    what has begun holds the more memory, and is soon done. What `ends` something comes first: it frees memory.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._begins: deque[Callable[[], None]] = deque()
        self._ends: deque[Callable[[], None]] = deque()
        self._ahead = 0  # pieces of other work since the last that began something
        self._timer: Any = None
        # seconds of work that may be done at once; a part of the time that passes is added: not all of it, as
        # what brings the work, to receive and decrypt it, may take as long as the work
        self._left = STEP
        self._since = clock.seconds()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._begins) + len(self._ends)

    def run(self, work: Callable[[], None], begins: bool = False, ends: bool = False) -> None:
        """Run it now or soon."""
        now = self._clock.seconds()
        self._left, self._since = min(STEP, self._left + (now - self._since) / PART), now
        if len(self) or self._left <= 0:
            self._add(work, self._ends if ends else self._begins if begins else self._waiting)
            return
        try:
            work()
        finally:
            now = self._clock.seconds()
            self._left, self._since = max(-PART * STEP, self._left - (now - self._since)), now

    def add(self, work: Callable[[], None]) -> None:
        """Run it soon, not now."""
        self._add(work, self._waiting)

    def _add(self, work: Callable[[], None], line: deque[Callable[[], None]]) -> None:
        line.append(work)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._turn)

    def stop(self) -> None:
        """Drop what waits: there is no connection left."""
        for line in (self._waiting, self._begins, self._ends):
            line.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> Callable[[], None]:
        if self._ends:
            return self._ends.popleft()
        if self._begins and (not self._waiting or self._ahead >= AHEAD):
            self._ahead = 0
            return self._begins.popleft()
        self._ahead += 1
        return self._waiting.popleft()

    def _turn(self) -> None:
        self._timer, count = None, len(self)  # what is added now has another turn
        until = self._clock.seconds() + STEP
        try:
            while count and len(self):
                count -= 1
                self._next()()
                if self._clock.seconds() >= until:
                    break
        finally:
            self._left, self._since = 0.0, self._clock.seconds()
            if len(self) and self._timer is None:
                self._timer = self._clock.callLater(0, self._turn)
