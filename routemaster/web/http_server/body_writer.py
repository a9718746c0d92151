"""Writes long answers in parts: a little of them in one turn of the reactor, over all connections of a site.

Answers under way take turns. One whose client does not read waits until it
does, and costs others nothing. So a request of another client waits for at
most `TURN` bytes or about `SECONDS`, however many long answers are under way.

A part is made when it is written; until then an answer costs a reference to its
`source`, which answers share. If clients read so slowly that more than `HELD`
bytes of sources are kept for them, besides the two newest sources, the answers
from the oldest source are aborted.

An *open* answer has no length, and its parts come over time: it is written in the same turns, in chunks
(to HTTP/1.0, until the connection closes), and its body is asked for a part only when the client has read
most of what was written. It may last for hours, as long as its client reads at all.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface.declarations import implementer

from routemaster.web.http_server.unsent import unsent

PART = 32 * 1024         #: bytes written to one connection at once
TURN = 2 * PART          #: bytes written in one turn
SECONDS = 0.0005          #: in which the parts of one turn begin
HELD = 64 * 1024 * 1024  #: bytes of sources
READ_CHECK = 5.0         #: seconds between two looks whether the client of an open answer still reads


class Source(Protocol):
    """What the parts of an answer are made from; shared by several answers."""

    @property
    def size(self) -> int:
        """Bytes of memory."""


class Body(Protocol):
    """The body of a long answer."""

    @property
    def length(self) -> int:
        """Bytes."""

    @property
    def source(self) -> Source:
        """What it is made from."""

    def __iter__(self) -> Iterator[bytes]:
        """The parts, of about `PART` bytes."""


class Outlet(Protocol):
    """Where the parts of an open answer go."""

    def more(self) -> None:
        """There is another part, or the body is complete."""

    @property
    def unsent(self) -> int:
        """Bytes written that the client's TCP has not taken; see `unsent.unsent`."""


class OpenBody(Protocol):
    """The body of an open answer."""

    length: None
    source: None

    def begin(self, outlet: Outlet) -> None:
        """The answer begins."""

    def next_part(self) -> bytes | None:
        """A part to be written now; empty: there is none before `Outlet.more`; None: the body is complete."""

    def lost(self) -> None:
        """The answer is over: it was complete, or the client has disconnected."""


