"""Runs scripts and commands by name, under one namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.hints import Hint
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.store import codec
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS
from routemaster.util.chunks import chunks

AT_ONCE = 50  #: names in one round of calls, which bounds how long Redis and this process are busy
BUNDLE = 256  #: names in one call, which bounds how long it blocks Redis


class Commands:
    """The commands and scripts of one Redis or one cluster, under one namespace."""

    def __init__(self, connection: Connection | Cluster, namespace: str) -> None:
        self.keys = Keys(namespace)
        self._connection = connection
        self.command = connection.command
        self.node_of = connection.node_of

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The servers that hold the data, by name; the name of a single Redis is empty."""
        return self._connection.nodes

    def bundles(
        self, names: Iterable[str], key: Callable[[str], bytes], most: int | None = None
    ) -> list[list[str]]:
        """The names, grouped by their key's slot so that one call may take a group; at most `most` in each."""
        slots: dict[int, list[str]] = {}
        for name in names:
            slots.setdefault(self._connection.slot(key(name)), []).append(name)
        return [part for group in slots.values() for part in chunks(group, most or len(group))]

    def run(self, name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
        """The reply of the script `lua/<name>.lua`."""
        return self._connection.script(SCRIPTS[name], keys, arguments)

    def hint(self, hint: Hint) -> Deferred[Any]:
        """Publish a hint on the wake-up channel."""
        return self.command(b"PUBLISH", self.keys.wakeups, hint.encode())

    async def names(self, index: bytes) -> Iterator[str]:
        """The names in an index, sorted; those that are added or removed meanwhile may be missing."""
        parts = [sorted(part) async for part in self._scan(b"SSCAN", index)]
        # merged as they are used: sorting a million names would block the process for a second
        return (name.decode() for name, _again in groupby(merge(*parts)))

    async def fields(self, key: bytes) -> dict[bytes, bytes]:
        """A hash; fields that change meanwhile may have either value."""
        return {
            name: value async for part in self._scan(b"HSCAN", key) for name, value in codec.fields(part).items()
        }

    async def _scan(self, command: bytes, key: bytes) -> AsyncIterator[list[bytes]]:
        """A set or a hash in pieces; some may come twice."""
        cursor = b"0"
        while True:
            cursor, part = await self.command(command, key, cursor, b"COUNT", b"%d" % BUNDLE)
            yield part
            if cursor == b"0":
                return
