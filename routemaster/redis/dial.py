"""Opening a connection to Redis, and logging in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from routemaster.redis.address import RedisAddress
from routemaster.redis.protocol import RedisProtocol


class ConnectionFactory(Factory):
    """Builds the protocol of one connection, and logs nothing."""

    noisy = False

    def __init__(self, build: Callable[[], RedisProtocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> RedisProtocol:
        return self._build()


async def authenticate(protocol: RedisProtocol, address: RedisAddress) -> None:
    """Send AUTH and SELECT as the address requires."""
    if address.password is not None:
        user = (address.user,) if address.user else ()
        await protocol.execute_command(b"AUTH", *user, address.password)
    if address.db:
        await protocol.execute_command(b"SELECT", b"%d" % address.db)


@asynccontextmanager
async def temporary_connection(
    address: RedisAddress, name: str, reactor: Any, reply_timeout: float, connect_timeout: float = 1.0
) -> AsyncIterator[RedisProtocol]:
    """A connection for a few commands, authenticated; aborted at the end of the block."""
    factory = ConnectionFactory(lambda: RedisProtocol(name, reply_timeout, reactor))
    endpoint: Any = address.endpoint(reactor, connect_timeout)
    protocol: RedisProtocol = await endpoint.connect(factory)
    try:
        await authenticate(protocol, address)
        yield protocol
    finally:
        protocol.give_up("the bus closed it")
        await protocol.when_lost()
