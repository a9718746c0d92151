"""Reads a body in chunks (RFC 9112 section 7.1), to the letter; extensions and trailers are passed over.

The cost of a byte hardly depends on how small the chunks are: a run of small ones, which have more framing than
content, is split in one go. What would need a closer look (extensions, leading zeros, trailers) has at most
`OVERHEAD` bytes in one body.
"""

from __future__ import annotations

import re

from routemaster.web.http_server.refusal import Refused

MAX_LINE = 1024    #: bytes of a line with a chunk's size, or of a trailer
OVERHEAD = 16384   #: bytes of extensions, leading zeros and trailers in one body

_SIZE_LINE = re.compile(rb"0*([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")
_SIZES = {spelt: size for size in range(1, 4096) for spelt in (b"%x" % size, b"%X" % size)}


class ChunkReader:
    """Collects the content of chunks; `content` may be taken and cleared at any time."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._rest = b""       # received, not yet read
        self._missing = 0      # bytes of the current chunk, the CRLF behind it included
        self._overhead = 0
        self._last = False     # the last chunk has come: trailers follow

    @property
    def announced(self) -> int:
        """Bytes of content that the current chunk still has."""
        return max(0, self._missing - 2)

    def feed(self, data: bytes) -> bytes | None:
        """Read data; returns what follows the body, None if the body is incomplete. Raises Refused."""
        data, self._rest = self._rest + data, b""
        at = self._read_chunk(data, 0)
        if not self._last and not self._missing:
            at = self._split(data, at)
        while not self._last:
            at = self._read_chunks(data, at)
            line = None if self._missing else self._line(data, at, _SIZE_LINE)
            if line is None:
                return None
            size, at = int(line[1], 16), line.end()
            self._count(at - line.start() - len(b"%x\r\n" % size))
            self._last, self._missing = not size, size and size + 2
            at = self._read_chunk(data, at)
        return self._read_trailers(data, at)

    def _split(self, data: bytes, at: int) -> int:
        """Read a run of small chunks, up to one that has a CRLF in it; returns where they end."""
        parts = data[at:].split(b"\r\n")
        parts.pop()  # incomplete
        sizes, contents = parts[::2], parts[1::2]
        lengths = list(map(len, contents))
        announced = list(map(_SIZES.get, sizes[: len(contents)]))
        if announced != lengths:
            count = next(n for n, length in enumerate(lengths) if announced[n] != length)
            del sizes[count:], contents[count:], lengths[count:]
        count = len(contents)
        self.content += b"".join(contents)
        return at + sum(map(len, sizes[:count])) + sum(lengths) + 4 * count

    def _read_chunks(self, data: bytes, at: int) -> int:
        """The same one by one, whatever is in them, up to one that is large, incomplete or odd."""
        contents = []
        while True:
            line = data.find(b"\r\n", at, at + 5)
            size = _SIZES.get(data[at:line]) if line >= 0 else None
            if size is None or data[line + 2 + size : line + 4 + size] != b"\r\n":
                break
            contents.append(data[line + 2 : line + 2 + size])
            at = line + 4 + size
        self.content += b"".join(contents)
        return at

    def _read_chunk(self, data: bytes, at: int) -> int:
        """Read what there is of the current chunk; returns where it ends."""
        content = data[at : at + max(0, self._missing - 2)]
        self.content += content
        at += len(content)
        self._missing -= len(content)
        if 0 < self._missing <= 2:
            expected = b"\r\n"[-self._missing :]
            end = data[at : at + len(expected)]
            if not expected.startswith(end):
                raise _malformed()
            at += len(end)
            self._missing -= len(end)
        return at

    def _read_trailers(self, data: bytes, at: int) -> bytes | None:
        while not data.startswith(b"\r\n", at):
            line = self._line(data, at, _TRAILER)
            if line is None:
                return None
            at = line.end()
            self._count(at - line.start())
        return data[at + 2 :]

    def _line(self, data: bytes, at: int, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """The line that begins there, None if it is incomplete; then it is kept."""
        end = data.find(b"\r\n", at, at + MAX_LINE)
        if end < 0:
            if len(data) - at >= MAX_LINE:
                raise _malformed()
            self._rest = data[at:]
            return None
        line = pattern.fullmatch(data, at, end + 2)
        if line is None:
            raise _malformed()
        return line

    def _count(self, overhead: int) -> None:
        self._overhead += overhead
        if self._overhead > OVERHEAD:
            raise Refused(400, f"body is invalid: over {OVERHEAD} bytes of chunk extensions and trailers")


def _malformed() -> Refused:
    return Refused(400, "body is invalid: malformed chunk")
