"""The server: one resource for all paths, limits, and one timer for all connections.

- `request_head` parses heads, `body_reader` bodies, `request` is one request
  with its answer, `body_writer` writes long answers, `connection` is one connection.
- One timer checks the deadlines of all connections once a second; it runs only
  while there are connections. Deadlines are late by up to a second, and a
  request costs no timer. While the site stops, the timer is faster.
- The headers common to all answers, with the date, are built once a second.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import datetimeToString
from twisted.web.server import Site

from routemaster.util.work_queue import WorkQueue
from routemaster.web.http_server.body_writer import BodyWriter
from routemaster.web.http_server.buffers import Held, share
from routemaster.web.http_server.connection import BusChannel
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request_head import Head

__all__ = ["BusSite", "Limits"]

CHECK = 1.0         #: seconds between two checks of the deadlines
DRAIN_CHECK = 0.05  #: the same while the site stops


class BusSite(Site):
    """Serves one resource, which renders every path."""

    protocol = BusChannel  # type: ignore[assignment]

    reactor: Any
    _log = Logger()

    def __init__(
        self, resource: Any, *, reactor: Any, limits: Limits | None = None, wall: Callable[[], float] | None = None
    ) -> None:
        """`wall` returns the time of day, if the reactor's clock does not."""
        super().__init__(resource, parsePOSTFormSubmission=False, timeout=None, reactor=reactor)
        self.limits = limits or Limits()
        #: refuses a request by its head and its channel, before its body is read: raises Refused, which may name
        #: the endpoint; returns that name, or nothing, and whose body it is, None if that is not known
        self.admit: Callable[[Head, Any], tuple[str, Hashable]] = getattr(
            resource, "admit", lambda head, channel: ("", None)
        )
        #: called with each answer: the endpoint's name, or nothing; the status; the seconds it took
        self.observe: Callable[[str, int, float], None] = getattr(resource, "observe", lambda *answer: None)
        self.draining = False
        self.writer = BodyWriter(reactor)
        self.queue = WorkQueue(reactor)
        self.held = Held()
        self._share = share(0)
        self._wall = wall or reactor.seconds
        self._channels: set[BusChannel] = set()
        self._timer: Any = None
        self._late: set[BusChannel] = set()  # whose deadline has passed: the queue ends them
        self._drained: Deferred[None] | None = None
        self._common = b""
        self._status_lines: dict[int, bytes] = {}

    @property
    def live(self) -> int:
        """The number of open connections."""
        return len(self._channels)

    def startFactory(self) -> None:
        """Nothing to start: there is no access log."""

    def stopFactory(self) -> None:
        """Connections stay open; `drain` closes them."""

    def log(self, request: object) -> None:
        """There is no access log."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only, even if HTTP/2 is installed."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> BusChannel | None:  # type: ignore[override]
        """A channel; None, which closes the connection, if too many are open."""
        if self.draining or not self.limits.places.admit(addr):
            return None
        channel = BusChannel()
        channel.factory = channel.site = self
        channel.timeOut = None
        return channel

    def opened(self, channel: BusChannel) -> None:
        """A connection was made."""
        self._channels.add(channel)
        if share(self.live) < self._share:
            self._divide()
        channel.share(self._share)
        self.limits.places.take(channel)
        if self._timer is None:
            self._tick()

    def closed(self, channel: BusChannel) -> None:
        """A connection was lost."""
        self._channels.discard(channel)
        self._late.discard(channel)
        self.limits.places.give_back(channel)
        if not self._channels:
            self.queue.stop()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._drained is not None:
                drained, self._drained = self._drained, None
                drained.callback(None)

    def keep(self, channel: BusChannel) -> None:
        """A connection has carried an authenticated request: it does not make way for others, nor waits."""
        channel.known = True
        self.limits.places.keep(channel)

    def _divide(self) -> None:
        """Each connection has an equal share of the buffers."""
        self._share = share(self.live)
        for channel in self._channels:
            channel.share(self._share)

    def status_lines(self, status: int) -> bytes:
        """Status line and common headers."""
        lines = self._status_lines.get(status)
        if lines is None:
            phrase = HTTPStatus(status).phrase.encode()  # Twisted has no phrase for 429 and 431
            lines = self._status_lines[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, self._common)
        return lines

    def error_answer(self, refused: Refused) -> bytes:
        """A complete answer after which the connection closes."""
        headers = b"".join(b"%b: %b\r\n" % each for each in refused.headers)
        return b"%b%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
            self.status_lines(refused.status), headers, len(refused.body), refused.body)  # fmt: skip

    def _tick(self) -> None:
        self._timer = self.reactor.callLater(DRAIN_CHECK if self.draining else CHECK, self._tick)
        now = self.reactor.seconds()
        self._common = b"Server: routemaster\r\nDate: %b\r\nX-Content-Type-Options: nosniff\r\n" % (
            datetimeToString(self._wall()),)  # fmt: skip
        self._status_lines.clear()
        self.held.report()
        if share(self.live) != self._share:
            self._divide()
        for channel in [channel for channel in self._channels - self._late if channel.look(now)]:
            self._late.add(channel)
            self.queue.run(partial(self._expire, channel), ends=True)

    def _expire(self, channel: BusChannel) -> None:
        """End a connection, unless it has gone on while it was in the queue."""
        if channel in self._late:
            self._late.discard(channel)
            if channel.deadline <= self.reactor.seconds():
                channel.expire()

    async def drain(self, timeout: float) -> None:
        """Close all connections; call it when the port is closed.

        Idle connections close soon, others after their answer. After `timeout`
        seconds the rest is aborted and its handlers are cancelled.
        """
        self.draining = True
        for channel in list(self._channels):
            channel.retire()
        if not self._channels:
            return
        self._timer.reset(DRAIN_CHECK)
        drained: Deferred[None] = Deferred()
        self._drained = drained
        late = self.reactor.callLater(timeout, self._abort)
        try:
            await drained
        finally:
            if late.active():
                late.cancel()

    def _abort(self) -> None:
        self._log.info("aborting {count} connections: still open at the end of the time limit", count=self.live)
        for channel in list(self._channels):
            channel.transport.abortConnection()
