"""Runs scripts and commands by name, under one namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.hints import Hint
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS
from routemaster.util.chunks import chunks

AT_ONCE = 50  #: names in one round of calls, which bounds how long Redis and this process are busy


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
        return [list(part) for group in slots.values() for part in chunks(group, most or len(group))]

    def run(self, name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
        """The reply of the script `lua/<name>.lua`."""
        return self._connection.script(SCRIPTS[name], keys, arguments)

    def hint(self, hint: Hint) -> Deferred[Any]:
        """Publish a hint on the wake-up channel."""
        return self.command(b"PUBLISH", self.keys.wakeups, hint.encode())

    async def names(self, index: bytes) -> list[str]:
        """The names in an index, sorted."""
        return sorted(name.decode() for name in await self.command(b"SMEMBERS", index))
