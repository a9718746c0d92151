"""One HTTP/1.1 client connection, with a strict check of response heads before Twisted's parser.

Twisted parses responses leniently: it accepts `+200`, `ICY/1.0`, bare LF, and
Content-Length beside chunks; its heads have no size limit, and it logs each
1xx. So a head is collected and checked here before Twisted's parser sees it. A
head has at most `MAX_HEAD` bytes, the 1xx responses before it included; these
are discarded. If a head is malformed, `fault` holds the reason and the
connection is aborted.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import re
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.iweb import IResponse
from zope.interface.declarations import implementer

from routemaster.sender.failure_reasons import DeliveryError

Key = tuple[str, int]  #: host and port; connections with the same key are interchangeable

MAX_HEAD = 65536  #: bytes, 1xx responses included

_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")
_END = re.compile(rb"\n\r?\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_KEEP_ALIVE = re.compile(rb"\r\nconnection:[^\r]*\bkeep-alive\b")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n")


class Malformed(DeliveryError):
    """The response's head is not valid HTTP/1.x."""


def check_head(head: bytes) -> tuple[int, bool]:
    """The status of a complete response head, and whether the connection may be used again.

    Raises `Malformed` for an invalid status line or header field (RFC 9112
    sections 4 and 5) and for an ambiguous body length (section 6.3).
    """
    line = _STATUS.match(head)
    if line is None:
        raise Malformed(f"malformed answer: status line {head[:80].splitlines()[0]!r}")
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise Malformed("malformed answer: invalid header field")
    lower = head.lower()
    if b"\r\ntransfer-encoding:" in lower and (
        lower.count(b"\r\ntransfer-encoding:") > 1
        or _CHUNKED.search(lower) is None
        or b"\r\ncontent-length:" in lower
        or line[1] == b"0"
    ):
        raise Malformed("malformed answer: its length is ambiguous (Transfer-Encoding)")
    reusable = _KEEP_ALIVE.search(lower) is not None if line[1] == b"0" else _CLOSE.search(lower) is None
    return int(line[2]), reusable


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
        self.fault: DeliveryError | None = None  #: why this side aborted it
        self._reusable = True
        self._lost: Failure | None = None
        self._head: bytes | None = None   # collected so far; None while no head is expected
        self._head_size = 0               # bytes of 1xx responses before it

    def handshakeCompleted(self) -> None:
        """Called by TLS when the server's certificate is verified."""
        self.handshaken = True

    def connectionMade(self) -> None:
        super().connectionMade()
        self._owner.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = reason
        self._owner.closed(self)
        super().connectionLost(reason)

    @property
    def ended_cleanly(self) -> bool:
        """Whether the server sent TLS's close_notify before the connection closed."""
        return self._lost is not None and self._lost.check(ConnectionDone) is not None

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return bool(self._reusable and self.state == "QUIESCENT" and not self.transport.disconnecting)

    def request(self, request: Request) -> Deferred[IResponse]:
        self.requests += 1
        self.received = 0
        self._head = b""
        self._head_size = 0
        response: Deferred[IResponse] = super().request(request)
        return response

    def drop(self) -> None:
        """Abort in any state: nothing more is read, and no close_notify is exchanged."""
        self._reusable = False
        self._head = None
        if self.transport is not None and self._lost is None:
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
            status, self._reusable = check_head(data[: end.end()])
            if self._head_size + end.end() > MAX_HEAD:
                break
            if status == 101:
                raise Malformed("answered 101 (no protocol switch was requested)")
            if status >= 200:
                self._head = None
                return data
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
