"""How the store talks to Redis: scripts and commands by name, one after another or together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from routemaster.store.connection import Connection
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS


class Calls:
    """What may be asked of one Redis, under one namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.keys = Keys(namespace)
        self._connection = connection
        self.command = connection.command

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
