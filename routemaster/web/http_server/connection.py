"""One connection of a client: bytes in, requests through, answers out, and a deadline at every moment.

A channel is in one of a few states, and in each it waits for one thing until
one point in time, its `deadline`. The site sweeps over its channels once a
second and calls `expire` on those that are late; no request sets or cancels a
timer.

===========  =====================================  ==============  ====================
state        waits for                              limit           when it is late
===========  =====================================  ==============  ====================
FRESH        the first byte (and a TLS handshake)   `fresh`         close
HEAD         the end of a request's head            `head`          408, close
BODY         the end of its body                    `body`          408, close
HANDLING     the handler's answer                   `handling`      abort
IDLE         the first byte of another request      `idle`          close
CLOSING      the peer, to take the rest and go      `closing`       abort
===========  =====================================  ==============  ====================

In any state but CLOSING, a peer that does not read what is written to it is
aborted after `response`.

When the site stops, a client that is between two requests may have sent the
next one already, and one that has just connected surely will: closing at once
would fail them. So a FRESH channel has `HURRY` seconds, an IDLE one `LINGER`,
and what comes in that time is answered, with `Connection: close`. An answer
to a request that is sent just as its connection closes cannot be had: that is
HTTP's own race, and clients that keep connections know it.

A request comes into being only when its last byte has arrived: a client that
goes away earlier has done nothing. One request is handled at a time; what is
pipelined behind it waits unparsed, up to `AHEAD` bytes, then the transport is
paused. Nothing is parsed either while the peer does not read its answers, or a
few bytes could ask for any amount of memory.

Twisted's HTTPChannel gives the channel its producer and consumer side. Its
parser is not used: see `routemaster.web.http_server.request_head` for why.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, _ChunkedTransferDecoder, _MalformedChunkedDataError
from twisted.web.http_headers import Headers

from routemaster.web.http_server.request import BusRequest
from routemaster.web.http_server.request_head import MAX_HEAD, Head, Refused, parse_head

if TYPE_CHECKING:
    from routemaster.web.http_server.site import BusSite

AHEAD = 16384       #: bytes of pipelined requests kept while one is handled
HURRY = 2.0         #: seconds for a client's first request when the site stops
LINGER = 0.25       #: seconds for another one: longer than a busy client thinks
DISCARDED = 65536   #: bytes read and thrown away after a refusal, so that the peer can read it


class State(Enum):
    """What a channel waits for, see above."""

    FRESH = "fresh"
    HEAD = "head"
    BODY = "body"
    HANDLING = "handling"
    IDLE = "idle"
    CLOSING = "closing"


class BusChannel(HTTPChannel):
    """See above. `deadline` is in seconds of the reactor's clock."""

    site: BusSite
    transport: Any
    _networkProducer: Any
    _log = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.state = State.FRESH
        self.deadline = 0.0
        self._inbox = b""            # received, not yet parsed
        self._searched = 0           # where in it the search for the head's end goes on
        self._head: Head | None = None
        self._body = bytearray()
        self._missing = 0            # bytes of the body yet to come, or of the cap when it comes in chunks
        self._decoder: Any = None
        self._parsing = False
        self._paused = False         # reading is paused because enough is pipelined
        self._discarded = 0

    # The life of a connection

    def connectionMade(self) -> None:
        super().connectionMade()
        # Both cost a system call each time, and every request asks.
        self._peer = self.transport.getPeer()
        self._host = self.transport.getHost()
        self._wait(State.FRESH, self.site.limits.fresh)
        self.site.opened(self)

    def getPeer(self) -> Any:
        return self._peer

    def getHost(self) -> Any:
        return self._host

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.state = State.CLOSING
        self._inbox = b""
        self.site.closed(self)
        super().connectionLost(reason)

    def expire(self) -> None:
        """The deadline has passed: see the table above."""
        if self._waitingForTransport or self.state in (State.CLOSING, State.HANDLING):
            self.transport.abortConnection()
        elif self.state in (State.HEAD, State.BODY):
            self.refuse(Refused(408, "the request took too long to arrive"))
        else:
            self.loseConnection()
            if self.site.draining and self.isSecure():
                # nothing is under way, and the next process waits for our end: not for the peer's goodbye too
                self.transport.transport.loseConnection()

    def retire(self) -> None:
        """The site is stopping: see above."""
        if self.state is State.IDLE and self._waitingForTransport:
            self.loseConnection()
        elif self.state in (State.FRESH, State.IDLE):
            patience = HURRY if self.state is State.FRESH else LINGER
            self.deadline = min(self.deadline, self.site.reactor.seconds() + patience)

    def loseConnection(self) -> None:
        """Close once what is written has been sent; abort if the peer does not take it in time."""
        if self.state is not State.CLOSING:
            self._take_leave()
            super().loseConnection()

    def refuse(self, refused: Refused) -> None:
        """Answer with the refusal as JSON, and close.

        What the client is still sending is thrown away for a moment: closing
        on unread bytes resets the connection, and the answer could be lost.
        """
        self._log.debug("refused a request from {peer}: {status}, {sentence}", peer=self._peer,
                        status=refused.status, sentence=str(refused))  # fmt: skip
        self.persistent = False
        self.transport.write(self.site.error_answer(refused.status, str(refused)))
        self._inbox = b""
        self._body.clear()
        self._decoder = None
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self._take_leave()
            self._networkProducer.unregisterProducer()
            self.transport.loseWriteConnection()
        else:  # TLS has its own farewell: it reads on until the peer has said its own
            self.loseConnection()

    def _take_leave(self) -> None:
        limits = self.site.limits
        self._wait(State.CLOSING, limits.response if self._waitingForTransport else limits.closing)
        if self._paused:  # only by reading is the peer's goodbye noticed
            self._networkProducer.resumeProducing()

    def _wait(self, state: State, seconds: float) -> None:
        self.state = state
        self.deadline = self.site.reactor.seconds() + seconds

    # Bytes in

    def dataReceived(self, data: bytes) -> None:
        if self.state is State.CLOSING:
            self._discarded += len(data)
            if self._discarded > DISCARDED:
                self._networkProducer.pauseProducing()
            return
        self._inbox = self._inbox + data if self._inbox else data
        self._advance()
        if len(self._inbox) > AHEAD:
            self._regulate()

    def _advance(self) -> None:
        """Parse as far as the bytes go, one request at a time."""
        if self._parsing:
            return
        self._parsing = True
        try:
            while self._inbox and not self._waitingForTransport and self._step():
                pass
        except Refused as refused:
            self.refuse(refused)
        finally:
            self._parsing = False

    def _step(self) -> bool:
        """Take one step; false when it needs more bytes, or another event, to go on."""
        if self.state is State.BODY:
            return self._read_body()
        if self.state in (State.HANDLING, State.CLOSING):
            return False
        return self._read_head()

    def _read_head(self) -> bool:
        inbox = self._inbox
        if self.state is not State.HEAD and inbox.startswith(b"\r\n"):
            self._inbox = inbox = inbox[2:]  # some clients end a body with an empty line
        end = inbox.find(b"\r\n\r\n", self._searched)
        if end > MAX_HEAD or (end < 0 and len(inbox) > MAX_HEAD + 3):
            raise Refused(431, f"request line and headers are at most {MAX_HEAD} bytes")
        if end < 0:
            if not b"!" <= inbox[:1] <= b"~" and inbox not in (b"", b"\r"):
                raise Refused(400, "this is not HTTP")  # another protocol's greeting: no need to wait
            if self.state is not State.HEAD and inbox:
                self._wait(State.HEAD, self.site.limits.head)
            self._searched = max(0, len(inbox) - 3)
            return False
        self._searched = 0
        head = parse_head(inbox[:end])
        cap = self.site.limits.cap(head.method, head.target)
        if head.length is not None and head.length > cap:
            raise Refused(413, f"the body is too large: at most {cap} bytes are taken here")
        rest = inbox[end + 4 :]
        if head.length is not None and len(rest) >= head.length:
            self._inbox = rest[head.length :]
            self._handle(head, rest[: head.length])
            return True
        self._head, self._inbox = head, rest
        if head.length is None:
            self._missing = cap
            self._decoder = _ChunkedTransferDecoder(self._chunk, self._last_chunk)
        else:
            self._missing = head.length
        self._wait(State.BODY, self.site.limits.body)
        if head.expects and not rest:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _read_body(self) -> bool:
        data, self._inbox = self._inbox, b""
        if self._decoder is not None:
            try:
                self._decoder.dataReceived(data)
            except _MalformedChunkedDataError:
                raise Refused(400, "the chunks of the body are not well-formed") from None
            return True
        self._body += data[: self._missing]
        self._inbox = data[self._missing :]
        self._missing -= len(data) - len(self._inbox)
        if self._missing == 0:
            self._body_complete()
        return True

    def _chunk(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing < 0:
            raise Refused(413, "the body is too large")
        self._body += data

    def _last_chunk(self, rest: bytes) -> None:
        self._inbox = rest
        self._decoder = None
        self._body_complete()

    def _body_complete(self) -> None:
        head, body = cast(Head, self._head), bytes(self._body)
        self._head = None
        self._body.clear()
        self._handle(head, body)

    def _handle(self, head: Head, body: bytes) -> None:
        self._wait(State.HANDLING, self.site.limits.handling)
        self.persistent = not head.close
        request = BusRequest(self)
        self.requests.append(request)
        request.start(head, body)

    # Answers out

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write a head as `head` builds it; for answers written piece by piece."""
        self.transport.write(self.answer_head(int(code), headers))

    def answer_head(self, status: int, headers: Headers) -> bytes:
        """The head of an answer, with the fields that every answer has."""
        if self.site.draining:
            self.persistent = False
        lines = [self.site.status_lines(status)]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"\r\n" if self.persistent else b"Connection: close\r\n\r\n")
        return b"".join(lines)

    def requestDone(self, request: object) -> None:
        """The answer to the one request is written: wait for another, or close."""
        self.requests.clear()
        if not self.persistent:
            self.loseConnection()
        elif self.state is State.HANDLING:
            limits = self.site.limits
            self._wait(State.IDLE, limits.response if self._waitingForTransport else limits.idle)
            if self._inbox:
                self._advance()
            self._regulate()

    # The peer's pace

    def pauseProducing(self) -> None:
        """The peer does not read: it has `response` seconds to take all that is written."""
        self._waitingForTransport = True
        if self.state is not State.CLOSING:
            self.deadline = self.site.reactor.seconds() + self.site.limits.response
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        self._regulate()

    def resumeProducing(self) -> None:
        """The peer has read everything: go on where reading and parsing stopped."""
        self._waitingForTransport = False
        if self.state is not State.CLOSING:
            self._wait(self.state, getattr(self.site.limits, self.state.value))
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        if self._inbox:
            self._advance()
        self._regulate()

    def _regulate(self) -> None:
        """Read from the network exactly while there is a use for more bytes."""
        if self.state is State.CLOSING:
            return
        enough = self._waitingForTransport or (self.state is State.HANDLING and len(self._inbox) > AHEAD)
        if enough is not self._paused:
            self._paused = enough
            if enough:
                self._networkProducer.pauseProducing()
            else:
                self._networkProducer.resumeProducing()
