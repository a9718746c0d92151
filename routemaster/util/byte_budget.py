"""Bytes that many hold in memory together, each for as long as its peer takes to read them.

Who asks first may take an eighth of all. As bytes get scarce, the largest share shrinks with the
square of what is left: a hundred peers that hang leave room for others, and small shares still get
through at once. Who finds nothing left waits.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred

PART = 8             #: one share is at most this part of all
SMALLEST = 8 * 1024  #: bytes that a share may have, however little is left, as long as there are so many


class ByteBudget:
    """`most`: bytes of all shares.

    `corrected`: each share is corrected soon by `release`, as it may turn out larger; the next one that
    waits is served only then, unless half of all is free.
    """

    def __init__(self, most: int, corrected: bool = False) -> None:
        self._most = self._free = most
        self._corrected = corrected
        self._waiting: deque[tuple[int, Deferred[int]]] = deque()

    def reserve(self, wanted: int) -> Deferred[int]:
        """Fires with the `wanted` bytes, or fewer as they get scarce, at once or when others give some back.

        Those that wait are served in order. Can be cancelled.
        """
        share: Deferred[int] = Deferred()
        if size := self._take(wanted):
            share.callback(size)
        else:
            self._waiting.append((wanted, share))
        return share

    def _take(self, wanted: int) -> int:
        free = max(0, self._free)
        share = min(wanted, max(free * free // (PART * self._most), SMALLEST))
        if share > self._free < self._most:
            return 0
        self._free -= share
        return share

    def release(self, size: int) -> None:
        """Give bytes back; fewer than 0 take more, for something single that is larger than its share."""
        self._free += size
        while self._waiting:
            wanted, share = self._waiting[0]
            size = 0 if share.called else self._take(wanted)
            if not (size or share.called):
                return
            self._waiting.popleft()
            if size:  # otherwise it was cancelled
                share.callback(size)
                if self._corrected and 2 * self._free < self._most:
                    return
