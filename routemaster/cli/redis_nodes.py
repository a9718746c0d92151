"""The servers that hold the data of one Redis URL: one, the master of sentinels, or the primaries of a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

import hiredis

from routemaster.cli.redis import Redis, RedisError, query_sentinels
from routemaster.errors import StoreBroken
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress
from routemaster.redis.cluster_slots import parse_slots, slot_of
from routemaster.redis.server_info import parse_info

Address = RedisAddress | SentinelAddress | ClusterAddress
TIMEOUT = 30.0  #: seconds for each reply: the server may write its file meanwhile


class Nodes:
    """Connections to them; a context manager. RedisError if one cannot be reached."""

    def __init__(self, address: Address) -> None:
        self.label = address.label
        self.db = address.db if isinstance(address, RedisAddress) else 0
        self._stack = ExitStack()
        self._slots: list[int] | None = None  #: of a cluster: which of the servers has a slot
        self.servers: list[Redis] = []
        with self._stack:  # closes what is open already, if anything fails
            self._connect(address)
            self._stack = self._stack.pop_all()

    def _connect(self, address: Address) -> None:
        if isinstance(address, ClusterAddress):
            owners = self._owners(address)
            names = sorted(set(owners))
            self._slots = [names.index(owner) for owner in owners]
            places = [address.node(*name) for name in names]
        else:
            places = [_master(address) if isinstance(address, SentinelAddress) else address]
        self.servers = [self._stack.enter_context(Redis(place, TIMEOUT)) for place in places]

    @staticmethod
    def _owners(address: ClusterAddress) -> list[tuple[str, int]]:
        """The primary of each slot."""
        problem = RedisError("the cluster has no nodes")
        for seed in address.seeds:
            try:
                with Redis(seed) as redis:
                    found = parse_slots(redis.ask(b"CLUSTER", b"SLOTS"), seed.host)
            except (RedisError, StoreBroken) as error:
                problem = RedisError(f"{seed.label}: {error}")
                continue
            owners = [node for node in found if node is not None]
            if len(owners) < len(found):
                raise RedisError(f"{seed.label} reports slots without a node: assign them first")
            return owners
        raise problem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def clustered(self) -> bool:
        """Whether the address names a cluster."""
        return self._slots is not None

    def server_of(self, key: bytes) -> int:
        """The index of the server that has a key."""
        return 0 if self._slots is None else self._slots[slot_of(key)]

    def infos(self) -> list[dict[str, str]]:
        """INFO of each server."""
        return [parse_info(server.ask(b"INFO")) for server in self.servers]

    @property
    def modern(self) -> bool:
        """Whether all are Redis 7 or later, or Valkey."""
        return all(int(info["redis_version"].split(".")[0]) >= 7 for info in self.infos())

    def each(self, *command: bytes) -> list[Any]:
        """The reply of every server to one command."""
        return [server.ask(*command) for server in self.servers]

    def call(self, commands: Sequence[tuple[bytes, tuple[bytes, ...]]]) -> list[Any]:
        """The replies to commands, each after the key that says which server gets it; RedisError for any error.

        Commands of one server are executed in their order.
        """
        replies: list[Any] = [None] * len(commands)
        by_server: dict[int, list[int]] = {}
        for number, (key, _) in enumerate(commands):
            by_server.setdefault(self.server_of(key), []).append(number)
        for server, numbers in by_server.items():
            answers = self.servers[server].pipeline([commands[number][1] for number in numbers])
            for number, answer in zip(numbers, answers, strict=True):
                replies[number] = self._checked(answer)
        return replies

    def _checked(self, answer: Any) -> Any:
        if not isinstance(answer, hiredis.ReplyError):
            return answer
        said = str(answer)
        if said.startswith(("MOVED", "ASK")):
            raise RedisError(f"{self.label}: slots of the cluster are being moved: wait until that is over")
        if said.startswith("OOM"):
            raise RedisError(f"{self.label} is out of memory: raise its maxmemory")
        raise RedisError(f"{self.label} replied {said}")

    def keys(self, prefix: bytes) -> Iterator[list[bytes]]:
        """All keys that begin so, some at a time; a key may come twice."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
        for server in self.servers:
            cursor = b"0"
            while True:
                cursor, found = server.ask(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000")
                yield found
                if cursor == b"0":
                    break


def each_with(key: bytes, commands: Iterable[tuple[bytes, ...]]) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """Commands about one key, for `Nodes.call`."""
    return [(key, command) for command in commands]


def _master(address: SentinelAddress) -> RedisAddress:
    replies = query_sentinels(address)
    newest = max(replies, key=lambda reply: reply.epoch)
    if newest.master is None:
        raise RedisError(f"no sentinel reports a master: {replies[0].error}")
    return newest.master
