"""One HTTP/1.1 client connection, with a check of response heads before Twisted's parser.

Twisted's parser accepts `+200` and `ICY/1.0`; its heads have no size limit, and
it logs each 1xx. So a head is collected and checked here before Twisted's parser
sees it. A head has at most `MAX_HEAD` bytes, the 1xx responses before it
included; these are discarded. If a head is malformed, `fault` holds the reason
and the connection is aborted.

Servers are old and various, and their responses are read as a browser does:
bare LF, folded lines, a space before a colon, Transfer-Encoding beside
Content-Length or in HTTP/1.0. Two parsers may differ about where such a response
ends, so the connection is not used again after it. Nor is it after bytes that no
response announced (a body behind 204).
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import re
from collections.abc import Callable
from select import POLLIN, poll
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.iweb import IResponse
from zope.interface.declarations import implementer

from routemaster.sender.chunk_decoder import ChunkDecoder
from routemaster.sender.failure_reasons import DeliveryError

Key = tuple[str, int]  #: host and port; connections with the same key are interchangeable

MAX_HEAD = 65536  #: bytes, 1xx responses included

_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?(\r?)\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_LINE_END = re.compile(rb"\r?\n")
_SPACE_BEFORE_COLON = re.compile(rb"(\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]+:")
_NO_BODY = re.compile(rb"\r\n(?:transfer-encoding|content-length:[ \t]*0*[1-9])")
_END = re.compile(rb"\n\r?\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_KEEP_ALIVE = re.compile(rb"\r\nconnection:[^\r]*\bkeep-alive\b")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n")


class Malformed(DeliveryError):
    """The response's head is not valid HTTP/1.x."""


def check_head(head: bytes) -> tuple[int, bool]:
    """The status of a complete response head, and whether the connection may be used again.

    Raises `Malformed` for an invalid status line or header field (RFC 9112
    sections 4 and 5) and for an unknown transfer coding (section 6.3).
    """
    line = _STATUS.match(head)
    if line is None or not line[3]:
        raise Malformed(f"malformed answer: status line {head[:80].splitlines()[0]!r}")
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise Malformed("malformed answer: invalid header field")
    lower = head.lower()
    reusable = _KEEP_ALIVE.search(lower) is not None if line[1] == b"0" else _CLOSE.search(lower) is None
    if b"\r\ntransfer-encoding:" in lower:
        if lower.count(b"\r\ntransfer-encoding:") > 1 or _CHUNKED.search(lower) is None:
            raise Malformed("malformed answer: its length is ambiguous (Transfer-Encoding)")
        if b"\r\ncontent-length:" in lower or line[1] == b"0":
            reusable = False  # the coding decides (RFC 9112 section 6.3)
    if line[2] == b"204" and _NO_BODY.search(lower) is not None:
        reusable = False
    return int(line[2]), reusable


def read_head(head: bytes) -> tuple[bytes, int, bool]:
    """The head for Twisted's parser, with the results of `check_head`; raises `Malformed`.

    A head in an outdated or inexact form is rewritten.
    """
    try:
        return head, *check_head(head)
    except Malformed:
        exact = _SPACE_BEFORE_COLON.sub(rb"\1:", _LINE_END.sub(b"\r\n", _FOLD.sub(b" ", head)))
        if exact == head:
            raise
        return exact, check_head(exact)[0], False


class Owner(Protocol):
    """What a connection reports to (the `Pool`)."""

    def opened(self, connection: Connection) -> None:
        """The TCP connection is established."""

    def keep(self, connection: Connection) -> None:
        """A response is complete: the connection may carry another request if it is `usable`."""

    def closed(self, connection: Connection) -> None:
        """The connection is closed."""


