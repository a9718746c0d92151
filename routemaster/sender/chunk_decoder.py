"""The chunked transfer coding of responses (RFC 9112 section 7.1), read as a browser does.

Spaces around a chunk's size and bare LF are read; the connection is not used
again after them. The chunks that arrive together are handed on together, so that
a body in chunks of one byte costs little more than another; but not too many, so that one of which
nothing more is wanted costs no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.web.http import _DataLoss

MAX_LINE = 1024  #: bytes of a line with a chunk's size
MAX_TRAILERS = 8192  #: bytes
PORTION = 128  #: chunks that are handed on together

_SIZE = re.compile(rb"([ \t]*)([0-9A-Fa-f]{1,16})([ \t]*)(?:;[^\r\n\0]*)?(\r?)\n")
_LINE_END = re.compile(rb"(\r?)\n")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r?\n)*\r?\n")

Step = Callable[["ChunkDecoder", bytes, int, list[bytes]], int | None]


class ChunkDecoder:
    """A transfer decoder for Twisted's parser."""

    def __init__(
        self, on_data: Callable[[bytes], None], on_end: Callable[[bytes], None],
        on_lenient: Callable[[], None], on_chunks: Callable[[int], bool],
    ) -> None:  # fmt: skip
        """`on_end` gets the bytes after the body; `on_lenient` is called if the coding is not exact.

        `on_chunks` gets the number of chunks, before their data, and returns whether the body is still wanted.
        """
        self._on_data, self._on_end, self._on_lenient, self._on_chunks = on_data, on_end, on_lenient, on_chunks
        self._buffer = b""   # an incomplete line, or incomplete trailers
        self._left = 0       # bytes of the present chunk
        self._read: Step = ChunkDecoder._read_size  # not the bound method, which would be a reference to this

    def dataReceived(self, data: bytes) -> None:
        """Decode; raises ValueError if the coding is malformed."""
        data = self._buffer + data
        position, more = 0, True
        while more:
            body: list[bytes] = []
            while len(body) < PORTION and (end := self._read(self, data, position, body)) is not None:
                position = end
            more = len(body) == PORTION
            if body:
                if not self._on_chunks(len(body)):
                    break
                self._on_data(b"".join(body))
        self._buffer = data[position:]
        if self._read is ChunkDecoder._read_nothing:
            on_end = self._on_end
            self._release()
            on_end(self._buffer)

    def noMoreData(self) -> None:
        """The connection is closed; raises `_DataLoss` unless the last chunk has arrived."""
        self._release()
        if self._read not in (ChunkDecoder._read_trailers, ChunkDecoder._read_nothing):
            raise _DataLoss("no last chunk")

    def _release(self) -> None:
        """Break the reference cycle of this and the parser."""
        self._on_data = self._on_end = lambda _: None
        self._on_chunks = lambda _: False

    # Each method reads from `position`, appends to `body`, and returns the next
    # position; None: it needs more bytes, or the body has ended.

    def _read_size(self, data: bytes, position: int, body: list[bytes]) -> int | None:
        line = _SIZE.match(data, position, position + MAX_LINE)
        if line is None:
            if b"\n" in data[position : position + MAX_LINE] or len(data) - position >= MAX_LINE:
                raise ValueError("invalid chunk size")
            return None
        if line[1] or line[3] or not line[4]:
            self._on_lenient()
        self._left = int(line[2], 16)
        self._read = ChunkDecoder._read_data if self._left else ChunkDecoder._read_trailers
        return line.end()

    def _read_data(self, data: bytes, position: int, body: list[bytes]) -> int | None:
        piece = data[position : position + self._left]
        if not piece:
            return None
        body.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._read = ChunkDecoder._read_line_end
        return position + len(piece)

    def _read_line_end(self, data: bytes, position: int, body: list[bytes]) -> int | None:
        line = _LINE_END.match(data, position)
        if line is None:
            if data[position:] not in (b"", b"\r"):
                raise ValueError("no line end after a chunk")
            return None
        if not line[1]:
            self._on_lenient()
        self._read = ChunkDecoder._read_size
        return line.end()

    def _read_trailers(self, data: bytes, position: int, body: list[bytes]) -> int | None:
        trailers = _TRAILERS.match(data, position, position + MAX_TRAILERS)
        if trailers is None:
            if len(data) - position >= MAX_TRAILERS:
                raise ValueError("trailers are too long")
            return None
        if trailers[0].count(b"\n") != trailers[0].count(b"\r\n"):
            self._on_lenient()
        self._read = ChunkDecoder._read_nothing
        return trailers.end()

    def _read_nothing(self, data: bytes, position: int, body: list[bytes]) -> int | None:
        return None
