"""How much of its memory the server gives to what connections hold.

All connections together may buffer about `BUFFERS` bytes: each an equal share, that much of what it
receives before it can be parsed, and that much of what it is sent before it is paused. With few
connections a share is as large as one read of a socket; the more there are, the smaller it is.

A connection may hold more than its share: parts of an answer, the requests or the part of a TLS record that came
with one read. If more than `HELD` bytes are held for clients that do not read, or behind a request or
record that does not end, the connections that have held theirs for longest are aborted. Those that only wait
for their clients to close after they were refused count, too.
"""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger

BUFFERS = 8 * 1024 * 1024  #: bytes
MOST = 65536                #: bytes of one share
LEAST = 4096                #: the same
HELD = 8 * 1024 * 1024      #: bytes
PIPELINED = 16384  #: bytes of pipelined requests kept while one is handled, if the connection's share is not less
REQUEST = 8192     #: bytes that a request under way takes, about
LINGERING = 24576  #: bytes that a refused connection takes while it waits for its client to close


def share(connections: int) -> int:
    """Bytes for each of so many connections: a power of two."""
    size = min(MOST, max(LEAST, BUFFERS // max(1, connections)))
    return 1 << (size.bit_length() - 1)


class Holder(Protocol):
    """A connection, or its TLS."""

    def abortConnection(self) -> None:
        """End it at once."""


class Held:
    """What connections hold; see above."""

    _log = Logger()

    def __init__(self, most: int = HELD) -> None:
        self._most = most
        self._holders: dict[Holder, int] = {}  # the longest first; bytes
        self.size = 0  #: bytes
        self._aborted = 0

    def add(self, holder: Holder, size: int) -> None:
        """It holds so many bytes; abort others if that is too much."""
        self.size += size - self._holders.get(holder, 0)
        self._holders[holder] = size
        while self.size > self._most:
            first = next(iter(self._holders))
            self.discard(first)
            first.abortConnection()
            self._aborted += 1

    def report(self) -> None:
        """Log what was aborted since the last call."""
        if self._aborted:
            self._log.warn(
                "aborted {count} connections: their clients do not read answers, do not close what was refused, "
                "or send what cannot be parsed yet", count=self._aborted,
            )  # fmt: skip
        self._aborted = 0

    def discard(self, holder: Holder) -> None:
        """It holds nothing any more, or is closed."""
        self.size -= self._holders.pop(holder, 0)
