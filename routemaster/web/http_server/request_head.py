"""What a request's head must look like: pure rules from bytes to a `Head` or a refusal.

The grammar is RFC 9112 without its tolerance. Whatever two implementations
could read in two ways (folded lines, two lengths, a length beside chunks, a
lone line feed, a second Host) is refused, because a proxy before the bus might
have read it the other way. One pattern judges the whole head at once; only
what passed is taken apart, so the taking apart needs no further doubt.

Refusals are fixed sentences: nothing that the client sent is said back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

MAX_HEAD = 16384     #: bytes of request line and headers together
MAX_HEADERS = 100    #: header lines in one request

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER_LINES = re.compile(rb"(?:\r\n" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*)*")
_METHOD = re.compile(rb"[A-Z]{1,20}")
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(
    rb"(?:" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Refused(Exception):
    """The bytes are no request that the bus takes: `status` and one fixed sentence for the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Head(NamedTuple):
    """A request's head that passed every rule."""

    method: bytes
    target: bytes       #: path and query as sent, visible ASCII, beginning with a slash
    version: bytes
    headers: Headers
    length: int | None  #: bytes of the body; None when it comes in chunks
    close: bool         #: the client wants the connection closed after the answer
    expects: bool       #: the client waits for `100 Continue` before it sends the body


def parse_head(raw: bytes) -> Head:
    """Judge a request's head and take it apart.

    Args:
        raw: everything before the empty line, without the line end before it.

    Raises:
        Refused: 400, 404, 413, 431 or 501, see the sentences below.
    """
    end = raw.find(b"\r\n")
    line = _REQUEST_LINE.fullmatch(raw, 0, end if end >= 0 else len(raw))
    if line is None:
        raise Refused(400, "the request line is not well-formed")
    method, target, minor = line.groups()
    lines: list[bytes] = []
    if end >= 0:
        if _HEADER_LINES.fullmatch(raw, end) is None:
            raise Refused(400, "a header line is not well-formed")
        lines = raw[end + 2 :].split(b"\r\n")
        if len(lines) > MAX_HEADERS:
            raise Refused(431, f"a request has at most {MAX_HEADERS} header lines")
    headers = Headers()
    for header in lines:
        name, _, value = header.partition(b":")
        headers.addRawHeader(name, value.strip(b" \t"))
    current = minor == b"1"
    length = _length(headers, current)
    _check_host(headers, current)
    _check_method(method)
    _check_target(target)
    connection = headers.getRawHeaders(b"Connection")
    expect = headers.getRawHeaders(b"Expect")
    return Head(
        method,
        target,
        b"HTTP/1.1" if current else b"HTTP/1.0",
        headers,
        length,
        not current or (connection is not None and _names_close(connection)),
        current and expect is not None and expect[0].lower() == b"100-continue",
    )


def _length(headers: Headers, current: bool) -> int | None:
    """Bytes of the body, None for chunks; every ambiguity about where the body ends is a 400."""
    lengths = headers.getRawHeaders(b"Content-Length")
    codings = headers.getRawHeaders(b"Transfer-Encoding")
    if codings is not None:
        if lengths is not None:
            raise Refused(400, "Content-Length and Transfer-Encoding exclude each other")
        if not current or codings != [b"chunked"]:
            raise Refused(400, "the only Transfer-Encoding is 'chunked', once, in HTTP/1.1")
        return None
    if lengths is None:
        return 0
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise Refused(400, "Content-Length is one decimal number")
    digits = lengths[0].lstrip(b"0")
    if len(digits) > 15:  # int() of thousands of digits raises, and no body is that long
        raise Refused(413, "the body is too large")
    return int(digits or b"0")


def _check_host(headers: Headers, current: bool) -> None:
    """One well-formed Host in HTTP/1.1, at most one in 1.0; nothing ever reads its value."""
    hosts = headers.getRawHeaders(b"Host")
    if hosts is None:
        if current:
            raise Refused(400, "HTTP/1.1 requires a Host header")
    elif len(hosts) != 1 or len(hosts[0]) > 261 or _HOST.fullmatch(hosts[0]) is None:
        raise Refused(400, "the Host header is not one well-formed host")


def _check_method(method: bytes) -> None:
    # Routing compares methods in upper case, HTTP does not: `get` is another method than `GET`.
    if _METHOD.fullmatch(method) is None:
        raise Refused(501, "the method is not known here")


def _check_target(target: bytes) -> None:
    """A path of this server that decodes to printable text without gaining a slash."""
    if not target.startswith(b"/"):
        raise Refused(400, "the request target must be a path that begins with a slash")
    path, _, _ = target.partition(b"?")
    if b"%" not in path:
        return
    if _BAD_ESCAPE.search(path):
        raise Refused(400, "the path holds an ill-formed percent escape")
    decoded = unquote_to_bytes(path)
    try:
        text = decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "the path is not UTF-8") from None
    if _CONTROL.search(text) or decoded.count(b"/") != path.count(b"/"):
        raise Refused(404, "there is nothing at this path")


def _names_close(connection: Sequence[bytes]) -> bool:
    """Whether any Connection header holds the option `close`."""
    return any(option.strip().lower() == b"close" for value in connection for option in value.split(b","))
