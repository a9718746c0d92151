"""TCP proxies between the bus and Redis, or between Redises, as a network that fails.

What it holds back it passes on when the link is whole again, as TCP's
retransmission does, unless the sender has closed its connection meanwhile.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.endpoints import connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall

from routemaster.testing.daemon import LOOPBACK

TICK = 0.02  #: seconds between the pieces of a slow link
PIECE = 64   #: bytes of each connection and direction in each tick

#: each state of a link: whether bytes to Redis pass, and bytes to the bus; "slow" is in pieces
STATES = {
    "whole": ("pass", "pass"),
    "black-hole": ("hold", "hold"),
    "no-answers": ("pass", "hold"),
    "no-commands": ("hold", "pass"),
    "slow": ("slow", "slow"),
    "reset": ("pass", "pass"),
}


class Link:
    """The network between a Redis and those who connect to it; `state` is a key of STATES."""

    def __init__(self, reactor: Any, server: Any) -> None:
        self.server, self.state = server, "whole"
        self.ends: set[_End] = set()
        self._clock = LoopingCall(self._tick)
        self._clock.clock = reactor
        self._clock.start(TICK)

    def change(self, state: str) -> None:
        """Be in this state from now on."""
        self.state = state
        for end in list(self.ends):
            if state == "reset":
                end.abort()
            else:
                end.pump()

    def _tick(self) -> None:
        if self.state == "slow":
            for end in list(self.ends):
                end.pump(PIECE)

    def stop(self) -> None:
        """Close all connections."""
        self._clock.stop()
        for end in list(self.ends):
            end.abort()


class Gate(Factory):
    """A port of which each connection goes over one of several links, by the IP address that it comes from."""

    noisy = False

    def __init__(self, reactor: Any, choose: Callable[[str], Link]) -> None:
        self._choose = choose
        self._port = reactor.listenTCP(0, self, interface=LOOPBACK)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._port.getHost().port)

    def buildProtocol(self, addr: Any) -> _End:
        return _End(self._choose(addr.host), 0)

    async def stop(self) -> None:
        """Close the port."""
        await self._port.stopListening()


class Network:
    """All links of a Redis, and their gates; `links` change together, each of `others` by itself."""

    def __init__(self, gates: Sequence[Gate], links: Sequence[Link], others: Sequence[Link] = ()) -> None:
        self._gates, self._links, self._others = gates, links, others

    def change(self, state: str) -> None:
        """Be in this state from now on."""
        for link in self._links:
            link.change(state)

    async def stop(self) -> None:
        """Close all ports and connections."""
        for gate in self._gates:
            await gate.stop()
        for link in (*self._links, *self._others):
            link.stop()


class _End(Protocol):
    """One end of a connection: towards the bus (0), or towards Redis (1)."""

    transport: Any

    def __init__(self, link: Link, direction: int) -> None:
        self.link, self.direction = link, direction
        self.other: _End | None = None
        self.held = bytearray()
        self.closed = False

    def connectionMade(self) -> None:
        """Connect to Redis for a connection of the bus."""
        self.link.ends.add(self)
        if self.direction:
            return
        if self.link.state == "reset":
            self.abort()
            return
        self.other = _End(self.link, 1)
        self.other.other = self
        connectProtocol(self.link.server, self.other).addCallbacks(lambda _: self.pump(), lambda _: self.abort())

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the state of the link lets pass."""
        self.held += data
        if STATES[self.link.state][self.direction] == "pass":
            self.pump()

    def pump(self, most: int | None = None) -> None:
        """Pass on what is held, `most` bytes of it, and then the end of the connection."""
        how = STATES[self.link.state][self.direction]
        other = self.other
        if other is None or other.transport is None or how == "hold" or (how == "slow" and most is None):
            return
        if self.held:
            other.transport.write(bytes(self.held[:most]))
            del self.held[:most]
        if self.closed and not self.held:
            other.transport.loseConnection()
            self.link.ends.discard(self)

    def connectionLost(self, reason: object = None) -> None:
        """The other end hears of it as soon as the link lets it."""
        self.closed = True
        if STATES[self.link.state][self.direction] != "pass":
            self.held.clear()
        self.pump()
        if self.other is None or self.other.transport is None or self.other.closed:
            self.link.ends.discard(self)

    def abort(self) -> None:
        """Reset the connection, on both sides."""
        for end in (self, self.other):
            if end is not None:
                end.held.clear()
                if end.transport is not None:
                    end.transport.abortConnection()
