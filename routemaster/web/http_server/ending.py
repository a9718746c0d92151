"""How a connection ends: at its deadline, with the site, or after a request that is refused.

The states, and the times when the site stops, are explained in `states`.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.web.http import HTTPChannel

from routemaster.web.http_server.buffers import LINGERING
from routemaster.web.http_server.discarding import Discarding
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.server import Server
from routemaster.web.http_server.states import State

FRESH_DRAIN = 2.0   #: seconds for a client's first request when the site stops
IDLE_DRAIN = 0.25   #: seconds for another one: longer than a busy client pauses


class EndingChannel(HTTPChannel):
    """See above; all that comes before is in `connection.BusChannel`, which sets the attributes."""

    site: Server
    transport: Any
    state: State
    deadline: float  #: a time of the reactor's clock
    persistent: bool
    _networkProducer: Any
    _peer: Any
    _endpoint: str   # of the body under way
    _paused: bool    # reading is paused
    _discarding: Discarding | None
    _ends: float     # when a CLOSING channel is aborted though its client still sends
    _log = Logger()

    @abstractmethod
    def forget(self) -> None:
        """Keep nothing of what has been received."""

    def abortConnection(self) -> None:
        """End at once."""
        self.transport.abortConnection()

    def expire(self) -> None:
        """The deadline has passed: see `states`."""
        if self._waitingForTransport or self.state in (State.CLOSING, State.HANDLING):
            self.transport.abortConnection()
        elif self.state in (State.HEAD, State.BODY):
            self.refuse(Refused(408, "request is incomplete: the time limit has passed"))
        else:
            self.loseConnection()
            if self.site.draining and self.isSecure():
                # No request is under way: close TCP without waiting for the client's TLS close_notify.
                self.transport.transport.loseConnection()

    def retire(self) -> None:
        """Close soon because the site stops."""
        if self.state is State.IDLE and self._waitingForTransport:
            self.loseConnection()
        elif self.state in (State.FRESH, State.IDLE):
            seconds = FRESH_DRAIN if self.state is State.FRESH else IDLE_DRAIN
            self.deadline = min(self.deadline, self.site.reactor.seconds() + seconds)

    def loseConnection(self) -> None:
        """Close when all written bytes are sent; abort if the client does not read them in time."""
        if self.state is not State.CLOSING:
            self._start_closing()
            super().loseConnection()

    def refuse(self, refused: Refused) -> None:
        """Answer with an error, and close.

        Bytes that the client still sends are discarded (`discarding`). That ends some megabytes or `body`
        seconds after the refusal, or `closing` seconds after the last byte.
        """
        self._log.debug("refused a request from {peer}: {status}, {sentence}", peer=self._peer,
                        status=refused.status, sentence=str(refused))  # fmt: skip
        self.persistent = False
        self.site.observe(refused.endpoint or self._endpoint, refused.status, 0.0)
        self.transport.write(self.site.error_answer(refused))
        self.site.held.add(self, LINGERING)
        self.forget()
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self._start_closing()
            self._networkProducer.unregisterProducer()
            self.transport.loseWriteConnection()
        else:  # TLS reads until the client's close_notify
            self.loseConnection()

    def discards(self, data: bytes) -> bool:
        """Whether the connection is closing, so that what its client still sends is discarded."""
        if self._discarding is None:
            return False
        self._discarding.received(len(data))
        if not self._waitingForTransport:
            self.deadline = min(self.site.reactor.seconds() + self.site.limits.closing, self._ends)
        return True

    def _start_closing(self) -> None:
        limits = self.site.limits
        self._wait(State.CLOSING, limits.response if self._waitingForTransport else limits.closing)
        self._ends = self.deadline + limits.body - limits.closing
        self._discarding = Discarding(self.transport, self._networkProducer, self.site.queue)
        if self._paused:  # only reading detects that the client closes
            self._networkProducer.resumeProducing()

    def _wait(self, state: State, seconds: float) -> float:
        now: float = self.site.reactor.seconds()
        self.state, self.deadline = state, now + seconds
        return now
