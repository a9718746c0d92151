"""What the attempts of one worker may take together: time of the reactor, and memory for their bodies.

*Starts.* An event for a thousand subscribers makes a thousand couriers act at
once. To start an attempt takes about half a millisecond, for which publishers at
this process wait: so only a few start in one iteration of the reactor.

*Bytes.* A body is held until its attempt ends, and receivers may read slowly. The
first body may take an eighth of all. As bytes get scarce, the largest body
shrinks with the square of what is left: a hundred receivers that hang leave room
for others, and small bodies still get through at once. Who finds nothing left
waits.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred

from routemaster.interfaces import Clock

STARTS = 8           #: in one iteration of the reactor
PART = 8             #: one body gets at most this part of all
SMALLEST = 8 * 1024  #: bytes that a body may have, however little is left, as long as there are so many


class AttemptBudget:
    """Admits attempts, and starts them in the order in which they ask."""

    def __init__(self, clock: Clock, most: int) -> None:
        """`most`: bytes of all bodies."""
        self._clock = clock
        self._most = self._free = most
        self._started = 0  #: in this iteration
        self._to_start: deque[Deferred[None]] = deque()
        self._for_bytes: deque[Deferred[None]] = deque()

    async def reserve(self, wanted: int) -> int:
        """Wait until an attempt may start; reserves the `wanted` bytes, or fewer as they get scarce.

        Can be cancelled.
        """
        await self._start()
        while (share := self._share(wanted)) > self._free < self._most:
            await _wait_in(self._for_bytes)
            await self._start()
        self._free -= share
        return share

    async def _start(self) -> None:
        """Wait until another attempt may start in this iteration of the reactor."""
        if self._started >= STARTS or self._to_start:
            await _wait_in(self._to_start)
        elif not self._started:
            self._clock.callLater(0, self._next_iteration)
        self._started += 1

    def _share(self, wanted: int) -> int:
        free = max(0, self._free)
        return min(wanted, max(free * free // (PART * self._most), SMALLEST))

    def _next_iteration(self) -> None:
        self._started = 0
        if self._to_start:
            self._clock.callLater(0, self._next_iteration)
        while self._to_start and self._started < STARTS:
            _fire(self._to_start.popleft())

    def release(self, reserved: int) -> None:
        """Give bytes back; fewer than 0 take more, for a single event that is larger than what was reserved."""
        self._free += reserved
        waiting, self._for_bytes = self._for_bytes, deque()
        for each in waiting:
            _fire(each)


def _wait_in(queue: deque[Deferred[None]]) -> Deferred[None]:
    waiting: Deferred[None] = Deferred()
    queue.append(waiting)
    return waiting


def _fire(waiting: Deferred[None]) -> None:
    """End a wait, unless it was cancelled."""
    if not waiting.called:
        waiting.callback(None)
