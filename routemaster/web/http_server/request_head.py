"""The parser of a request's head: a pure function from bytes to a `Head` or `Refused`.

The grammar is RFC 9112 without its optional leniency. A head that two
implementations could read differently (folded lines, two lengths, a length
and chunks, a bare line feed, a second Host) is refused, because a proxy in
front could read it the other way: that is request smuggling. One regular
expression checks all header lines before they are split.

Messages are constant: an answer repeats nothing that the client sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from twisted.web.http_headers import Headers

from routemaster.web.http_server.refusal import Refused

MAX_HEAD = 16384     #: bytes of request line and headers together
MAX_HEADERS = 100    #: header lines in one request

EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")  #: before a request line; clients may send them (RFC 9112 section 2.2)

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER_LINES = re.compile(rb"(?:\r\n" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*)*")
_METHOD = re.compile(rb"[A-Z]{1,20}")
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(
    rb"(?:" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_ORIGIN = re.compile(rb"https?://" + _HOST.pattern + rb"(?=[/?]|$)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Head(NamedTuple):
    """A valid head."""

    method: bytes
    target: bytes       #: path and query as sent: visible ASCII, begins with a slash
    version: bytes
    headers: Headers
    length: int | None  #: bytes of the body; None when it comes in chunks
    close: bool         #: close the connection after the answer
    expects: bool       #: the client waits for `100 Continue` before it sends the body


def end_of_head(received: bytes, start: int) -> int:
    """Where the head at the beginning ends, -1 if it is incomplete; looks for the end from `start` on.

    Raises Refused: 431 if it is too large, 400 if these are another protocol's first bytes.
    """
    end = received.find(b"\r\n\r\n", start)
    if end > MAX_HEAD or (end < 0 and len(received) > MAX_HEAD + 3):
        raise Refused(431, f"request head is too large: expected at most {MAX_HEAD} bytes")
    if end < 0 and not b"!" <= received[:1] <= b"~" and received not in (b"", b"\r"):
        raise Refused(400, "request line is invalid: expected HTTP")
    return end


def parse_head(raw: bytes) -> Head:
    """Check and split a head: `raw` is the bytes before the empty line, without its CRLF.

    Raises:
        Refused: 400, 404, 413, 415, 431 or 501.
    """
    end = raw.find(b"\r\n")
    line = _REQUEST_LINE.fullmatch(raw, 0, end if end >= 0 else len(raw))
    if line is None:
        raise Refused(400, "request line is invalid: expected METHOD /path HTTP/1.1")
    method, target, minor = line.groups()
    lines: list[bytes] = []
    if end >= 0:
        if _HEADER_LINES.fullmatch(raw, end) is None:
            raise Refused(400, "header line is invalid: expected NAME: VALUE")
        lines = raw[end + 2 :].split(b"\r\n")
        if len(lines) > MAX_HEADERS:
            raise Refused(431, f"too many header lines: expected at most {MAX_HEADERS}")
    headers = Headers()
    for header in lines:
        name, _, value = header.partition(b":")
        headers.addRawHeader(name, value.strip(b" \t"))
    current = minor == b"1"
    length = _length(headers, current)
    _check_host(headers, current)
    _check_method(method)
    target = _origin_form(target)
    _check_target(target)
    _check_content_coding(headers)
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
    """Bytes of the body, None for chunks (RFC 9112 section 6.3, but every ambiguity is a 400)."""
    lengths = headers.getRawHeaders(b"Content-Length")
    codings = headers.getRawHeaders(b"Transfer-Encoding")
    if codings is not None:
        if lengths is not None:
            raise Refused(400, "body length is ambiguous: expected Content-Length or Transfer-Encoding")
        if not current or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Refused(400, "Transfer-Encoding is invalid: expected chunked, once, in HTTP/1.1")
        return None
    if lengths is None:
        return 0
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise Refused(400, "Content-Length is invalid: expected one decimal number")
    digits = lengths[0].lstrip(b"0")
    if len(digits) > 15:  # int() raises on thousands of digits
        raise Refused(413, "body is too large")
    return int(digits or b"0")


def _check_host(headers: Headers, current: bool) -> None:
    """One valid Host in HTTP/1.1, at most one in 1.0 (RFC 9112 section 3.2); its value is not used."""
    hosts = headers.getRawHeaders(b"Host")
    if hosts is None:
        if current:
            raise Refused(400, "Host is missing")
    elif len(hosts) != 1 or len(hosts[0]) > 261 or _HOST.fullmatch(hosts[0]) is None:
        raise Refused(400, "Host is invalid: expected one host name or IP address")


def _check_method(method: bytes) -> None:
    # Werkzeug ignores the case of methods; in HTTP `get` and `GET` are different methods.
    if _METHOD.fullmatch(method) is None:
        raise Refused(501, "method is not supported")


def _origin_form(target: bytes) -> bytes:
    """The path and query of a target; of an absolute-form target (RFC 9112 section 3.2.2) without its origin."""
    found = _ORIGIN.match(target)
    if found is None:
        return target
    rest = target[found.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def _check_content_coding(headers: Headers) -> None:
    """A body is read as it is sent: decompression could multiply its size."""
    codings = headers.getRawHeaders(b"Content-Encoding")
    if codings is not None and [coding.lower() for coding in codings] != [b"identity"]:
        raise Refused(415, "Content-Encoding is not supported: expected identity")


def _check_target(target: bytes) -> None:
    """A path that decodes to printable UTF-8 without a further slash."""
    if not target.startswith(b"/"):
        raise Refused(400, "request target is invalid: expected a path that begins with a slash")
    path, _, _ = target.partition(b"?")
    if b"%" not in path:
        return
    if _BAD_ESCAPE.search(path):
        raise Refused(400, "path is invalid: malformed percent-encoding")
    decoded = unquote_to_bytes(path)
    try:
        text = decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "path is invalid: expected UTF-8") from None
    if _CONTROL.search(text) or decoded.count(b"/") != path.count(b"/"):
        raise Refused(404, "not found")


def _names_close(connection: Sequence[bytes]) -> bool:
    """Whether a Connection header has the option `close`."""
    return any(option.strip().lower() == b"close" for value in connection for option in value.split(b","))
