"""How the store talks to Redis: scripts and commands by name, one after another or together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from routemaster.errors import StoreUnavailable
from routemaster.model import chunks
from routemaster.store.cluster import Cluster
from routemaster.store.connection import Connection
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS

AT_ONCE = 50  #: names about which to ask together, so that neither Redis nor this process is held up for long


class Calls:
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


async def outcomes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """The results of steps that were started together; an exception stands for itself."""
    pairs = await DeferredList(list(steps), consumeErrors=True)
    return [value if ok else value.value for ok, value in pairs]


def all_of(steps: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """The results of steps that were started together; the first error, after all have ended."""

    def unpack(pairs: list[tuple[bool, Any]]) -> Any:
        for ok, value in pairs:
            if not ok:
                return value
        return [value for _ok, value in pairs]

    return DeferredList(list(steps), consumeErrors=True).addCallback(unpack)


async def those_that_can(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """As `all_of`, but with None for what is unavailable, as long as anything is not.

    For what is repeated anyway: a node that is away must not hold up the others.
    """
    results = await outcomes(steps)
    errors = [result for result in results if isinstance(result, Exception)]
    grave = [error for error in errors if not isinstance(error, StoreUnavailable)]
    if grave or (errors and len(errors) == len(results)):
        raise (grave or errors)[0]
    return [None if isinstance(result, Exception) else result for result in results]
