"""Opens connections, keeps idle ones for reuse, and holds a reference to every open one.

An idle connection is closed after `IDLE` seconds: earlier than common servers
close it (Node.js and Apache 5 s, Puma 20 s, nginx 75 s). Idle connections have
no limit of their own: they count among `max_open`, and the longest idle one is
closed to make room for a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from socket import IPPROTO_TCP, TCP_NOTSENT_LOWAT
from typing import Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from routemaster.sender.connection import Connection, Key
from routemaster.sender.dns_cache import DNSCache
from routemaster.sender.failure_reasons import DeliveryError, is_local
from routemaster.sender.tls import TLSTrust
from routemaster.sender.tls_transport import TLSTransport

IDLE = 4.0  #: seconds
REST = 0.05  #: seconds for which a connection that has been read often is not read: what it sends is read together
UNSENT = 16_384  #: bytes of a request that the kernel holds before it sends them: so `Connection.sending` is exact
CLOSE_TIMEOUT = 1.0  #: seconds from closing an idle connection to aborting it


class Pool:
    """The connections of one sender (their `Owner`).

    At most `max_open` are open, idle ones included. `connect_timeout`: seconds
    for DNS look-up and TCP together.
    """

    def __init__(
        self, reactor: Any, dns: DNSCache, trust: TLSTrust, *, max_open: int, connect_timeout: float
    ) -> None:
        self._reactor = reactor
        self._dns = dns
        self._trust = trust
        self._max_open = max_open
        self._connect_timeout = connect_timeout
        self._idle: dict[Key, list[Connection]] = {}
        self._idle_since: dict[Connection, float] = {}  # longest idle first
        self._idle_timer: Any = None  # one for all idle connections
        self._aborts: dict[Connection, Any] = {}  # timers of the closing connections
        self._resting: set[Connection] = set()
        self._rest_timer: Any = None  # one for all of them
        self._open: set[Connection] = set()
        self._closing: Deferred[None] | None = None

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def idle(self) -> int:
        """How many of them are idle."""
        return len(self._idle_since)

    def count(self, key: Key) -> int:
        """How many idle connections there are for a key."""
        return len(self._idle.get(key, ()))

    def take(self, key: Key) -> Connection | None:
        """The last used idle connection; None if there is none."""
        while idle := self._idle.get(key):
            connection = idle[-1]
            self._remove(connection)
            connection.settle()
            if connection.usable:
                return connection
            connection.drop()
        return None

    def connect(self, key: Key) -> Deferred[Connection]:
        """Open a connection; the Deferred fires when TCP is established, before the TLS handshake.

        The addresses are tried one after the other, so that an attempt never
        holds more than one socket; the rest of `connect_timeout` is divided
        equally among those left. Errors: `DeliveryError`, `ConnectError`,
        `QueueFull`.
        """
        if len(self._open) >= self._max_open and self._idle_since:
            longest_idle = next(iter(self._idle_since))
            self._remove(longest_idle)
            longest_idle.drop()
        return Deferred.fromCoroutine(self._connect(key))

    async def _connect(self, key: Key) -> Connection:
        host, port = key
        deadline = self._reactor.seconds() + self._connect_timeout
        addresses = await self._dns.addresses(host, self._connect_timeout)
        creator: Any = self._trust.creator(host.removesuffix("."))
        plain: Any = Factory.forProtocol(partial(Connection, self, key))
        plain.noisy = False
        factory: Any = TLSMemoryBIOFactory(creator, True, plain, clock=self._reactor)
        factory.protocol = TLSTransport
        errors: list[ConnectError] = []
        for tried, address in enumerate(addresses):
            timeout = (deadline - self._reactor.seconds()) / (len(addresses) - tried)
            if timeout <= 0:
                break
            endpoint = TCP6ClientEndpoint if isIPv6Address(address) else TCP4ClientEndpoint
            try:
                wrapper = await endpoint(self._reactor, address, port, timeout=timeout).connect(factory)
            except ConnectError as error:
                errors.append(error)
                continue
            if tried:
                self._dns.prefer(host, address)
            connection: Connection = wrapper.wrappedProtocol
            wrapper.transport.socket.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
            return connection
        try:
            raise self._error(errors)
        finally:
            errors.clear()  # break the reference cycle: an exception holds the frame that raises it

    def _error(self, errors: Sequence[ConnectError]) -> Exception:
        """The one error for an attempt that failed at each address with one of `errors`."""
        remote = [error for error in errors if not is_local(error)]
        if any(isinstance(error, ConnectTimeout) for error in remote) or not errors:
            return DeliveryError(f"no connection within {self._connect_timeout:g} s")
        return (remote or errors)[0]

    def retire(self) -> None:
        """Use the connections that are open now for no further request."""
        for connection in self._open:
            connection.use_no_more()

    def opened(self, connection: Connection) -> None:
        """`connection.Owner.opened`."""
        self._open.add(connection)

    def keep(self, connection: Connection) -> None:
        """`connection.Owner.keep`: keep the connection idle, or abort it if it is not usable."""
        if self._closing is not None or not connection.usable:
            connection.drop()
            return
        connection.idle = True
        self._idle.setdefault(connection.key, []).append(connection)
        self._idle_since[connection] = self._reactor.seconds()
        if self._idle_timer is None:
            self._idle_timer = self._reactor.callLater(IDLE, self._close_idle)

    def rest(self, connection: Connection) -> None:
        """`connection.Owner.rest`: pause the socket for a moment, in which its buffers fill."""
        if connection in self._open and connection not in self._resting:
            self._resting.add(connection)
            connection.transport.transport.pauseProducing()
            if self._rest_timer is None:
                self._rest_timer = self._reactor.callLater(REST, self._wake)

    def _wake(self) -> None:
        self._rest_timer = None
        resting, self._resting = self._resting, set()
        for connection in resting:
            connection.transport.transport.resumeProducing()

    def closed(self, connection: Connection) -> None:
        """`connection.Owner.closed`."""
        self._open.discard(connection)
        self._resting.discard(connection)
        if connection.idle:
            self._remove(connection)
        if (abort := self._aborts.pop(connection, None)) is not None and abort.active():
            abort.cancel()
        if self._closing is not None and not self._open and not self._closing.called:
            self._closing.callback(None)

    async def close(self) -> None:
        """Abort every connection; returns when all are closed."""
        self._closing = Deferred()
        for timer in (self._idle_timer, self._rest_timer):
            if timer is not None and timer.active():
                timer.cancel()
        for connection in tuple(self._open):
            connection.drop()
        if self._open:
            await self._closing

    def _remove(self, connection: Connection) -> None:
        """Remove a connection from the idle ones."""
        connection.idle = False
        del self._idle_since[connection]
        idle = self._idle[connection.key]
        idle.remove(connection)
        if not idle:
            del self._idle[connection.key]

    def _close_idle(self) -> None:
        """Close the connections that are idle for `IDLE` seconds."""
        self._idle_timer = None
        now = self._reactor.seconds()
        for connection, since in tuple(self._idle_since.items()):
            if now - since < IDLE:
                self._idle_timer = self._reactor.callLater(since + IDLE - now, self._close_idle)
                break
            self._remove(connection)
            self._aborts[connection] = self._reactor.callLater(CLOSE_TIMEOUT, connection.drop)
            connection.close()
