"""Opens connections, keeps them for a while, and knows every one that is open.

A kept connection is given up after `IDLE` seconds: less than the common
servers wait (Node and Apache 5 s, Puma 20 s, nginx 75 s; where it is more than
theirs, the stale retry helps). There is no cap on kept connections of its own:
they count among the open ones, and the one longest idle makes room for a new
one. Not a subclass of Twisted's `HTTPConnectionPool`, of which nothing would be
left: it has a timer for each kept connection, forgets the busy ones, and never
removes an empty list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from routemaster.sender.connection import Connection
from routemaster.sender.dns_cache import DNSCache
from routemaster.sender.failure_reasons import DeliveryError, is_local
from routemaster.sender.tls import TLSTrust

IDLE = 4.0  #: seconds
PARTING = 1.0  #: seconds for a polite end, before it is aborted

Key = tuple[str, int]  #: host, port


class _Connections(Factory):
    noisy = False

    def __init__(self, pool: Pool, key: Key) -> None:
        self._pool = pool
        self._key = key

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self._pool, self._key)


class Pool:
    """The connections of one sender; `max_open` at once, idle ones included."""

    def __init__(
        self, reactor: Any, names: DNSCache, trust: TLSTrust, *, max_open: int, connect_timeout: float
    ) -> None:
        self._reactor = reactor
        self._names = names
        self._trust = trust
        self._max_open = max_open
        self._connect_timeout = connect_timeout
        self._idle: dict[Key, list[Connection]] = {}
        self._since: dict[Connection, float] = {}  # idle connections, longest idle first
        self._reaper: Any = None  # the one timer of the idle
        self._parting: dict[Connection, Any] = {}  # and those of the closing
        self._open: set[Connection] = set()
        self._closing: Deferred[None] | None = None

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """How many of them wait for a request."""
        return len(self._since)

    def take(self, key: Key) -> Connection | None:
        """The kept connection last used, if there is one."""
        while kept := self._idle.get(key):
            connection = kept[-1]
            self._forget(connection)
            if connection.usable:
                return connection
            connection.drop()
        return None

    def keep(self, connection: Connection) -> None:
        """Keep a connection whose answer is complete; if it may not be used again, it is aborted."""
        if self._closing is not None or not connection.usable:
            connection.drop()
            return
        connection.idle = True
        self._idle.setdefault(connection.key, []).append(connection)
        self._since[connection] = self._reactor.seconds()
        if self._reaper is None:
            self._reaper = self._reactor.callLater(IDLE, self._reap)

    def connect(self, key: Key) -> Deferred[Connection]:
        """Open a connection: TCP is up when the Deferred fires, TLS has only begun.

        Look-up and connecting take at most `connect_timeout` seconds, of which
        each address left to try has an equal share: one at a time, so that an
        attempt never holds more than one socket. Errors: `DeliveryError`,
        `ConnectError`, `Full`.
        """
        if len(self._open) >= self._max_open and self._since:
            longest = next(iter(self._since))
            self._forget(longest)
            longest.drop()
        return Deferred.fromCoroutine(self._connect(key))

    async def _connect(self, key: Key) -> Connection:
        host, port = key
        late = self._reactor.seconds() + self._connect_timeout
        addresses = await self._names.addresses(host, self._connect_timeout)
        creator: Any = self._trust.creator(host)
        plain: Any = _Connections(self, key)
        factory: Any = TLSMemoryBIOFactory(creator, True, plain, clock=self._reactor)
        faults: list[ConnectError] = []
        for tried, address in enumerate(addresses):
            share = (late - self._reactor.seconds()) / (len(addresses) - tried)
            if share <= 0:
                break
            kind = TCP6ClientEndpoint if isIPv6Address(address) else TCP4ClientEndpoint
            try:
                wrapper = await kind(self._reactor, address, port, timeout=share).connect(factory)
            except ConnectError as fault:
                faults.append(fault)
                continue
            if tried:
                self._names.prefer(host, address)
            connection: Connection = wrapper.wrappedProtocol
            return connection
        try:
            raise self._verdict(faults)
        finally:
            faults.clear()  # an error holds the frame that raises it: together a cycle, and they may be many

    def _verdict(self, faults: Sequence[ConnectError]) -> Exception:
        """What to say when no address could be connected to."""
        theirs = [fault for fault in faults if not is_local(fault)]
        if any(isinstance(fault, ConnectTimeout) for fault in theirs) or not faults:
            return DeliveryError(f"no connection within {self._connect_timeout:g} s")
        return (theirs or faults)[0]

    def opened(self, connection: Connection) -> None:
        """Called by a connection that begins."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """Called by a connection that ended."""
        self._open.discard(connection)
        if connection.idle:
            self._forget(connection)
        if (parting := self._parting.pop(connection, None)) is not None and parting.active():
            parting.cancel()
        if self._closing is not None and not self._open and not self._closing.called:
            self._closing.callback(None)

    async def close(self) -> None:
        """Abort every connection; returns when all are gone."""
        self._closing = Deferred()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        for connection in tuple(self._open):
            connection.drop()
        if self._open:
            await self._closing

    def _forget(self, connection: Connection) -> None:
        connection.idle = False
        del self._since[connection]
        kept = self._idle[connection.key]
        kept.remove(connection)
        if not kept:
            del self._idle[connection.key]

    def _reap(self) -> None:
        self._reaper = None
        now = self._reactor.seconds()
        for connection, since in tuple(self._since.items()):
            if now - since < IDLE:
                self._reaper = self._reactor.callLater(since + IDLE - now, self._reap)
                break
            self._forget(connection)
            self._parting[connection] = self._reactor.callLater(PARTING, connection.drop)
            connection.part()
