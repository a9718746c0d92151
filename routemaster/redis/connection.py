"""The bus's connection to Redis: commands, scripts, and the facts about the server.

One pipelined connection, kept up for ever by a `Link`. Commands go out in the
order in which they are issued and come back in it; none is ever parked: while
Redis is away a call fails at once, with a promise that nothing was executed.
What was under way when the connection broke, or took longer than
`reply_timeout`, fails with `outcome_unknown`. Nothing is repeated in here
except a script that Redis says it does not know.

Scripts begin with `#!lua` on Redis 7 and Valkey: there a script without
`allow-oom` is refused whole when memory is full. Redis 6.2 does not know that
line. So a `Script` has two texts, and the greeting, which asks for the version
and loads the scripts before the connection counts as up, settles which one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha1
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredList, fail

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis.errors import NotPermitted, ScriptRefusal
from routemaster.redis.protocol import Reply, Wire
from routemaster.redis.reconnect import Address, Link
from routemaster.redis.server_info import UNKNOWN, ServerFacts, fact_lines, parse_info

__all__ = ["Connection", "Script", "ScriptRefusal", "ServerFacts", "fact_lines"]


def _sha(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


@frozen
class Script:
    """A Lua script. `flags` are those of the `#!lua` line: "" for none, None for a script without the line."""

    name: str
    body: bytes
    flags: str | None = ""
    texts: tuple[bytes, bytes] = field(init=False, repr=False)  #: for 6.2, and with the line for 7 and later
    shas: tuple[bytes, bytes] = field(init=False, repr=False)

    @texts.default
    def _two_texts(self) -> tuple[bytes, bytes]:
        if self.flags is None:
            return self.body, self.body
        line = f"#!lua flags={self.flags}\n" if self.flags else "#!lua\n"
        return self.body, line.encode() + self.body

    @shas.default
    def _two_shas(self) -> tuple[bytes, bytes]:
        return _sha(self.texts[0]), _sha(self.texts[1])


class Connection:
    """The connection of one process to one Redis.

    `reply_timeout` in seconds is for each command. `scripts` are loaded
    whenever a connection is made. `on_up` and `on_down` are called when the
    connection begins and ceases to be usable.

    `slot`, `place` and `nodes` are there for `cluster.Cluster`, which has the
    same face: one Redis is a cluster of one nameless node.
    """

    _in_cluster = False

    def __init__(
        self,
        address: Address,
        *,
        reactor: Any,
        reply_timeout: float = 1.5,
        scripts: Iterable[Script] = (),
        on_up: Callable[[], None] | None = None,
        on_down: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self._scripts = tuple(scripts)
        self._modern = 0  # which of a script's two texts this server runs
        self._link = Link(
            address, reactor=reactor, purpose="commands", on_up=on_up, on_down=on_down, prepare=self._prepare,
            build=lambda name: Wire(name, reply_timeout, reactor),
        )

    def start(self) -> None:
        """Begin to connect; ConfigError if the address cannot be used at all."""
        self._link.start()

    async def stop(self) -> None:
        """Refuse new commands, let those under way finish (at most one reply time-out), close."""
        await self._link.stop()

    @property
    def connected(self) -> bool:
        """Whether a command issued now would be sent."""
        wire = self._link.wire
        return wire is not None and wire.usable

    def when_connected(self) -> Deferred[None]:
        """Fires once a command can be sent. Can be cancelled; `stop` cancels it."""
        return self._link.when_up()

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The servers that keep the data, by name."""
        return {"": self}

    def place(self, key: bytes) -> str:
        """The name of the node that keeps a key."""
        return ""

    def slot(self, key: bytes) -> int:
        """Keys of equal slots may go in one call."""
        return 0

    def command(self, *args: bytes) -> Deferred[Reply]:
        """The reply to a command: bytes, int, None, or a list of these.

        Fails with StoreUnavailable, StoreBroken or ScriptRefusal, also for an
        error inside a list. Never use a command that blocks.
        """
        wire = self._link.wire
        return self._away() if wire is None else wire.execute_command(*args)

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Reply]:
        """The reply of a script; fails like `command`."""
        wire = self._link.wire
        if wire is None:
            return self._away()
        modern = self._modern
        return wire.execute_command(
            b"EVALSHA", script.shas[modern], b"%d" % len(keys), *keys, *args, script=script.texts[modern]
        )

    async def describe(self) -> ServerFacts:
        """The facts about the server, as far as it tells; StoreUnavailable if it is away."""
        info = parse_info(await self._if_permitted(b"INFO") or b"")
        told = {}
        for name in ("maxmemory-policy", "maxmemory", "appendonly", "appendfsync"):
            told[name] = [v.decode() for v in await self._if_permitted(b"CONFIG", b"GET", name.encode()) or ()][1:]
        aof = {"0": "no", "1": "yes"}.get(info.get("aof_enabled", ""), UNKNOWN)
        return ServerFacts(
            version=info.get("redis_version", UNKNOWN),
            policy=(*told["maxmemory-policy"], info.get("maxmemory_policy", UNKNOWN))[0],
            maxmemory=(*told["maxmemory"], info.get("maxmemory", UNKNOWN))[0],
            appendonly=(*told["appendonly"], aof)[0],
            appendfsync=(*told["appendfsync"], UNKNOWN)[0],
        )

    async def _if_permitted(self, *args: bytes) -> Any:
        try:
            return await self.command(*args)
        except (NotPermitted, StoreBroken):  # by the ACL, or by a host that took the command away
            return None

    async def _prepare(self, wire: Wire) -> None:
        """Learn the version, refuse a replica, load the scripts."""
        try:
            info = parse_info(await wire.execute_command(b"INFO"))
        except NotPermitted:
            info = {}
        if info.get("role") == "slave":
            raise StoreUnavailable("it is a read-only replica")
        if info.get("cluster_enabled") == "1" and not self._in_cluster:
            raise StoreBroken("it is a node of a Redis Cluster: its URL must begin with redis+cluster://")
        major = info.get("redis_version", "0").partition(".")[0]
        self._modern = int(major.isdecimal() and int(major) >= 7)
        loads = [wire.execute_command(b"SCRIPT", b"LOAD", script.texts[self._modern]) for script in self._scripts]
        for loaded, outcome in await DeferredList(loads, consumeErrors=True):
            if not loaded and not outcome.check(NotPermitted):  # not permitted: EVAL will do, at the first use
                outcome.raiseException()

    @property
    def absence(self) -> str:
        """Why no command can be sent, as a sentence."""
        return f"{self._link.name} is not connected: {self._link.why}"

    def _away(self) -> Deferred[Reply]:
        return fail(StoreUnavailable(self.absence))