@implementer(IHandshakeListener)
class Connection(HTTP11ClientProtocol):
    """A connection to one server, opened and kept by its owner."""

    transport: Any

    def __init__(self, owner: Owner, key: Key) -> None:
        super().__init__(owner.keep)
        self._owner = owner
        self.key = key
        self.idle = False        #: whether the owner keeps it for a later request
        self.handshaken = False  #: whether the TLS handshake is complete
        self.requests = 0        #: sent so far
        self.received = 0        #: bytes since the last request
        self.pieces = 0          #: reads, and chunks of the body, since the last request
        self.fault: DeliveryError | None = None  #: why this side aborted it
        self._reusable = True
        self._lost = False
        self._head: bytes | None = None   # collected so far; None while no head is expected
        self._head_size = 0               # bytes of 1xx responses before it

    def handshakeCompleted(self) -> None:
        """Called by TLS when the server's certificate is verified."""
        self.handshaken = True

    def connectionMade(self) -> None:
        super().connectionMade()
        self._owner.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._owner.closed(self)
        super().connectionLost(reason)

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        ready = self._reusable and self.state == "QUIESCENT" and not self.transport.disconnecting
        return bool(ready and not self.sending)

    @property
    def sending(self) -> bool:
        """Whether a part of the request waits, or was waiting at the end, for the server to read more."""
        socket = self.transport.transport
        return bool(self.handshaken and len(socket.dataBuffer) + socket._tempDataLen > socket.offset)

    def request(self, request: Request) -> Deferred[IResponse]:
        self.requests += 1
        self.received = self.pieces = 0
        self._head = b""
        self._head_size = 0
        response: Deferred[IResponse] = super().request(request)
        if self._parser is not None:
            self._parser._transferDecoders = {b"chunked": self._chunk_decoder}  # type: ignore[dict-item]
        return response

    def _chunk_decoder(self, on_data: Callable[[bytes], None], on_end: Callable[[bytes], None]) -> ChunkDecoder:
        return ChunkDecoder(on_data, on_end, self._use_no_more, self._count)

    def _count(self, chunks: int) -> None:
        self.pieces += chunks

    def _use_no_more(self) -> None:
        self._reusable = False

    def settle(self) -> None:
        """Read what has arrived on an idle connection, so that `usable` is right.

        Bytes that no response announced may lie in the buffers of TLS or the
        socket; the next response would begin with them.
        """
        self.transport._flushReceiveBIO()
        socket = self.transport.transport
        readable = poll()
        readable.register(socket.fileno(), POLLIN)
        if self.usable and readable.poll(0) and socket.doRead() is not None:
            self.drop()  # it is closed

    def drop(self) -> None:
        """Abort in any state: nothing more is read, and no close_notify is exchanged."""
        self._reusable = False
        self._head = None
        if self.transport is not None and not self._lost:
            self.transport.abortConnection()

    def close(self) -> None:
        """Close an idle connection: send buffered data, close_notify and FIN without waiting for the server.

        A server that does not read can delay the FIN, so the caller has to call
        `drop` after a limit.
        """
        self._reusable = False
        self.transport.loseConnection()
        self.transport.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self.pieces += 1
        if self._head is None:
            if self.state == "QUIESCENT":
                self.drop()  # data without a request
            else:
                super().dataReceived(data)
            return
        try:
            data = self._checked(data)
        except Malformed as fault:
            self.fault = fault
            self.drop()
            return
        if data:
            super().dataReceived(data)

    def _checked(self, data: bytes) -> bytes:
        """What Twisted's parser may read: nothing until a final head is complete, then the head and the rest."""
        searched = max(0, len(self._head or b"") - 2)
        self._head = data = self._head + data if self._head else data
        while (end := _END.search(data, searched)) is not None:
            if self._head_size + end.end() > MAX_HEAD:
                break
            head, status, self._reusable = read_head(data[: end.end()])
            if status == 101:
                raise Malformed("answered 101 (no protocol switch was requested)")
            if status >= 200:
                self._head = None
                return head + data[end.end():]
            self._head_size += end.end()
            self._head = data = data[end.end():]
            searched = 0
        if self._head_size + len(data) > MAX_HEAD:
            raise Malformed(f"malformed answer: its head is over {MAX_HEAD} bytes")
        newline = data.find(b"\n", 0, 4096)
        if newline >= 0 and _STATUS.match(data) is None:
            check_head(data[: newline + 1])  # raises: a wrong status line is refused before the head is complete
        return b""

    def _finishResponse(self, rest: bytes) -> None:
        if rest:
            self._reusable = False  # bytes after the response would be read as the next response
        super()._finishResponse(rest)
