"""Work for clients that may wait for that of others: a little of it in each turn of the reactor.

Handshakes, requests of connections that have not authenticated themselves, pipelined requests and long bodies are
done here. However many of them come, other clients' requests wait for little more than one `STEP` of such work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

STEP = 0.001  #: seconds of such work in one turn, and then for the piece of work that is begun
PART = 4      #: one part of so many of the time that passes is for work done at once


class WorkQueue:
    """Runs work at once if little was done just before, otherwise in one of the next turns, in order."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: Any = None
        # seconds of work that may be done at once; a part of the time that passes is added: not all of it, as
        # what brings the work, to receive and decrypt it, may take as long as the work
        self._left = STEP
        self._since = clock.seconds()

    def __len__(self) -> int:
        return len(self._waiting)

    def run(self, work: Callable[[], None]) -> None:
        """Run it now or soon."""
        now = self._clock.seconds()
        self._left, self._since = min(STEP, self._left + (now - self._since) / PART), now
        if self._waiting or self._left <= 0:
            self.add(work)
            return
        try:
            work()
        finally:
            now = self._clock.seconds()
            self._left, self._since = max(-PART * STEP, self._left - (now - self._since)), now

    def add(self, work: Callable[[], None]) -> None:
        """Run it soon, not now."""
        self._waiting.append(work)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._turn)

    def stop(self) -> None:
        """Drop what waits: there is no connection left."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer, count = None, len(self._waiting)  # what is added now has another turn
        until = self._clock.seconds() + STEP
        try:
            while self._waiting and count:
                count -= 1
                self._waiting.popleft()()
                if self._clock.seconds() >= until:
                    break
        finally:
            self._left, self._since = 0.0, self._clock.seconds()
            if self._waiting and self._timer is None:
                self._timer = self._clock.callLater(0, self._turn)
