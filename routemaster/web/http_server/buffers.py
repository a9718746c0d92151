"""How much of its memory the server gives to one connection, and to answers that nobody reads.

All connections together may buffer about `BUFFERS` bytes: each an equal share, that much of what it
receives before it can be parsed, and that much of what it is sent before it is paused. With few
connections a share is as large as one read of a socket; the more there are, the smaller it is.

The parts of an answer may be longer than a share. If more than `UNREAD` bytes wait for clients that do
not read, the connections that have been paused for longest are aborted.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from routemaster.web.http_server.unsent import buffered

BUFFERS = 8 * 1024 * 1024  #: bytes
MOST = 65536                #: bytes of one share
LEAST = 4096                #: the same
UNREAD = 32 * 1024 * 1024   #: bytes


def share(connections: int) -> int:
    """Bytes for each of so many connections: a power of two."""
    size = min(MOST, max(LEAST, BUFFERS // max(1, connections)))
    return 1 << (size.bit_length() - 1)


class UnreadAnswers:
    """What waits for clients that do not read."""

    _log = Logger()

    def __init__(self, most: int = UNREAD) -> None:
        self._most = most
        self._paused: dict[Any, int] = {}  # channels that are paused, longest first; bytes
        self.size = 0  #: bytes

    def add(self, channel: Any) -> None:
        """A channel's client does not read; abort others if that is too much."""
        size = buffered(channel.transport)
        self.size += size - self._paused.get(channel, 0)
        self._paused[channel] = size
        aborted = 0
        while self.size > self._most:
            slowest = next(iter(self._paused))
            self.discard(slowest)
            slowest.transport.abortConnection()
            aborted += 1
        if aborted:
            self._log.warn("aborting {count} connections: their clients do not read answers", count=aborted)

    def discard(self, channel: Any) -> None:
        """It reads again, or is closed."""
        self.size -= self._paused.pop(channel, 0)
