"""What the attempts of one worker may take together: time of the reactor, and memory for their bodies.

*Starts.* An event for a thousand subscribers makes a thousand couriers act at
once. To start an attempt takes about half a millisecond, for which publishers at
this process wait: so only a few start in one iteration of the reactor. One that has to connect first
costs several times as much, most of it later, for the handshake: fewer of these start, and those
that are connected do not wait for them. So receivers that fail, or close each connection, do not
delay the others.

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

STARTS = 8           #: in one iteration of the reactor, of those that are connected
CONNECTS = 2         #: the same, of the others
LIMITS = {True: STARTS, False: CONNECTS}
PART = 8             #: one body gets at most this part of all
SMALLEST = 8 * 1024  #: bytes that a body may have, however little is left, as long as there are so many


class AttemptBudget:
    """Admits attempts, and starts them in the order in which they ask."""

    def __init__(self, clock: Clock, most: int) -> None:
        """`most`: bytes of all bodies."""
        self._clock = clock
        self._most = self._free = most
        # by whether they are connected
        self._started = {True: 0, False: 0}  # in this iteration
        self._to_start: dict[bool, deque[Deferred[None]]] = {True: deque(), False: deque()}
        self._ticking = False  # whether the next iteration will be noticed
        self._for_bytes: deque[Deferred[None]] = deque()

    async def reserve(self, wanted: int, connected: bool = True) -> int:
        """Wait until an attempt may start; reserves the `wanted` bytes, or fewer as they get scarce.

        `connected`: whether it needs no new connection. Can be cancelled.
        """
        await self._start(connected)
        while (share := self._share(wanted)) > self._free < self._most:
            await _wait_in(self._for_bytes)
            await self._start(connected)
        self._free -= share
        return share

    async def _start(self, connected: bool) -> None:
        """Wait until another attempt may start in this iteration of the reactor."""
        if not self._ticking:
            self._ticking = True
            self._clock.callLater(0, self._next_iteration)
        if self._started[connected] >= LIMITS[connected] or self._to_start[connected]:
            await _wait_in(self._to_start[connected])
        self._started[connected] += 1

    def _share(self, wanted: int) -> int:
        free = max(0, self._free)
        return min(wanted, max(free * free // (PART * self._most), SMALLEST))

    def _next_iteration(self) -> None:
        self._started = {True: 0, False: 0}
        self._ticking = False
        for connected, waiting in self._to_start.items():
            if waiting and not self._ticking:
                self._ticking = True
                self._clock.callLater(0, self._next_iteration)
            while waiting and self._started[connected] < LIMITS[connected]:
                _fire(waiting.popleft())

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
