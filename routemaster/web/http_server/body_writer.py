"""Writes long answers in parts: so many bytes in one turn of the reactor, over all connections of a site.

Answers under way take turns. One whose client does not read waits until it
does, and costs others nothing. So a request of another client waits for at
most `TURN` bytes, however many long answers are under way.

A part is made when it is written; until then an answer costs a reference to its
`source`, which answers share. If clients read so slowly that more than `HELD`
bytes of sources are kept for them, besides the two newest sources, the answers
from the oldest source are aborted.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface.declarations import implementer

PART = 32 * 1024         #: bytes written to one connection at once
TURN = 4 * PART          #: bytes written in one turn
HELD = 64 * 1024 * 1024  #: bytes of sources


class Source(Protocol):
    """What the parts of an answer are made from; shared by several answers."""

    size: int  #: bytes of memory


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


class Whole:
    """A body from bytes that several answers may share."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = self.size = len(body)
        self.source: Source = self

    def __iter__(self) -> Iterator[bytes]:
        return (self._body[start : start + PART] for start in range(0, self.length, PART))


@implementer(IPushProducer)
class _Answer:
    """One answer under way."""

    def __init__(self, request: Any, head: bytes, body: Body, writer: BodyWriter) -> None:
        self.request, self.source, self._writer = request, body.source, writer
        self._part, self._rest = head, iter(body)
        self.paused = False

    def write_part(self) -> int:
        """Write a part, the last time finish the request; the bytes written."""
        written = len(self._part)
        self.request.write_part(self._part)
        part = next(self._rest, None)
        if part is None:
            self.request.unregisterProducer()
            self.request.finish()
        else:
            self._part = part
        return written

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


class BodyWriter:
    """The long answers under way of one site."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._answers: dict[_Answer, None] = {}  # in the order in which they began
        self._ready: deque[_Answer] = deque()
        self._scheduled = False

    @property
    def under_way(self) -> int:
        """The number of answers under way."""
        return len(self._answers)

    def begin(self, request: Any, head: bytes, body: Body) -> None:
        """Write an answer, and finish its request."""
        answer = _Answer(request, head, body, self)
        self._answers[answer] = None
        request.notifyFinish().addBoth(lambda _: self._answers.pop(answer, None))
        request.registerProducer(answer, True)
        answer.paused = request.channel.blocked
        if not answer.paused:
            self.proceed(answer)
        self._limit()

    def proceed(self, answer: _Answer) -> None:
        """The answer's next part can be written."""
        self._ready.append(answer)
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        left, began = TURN, self._reactor.seconds()
        while self._ready and left > 0:
            answer = self._ready.popleft()
            if answer in self._answers and not answer.paused:
                left -= answer.write_part()
                if answer in self._answers and not answer.paused:
                    self._ready.append(answer)
        self._scheduled = bool(self._ready)
        if self._ready:
            # everything else has the greater part of the process
            self._reactor.callLater(2 * (self._reactor.seconds() - began), self._turn)

    def _limit(self) -> None:
        """Abort the answers from the oldest sources while these are too large together."""
        sources = {id(answer.source): answer.source for answer in self._answers}  # the oldest first
        total = sum(source.size for source in sources.values())
        while total > HELD and len(sources) > 2:
            oldest = sources.pop(next(iter(sources)))
            total -= oldest.size
            slow = [answer for answer in self._answers if answer.source is oldest]
            self._log.warn("aborting {count} answers: their clients read too slowly", count=len(slow))
            for answer in slow:
                answer.request.channel.transport.abortConnection()
