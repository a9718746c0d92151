"""Reads the body of one request, by length or in chunks (RFC 9112 sections 6 and 7.1)."""

from __future__ import annotations

from routemaster.web.http_server.chunk_reader import ChunkReader
from routemaster.web.http_server.refusal import Refused

RETRY_AFTER = 1  #: seconds after which a client may retry


class BodyBudget:
    """The bytes that all bodies under way may hold together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0  #: bytes

    def take(self, size: int) -> None:
        """Count bytes; Refused with 503 if that is too much."""
        if self.held + size > self._most:
            message = "too many request bodies are under way: nothing was stored"
            raise Refused(503, message, (b"Retry-After", b"%d" % RETRY_AFTER))
        self.held += size

    def give_back(self, size: int) -> None:
        """Count bytes no more."""
        self.held -= size


class BodyReader:
    """Collects a body in memory.

    A body by length is counted in the budget as a whole before it is read, so
    that those that are accepted can be completed; a body in chunks as it grows.

    Args:
        length: bytes of the body; None if it comes in chunks.
        limit: the most bytes of a body in chunks.
        budget: of all bodies under way, this one included until `release`.
    """

    def __init__(self, length: int | None, limit: int, budget: BodyBudget) -> None:
        self._chunks = ChunkReader() if length is None else None
        self._body = bytearray() if self._chunks is None else self._chunks.content
        self._budget, self._limit = budget, limit
        self._counted = self._missing = length or 0
        budget.take(self._counted)

    def take(self) -> bytes:
        """The body, which the reader does not keep; it stays counted."""
        body = bytes(self._body)
        self._body.clear()
        return body

    def release(self) -> None:
        """Forget the body, and count it no more."""
        self._budget.give_back(self._counted)
        self._counted = 0
        self._body.clear()

    def feed(self, data: bytes) -> bytes | None:
        """Read data; returns what follows the body, None if the body is incomplete.

        Raises:
            Refused: 400 or 413.
        """
        if self._chunks is None:
            self._body += data[: self._missing]
            rest = data[self._missing :]
            self._missing -= len(data) - len(rest)
            return None if self._missing else rest
        after = self._chunks.feed(data)
        if len(self._body) > self._limit:
            raise Refused(413, "body is too large")
        grown = len(self._body) - self._counted
        self._budget.take(grown)
        self._counted += grown
        return after
