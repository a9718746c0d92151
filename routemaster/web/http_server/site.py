"""The site: what stands between the network and the API.

It bounds everything that a client could make large or slow (`Limits`), says
what is common to all answers, keeps the one timer that all connections share,
and ends them in good order.

- `framing` judges bytes, `channel` is one connection, `request` one request,
  `routing` finds its handler; this module holds them together.
- One sweep a second looks for connections past their deadline; it runs only
  while there are connections. Deadlines are therefore late by up to a second,
  never early, and a request costs no timer. At the end it looks more often.
- The lines common to all answers, the date among them, are built once a second.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import RESPONSES, datetimeToString
from twisted.web.server import Site

from routemaster.web.http_server.connection import BusChannel
from routemaster.web.http_server.request import error_body

__all__ = ["BusSite", "Limits"]

SWEEP = 1.0   #: seconds from one look for late connections to the next
BRISK = 0.05  #: the same while the site ends


@frozen
class Limits:
    """How much and how long; times in seconds, sizes in bytes."""

    max_body: int = 65536           #: body of a POST
    max_bulk_body: int = 1048576    #: body of a POST to a topic
    max_other_body: int = 1024      #: body of any other method: none has a use for one
    connections: int = 10000        #: open at once; more are closed as they come
    fresh: float = 10.0             #: from connecting to the first byte of a request, TLS handshake included
    head: float = 10.0              #: from the first byte to the end of the headers
    body: float = 30.0              #: from there to the end of the body
    handling: float = 60.0          #: for the handler to answer
    response: float = 30.0          #: for the client to read what has been written
    idle: float = 60.0              #: between two requests
    closing: float = 5.0            #: for the client to close when the bus has

    def cap(self, method: bytes, target: bytes) -> int:
        """How long the body of such a request may be."""
        if method != b"POST":
            return self.max_other_body
        return self.max_bulk_body if target.startswith(b"/topics/") else self.max_body


class BusSite(Site):
    """Serves one resource, which renders every path itself."""

    protocol = BusChannel  # type: ignore[assignment]

    reactor: Any
    _log = Logger()

    def __init__(
        self, resource: Any, *, reactor: Any, limits: Limits | None = None, wall: Callable[[], float] | None = None
    ) -> None:
        """`wall` tells the time of day, if the reactor's is another."""
        super().__init__(resource, parsePOSTFormSubmission=False, timeout=None, reactor=reactor)
        self.limits = limits or Limits()
        self.draining = False
        self._wall = wall or reactor.seconds
        self._channels: set[BusChannel] = set()
        self._sweeping: Any = None
        self._drained: Deferred[None] | None = None
        self._turned_away = 0
        self._common = b""
        self._status_lines: dict[int, bytes] = {}

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._channels)

    def startFactory(self) -> None:
        """There is no access log, and no timer of it to start."""

    def stopFactory(self) -> None:
        """See `startFactory`; connections live on, `drain` ends them."""

    def log(self, request: object) -> None:
        """No access log: what is worth a line is logged where it is known."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only, whatever libraries are installed."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> BusChannel | None:  # type: ignore[override]
        """A channel; None, which closes the connection at once, when there are too many."""
        if self.draining or self.live >= self.limits.connections:
            self._turned_away += 1
            return None
        channel = BusChannel()
        channel.factory = channel.site = self
        channel.timeOut = None
        return channel

    # What channels ask for

    def opened(self, channel: BusChannel) -> None:
        self._channels.add(channel)
        if self._sweeping is None:
            self._tick()

    def closed(self, channel: BusChannel) -> None:
        self._channels.discard(channel)
        if not self._channels:
            if self._sweeping is not None:
                self._sweeping.cancel()
                self._sweeping = None
            if self._drained is not None:
                drained, self._drained = self._drained, None
                drained.callback(None)

    def status_lines(self, status: int) -> bytes:
        """Status line and the headers that every answer has."""
        lines = self._status_lines.get(status)
        if lines is None:
            phrase = RESPONSES.get(status, b"Unknown")
            lines = self._status_lines[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, self._common)
        return lines

    def error_answer(self, status: int, sentence: str) -> bytes:
        """A whole answer, after which the connection closes."""
        body = error_body(sentence)
        return b"%bContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
            self.status_lines(status), len(body), body)  # fmt: skip

    # The sweep

    def _tick(self) -> None:
        self._sweeping = self.reactor.callLater(BRISK if self.draining else SWEEP, self._tick)
        now = self.reactor.seconds()
        self._common = b"Server: routemaster\r\nDate: %b\r\nX-Content-Type-Options: nosniff\r\n" % (
            datetimeToString(self._wall()),)  # fmt: skip
        self._status_lines.clear()
        for channel in [channel for channel in self._channels if channel.deadline <= now]:
            channel.expire()
        if self._turned_away:
            self._log.warn("turned {count} connections away: {live} are open", count=self._turned_away,
                           live=self.live)  # fmt: skip
            self._turned_away = 0

    # The end

    async def drain(self, timeout: float) -> None:
        """End every connection; call it when the port is closed.

        Idle ones close in a moment, others after their answer, which says so.
        What is left after `timeout` seconds is aborted, its handlers cancelled.
        """
        self.draining = True
        for channel in list(self._channels):
            channel.retire()
        if not self._channels:
            return
        self._sweeping.reset(BRISK)
        drained: Deferred[None] = Deferred()
        self._drained = drained
        late = self.reactor.callLater(timeout, self._abort)
        try:
            await drained
        finally:
            if late.active():
                late.cancel()

    def _abort(self) -> None:
        self._log.info("aborting {count} connections that did not end in time", count=self.live)
        for channel in list(self._channels):
            channel.transport.abortConnection()
