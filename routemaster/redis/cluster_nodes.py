"""The nodes of a Redis Cluster: which primary has which slot, and a connection to each.

The table of slots is copied from any node: every few seconds, and at once when
a node redirects a command or is lost; never twice at the same time, and with a
pause in between. A primary that gets slots is connected to; one without slots
is disconnected. Replicas are not used: `Connection` refuses them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from routemaster.config_types import write_address
from routemaster.errors import StoreUnavailable
from routemaster.redis.address import ClusterAddress, RedisAddress
from routemaster.redis.cluster_slots import HostPort, SlotMap, parse_slots
from routemaster.redis.connection import Connection, Script
from routemaster.redis.dial import endpoint, temporary_connection
from routemaster.redis.errors import Redirected
from routemaster.redis.permissions import Rights
from routemaster.redis.protocol import Reply

REFRESH = 5.0          #: seconds between copies of the table while all nodes are connected ...
REFRESH_BROKEN = 0.25  #: ... while one is not
LEAST = 0.1            #: ... and at least, however often one is requested
FIRST_CONTACT = 1.0    #: seconds for which a node that was just learnt of counts as new
KEEP = 10.0            #: seconds for which a node without slots is kept after a redirection to it


class Absent(StoreUnavailable):
    """There is no connection to the node: the command was not sent."""


class Node(Connection):
    """The connection to one primary."""

    _in_cluster = True

    def __init__(self, address: RedisAddress, now: float, **options: Any) -> None:
        super().__init__(address, **options)
        self.created = self.named = now  #: when it was learnt of; when a redirection last named it
        self.met = False                 #: whether it has ever been connected

    def evaluate(self, script: Script, keys: Iterable[bytes], args: Iterable[bytes]) -> Deferred[Reply]:
        """The reply of a script that is sent as text."""
        keys = tuple(keys)
        return self.command(b"EVAL", script.texts[self._modern], b"%d" % len(keys), *keys, *args)


class Nodes:
    """The connections of one process to the primaries of one cluster.

    `on_up` is called when all are connected, first and after one was not.
    """

    _log = Logger()

    def __init__(
        self,
        address: ClusterAddress,
        reactor: Any,
        reply_timeout: float,
        scripts: Iterable[Script],
        rights: Rights | None,
        on_up: Callable[[], None] | None,
        chance: Callable[[], float],
    ) -> None:
        self._address, self._clock, self._chance = address, reactor, chance
        self._reply_timeout, self._scripts, self._rights = reply_timeout, tuple(scripts), rights
        self._on_up = on_up
        self.name = f"Redis Cluster at {address.label}"
        self._slots = SlotMap()
        self._nodes: dict[HostPort, Node] = {}
        self._primaries: set[HostPort] = set()   #: the nodes that have slots
        self._reason = "it has not been started"  #: why the owner of a slot is not known, a clause
        self._logged = ""
        self._whole = self._stopping = self._hurried = False
        self._loop: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._leaving: list[tuple[HostPort, Deferred[None]]] = []  #: results of `when_gone`
        self._closing: set[Deferred[None]] = set()
        self._turn = count()

    def start(self) -> None:
        """Begin to connect. Raises ConfigError if the address names a file that cannot be used."""
        endpoint(self._address.seeds[0], self._clock)
        self._reason = "no node has been reached yet"
        self._loop = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Wait for the replies to the commands in flight, then disconnect for good."""
        self._stopping, self._reason = True, "it was stopped"
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await loop
        for node in self._nodes.values():
            self._close(node)
        await DeferredList(list(self._closing))
        for waiter in list(self._waiters):
            waiter.cancel()

    def when_whole(self) -> Deferred[None]:
        """Fires when all nodes are connected, at once if they are."""
        if self._whole:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def when_gone(self, node: HostPort) -> Deferred[None]:
        """Fires when a new table of slots does not contain the node. Can be cancelled."""
        entry: tuple[HostPort, Deferred[None]] = node, Deferred(lambda _: self._leaving.remove(entry))
        self._leaving.append(entry)
        return entry[1]

    # -- known nodes

    @property
    def connected(self) -> bool:
        """Whether any node is connected."""
        return any(node.connected for node in self._nodes.values())

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def by_name(self) -> Mapping[str, Connection]:
        """The nodes that have slots."""
        return {write_address(each): self._nodes[each] for each in sorted(self._primaries)}

    def owner(self, slot: int) -> HostPort | None:
        """The node that has a slot, as far as is known."""
        return self._slots.owner(slot)

    def at(self, host_port: HostPort | None) -> Node:
        """The connection to a node; raises Absent if it is not connected."""
        node = self._nodes.get(host_port) if host_port else None
        if node is None:
            raise Absent(f"{self.name} has no node for these keys: {self._reason}")
        if not node.connected:
            raise Absent(node.absence)
        return node

    def is_new(self, host_port: HostPort | None) -> bool:
        """Whether the node was just learnt of, so that it may be connected soon."""
        node = self._nodes.get(host_port) if host_port else None
        return node is not None and not node.met and self._clock.seconds() < node.created + FIRST_CONTACT

    def some(self, but: HostPort | None) -> RedisAddress:
        """The address of a connected node, or of a seed; not `but` if there is another."""
        connected = [each for each in sorted(self._primaries) if self._nodes[each].connected]
        choice = connected or [(seed.host, seed.port) for seed in self._address.seeds]
        others = [each for each in choice if each != but] or choice
        return self._address.node(*others[next(self._turn) % len(others)])

    def follow(self, redirection: Redirected, asked: HostPort | None) -> HostPort:
        """The node to which the node `asked` redirects; MOVED also corrects the table of slots."""
        target = redirection.host or (asked[0] if asked else ""), redirection.port
        self._open(target).named = self._clock.seconds()
        if not redirection.asking:
            self._slots.move(redirection.slot, target)
            self.hurry()
        return target

    def hurry(self) -> None:
        """Copy the table of slots soon: something has changed."""
        self._check()
        self._hurried = True
        if self._pause is not None:
            self._pause.cancel()

    # -- connections

    def _open(self, host_port: HostPort) -> Node:
        node = self._nodes.get(host_port)
        if node is None:
            node = self._nodes[host_port] = Node(
                self._address.node(*host_port), self._clock.seconds(), reactor=self._clock, chance=self._chance,
                reply_timeout=self._reply_timeout, scripts=self._scripts, rights=self._rights,
                on_up=self._check, on_down=self.hurry,
            )  # fmt: skip
            node.start()
        return node

    def _close(self, node: Node) -> None:
        closing = Deferred.fromCoroutine(node.stop())
        self._closing.add(closing)
        closing.addBoth(lambda _: self._closing.discard(closing))

    def _arrange(self) -> None:
        """Connect to each node that has slots, and disconnect the others."""
        primaries, before = self._slots.nodes(), self._primaries
        for each in primaries:
            self._open(each)
        self._primaries = primaries
        if primaries != before:
            names = ", ".join(write_address(each) for each in sorted(primaries))
            self._log.info("the Redis Cluster has {count} primaries: {names}", count=len(primaries), names=names)
            for each, gone in [entry for entry in self._leaving if entry[0] not in primaries]:
                self._leaving.remove((each, gone))
                gone.callback(None)
        kept = self._clock.seconds() - KEEP
        for each in [p for p, node in self._nodes.items() if p not in primaries and node.named < kept]:
            self._close(self._nodes.pop(each))
        self._check()

    def _check(self) -> None:
        """Fire `on_up` and `when_whole` if all nodes are connected and were not before."""
        for node in self._nodes.values():
            node.met = node.met or node.connected
        was = self._whole
        self._whole = bool(self._primaries) and all(self._nodes[each].connected for each in self._primaries)
        if was or not self._whole:
            return
        if self._on_up is not None:
            with self._log.failuresHandled("a callback of the Redis Cluster failed"):
                self._on_up()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    # -- the table of slots

    async def _run(self) -> None:
        while not self._stopping:
            self._hurried = False
            await self._refresh()
            with suppress(CancelledError):  # by stop
                await deferLater(self._clock, LEAST, lambda: None)
            if not self._hurried and not self._stopping:
                interval = REFRESH if self._whole else REFRESH_BROKEN
                self._pause = deferLater(self._clock, interval - LEAST, lambda: None)
                with suppress(CancelledError):
                    await self._pause
                self._pause = None

    async def _refresh(self) -> None:
        """Copy the table from the first node that returns it."""
        reason = "no node is known"
        for host_port, query in self._sources():
            try:
                found = parse_slots(await query(), host_port[0])
            except Exception as error:  # whatever prevents a reply
                if self._stopping:
                    return
                reason = f"{write_address(host_port)}: {str(error) or type(error).__name__}"
            else:
                self._logged = ""
                self._slots.copy(found)
                self._arrange()
                return
        self._reason = f"no node returns the table of slots ({reason})"
        if reason != self._logged:
            self._logged = reason
            self._log.warn("no node of the {redis} returns its table of slots: {why}", redis=self.name, why=reason)

    def _sources(self) -> Iterator[tuple[HostPort, Callable[[], Awaitable[Reply]]]]:
        """Connected nodes in turn, then all other known nodes."""
        connected = [(each, node) for each, node in sorted(self._nodes.items()) if node.connected]
        first = next(self._turn) % max(1, len(connected))
        for each, node in (*connected[first:], *connected[:first]):
            yield each, partial(node.command, b"CLUSTER", b"SLOTS")
        others = {(seed.host, seed.port): seed for seed in self._address.seeds}
        others |= {each: self._address.node(*each) for each in self._nodes}
        for each, address in others.items():
            yield each, partial(self._query, address)

    async def _query(self, address: RedisAddress) -> Reply:
        """CLUSTER SLOTS on a connection of its own, because the node may be a replica."""
        name = f"Redis at {address.label}"
        async with temporary_connection(address, name, self._clock, self._reply_timeout) as redis:
            return await redis.execute_command(b"CLUSTER", b"SLOTS")
