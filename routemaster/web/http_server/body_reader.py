"""Reads the body of one request, by length or in chunks (RFC 9112 sections 6 and 7.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from attrs import define

from routemaster.web.http_server.chunk_reader import OVERHEAD, ChunkReader
from routemaster.web.http_server.refusal import Refused

RETRY_AFTER = 1  #: seconds after which a client may retry
CONNECTION = 24 * 1024  #: bytes that bodies have less for each open connection: as many as one takes
BODY = 16 * 1024 #: bytes that a body counts at least: as much as its connection holds of a record of TLS
PIECE = 4096     #: bytes of chunks read at once: the smallest ones take half a millisecond
MOST = 1 << 30   #: bytes of another body read at once
LEAST = 8        #: one part of so many is theirs, however many connections are open


@define
class _Held:
    """What the bodies of one client hold."""

    bodies: int = 0
    size: int = 0  #: bytes


class BodyBudget:
    """The bytes that all bodies under way may hold together.

    A client with several bodies may hold no more than it leaves free: one alone gets half of all,
    two a third each, and whoever comes next finds a share as large. A client's only body may take all
    that is left. Where the client is not known (None), only the sum is limited.

    Open connections take memory, too: for each of them, bodies have `CONNECTION` bytes less.

    Args:
        most: bytes of all bodies.
        largest: bytes of one body, which there is always room for.
        connections: returns how many are open.
        least: bytes that a body counts at least, for what its connection holds besides.
    """

    def __init__(
        self, most: int, largest: int = 0, connections: Callable[[], int] = lambda: 0, least: int = 0
    ) -> None:
        self._most, self._always, self._connections = most, max(most // LEAST, largest), connections
        self.least = least
        self.held = 0  #: bytes
        self._clients: dict[Hashable, _Held] = {}  # those with bodies under way

    def begin(self, client: Hashable) -> None:
        """A body of this client is under way, until `end`."""
        self._clients.setdefault(client, _Held()).bodies += 1

    def take(self, client: Hashable, size: int) -> None:
        """Count bytes of its bodies; Refused with 503 if that is too much."""
        most = max(self._always, self._most - CONNECTION * self._connections())
        held, left = self._clients[client], most - self.held - size
        if left < 0:
            raise _refused("too many request bodies are under way: nothing was stored")
        if client is not None and held.bodies > 1 and held.size + size > left:
            raise _refused("too many of your request bodies are under way: nothing was stored")
        held.size += size
        self.held += size

    def end(self, client: Hashable, size: int) -> None:
        """A body of so many bytes is not under way any more."""
        held = self._clients[client]
        held.size -= size
        held.bodies -= 1
        if not held.bodies:
            del self._clients[client]
        self.held -= size


def _refused(message: str) -> Refused:
    return Refused(503, message, (b"Retry-After", b"%d" % RETRY_AFTER))


class BodyReader:
    """Collects a body in memory.

    A body by length is counted in the budget as a whole before it is read, so
    that those that are accepted can be completed; a body in chunks as it grows.

    Args:
        length: bytes of the body; None if it comes in chunks.
        limit: the most bytes of a body in chunks.
        budget: of all bodies under way, this one included until `release`.
        client: whose body it is, None if that is not known.
    """

    def __init__(self, length: int | None, limit: int, budget: BodyBudget, client: Hashable = None) -> None:
        self._chunks = ChunkReader() if length is None else None
        self.piece = MOST if self._chunks is None else PIECE  #: bytes that `feed` should get at once
        self._body = bytearray() if self._chunks is None else self._chunks.content
        self._budget, self._client, self._limit = budget, client, limit
        self._counted, self._missing, self._read = 0, length or 0, 0
        self._released = False
        budget.begin(client)
        try:
            self._count(max(self._missing, budget.least))
        except Refused:
            self.release()
            raise

    @property
    def is_wasteful(self) -> bool:
        """Whether its chunks have had more framing than content, and are not just a few."""
        return self._read > 2 * max(len(self._body), OVERHEAD)

    def take(self) -> bytes:
        """The body, which the reader does not keep; it stays counted."""
        body = bytes(self._body)
        self._body.clear()
        return body

    def release(self) -> None:
        """Forget the body, and count it no more."""
        if not self._released:
            self._released = True
            self._budget.end(self._client, self._counted)
        self._body.clear()

    def feed(self, data: bytes) -> bytes | None:
        """Read data; returns what follows the body, None if the body is incomplete.

        Raises:
            Refused: 400, 413 or 503.
        """
        if self._chunks is None:
            self._body += data[: self._missing]
            rest = data[self._missing :]
            self._missing -= len(data) - len(rest)
            return None if self._missing else rest
        self._read += len(data)
        after = self._chunks.feed(data)
        if len(self._body) + self._chunks.announced > self._limit:
            raise Refused(413, "body is too large")
        self._count(len(self._body))
        return after

    def _count(self, size: int) -> None:
        if size <= self._counted:  # it has its room, however little there is now
            return
        self._budget.take(self._client, size - self._counted)
        self._counted = size
