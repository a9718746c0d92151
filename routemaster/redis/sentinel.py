"""Where the master is, by Redis Sentinel: its URL, and the asking.

    redis+sentinel://[user[:password]@]host[:port][,host[:port]...]/service[/db][?sentinel_password=...]
    rediss+sentinel://... with an optional ca_file: TLS to sentinels and servers

All sentinels are asked at once, each for at most `PATIENCE`, and the latest
configuration epoch wins: a sentinel that was cut off tells of a master that
is one no more. Whether the server named is a master, only itself can tell;
the greeting asks it.
"""

from __future__ import annotations

import re
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from routemaster.errors import ConfigError, StoreUnavailable
from routemaster.redis.address import RedisAddress, sentinel_options
from routemaster.redis.protocol import Wire

DEFAULT_PORT = 26379
PATIENCE = 0.5  #: seconds for one sentinel to answer, connecting included
POLL = 0.5      #: seconds between questions while connected


def _wrong(what: str) -> ConfigError:
    return ConfigError(
        f"The Redis URL (not shown, it may hold a password): {what}. With Sentinel it is "
        "redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db][?sentinel_password=...], "
        "or rediss+sentinel://... with an optional ca_file."
    )


@frozen
class SentinelAddress:
    """Sentinels, the service that they watch, and a server's address as it is but for host and port."""

    sentinels: tuple[RedisAddress, ...]
    service: str
    server: RedisAddress

    @classmethod
    def parse(cls, url: str) -> Self:
        """What `url` describes; ConfigError, free of secrets, if it is ill-formed."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise _wrong("a host is ill-formed") from None
        login, at, hosts = parts.netloc.rpartition("@")
        path = re.fullmatch(r"/([^/]+)((?:/[0-9]{1,5})?)/?", parts.path)
        if not path or parts.fragment:
            raise _wrong("the name of the service is missing, or what follows it is no database")
        password, ca_file = sentinel_options(parts)
        scheme = parts.scheme.removesuffix("+sentinel")
        options = f"?ca_file={quote(ca_file)}" if ca_file else ""
        server = RedisAddress.parse(f"{scheme}://{login}{at}master{path[2]}{options}")
        try:
            found = [RedisAddress.parse(f"{scheme}://{host}{options}") for host in hosts.split(",")]
            ports = [urlsplit(f"//{host}").port or DEFAULT_PORT for host in hosts.split(",")]
        except ConfigError:
            raise _wrong("a sentinel's host or port is ill-formed") from None
        sentinels = (evolve(each, port=port, password=password) for each, port in zip(found, ports, strict=True))
        return cls(tuple(sentinels), unquote(path[1]), server)

    @property
    def label(self) -> str:
        """For logs and error sentences: no user, no password."""
        hosts = ",".join(each.label.partition("//")[2] for each in self.sentinels)
        database = f"/{self.server.db}" if self.server.db else ""
        return f"{'rediss' if self.server.tls else 'redis'}+sentinel://{hosts}/{self.service}{database}"

    def locator(self, reactor: Any) -> SentinelLocator:
        """Who finds the master. ConfigError if `ca_file` cannot be read."""
        self.server.endpoint(reactor)
        return SentinelLocator(self, reactor)


class SentinelLocator:
    """Asks sentinels, again at each attempt and every `POLL` seconds while connected."""

    def __init__(self, address: SentinelAddress, reactor: Any) -> None:
        self._address, self._reactor = address, reactor

    async def locate(self) -> RedisAddress:
        """Where the master is now, by the latest epoch; StoreUnavailable if no sentinel tells."""
        asked = [
            Deferred.fromCoroutine(self._ask(each)).addTimeout(PATIENCE, self._reactor)
            for each in self._address.sentinels
        ]
        answers: list[tuple[int, RedisAddress]] = []
        outcomes: list[tuple[bool, Any]] = await DeferredList(asked, consumeErrors=True)
        for told, outcome in outcomes:
            if told:
                answers.append(outcome)
            elif outcome.check(CancelledError):  # ours, not a time-out's
                outcome.raiseException()
        if not answers:
            raise StoreUnavailable(f"no sentinel tells where the master of {self._address.service} is")
        return max(answers, key=lambda answer: answer[0])[1]

    async def moved(self, address: RedisAddress) -> str:
        """Returns when the master is no longer at `address`: why to leave. Silent sentinels change nothing."""
        while True:
            await deferLater(self._reactor, POLL, lambda: None)
            try:
                now = await self.locate()
            except StoreUnavailable:
                continue
            if now != address:
                return f"the sentinels say that the master is {now.label} now"

    async def _ask(self, sentinel: RedisAddress) -> tuple[int, RedisAddress]:
        name = f"the sentinel at {sentinel.label}"
        factory: Any = Factory.forProtocol(lambda: Wire(name, PATIENCE, self._reactor))
        factory.noisy = False
        endpoint: Any = sentinel.endpoint(self._reactor, PATIENCE)
        wire: Wire = await endpoint.connect(factory)
        try:
            if sentinel.password is not None:
                await wire.execute_command(b"AUTH", sentinel.password)
            service = self._address.service.encode()
            # during a failover the first tells of the new epoch already, and only the second of the new master
            told = await wire.execute_command(b"SENTINEL", b"MASTER", service)
            place = await wire.execute_command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)
            return self._understood(told, place)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreUnavailable(f"{name} gave an answer that makes no sense") from None
        finally:
            wire.give_up("it was asked")
            await wire.when_lost()

    def _understood(self, told: Any, place: Any) -> tuple[int, RedisAddress]:
        fields = dict(zip(told[::2], told[1::2], strict=True))
        host, port = place[0].decode(), int(place[1])
        if not host or not 0 < port < 65536:
            raise ValueError
        return int(fields[b"config-epoch"]), evolve(self._address.server, host=host, port=port)
