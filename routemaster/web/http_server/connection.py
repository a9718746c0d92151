"""One client connection: parses requests, writes answers, and has a deadline in every state.

What it waits for, and how long, is in `states`; what it may hold, in `buffers`; how it ends, in `ending`.

A request is handled when its last byte has arrived, one request at a time.
Pipelined requests behind it stay unparsed, up to half of PIPELINED bytes; then reading
is paused. Parsing also stops while the client does not read its answers:
otherwise a few bytes could request any amount of memory.

The requests of a client that has shown its token are handled at once, AT_ONCE of them that
are pipelined; further ones, long bodies, and all that others send take turns (`work_queue`).

Twisted's HTTPChannel is the producer and consumer; its parser is not used (see
`request_head` and `body_reader`).
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from routemaster.web.http_server.body_reader import RETRY_AFTER, BodyReader
from routemaster.web.http_server.buffers import PIPELINED, REQUEST
from routemaster.web.http_server.discarding import Discarding
from routemaster.web.http_server.ending import EndingChannel
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request import BusRequest
from routemaster.web.http_server.request_head import EMPTY_LINES, Head, end_of_head, parse_head
from routemaster.web.http_server.socket_reading import read_now
from routemaster.web.http_server.states import State
from routemaster.web.http_server.unsent import buffered, socket_of

AT_ONCE = 10        #: pipelined requests handled without a break
LONG = 1.0          #: seconds after which a request waits, instead of being handled
CROWD = 100         #: waiting in the queue; beside more, no body is read on whose chunks are mostly framing


class BusChannel(EndingChannel):
    """See above."""

    def __init__(self) -> None:
        # Twisted's is for its own parser. All attributes are set here, some of Twisted's too: if one comes
        # late, or there are more than 30, CPython gives the object a dict of 1.5 kB.
        self.requests: list[BusRequest] = []
        self._requestProducer = self._requestProducerStreaming = None
        self._waitingForTransport, self.persistent = False, True
        self.principal: object = None  #: of its last request, unless a proxy sent it
        self.known = False           #: whether it has carried a request of a client with a token, or a proxy's
        self.state = State.FRESH
        self.deadline = 0.0
        self._inbox = b""            # received, not yet parsed
        self._searched = 0           # bytes of it already searched for the end of the head
        self._head: Head | None = None
        self._body: BodyReader | None = None
        self._endpoint, self._began = "", 0.0  # of the body under way; when the current request was complete
        self._parsing = False
        self._queued = False         # parsing goes on when it is its turn
        self._share = PIPELINED      # bytes that may wait to be parsed
        self._paused = False         # reading is paused, see `_regulate`
        self._discarding: Discarding | None = None
        self._ends = 0.0             # when a CLOSING channel is aborted though its client still sends

    # Opening and closing

    def connectionMade(self) -> None:
        super().connectionMade()
        # Each is a system call, and every request reads both.
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
        self.forget()
        self.site.held.discard(self)
        self.site.closed(self)
        super().connectionLost(reason)

    def look(self, now: float) -> bool:
        """Called about once a second: whether the deadline has passed.

        What is pipelined behind a request that waits, such as a poll, is counted as held.
        """
        if self._inbox and self.state is State.HANDLING and self._began + LONG < now:
            self.site.held.add(self, REQUEST + len(self._inbox))
        return self.deadline <= now

    # Reading

    def dataReceived(self, data: bytes) -> None:
        if self.discards(data):
            return
        self._inbox = self._inbox + data if self._inbox else data
        if self.known and self._body is None and not self._queued:
            self._advance()
        elif not self._queued:
            self._queued = True
            self.site.queue.run(self._go_on)
        if self._queued or len(self._inbox) > self._share // 2:
            self._regulate()

    def _go_on(self) -> None:
        """It is this connection's turn to parse; more of a body is read now, as that takes the time."""
        self._queued = False
        if self.state is not State.CLOSING:
            self._advance()
            if self._awaits_body:
                self._read_on()
            self._regulate()

    def _wait_for_turn(self) -> None:
        self._queued = True
        self.site.queue.add(self._go_on)

    @property
    def _awaits_body(self) -> bool:
        """Whether more of a body may be read or parsed, and it has no turn for that yet."""
        return self.state is State.BODY and not (self._queued or self._waitingForTransport)

    def _read_on(self) -> None:
        """Read and parse what more of the body has come; if there was something, there is another turn."""
        self._queued = True  # it is parsed here
        read_now(self.transport)
        self._queued = False
        if self._inbox:
            self._advance()
            if self._awaits_body:
                self._wait_for_turn()

    def _advance(self) -> None:
        """Parse what has been received, one request at a time."""
        if self._parsing:
            return
        self._parsing, left = True, AT_ONCE
        try:
            while self._inbox and not self._waitingForTransport and not self._queued and self._step():
                left -= self._head is None
                if left <= 0 and self._inbox and self.state is State.IDLE:
                    self._wait_for_turn()
            if self._inbox and self._awaits_body:
                self._wait_for_turn()
        except Refused as refused:
            self.refuse(refused)
        finally:
            self._parsing = False

    def _step(self) -> bool:
        """Parse a head or a body; false if more bytes, or the end of the current request, must come first."""
        if self.state in (State.HANDLING, State.CLOSING):
            return False
        if self._head is not None and self._body is not None:
            return self._read_body(self._head, self._body)
        return self._read_head()

    def _read_head(self) -> bool:
        inbox = self._inbox
        if self.state is not State.HEAD and inbox.startswith(b"\r\n"):
            self._inbox = inbox = EMPTY_LINES.sub(b"", inbox, count=1)
        end = end_of_head(inbox, self._searched)
        if end < 0:
            if len(inbox) > self._share and self._share < PIPELINED:
                message = f"too many connections are open: expected at most {self._share} bytes of head at once"
                raise Refused(503, message, (b"Retry-After", b"%d" % RETRY_AFTER))
            if self.state is not State.HEAD and inbox not in (b"", b"\r"):
                self._wait(State.HEAD, self.site.limits.head)
            self._searched = max(0, len(inbox) - 3)
            return False
        self._searched = 0
        head = parse_head(inbox[:end])
        limit = self.site.limits.body_limit(head.method, head.target)
        rest = inbox[end + 4 :]
        if head.length is None or head.length > min(limit, len(rest)):
            self._start_body(head, limit, rest)
        else:
            self._inbox = rest[head.length :]
            self._handle(head, rest[: head.length])
        return True

    def _start_body(self, head: Head, limit: int, rest: bytes) -> None:
        """Read a body that has not arrived whole, unless its head is enough to refuse the request."""
        self._endpoint, client = self.site.admit(head, self)
        if head.length is not None and head.length > limit:
            raise Refused(413, f"body is too large: expected at most {limit} bytes")
        self._body = BodyReader(head.length, limit, self.site.limits.bodies, client)
        self._head, self._inbox = head, rest
        self._wait(State.BODY, self.site.limits.body)
        if head.expects and not rest:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def forget(self) -> None:
        self._inbox, self._head = b"", None
        self._drop_body()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.release()
            self._body = None

    def _read_body(self, head: Head, body: BodyReader) -> bool:
        part, self._inbox = self._inbox[: body.piece], self._inbox[body.piece :]
        rest = body.feed(part)
        if rest is None:
            if body.is_wasteful and len(self.site.queue) > CROWD:
                message = "too many bodies are under way, and this one has too small chunks: nothing was stored"
                raise Refused(503, message, (b"Retry-After", b"%d" % RETRY_AFTER))
            return False
        self._inbox, self._head = rest + self._inbox, None
        self._handle(head, body.take())
        return True

    def _handle(self, head: Head, body: bytes) -> None:
        self._began = self._wait(State.HANDLING, self.site.limits.handling)
        self._endpoint, self.persistent = "", not head.close
        request = BusRequest(self)
        self.requests.append(request)
        request.start(head, body)

    # Writing

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write the head of an answer that is written in several parts."""
        self.transport.write(self.answer_head(int(code), headers))

    def answer_head(self, status: int, headers: Headers) -> bytes:
        """The head of an answer, with the common headers."""
        if self.site.draining:
            self.persistent = False
        lines = [self.site.status_lines(status)]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"\r\n" if self.persistent else b"Connection: close\r\n\r\n")
        return b"".join(lines)

    @property
    def blocked(self) -> bool:
        """Whether the client does not read what has been written."""
        return bool(self._waitingForTransport)

    def progressed(self) -> None:
        """A part of the answer is written: the time limit starts again."""
        if not self._waitingForTransport:
            self.deadline = self.site.reactor.seconds() + self.site.limits.handling

    def requestDone(self, request: BusRequest) -> None:
        """The answer is written: wait for the next request, or close."""
        self.site.observe(request.endpoint, request.code, self.site.reactor.seconds() - self._began)
        self.requests.clear()
        self._drop_body()
        if not self.persistent:
            self.loseConnection()
        elif self.state is State.HANDLING:
            limits = self.site.limits
            self._wait(State.IDLE, limits.response if self._waitingForTransport else limits.idle)
            if self._inbox:
                self._advance()
            self._regulate()

    # Backpressure

    def share(self, size: int) -> None:
        """This connection may buffer so many bytes in each direction."""
        self._share = min(PIPELINED, size)
        socket_of(self.transport).bufferSize = size

    def pauseProducing(self) -> None:
        """The client does not read: it has `response` seconds to read all that is written."""
        self._waitingForTransport = True
        if self.state is not State.CLOSING:
            self.deadline = self.site.reactor.seconds() + self.site.limits.response
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        self._regulate()

    def resumeProducing(self) -> None:
        """The client has read everything: resume parsing and reading."""
        self._waitingForTransport = False
        if self.state is not State.CLOSING:
            self._wait(self.state, getattr(self.site.limits, self.state.value))
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        if self._inbox:
            self._advance()
        self._regulate()

    def _regulate(self) -> None:
        """Pause reading while no more bytes can be parsed, and resume it after.

        One that waits for its turn is paused, too: to receive takes longer than most turns.
        """
        if self.state is State.CLOSING:
            return
        full = self.state is State.HANDLING and len(self._inbox) > self._share // 2
        enough = self._waitingForTransport or self._queued or full
        if self._waitingForTransport or full:
            self.site.held.add(self, REQUEST + len(self._inbox) + buffered(self.transport))
        else:
            self.site.held.discard(self)
        if enough is not self._paused:
            self._paused = enough
            if enough:
                self._networkProducer.pauseProducing()
            else:
                self._networkProducer.resumeProducing()
