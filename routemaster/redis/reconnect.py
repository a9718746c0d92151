"""Keeps one connection to Redis up for ever: connect, greet, serve, and again.

One loop does it all. Whatever ends a connection or an attempt (no server, no
answer, a refused password, a closed handshake, a reply too late) leads to the
next attempt; only `stop` ends the loop. The pauses grow from 0.05 s to 1 s with
jitter (txredisapi's `retryDelay`), and start afresh after a connection that
lasted a second. Where only an operator can help, the pause is `SLOW`. Each
trouble is logged once, when it begins or changes its face, not at each attempt.

There is no queue: while the link is down, `wire` is None and nobody can write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import txredisapi
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis.address import RedisAddress, Whereabouts
from routemaster.redis.errors import CredentialsRefused
from routemaster.redis.protocol import Wire

SLOW = 5.0  #: seconds between attempts when Redis refuses what we are, not when it is away


class _Pace(txredisapi.RedisFactory):
    """Only the pauses of txredisapi's factory: its pool would park commands, and end after a failed AUTH."""

    initialDelay = 0.05
    maxDelay = 1

    def __init__(self) -> None:
        super().__init__(None, None, 1, isLazy=True)  # type: ignore[no-untyped-call]

    def pause(self, failures: int) -> float:
        return float(self.retryDelay(failures))  # type: ignore[no-untyped-call]


class Locator(Protocol):
    """Who says which server to use."""

    async def locate(self) -> RedisAddress:
        """Where it is now; StoreUnavailable if that cannot be learnt."""

    async def moved(self, address: RedisAddress) -> str:
        """Returns when it is no longer at `address`, with the reason to leave, a clause without subject."""


class Address(Protocol):
    """What names the server: as such, or by those who know where it is."""

    @property
    def label(self) -> str:
        """For logs: no user, no password."""

    def locator(self, reactor: Any) -> Locator:
        """Who finds the server. ConfigError if a file that is needed cannot be read."""


class OneWire(Factory):
    """Builds the protocol of a connection, quietly."""

    noisy = False

    def __init__(self, build: Callable[[], Wire]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Wire:
        return self._build()


class Link:
    """The loop described above.

    `build` makes the protocol of a connection, given the server's name; `prepare` readies it after AUTH
    and SELECT, and what it raises fails the attempt. `on_up` and `on_down` are
    called when the link begins and ceases to count as up.
    """

    log = Logger()

    def __init__(
        self,
        address: Whereabouts,
        *,
        reactor: Any,
        build: Callable[[str], Wire],
        prepare: Callable[[Wire], Awaitable[None]],
        on_up: Callable[[], None] | None,
        on_down: Callable[[], None] | None,
        purpose: str,
    ) -> None:
        self._address = address
        self._reactor = reactor
        self.name = f"Redis at {address.label}"
        self._factory = OneWire(lambda: build(self.name))
        self._prepare = prepare
        self._on_up = on_up
        self._on_down = on_down
        self._purpose = purpose
        self._pace = _Pace()
        self._loop: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._last_trouble = ""
        self._stopping = False
        self.wire: Wire | None = None
        self.why = "it has not been started"  #: why there is no wire, one clause

    def start(self) -> None:
        """Begin to connect. ConfigError if the address needs a file that cannot be read."""
        locator = self._address.locator(self._reactor)
        self.why = "no connection has been made yet"
        self._loop = Deferred.fromCoroutine(self._keep(locator))

    async def stop(self) -> None:
        """Let the commands under way finish, close, and connect no more.

        Takes at most one reply time-out. Those who wait for the link get
        CancelledError.
        """
        wire, self.wire = self.wire, None
        self.why = "it was stopped"
        self._stopping = True
        if wire is not None:
            with suppress(StoreUnavailable):
                await wire.execute_command(b"PING")
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await loop
        for waiter in list(self._waiters):
            waiter.cancel()

    def when_up(self) -> Deferred[None]:
        """Fires when the link is up, at once if it is."""
        if self.wire is not None and self.wire.usable:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    async def _keep(self, locator: Locator) -> None:
        failures = 0
        while not self._stopping:
            failures += 1
            slow = False
            wire: Any = None
            following: Deferred[None] | None = None
            try:
                address = await locator.locate()
                server: Any = address.endpoint(self._reactor)
                wire = await server.connect(self._factory)
                # from here on, for a master that stands still may be replaced during the greeting
                following = Deferred.fromCoroutine(self._follow(locator, wire, address))
                await self._greet(wire, address)
                await self._prepare(wire)
                if await self._serve(wire) > self._pace.maxDelay:
                    failures = 1
            except Exception as error:  # cancelled by stop, or any way of not getting a connection
                slow = isinstance(error, CredentialsRefused | StoreBroken)
                self._trouble(wire.why if wire and not wire.usable else self._reason(error), loud=slow)
            if following is not None:
                following.cancel()
                await following
            if wire is not None:
                await self._close(wire)
            if not self._stopping:
                with suppress(CancelledError):
                    await deferLater(self._reactor, SLOW if slow else self._pace.pause(failures), lambda: None)

    async def _follow(self, locator: Locator, wire: Wire, address: RedisAddress) -> None:
        """Give the connection up when the server to use is another one."""
        with suppress(CancelledError):
            wire.give_up(await locator.moved(address))

    async def _greet(self, wire: Wire, address: RedisAddress) -> None:
        if address.password is not None:
            names = (address.user,) if address.user else ()
            await wire.execute_command(b"AUTH", *names, address.password)
        if address.db:
            await wire.execute_command(b"SELECT", b"%d" % address.db)

    async def _serve(self, wire: Wire) -> float:
        """Be up until the connection is lost; how many seconds that was."""
        since = self._reactor.seconds()
        self.wire = wire
        self._last_trouble = ""
        self.log.info("connected to Redis {redis} for {purpose}", redis=self._address.label, purpose=self._purpose)
        self._call(self._on_up)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        try:
            await wire.when_lost()
        finally:
            self.wire = None
            if not self._stopping:
                self.why = wire.why  # for whoever calls while on_down is told
            self._call(self._on_down)
        self._trouble(wire.why)
        return float(self._reactor.seconds() - since)

    async def _close(self, wire: Wire) -> None:
        wire.give_up("it was closed by us")
        while wire.connected:
            with suppress(CancelledError):  # a stop meanwhile still waits for the socket to be closed
                await wire.when_lost()

    def _reason(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return "it" + text.removeprefix(self.name) if text.startswith(self.name) else text

    def _call(self, listener: Callable[[], None] | None) -> None:
        if listener is not None:
            with self.log.failuresHandled("a listener of the Redis link failed"):
                listener()

    def _trouble(self, why: str, loud: bool = False) -> None:
        if self._stopping:
            return
        self.why = why
        if why == self._last_trouble:
            return
        self._last_trouble = why
        say = self.log.error if loud else self.log.warn
        say("no connection to Redis {redis} for {purpose}: {why}", redis=self._address.label,
            purpose=self._purpose, why=why)
