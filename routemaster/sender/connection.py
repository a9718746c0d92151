"""One HTTP/1.1 connection, with a strict and bounded door before Twisted's parser.

Twisted reads answers leniently (`+200`, `ICY/1.0`, bare LF, length and chunks
at once), its heads have no limit, and each 1xx is a line in the log. So the
head of an answer is collected and checked here: at most `MAX_HEAD` bytes,
whatever it is made of; interim answers are swallowed and count towards it. The
parser gets one whole, sound head, and the body as it comes. Whatever is wrong
is kept in `fault`, and the connection is aborted.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.iweb import IResponse
from zope.interface.declarations import implementer

from routemaster.sender.failure_reasons import DeliveryError

if TYPE_CHECKING:
    from routemaster.sender.pool import Pool

MAX_HEAD = 65536  #: bytes, interim answers included

_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")
_END = re.compile(rb"\n\r?\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_KEEP = re.compile(rb"\r\nconnection:[^\r]*\bkeep-alive\b")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n")


class Malformed(DeliveryError):
    """The answer's head is not to be trusted."""


def check_head(head: bytes) -> tuple[int, bool]:
    """The status of a whole head, and whether the connection may be used again.

    Raises `Malformed`: a status line or a field which is not to the letter, or
    framing that two readers could read in two ways.
    """
    line = _STATUS.match(head)
    if line is None:
        raise Malformed(f"malformed answer: status line {head[:80].splitlines()[0]!r}")
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise Malformed("malformed answer: a header field is not well-formed")
    lower = head.lower()
    if b"\r\ntransfer-encoding:" in lower and (
        lower.count(b"\r\ntransfer-encoding:") > 1
        or _CHUNKED.search(lower) is None
        or b"\r\ncontent-length:" in lower
        or line[1] == b"0"
    ):
        raise Malformed("malformed answer: its length is ambiguous (Transfer-Encoding)")
    lasting = _KEEP.search(lower) is not None if line[1] == b"0" else _CLOSE.search(lower) is None
    return int(line[2]), lasting


@implementer(IHandshakeListener)
class Connection(HTTP11ClientProtocol):
    """A connection to one host, which the pool opened and keeps."""

    transport: Any

    def __init__(self, pool: Pool, key: tuple[str, int]) -> None:
        super().__init__(pool.keep)
        self.pool = pool
        self.key = key
        self.idle = False        #: in the pool: not ours to abort
        self.lasting = True      #: may carry another request
        self.handshaken = False
        self.requests = 0        #: carried so far
        self.received = 0        #: bytes since the last request
        self.fault: DeliveryError | None = None  #: why we gave it up
        self.lost: Failure | None = None  #: how it ended
        self._head: bytes | None = None   #: collected so far; None outside of a head
        self._head_size = 0

    def handshakeCompleted(self) -> None:
        """The peer has proved who it is."""
        self.handshaken = True

    def connectionMade(self) -> None:
        super().connectionMade()
        self.pool.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self.pool.closed(self)
        super().connectionLost(reason)

    @property
    def ended_cleanly(self) -> bool:
        """Whether the peer said that it had said all: close_notify came before the end."""
        return self.lost is not None and self.lost.check(ConnectionDone) is not None

    @property
    def usable(self) -> bool:
        """Whether a request may be made now."""
        return bool(self.lasting and self.state == "QUIESCENT" and not self.transport.disconnecting)

    def request(self, request: Request) -> Deferred[IResponse]:
        self.requests += 1
        self.received = 0
        self._head = b""
        self._head_size = 0
        answer: Deferred[IResponse] = super().request(request)
        return answer

    def drop(self) -> None:
        """Abort, in whatever phase: nothing more is read, no farewell is waited for."""
        self.lasting = False
        self._head = None
        if self.transport is not None and self.lost is None:
            self.transport.abortConnection()

    def part(self) -> None:
        """Close an idle connection politely, without waiting for the peer to agree.

        Close_notify, then FIN, once what is buffered is sent: a peer that does
        not read can still hold it, so a later `drop` must be sure to follow.
        """
        self.lasting = False
        self.transport.loseConnection()
        self.transport.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        if self._head is None:
            if self.state == "QUIESCENT":
                self.drop()  # nobody asked
            else:
                super().dataReceived(data)
            return
        try:
            data = self._through_door(data)
        except Malformed as fault:
            self.fault = fault
            self.drop()
            return
        if data:
            super().dataReceived(data)

    def _through_door(self, data: bytes) -> bytes:
        """What the parser may have: nothing until a final head is whole, then head and rest."""
        searched = max(0, len(self._head or b"") - 2)
        self._head = data = self._head + data if self._head else data
        while (end := _END.search(data, searched)) is not None:
            status, self.lasting = check_head(data[: end.end()])
            if self._head_size + end.end() > MAX_HEAD:
                break
            if status == 101:
                raise Malformed("answered 101 (nobody asked to switch protocols)")
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
            check_head(data[: newline + 1])
        return b""

    def _finishResponse(self, rest: bytes) -> None:
        if rest:
            self.lasting = False  # bytes behind the answer would become the next one's
        super()._finishResponse(rest)
