"""Finds the master of a service by Redis Sentinel.

All sentinels are queried at the same time, each for at most `QUERY_TIMEOUT`.
The reply with the highest configuration epoch counts: a sentinel that was
partitioned reports an old master. Whether the server is a master, only its own
INFO shows; `connection.Connection` checks that on each connection.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.task import deferLater

from routemaster.errors import StoreUnavailable
from routemaster.redis.address import RedisAddress, SentinelAddress
from routemaster.redis.dial import temporary_connection
from routemaster.redis.errors import CredentialsRefused

QUERY_TIMEOUT = 0.5  #: seconds for one sentinel to reply, connecting included
POLL = 0.5           #: seconds between queries while connected


class SentinelLocator:
    """Queries the sentinels at each attempt to connect, and every `POLL` seconds while connected."""

    def __init__(self, address: SentinelAddress, reactor: Any) -> None:
        self._address, self._reactor = address, reactor
        self.label = address.label

    async def locate(self) -> RedisAddress:
        """The master's address; StoreUnavailable if no sentinel reports one."""
        queries = [
            Deferred.fromCoroutine(self._query(each)).addTimeout(QUERY_TIMEOUT, self._reactor)
            for each in self._address.sentinels
        ]
        replies: list[tuple[int, RedisAddress]] = []
        problems: list[Exception] = []
        asked, answered = DeferredList(queries, consumeErrors=True), Deferred[list[tuple[bool, Any]]]()
        asked.chainDeferred(answered)
        try:
            results = await answered
        except CancelledError:  # what the queries result in does not tell: they may just end by themselves
            asked.cancel()
            await asked
            raise
        for succeeded, result in results:
            if succeeded:
                replies.append(result)
            else:
                problems.append(result.value)
        if not replies:
            refused = [problem for problem in problems if isinstance(problem, CredentialsRefused)]
            why = (refused or problems)[0]
            kind = CredentialsRefused if refused else StoreUnavailable
            text = str(why) or type(why).__name__
            raise kind(f"no sentinel reports a master of {self._address.service}: {text}")
        return max(replies, key=lambda reply: reply[0])[1]

    async def moved(self, address: RedisAddress) -> str:
        """Return the reason when another server is the master. Without replies nothing changes."""
        while True:
            await deferLater(self._reactor, POLL, lambda: None)
            try:
                master = await self.locate()
            except StoreUnavailable:
                continue
            if master != address:
                return f"the sentinels report another master, {master.label}"

    async def _query(self, sentinel: RedisAddress) -> tuple[int, RedisAddress]:
        """The configuration epoch and the master, as one sentinel reports them."""
        name = f"the sentinel at {sentinel.label}"
        service = self._address.service.encode()
        try:
            async with temporary_connection(sentinel, name, self._reactor, QUERY_TIMEOUT, QUERY_TIMEOUT) as redis:
                # during a failover the first reply may have the new epoch, and only the second the new master
                master = await redis.execute_command(b"SENTINEL", b"MASTER", service)
                host_port = await redis.execute_command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)
            return self._address.parse_master(master, host_port)
        except ValueError:
            raise StoreUnavailable(f"{name} sent an invalid reply") from None
