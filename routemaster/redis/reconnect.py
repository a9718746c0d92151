"""Keeps one connection to Redis open: connect, authenticate, prepare, serve, and reconnect.

One loop does all this. Whatever ends a connection or an attempt (no server, no
reply, a wrong password, a broken handshake) leads to the next attempt; only
`stop` ends the loop. The pauses grow from `SHORTEST` to `LONGEST` with jitter,
and start again at `SHORTEST` after a connection that lasted longer than
`LONGEST`. The pause is `SLOW` where only an operator can help. A problem is
logged when it begins or changes, not at each attempt.

Commands are not queued: while there is no connection, `protocol` is None.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis.address import RedisAddress, SentinelAddress
from routemaster.redis.dial import ConnectionFactory, authenticate, endpoint
from routemaster.redis.errors import CredentialsRefused
from routemaster.redis.protocol import RedisProtocol
from routemaster.redis.sentinel import SentinelLocator
from routemaster.util.backoff import backoff

SHORTEST = 0.05  #: seconds before the second attempt to connect
LONGEST = 1.0    #: seconds between attempts, at most
SLOW = 5.0       #: seconds between attempts while Redis refuses the user, the password or the commands


class Locator(Protocol):
    """Finds the server to connect to."""

    @property
    def label(self) -> str:
        """What it looks for, without user and password, for logs."""

    async def locate(self) -> RedisAddress:
        """The server's current address; an exception fails the attempt to connect."""

    async def moved(self, address: RedisAddress) -> str:
        """Return when the server is no longer at `address`: the reason, a clause."""


class FixedLocator:
    """The locator of a server whose address does not change."""

    def __init__(self, address: RedisAddress) -> None:
        self._address, self.label = address, address.label

    async def locate(self) -> RedisAddress:
        """The address."""
        return self._address

    async def moved(self, address: RedisAddress) -> str:
        """Never return."""
        return await Deferred[str]()


Address = RedisAddress | SentinelAddress | Locator


def _locator(address: Address, reactor: Any) -> Locator:
    """Raises ConfigError if a file that the address names cannot be used."""
    if isinstance(address, SentinelAddress):
        endpoint(address.server, reactor)
        return SentinelLocator(address, reactor)
    if isinstance(address, RedisAddress):
        endpoint(address, reactor)
        return FixedLocator(address)
    return address


class Reconnector:
    """The loop described above.

    `build` makes the protocol of a connection, given the server's name.
    `prepare` runs after AUTH and SELECT; if it raises, the attempt has failed.
    `on_up` and `on_down` are called when commands can be sent, and when they
    no longer can. `chance` returns numbers in [0, 1) for the jitter.
    """

    log = Logger()

    def __init__(
        self,
        address: Address,
        *,
        reactor: Any,
        chance: Callable[[], float],
        build: Callable[[str], RedisProtocol],
        prepare: Callable[[RedisProtocol], Awaitable[None]],
        on_up: Callable[[], None] | None,
        on_down: Callable[[], None] | None,
        purpose: str,
    ) -> None:
        self._address, self._reactor, self._chance = address, reactor, chance
        self.name = f"Redis at {address.label}"
        self._factory = ConnectionFactory(lambda: build(self.name))
        self._prepare = prepare
        self._on_up, self._on_down = on_up, on_down
        self._purpose = purpose
        self._loop: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._last_problem = ""
        self._stopping = False
        self.protocol: RedisProtocol | None = None  #: None while commands cannot be sent
        self.reason = "it has not been started"     #: why there is no protocol, a clause

    def start(self) -> None:
        """Begin to connect. Raises ConfigError if the address names a file that cannot be used."""
        locator = _locator(self._address, self._reactor)
        self.reason = "no connection has been made yet"
        self._loop = Deferred.fromCoroutine(self._run(locator))

    async def stop(self) -> None:
        """Wait for the replies to the commands in flight, at most one reply time-out; then disconnect for good.

        The Deferreds of `when_up` are cancelled.
        """
        protocol, self.protocol = self.protocol, None
        self.reason = "it was stopped"
        self._stopping = True
        if protocol is not None:
            with suppress(StoreUnavailable):
                await protocol.execute_command(b"PING")
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await loop
        for waiter in list(self._waiters):
            waiter.cancel()

    @property
    def up(self) -> bool:
        """Whether a command would be sent now."""
        return self.protocol is not None and self.protocol.usable

    def when_up(self) -> Deferred[None]:
        """Fires when a command can be sent, at once if it can be now."""
        if self.up:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    async def _run(self, locator: Locator) -> None:
        failures = 0
        while not self._stopping:
            failures += 1
            slow = False
            protocol: Any = None
            following: Deferred[None] | None = None
            try:
                address = await locator.locate()
                server: Any = endpoint(address, self._reactor)
                protocol = await server.connect(self._factory)
                # from here on: a master that hangs may be replaced before it has replied to AUTH
                following = Deferred.fromCoroutine(self._follow(locator, protocol, address))
                await authenticate(protocol, address)
                await self._prepare(protocol)
                if await self._serve(protocol) > LONGEST:
                    failures = 1
            except Exception as error:  # also CancelledError, by stop
                slow = isinstance(error, CredentialsRefused | StoreBroken)
                lost = protocol is not None and not protocol.usable
                self._log_problem(protocol.reason if lost else self._reason(error), error=slow)
            if following is not None:
                following.cancel()
                await following
            if protocol is not None:
                await self._close(protocol)
            if not self._stopping:
                pause = SLOW if slow else backoff(failures, SHORTEST, LONGEST, self._chance())
                with suppress(CancelledError):
                    await deferLater(self._reactor, pause, lambda: None)

    async def _follow(self, locator: Locator, protocol: RedisProtocol, address: RedisAddress) -> None:
        """Abort the connection when another server is to be used."""
        with suppress(CancelledError):
            protocol.give_up(await locator.moved(address))

    async def _serve(self, protocol: RedisProtocol) -> float:
        """Return when the connection is lost; the seconds for which it lasted."""
        since = self._reactor.seconds()
        self.protocol = protocol
        self._last_problem = ""
        self.log.info("connected to Redis {redis} for {purpose}", redis=self._address.label, purpose=self._purpose)
        self._call(self._on_up)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        try:
            await protocol.when_lost()
        finally:
            self.protocol = None
            if not self._stopping:
                self.reason = protocol.reason  # before on_down, which may send commands
            self._call(self._on_down)
        self._log_problem(protocol.reason)
        return float(self._reactor.seconds() - since)

    async def _close(self, protocol: RedisProtocol) -> None:
        protocol.give_up("the bus closed it")
        while protocol.connected:
            with suppress(CancelledError):  # a stop waits until the socket is closed, too
                await protocol.when_lost()

    def _reason(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return "it" + text.removeprefix(self.name) if text.startswith(self.name) else text

    def _call(self, listener: Callable[[], None] | None) -> None:
        if listener is not None:
            with self.log.failuresHandled("a callback of the Redis connection failed"):
                listener()

    def _log_problem(self, reason: str, error: bool = False) -> None:
        if self._stopping:
            return
        self.reason = reason
        if reason == self._last_problem:
            return
        self._last_problem = reason
        log = self.log.error if error else self.log.warn
        log("no connection to Redis {redis} for {purpose}: {why}", redis=self._address.label,
            purpose=self._purpose, why=reason)
