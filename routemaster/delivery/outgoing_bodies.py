"""A bound on the memory for the bodies of attempts under way, in one process.

A body is held until its attempt ends, and receivers may read slowly. The first
body may take an eighth of all. As bytes get scarce, the largest body shrinks with
the square of what is left: a hundred receivers that hang leave room for others,
and small bodies still get through at once. Who finds nothing left waits.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred

PART = 8             #: one body gets at most this part of all
SMALLEST = 8 * 1024  #: bytes that a body may have, however little is left, as long as there are so many


class OutgoingBodies:
    """The bytes that bodies may take together."""

    def __init__(self, most: int) -> None:
        """`most`: bytes."""
        self._most = self._free = most
        self._waiting: deque[Deferred[None]] = deque()

    async def reserve(self, wanted: int) -> int:
        """Reserve `wanted` bytes, or fewer as they get scarce; waits while there are none. Can be cancelled."""
        while (share := self._share(wanted)) > self._free < self._most:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting
        self._free -= share
        return share

    def _share(self, wanted: int) -> int:
        free = max(0, self._free)
        return min(wanted, max(free * free // (PART * self._most), SMALLEST))

    def release(self, reserved: int) -> None:
        """Give bytes back; fewer than 0 take more, for a single event that is larger than what was reserved."""
        self._free += reserved
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            if not each.called:
                each.callback(None)
