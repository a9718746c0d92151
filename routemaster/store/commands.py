"""Runs scripts and commands by name, under one namespace."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import groupby
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.errors import RoutemasterError, WrongType
from routemaster.hints import Hint
from routemaster.model import public_name
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.store import codec
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather

Gather = Callable[[Iterable[Deferred[Any]]], Awaitable[list[Any]]]

AT_ONCE = 50  #: names in one round of calls, which bounds how long Redis and this process are busy
BUNDLE = 256  #: names in one call, which bounds how long it blocks Redis

_OWNER = re.compile(rb"\{([ts]):([^{}]*)\}:")  # in a key: a topic or a client, and its name


class Commands:
    """The commands and scripts of one Redis or one cluster, under one namespace."""

    _log = Logger()

    def __init__(self, connection: Connection | Cluster, namespace: str) -> None:
        self.keys = Keys(namespace)
        self._broken: set[str] = set()  #: errors about keys of the wrong type that are logged
        self._connection = connection
        self.node_of, self.slot = connection.node_of, connection.slot

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The servers that hold the data, by name; the name of a single Redis is empty."""
        return self._connection.nodes

    @property
    def connected(self) -> bool:
        """Whether a command would be sent now; in a cluster, to one node at least."""
        return self._connection.connected

    def bundles(
        self, names: Iterable[str], key: Callable[[str], bytes], most: int | None = None
    ) -> list[list[str]]:
        """The names, grouped by their key's slot so that one call may take a group; at most `most` in each."""
        slots: dict[int, list[str]] = {}
        for name in names:
            slots.setdefault(self._connection.slot(key(name)), []).append(name)
        return [part for group in slots.values() for part in chunks(group, most or len(group))]

    async def run_bundles(
        self, script: str, bundles: Iterable[Sequence[str]], keys: Callable[[str], Iterable[bytes]],
        *arguments: bytes, each: Callable[[str], bytes] | None = None, gather: Gather = gather,
    ) -> list[tuple[Sequence[str], Any]]:  # fmt: skip
        """The replies of a script for bundles of topics or subscribers, each with the names that it is for.

        `keys` of each name are passed, then the `arguments`, then `each` of
        each name. Names with a key of the wrong type are left out.
        """

        def run(names: Sequence[str]) -> Deferred[Any]:
            own = map(each, names) if each else ()
            return self.run(script, [key for name in names for key in keys(name)], *arguments, *own)

        bundles = list(bundles)
        if len(bundles) == 1:
            return await self.tolerant(bundles[0], run)
        replies = await gather(Deferred.fromCoroutine(self.tolerant(bundle, run)) for bundle in bundles)
        return [pair for pairs in replies for pair in pairs or ()]

    async def tolerant(
        self, names: Sequence[str], call: Callable[[Sequence[str]], Awaitable[Any]]
    ) -> list[tuple[Sequence[str], Any]]:
        """The reply to a call for several topics or subscribers, with the names that it is for.

        If one of them has a key of the wrong type, the call is made for each
        half of the names, so that only that one is left out: then there are
        several replies, or none. It is logged once.
        """
        try:
            reply = await call(names)
        except WrongType:
            if len(names) == 1:
                return []  # and logged
            middle = len(names) // 2
            return [*await self.tolerant(names[:middle], call), *await self.tolerant(names[middle:], call)]
        return [(names, reply)]

    def command(self, *args: bytes) -> Deferred[Any]:
        """The reply to a command with one key, its first argument."""
        return self._connection.command(*args).addErrback(self._named, args[1:2], False)

    def run(self, name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
        """The reply of the script `lua/<name>.lua`."""
        # `publish` reads first, and then appends to the log before all else
        in_steps = len(keys) > 1 and name != "publish"
        return self._connection.script(SCRIPTS[name], keys, arguments).addErrback(self._named, keys, in_steps)

    def _named(self, failure: Failure, keys: Sequence[bytes], in_steps: bool) -> Failure:
        """For a key of the wrong type an error that names the topic or client, logged once with the keys.

        `in_steps`: whether something may have been written before that key was used.
        """
        if not failure.check(WrongType):
            return failure
        owners = {(found[1], found[2]) if (found := _OWNER.search(key)) else None for key in keys}
        if len(owners) > 1:
            return failure  # `tolerant` finds out which it is
        owner, shown, where = owners.pop(), " or ".join(map(_shown, keys)), ""
        if owner is None:
            error = f"the key {shown} in Redis is of the wrong type (WRONGTYPE): another program has written to it"
        else:
            kind = "topic" if owner[0] == b"t" else "client"
            error = (
                f"{kind} '{public_name(owner[1].decode())}' cannot be served: a key of it in Redis is of the "
                "wrong type (WRONGTYPE): another program has written to it"
            )
            where = f" ({shown})"
        if error not in self._broken:
            self._broken.add(error)
            self._log.error("{error}{where}", error=error, where=where)
        return Failure(WrongType(error, in_steps))

    def hint(self, hint: Hint) -> Deferred[Any]:
        """Publish a hint on the wake-up channel; never fails, because what it is about is done already."""
        published = self.command(b"PUBLISH", self.keys.wakeups, hint.encode())
        return published.addErrback(lambda failure: failure.trap(RoutemasterError))

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


def _shown(key: bytes) -> str:
    """A key as a log may have it: without the secret part of a token."""
    found = _OWNER.search(key)
    return (key.replace(found[2], public_name(found[2].decode()).encode()) if found else key).decode()
