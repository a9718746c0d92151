"""The nodes of a Redis Cluster: which primary has which slot, and a connection to each.

The map of slots is copied from whatever node answers: every few seconds, and
at once when a node redirects a call or is lost; never more than one look at a
time, with a pause between two. A node that comes to have slots is connected
to, one that has none any more is left. Replicas are never written to: a
`Connection` refuses them.
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

from routemaster.errors import StoreUnavailable
from routemaster.redis.address import ClusterAddress, RedisAddress
from routemaster.redis.cluster_slots import Position, SlotMap, owners
from routemaster.redis.connection import Connection, Script
from routemaster.redis.errors import Redirected
from routemaster.redis.protocol import Reply, Wire
from routemaster.redis.reconnect import OneWire

REFRESH = 5.0        #: seconds between looks at the slots while all is well ...
UNEASY = 0.25        #: ... while a node is missing
LEAST = 0.1          #: ... and at the least, however often somebody wants one
FIRST_CONTACT = 1.0  #: seconds in which a node that has just been learnt of counts as new
KEEP = 10.0          #: seconds for which a node that has no slot is kept after it was named


class Absent(StoreUnavailable):
    """There is no connection to the node: nothing was sent."""


class Node(Connection):
    """The connection to one primary."""

    _in_cluster = True

    def __init__(self, address: RedisAddress, born: float, **options: Any) -> None:
        super().__init__(address, **options)
        self.born = self.named = born  #: when it was learnt of, and when last named in a redirection
        self.met = False               #: whether it has ever been connected

    def evaluate(self, script: Script, keys: Iterable[bytes], args: Iterable[bytes]) -> Deferred[Reply]:
        """The reply of a script that is sent as text."""
        keys = tuple(keys)
        return self.command(b"EVAL", script.texts[self._modern], b"%d" % len(keys), *keys, *args)


class Nodes:
    """The connections of one process to the primaries of one cluster.

    `on_up` is called when all are connected, after one was not.
    """

    _log = Logger()

    def __init__(
        self,
        address: ClusterAddress,
        reactor: Any,
        reply_timeout: float,
        scripts: Iterable[Script],
        on_up: Callable[[], None] | None,
    ) -> None:
        self._address, self._clock = address, reactor
        self._reply_timeout, self._scripts = reply_timeout, tuple(scripts)
        self._on_up = on_up
        self.name = f"Redis Cluster at {address.label}"
        self._map = SlotMap()
        self._nodes: dict[Position, Node] = {}
        self._places: set[Position] = set()  #: of the nodes that have slots
        self._why = "it has not been started"  #: why nothing is known of a slot, one clause
        self._told = ""
        self._whole = self._stopping = self._hurried = False
        self._loop: Deferred[None] | None = None
        self._nap: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._leaving: list[tuple[Position, Deferred[None]]] = []  #: who wants to know when a node goes
        self._closing: set[Deferred[None]] = set()
        self._turn = count()

    def start(self) -> None:
        """Begin to look; ConfigError if the address cannot be used at all."""
        self._address.seeds[0].endpoint(self._clock)  # reads the trust roots, if there are any
        self._why = "no node has been reached yet"
        self._loop = Deferred.fromCoroutine(self._keep())

    async def stop(self) -> None:
        """Let the commands under way finish, close, and connect no more."""
        self._stopping, self._why = True, "it was stopped"
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

    def when_gone(self, place: Position) -> Deferred[None]:
        """Fires when the nodes with slots change, and none at this place is among them. Can be cancelled."""
        entry: tuple[Position, Deferred[None]] = place, Deferred(lambda _: self._leaving.remove(entry))
        self._leaving.append(entry)
        return entry[1]

    # -- who there is

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
        return {name_of(place): self._nodes[place] for place in sorted(self._places)}

    def owner(self, slot: int) -> Position | None:
        """The node that has a slot, as far as is known."""
        return self._map.owner(slot)

    def at(self, place: Position | None) -> Node:
        """The node at a place; raises Absent if it is not connected."""
        node = self._nodes.get(place) if place else None
        if node is None:
            raise Absent(f"{self.name} has no node for these keys: {self._why}")
        if not node.connected:
            raise Absent(node.absence)
        return node

    def is_new(self, place: Position | None) -> bool:
        """Whether the node has just been learnt of, and so may be connected any moment."""
        node = self._nodes.get(place) if place else None
        return node is not None and not node.met and self._clock.seconds() < node.born + FIRST_CONTACT

    def some(self, but: Position | None) -> RedisAddress:
        """The address of a node that lives as far as is known, of another one than `but` if possible."""
        living = [place for place in sorted(self._places) if self._nodes[place].connected]
        places = living or [(seed.host, seed.port) for seed in self._address.seeds]
        others = [place for place in places if place != but] or places
        return self._address.node(*others[next(self._turn) % len(others)])

    def follow(self, redirection: Redirected, asked: Position | None) -> Position:
        """Where a node sends us; what that tells about the slots is noted."""
        place = redirection.host or (asked[0] if asked else ""), redirection.port
        self._open(place).named = self._clock.seconds()
        if not redirection.asking:
            self._map.move(redirection.slot, place)
            self.hurry()
        return place

    def hurry(self) -> None:
        """Look at the slots soon: something has changed."""
        self._check()
        self._hurried = True
        if self._nap is not None:
            self._nap.cancel()

    # -- connections

    def _open(self, place: Position) -> Node:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Node(
                self._address.node(*place), self._clock.seconds(), reactor=self._clock,
                reply_timeout=self._reply_timeout, scripts=self._scripts, on_up=self._check, on_down=self.hurry,
            )  # fmt: skip
            node.start()
        return node

    def _close(self, node: Node) -> None:
        closing = Deferred.fromCoroutine(node.stop())
        self._closing.add(closing)
        closing.addBoth(lambda _: self._closing.discard(closing))

    def _arrange(self) -> None:
        """Have a connection to each node that has slots, and to no others."""
        places, before = self._map.places(), self._places
        for place in places:
            self._open(place)
        self._places = places
        if places != before:
            names = ", ".join(name_of(place) for place in sorted(places))
            self._log.info("the Redis Cluster has {count} primaries: {names}", count=len(places), names=names)
            for place, gone in [entry for entry in self._leaving if entry[0] not in places]:
                self._leaving.remove((place, gone))
                gone.callback(None)
        kept = self._clock.seconds() - KEEP
        for place in [p for p, node in self._nodes.items() if p not in places and node.named < kept]:
            self._close(self._nodes.pop(place))
        self._check()

    def _check(self) -> None:
        """See whether all nodes are connected, and tell those who wait for that."""
        for node in self._nodes.values():
            node.met = node.met or node.connected
        was = self._whole
        self._whole = bool(self._places) and all(self._nodes[place].connected for place in self._places)
        if was or not self._whole:
            return
        if self._on_up is not None:
            with self._log.failuresHandled("a listener of the Redis Cluster failed"):
                self._on_up()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    # -- looking

    async def _keep(self) -> None:
        while not self._stopping:
            self._hurried = False
            await self._look()
            with suppress(CancelledError):  # by stop
                await deferLater(self._clock, LEAST, lambda: None)
            if not self._hurried and not self._stopping:
                self._nap = deferLater(self._clock, (REFRESH if self._whole else UNEASY) - LEAST, lambda: None)
                with suppress(CancelledError):
                    await self._nap
                self._nap = None

    async def _look(self) -> None:
        """Copy the slots from the first node that tells."""
        why = "no node is known"
        for place, ask in self._sources():
            try:
                found = owners(await ask(), place[0])
            except Exception as error:  # any way of not getting an answer
                if self._stopping:
                    return
                why = f"{name_of(place)}: {str(error) or type(error).__name__}"
            else:
                self._told = ""
                self._map.copy(found)
                self._arrange()
                return
        self._why = f"nobody tells which has them ({why})"
        if why != self._told:
            self._told = why
            self._log.warn("no node of the {redis} tells its slots: {why}", redis=self.name, why=why)

    def _sources(self) -> Iterator[tuple[Position, Callable[[], Awaitable[Reply]]]]:
        """Whom to ask: connected nodes in turn, then whoever else is known."""
        connected = [(place, node) for place, node in sorted(self._nodes.items()) if node.connected]
        first = next(self._turn) % max(1, len(connected))
        for place, node in (*connected[first:], *connected[:first]):
            yield place, partial(node.command, b"CLUSTER", b"SLOTS")
        others = {(seed.host, seed.port): seed for seed in self._address.seeds}
        others |= {place: self._address.node(*place) for place in self._nodes}
        for place, address in others.items():
            yield place, partial(self._visit, address)

    async def _visit(self, address: RedisAddress) -> Reply:
        """Ask on a connection of its own, for the node may be a replica."""
        name = f"Redis at {address.label}"
        build = OneWire(lambda: Wire(name, self._reply_timeout, self._clock))
        endpoint: Any = address.endpoint(self._clock)
        wire = await endpoint.connect(build)
        try:
            if address.password is not None:
                await wire.execute_command(b"AUTH", *filter(None, (address.user,)), address.password)
            return await wire.execute_command(b"CLUSTER", b"SLOTS")
        finally:
            wire.give_up("it was closed by us")
            with suppress(CancelledError):
                await wire.when_lost()


def name_of(place: Position) -> str:
    """A node as people write it."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
