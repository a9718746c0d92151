"""The connection of a stream under Twisted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from routemaster_client.errors import BusError

UNREAD = 262_144  #: bytes; the bus is read no further while so many are not


class StreamBody(Protocol):
    """The body of a stream's answer, see `streaming.AsyncSource`."""

    transport: Any

    def __init__(self, reactor: Any, patience: float, broken: Callable[[BaseException | None], BusError]) -> None:
        """`broken` makes the error for a connection that broke, or that was silent for `patience` seconds."""
        self._reactor, self._patience, self._broken = reactor, patience, broken
        self._parts: list[bytes] = []
        self._paused = self._given_up = False
        self._waiting: Deferred[None] | None = None
        self._end: Failure | None = None
        self._gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        if sum(map(len, self._parts)) > UNREAD and not self._paused:
            self._paused = True
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        self._wake()
        self._gone.callback(None)

    async def read(self) -> bytes:
        if not self._parts and self._end is None and not self._given_up:
            self._waiting = Deferred()
            try:
                await self._waiting.addTimeout(self._patience, self._reactor)
            except Late:
                self.close()
                raise self._broken(None) from None
        if self._given_up:
            return b""
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            if self._paused:
                self._paused = False
                self.transport.resumeProducing()
            return data
        if self._end is None or self._end.check(ResponseDone):
            return b""
        raise self._broken(self._end.value)

    def close(self) -> None:
        self._given_up = True
        self._wake()
        if self._end is None:
            self.transport.loseConnection()

    async def closed(self) -> None:
        if not self._gone.called:
            await self._gone

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)
