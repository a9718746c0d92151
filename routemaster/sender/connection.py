"""One HTTP/1.1 client connection, with a check of response heads before Twisted's parser.

Twisted's parser accepts `+200` and `ICY/1.0`; its heads have no size limit, its
lines one of 16 KiB, and it logs each 1xx. So a head is collected here, and read
by `response_head`, before Twisted's parser sees it. A head has at most `MAX_HEAD`
bytes, the 1xx responses before it included; these are discarded. If a head is
malformed, `fault` holds the reason and the connection is aborted.

After a head that is not exact, after empty lines before the status line, and
after bytes that no response announced (a body behind 204), the connection is not
used again: the next response might be read from the wrong place.
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
from routemaster.sender.response_head import Malformed, read_head, status_of

Key = tuple[str, int]  #: host and port; connections with the same key are interchangeable

MAX_HEAD = 65536  #: bytes, 1xx responses included
AT_ONCE = 64      #: reads of the socket for one request; later ones are made a few times a second

_END = re.compile(rb"\n\r?\n")
_EMPTY = re.compile(rb"[\r\n]+")


class Owner(Protocol):
    """What a connection reports to (the `Pool`)."""

    def opened(self, connection: Connection) -> None:
        """The TCP connection is established."""

    def keep(self, connection: Connection) -> None:
        """A response is complete: the connection may carry another request if it is `usable`."""

    def rest(self, connection: Connection) -> None:
        """The connection is to be read no more for a moment."""

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
        self.encrypted = 0       #: the same with what is TLS's own, its handshake included
        self.reads = 0           #: of the socket, since the last request
        self.pieces = 0          #: TLS records, and chunks of the body, since the last request
        self.fault: DeliveryError | None = None  #: why this side aborted it
        self.dropped = False     #: whether this side aborted it
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
        if self.requests > 1:
            self.encrypted = self.reads = 0
        self.received = self.pieces = 0
        self._head = b""
        self._head_size = 0
        response: Deferred[IResponse] = super().request(request)
        if self._parser is not None:
            self._parser.MAX_LENGTH = MAX_HEAD
            self._parser._transferDecoders = {b"chunked": self._chunk_decoder}  # type: ignore[dict-item]
        return response

    def _chunk_decoder(self, on_data: Callable[[bytes], None], on_end: Callable[[bytes], None]) -> ChunkDecoder:
        return ChunkDecoder(on_data, on_end, self.use_no_more, self._count)

    def _count(self, chunks: int) -> bool:
        self.pieces += chunks
        return not self.dropped

    def has_read(self) -> None:
        """Something came from the socket, if only TLS's own, and was handled."""
        self.reads += 1
        if self.reads > AT_ONCE and not self.dropped:
            self._owner.rest(self)

    def use_no_more(self) -> None:
        """Carry no further request."""
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
        self.dropped = True
        self._reusable = False
        self._head = None
        if self.transport is not None and not self._lost:
            self.transport.abortConnection()

    def refuse(self, why: str) -> None:
        """Abort because of what the server sent."""
        self.fault = Malformed(why)  # a new one: the traceback of one that was raised refers to this connection
        self.drop()

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
            self.refuse(str(fault))
            return
        if data:
            super().dataReceived(data)

    def _checked(self, data: bytes) -> bytes:
        """What Twisted's parser may read: nothing until a final head is complete, then the head and the rest."""
        searched = max(0, len(self._head or b"") - 2)
        data = self._head + data if self._head else data
        begin = self._after_empty_lines(data, 0)  # of the head; what is before it is never copied again
        while (end := _END.search(data, max(begin, searched))) is not None:
            size = end.end() - begin
            if self._head_size + size > MAX_HEAD:
                break
            head, status, reusable = read_head(data[begin : end.end()])
            if status == 101:
                raise Malformed("answered 101 (no protocol switch was requested)")
            if status >= 200:
                self._head = None
                self._reusable = reusable and self._reusable
                return head + data[end.end():]
            self._head_size += size
            begin = self._after_empty_lines(data, end.end())
        self._head = data = data[begin:]
        if self._head_size + len(data) > MAX_HEAD:
            raise Malformed(f"malformed answer: its head is over {MAX_HEAD} bytes")
        newline = data.find(b"\n", 0, 4096)
        if newline >= 0:
            status_of(data[:newline].removesuffix(b"\r"))  # a wrong one is refused before the head is complete
        return b""

    def _after_empty_lines(self, data: bytes, begin: int) -> int:
        """Where the status line of a head begins: behind the empty lines before it."""
        end = begin
        if data[begin : begin + 1] in (b"\r", b"\n") and (lines := _EMPTY.match(data, begin)) is not None:
            end = lines.end()
            self._reusable = False
            self._head_size += end - begin
        return end

    def _finishResponse(self, rest: bytes) -> None:
        if rest:
            self._reusable = False  # bytes after the response would be read as the next response
        super()._finishResponse(rest)
