"""How the store talks to Redis: scripts and commands by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS
from routemaster.util.chunks import chunks

AT_ONCE = 50  #: names about which to ask together, so that neither Redis nor this process is held up for long


class Commands:
    """What may be asked of one Redis or one cluster, under one namespace."""

    def __init__(self, connection: Connection | Cluster, namespace: str) -> None:
        self.keys = Keys(namespace)
        self._connection = connection
        self.command = connection.command
        self.place = connection.place

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The servers that keep the data, by name; that of a single one is empty."""
        return self._connection.nodes

    def bundles(
        self, names: Iterable[str], key: Callable[[str], bytes], most: int | None = None
    ) -> list[list[str]]:
        """The names in lists, so that the keys of a list may go in one call; `most` in a list."""
        slots: dict[int, list[str]] = {}
        for name in names:
            slots.setdefault(self._connection.slot(key(name)), []).append(name)
        return [list(part) for group in slots.values() for part in chunks(group, most or len(group))]

    def run(self, name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
        """The reply of the script `lua/<name>.lua`."""
        return self._connection.script(SCRIPTS[name], keys, arguments)

    def hint(self, message: str) -> Deferred[Any]:
        """Send a hint out on the wake-up channel."""
        return self.command(b"PUBLISH", self.keys.wakeups, message.encode())

    async def names(self, index: bytes) -> list[str]:
        """The names in an index, sorted."""
        return sorted(name.decode() for name in await self.command(b"SMEMBERS", index))