class Whole:
    """A body from bytes that several answers may share."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = self.size = len(body)
        self.source: Source = self

    def __iter__(self) -> Iterator[bytes]:
        return (self._body[start : start + PART] for start in range(0, self.length, PART))


@implementer(IPushProducer)
class _Answer(ABC):
    """One answer under way."""

    def __init__(self, request: Any, head: bytes, writer: BodyWriter) -> None:
        self.request, self._part, self._writer = request, head, writer
        self.paused = False  #: whether the client does not read
        self.idle = False    #: whether there is no part to write

    @abstractmethod
    def write_part(self) -> int:
        """Write a part, the last time finish the request; the bytes written."""

    def _finish(self) -> None:
        channel = self.request.channel
        self.request.unregisterProducer()
        self.request.finish()
        if channel.site.draining:  # the stop may have begun after the head was written
            channel.retire()

    def over(self) -> None:  # noqa: B027  # only open answers have something to do
        """The request is finished, or the connection is lost."""

    def pauseProducing(self) -> None:
        """The client does not read."""
        self.paused = True

    def resumeProducing(self) -> None:
        """The client has read all that was written."""
        if self.paused:
            self.paused = False
            self._writer.proceed(self)

    def stopProducing(self) -> None:
        """The connection is lost; `notifyFinish` tells."""
        self.paused = True


class _SizedAnswer(_Answer):
    """An answer from a body with a length."""

    def __init__(self, request: Any, head: bytes, body: Body, writer: BodyWriter) -> None:
        super().__init__(request, head, writer)
        self.source, self._rest, self._left = body.source, iter(body), body.length

    def write_part(self) -> int:
        part, self._part = self._part, b""  # no further part is made before it is written
        if not part:
            part = next(self._rest, b"")
            self._left -= len(part)
            if not part or self._left < 0:  # its length is wrong, and the client has been told it
                self.request.channel.transport.abortConnection()
                return 0
        self.request.write_part(part)
        if not self._left:
            self._finish()
        return len(part)


class _OpenAnswer(_Answer):
    """An answer from a body without a length; an `Outlet`."""

    def __init__(self, request: Any, head: bytes, body: OpenBody, writer: BodyWriter, reactor: Any) -> None:
        super().__init__(request, head, writer)
        self._body, self._transport, self._reactor = body, request.channel.transport, reactor
        self._chunked = request.clientproto == b"HTTP/1.1"
        self._read_check: Any = None
        self._unsent = 0         # at the last such check

    def write_part(self) -> int:
        head, self._part = self._part, b""
        part = self._body.next_part()
        self.idle = part == b""
        text = head + self._framed(part)
        if text:
            self.request.write_part(text)
        if part is None:
            self._finish()
        return len(text)

    def _framed(self, part: bytes | None) -> bytes:
        if not self._chunked or part == b"":
            return part or b""
        return b"0\r\n\r\n" if part is None else b"%x\r\n%b\r\n" % (len(part), part)

    def more(self) -> None:
        if self.idle:
            self.idle = False
            if not self.paused:
                self._writer.proceed(self)

    @property
    def unsent(self) -> int:
        return unsent(self._transport)

    def over(self) -> None:
        if self._read_check is not None:
            self._read_check.cancel()
            self._read_check = None
        self._body.lost()

    def pauseProducing(self) -> None:
        super().pauseProducing()
        if self._read_check is None:
            self._unsent = self.unsent
            self._read_check = self._reactor.callLater(READ_CHECK, self._check_reading)

    def _check_reading(self) -> None:
        """A client that reads slowly keeps its connection: its time limit starts again with what it reads."""
        self._read_check, before = None, self._unsent
        if self.paused:
            self._unsent = self.unsent
            if self._unsent != before:
                self.request.extend(READ_CHECK)
            self._read_check = self._reactor.callLater(READ_CHECK, self._check_reading)


class _Sources:
    """The sources of the answers under way, and what they hold together."""

    def __init__(self) -> None:
        self._answers: dict[int, dict[_SizedAnswer, None]] = {}  # by the source's ID, the oldest source first
        self._size = 0

    def add(self, answer: _SizedAnswer) -> None:
        """An answer begins."""
        answers = self._answers.setdefault(id(answer.source), {})
        if not answers:
            self._size += answer.source.size
        answers[answer] = None

    def discard(self, answer: _SizedAnswer) -> None:
        """It is over."""
        answers = self._answers.get(id(answer.source), {})
        if answer in answers:
            del answers[answer]
            if not answers:
                del self._answers[id(answer.source)]
                self._size -= answer.source.size

    def too_many(self) -> list[_SizedAnswer]:
        """The answers from the oldest source if all sources are too large together; the two newest are kept."""
        if self._size <= HELD or len(self._answers) <= 2:
            return []
        return list(next(iter(self._answers.values())))


class BodyWriter:
    """The long answers under way of one site."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._answers: set[_Answer] = set()
        self._sources = _Sources()
        self._ready: deque[_Answer] = deque()
        self._scheduled = False

    @property
    def under_way(self) -> int:
        """The number of answers under way."""
        return len(self._answers)

    def begin(self, request: Any, head: bytes, body: Body | OpenBody) -> None:
        """Write an answer, and finish its request."""
        answer: _Answer
        if body.length is None:
            answer = opened = _OpenAnswer(request, head, body, self, self._reactor)
            body.begin(opened)
        else:
            answer = sized = _SizedAnswer(request, head, body, self)
            self._sources.add(sized)
        self._answers.add(answer)
        request.notifyFinish().addBoth(self._over, answer)
        request.registerProducer(answer, True)
        answer.paused = request.channel.blocked
        if not answer.paused:
            self.proceed(answer)
        self._limit()

    def _over(self, _: object, answer: _Answer) -> None:
        self._answers.discard(answer)
        if isinstance(answer, _SizedAnswer):
            self._sources.discard(answer)
        answer.over()
        del answer.request  # which refers to it

    def proceed(self, answer: _Answer) -> None:
        """The answer's next part can be written."""
        self._ready.append(answer)
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        left, began = TURN, self._reactor.seconds()
        while self._ready and left > 0 and self._reactor.seconds() < began + SECONDS:
            answer = self._ready.popleft()
            if answer in self._answers and not answer.paused:
                left -= answer.write_part()
                if answer in self._answers and not answer.paused and not answer.idle:
                    self._ready.append(answer)
        self._scheduled = bool(self._ready)
        if self._ready:
            # everything else has the greater part of the process
            self._reactor.callLater(2 * (self._reactor.seconds() - began), self._turn)

    def _limit(self) -> None:
        """Abort the answers from the oldest sources while these are too large together."""
        while slow := self._sources.too_many():
            self._log.warn("aborting {count} answers: their clients read too slowly", count=len(slow))
            for answer in slow:
                self._sources.discard(answer)
                answer.request.channel.transport.abortConnection()
