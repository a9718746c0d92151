"""The connection to one Redis: commands, scripts, and the settings of the server.

One pipelined connection, kept open by a `Reconnector`. Commands are executed
in the order in which they are issued. None is queued: while Redis is
unavailable a command fails at once and is not executed. If the connection
breaks, or a reply takes longer than `reply_timeout`, the commands in flight
fail with `outcome_unknown`. No command is repeated, except a script that Redis
does not have.

On Redis 7 and Valkey a script begins with `#!lua`: without the flag `allow-oom`
it is then refused as a whole when memory is full. Redis 6.2 does not know that
line. So a `Script` has two texts; the version in the server's INFO decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha1
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.logger import Logger

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis.errors import NotPermitted
from routemaster.redis.permissions import Rights
from routemaster.redis.protocol import RedisProtocol, Reply
from routemaster.redis.reconnect import Address, Reconnector
from routemaster.redis.server_info import SETTINGS, ServerSettings, parse_info, server_settings


def _sha(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


@frozen
class Script:
    """A Lua script. `flags` are those of its `#!lua` line: "" for none, None for a script without the line."""

    name: str
    body: bytes
    flags: str | None = ""
    texts: tuple[bytes, bytes] = field(init=False, repr=False)  #: for Redis 6.2; for Redis 7 and later
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

    `reply_timeout` in seconds is for each command. `scripts` are loaded on each
    new connection; `rights` are what its user must be allowed to do. `on_up` and
    `on_down` are called when commands can be sent, and when they no longer can.
    `chance` returns numbers in [0, 1) for jitter.

    `slot`, `node_of` and `nodes` exist because `cluster.Cluster` has them: one
    Redis is like a cluster of one node, whose name is empty.
    """

    _log = Logger()
    _in_cluster = False

    def __init__(
        self,
        address: Address,
        *,
        reactor: Any,
        reply_timeout: float = 1.5,
        scripts: Iterable[Script] = (),
        rights: Rights | None = None,
        on_up: Callable[[], None] | None = None,
        on_down: Callable[[], None] | None = None,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.address = address
        self._scripts, self._rights = tuple(scripts), rights
        self._lacking: list[str] = []  # the optional rights that were last logged as missing
        self._modern = 0  # index of the text of a script that this server runs
        self._reconnector = Reconnector(
            address, reactor=reactor, chance=chance, purpose="commands", on_up=on_up, on_down=on_down,
            prepare=self._prepare, build=lambda name: RedisProtocol(name, reply_timeout, reactor),
        )  # fmt: skip

    def start(self) -> None:
        """Begin to connect. Raises ConfigError if the address names a file that cannot be used."""
        self._reconnector.start()

    async def stop(self) -> None:
        """Refuse new commands, wait for those in flight (at most one reply time-out), disconnect."""
        await self._reconnector.stop()

    @property
    def connected(self) -> bool:
        """Whether a command would be sent now."""
        return self._reconnector.up

    def when_connected(self) -> Deferred[None]:
        """Fires when a command can be sent. Can be cancelled; `stop` cancels it."""
        return self._reconnector.when_up()

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The servers that store the data, by name."""
        return {"": self}

    def node_of(self, key: bytes) -> str:
        """The name of the node that stores a key."""
        return ""

    def slot(self, key: bytes) -> int:
        """Keys of the same slot may be used in one command."""
        return 0

    def command(self, *args: bytes) -> Deferred[Reply]:
        """The reply to a command: bytes, int, None, or a list of these.

        Fails with StoreUnavailable, StoreBroken or ScriptRefusal, also for an
        error inside a list. Do not use commands that block.
        """
        protocol = self._reconnector.protocol
        return self._unavailable() if protocol is None else protocol.execute_command(*args)

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Reply]:
        """The reply of a script; fails like `command`."""
        protocol = self._reconnector.protocol
        if protocol is None:
            return self._unavailable()
        modern = self._modern
        return protocol.execute_command(
            b"EVALSHA", script.shas[modern], b"%d" % len(keys), *keys, *args, script=script.texts[modern]
        )

    async def describe(self) -> ServerSettings:
        """Version and settings of the server, as far as the ACL permits; StoreUnavailable without a connection."""
        info = parse_info(await self._if_permitted(b"INFO") or b"")
        replies = {name: await self._if_permitted(b"CONFIG", b"GET", name.encode()) for name in SETTINGS}
        return server_settings(info, {name: reply[1].decode() for name, reply in replies.items() if reply})

    async def _if_permitted(self, *args: bytes) -> Any:
        try:
            return await self.command(*args)
        except (NotPermitted, StoreBroken):  # denied by the ACL, or removed by a hosting service
            return None

    async def _prepare(self, protocol: RedisProtocol) -> None:
        """Check the rights, read the version, refuse a replica, load the scripts."""
        if self._rights is not None:
            lacking, before = await self._rights.check(protocol), self._lacking
            self._lacking, name = lacking, self._reconnector.name
            for line in [line for line in lacking if line not in before]:
                self._log.warn("the user of {redis} lacks an optional right: {right}", redis=name, right=line)
        try:
            info = parse_info(await protocol.execute_command(b"INFO"))
        except NotPermitted:
            info = {}
        if info.get("role") == "slave":
            raise StoreUnavailable("it is a read-only replica")
        if info.get("cluster_enabled") == "1" and not self._in_cluster:
            raise StoreBroken("it is a node of a Redis Cluster: its URL must begin with redis+cluster://")
        major = info.get("redis_version", "0").partition(".")[0]
        self._modern = int(major.isdecimal() and int(major) >= 7)
        loads = [
            protocol.execute_command(b"SCRIPT", b"LOAD", script.texts[self._modern]) for script in self._scripts
        ]
        for loaded, outcome in await DeferredList(loads, consumeErrors=True):
            if not loaded and not outcome.check(NotPermitted):  # not permitted: EVAL loads it at the first use
                outcome.raiseException()

    @property
    def absence(self) -> str:
        """Why no command can be sent, as a sentence."""
        return f"{self._reconnector.name} is not connected: {self._reconnector.reason}"

    def _unavailable(self) -> Deferred[Reply]:
        return fail(StoreUnavailable(self.absence))
