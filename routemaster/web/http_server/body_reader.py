"""Reads the body of one request, by length or in chunks (RFC 9112 sections 6 and 7.1)."""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from twisted.web.http import _ChunkedTransferDecoder, _MalformedChunkedDataError

from routemaster.web.http_server.refusal import Refused


class BodyReader:
    """Collects a body in memory.

    Args:
        length: bytes of the body; None if it comes in chunks.
        limit: the most bytes of a body in chunks.
    """

    def __init__(self, length: int | None, limit: int) -> None:
        self._body = bytearray()
        self._missing = limit if length is None else length  # in chunks: bytes left of the limit
        self._rest: bytes | None = None
        self._decoder: Any = _ChunkedTransferDecoder(self._chunk, self._end) if length is None else None

    @property
    def body(self) -> bytes:
        """What has been read."""
        return bytes(self._body)

    def feed(self, data: bytes) -> bytes | None:
        """Read data; returns what follows the body, None if the body is incomplete.

        Raises:
            Refused: 400 or 413.
        """
        if self._decoder is None:
            self._body += data[: self._missing]
            rest = data[self._missing :]
            self._missing -= len(data) - len(rest)
            return None if self._missing else rest
        try:
            self._decoder.dataReceived(data)
        except _MalformedChunkedDataError:
            raise Refused(400, "body is invalid: malformed chunk") from None
        return self._rest

    def _chunk(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing < 0:
            raise Refused(413, "body is too large")
        self._body += data

    def _end(self, rest: bytes) -> None:
        self._rest = rest
