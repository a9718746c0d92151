"""A Redis Cluster with the face of one connection: each call goes to the node that has its keys' slot.

A call that was not executed, as its keys are another node's now (MOVED, ASK)
or are just being moved (TRYAGAIN), or as the cluster is making up its mind
about a lost node (CLUSTERDOWN), is sent again until `reply_timeout` since it
was issued is over. So no event comes twice by that. A call whose connection
broke is never sent again: its outcome is unknown, as ever.

Commands for one key go out in the order in which they are issued, as long as
none has to be sent again. So whoever needs two calls in order awaits the
first; calls for keys of different slots have no order anyway.

The slot of a call is that of its first key. The channel of PUBLISH stands for
a key: the cluster passes a message on to all its nodes, so that hints may be
listened for at any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable
from routemaster.redis.address import ClusterAddress, RedisAddress
from routemaster.redis.cluster_nodes import Absent, Node, Nodes, name_of
from routemaster.redis.cluster_slots import Position, slot_of
from routemaster.redis.connection import Connection, Script
from routemaster.redis.errors import NotNow, Redirected
from routemaster.redis.protocol import Reply

HOPS = 3          #: redirections in a row that are followed without a pause
SHORTEST = 0.01   #: seconds before a call is sent again, growing ...
LONGEST = 0.08    #: ... up to this, half as much more or less

Call = Callable[[Node, bool], Deferred[Reply]]  #: sends a call to a node, right behind ASKING if that is true


class Anywhere:
    """Whereabouts of any node that lives: each connection goes to another, and ends when its node leaves."""

    def __init__(self, label: str, nodes: Nodes) -> None:
        self.label, self._nodes = label, nodes
        self._last: Position | None = None

    def locator(self, reactor: object) -> Anywhere:
        """Itself."""
        return self

    async def locate(self) -> RedisAddress:
        """A node that lives, as far as is known; not the last one if there is another."""
        address = self._nodes.some(self._last)
        self._last = address.host, address.port
        return address

    async def moved(self, address: RedisAddress) -> str:
        """Return when nothing is heard at that node any more."""
        await self._nodes.when_gone((address.host, address.port))
        return "its node has left the cluster, or lost its slots"


class Cluster:
    """What `Connection` is for one Redis; see the head of the file.

    `on_up` is called whenever all nodes are connected after one was not;
    `chance` answers in [0, 1).
    """

    def __init__(
        self,
        address: ClusterAddress,
        *,
        reactor: Any,
        chance: Callable[[], float],
        reply_timeout: float = 1.5,
        scripts: Iterable[Script] = (),
        on_up: Callable[[], None] | None = None,
    ) -> None:
        self._clock, self._chance, self._patience = reactor, chance, reply_timeout
        self._nodes = Nodes(address, reactor, reply_timeout, scripts, on_up)
        self.address = Anywhere(address.label, self._nodes)  #: where hints can be listened for

    def start(self) -> None:
        """Begin to connect; ConfigError if the address cannot be used at all."""
        self._nodes.start()

    async def stop(self) -> None:
        """Refuse new calls, let those under way finish (at most one reply time-out), close."""
        await self._nodes.stop()

    @property
    def connected(self) -> bool:
        """Whether any node is connected: what lies there is served, whatever became of the others."""
        return self._nodes.connected

    def when_connected(self) -> Deferred[None]:
        """Fires once all nodes are connected. Can be cancelled; `stop` cancels it."""
        return self._nodes.when_whole()

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The nodes that have slots, by `host:port`."""
        return self._nodes.by_name()

    def place(self, key: bytes) -> str:
        """The name of the node that keeps a key; empty if nobody is known to."""
        place = self._nodes.owner(slot_of(key))
        return name_of(place) if place else ""

    def slot(self, key: bytes) -> int:
        """Keys of equal slots may go in one call."""
        return slot_of(key)

    def command(self, *args: bytes) -> Deferred[Reply]:
        """The reply to a command, whose key follows its name; fails as a `Connection` does."""

        def call(node: Node, asking: bool) -> Deferred[Reply]:
            if asking:
                node.command(b"ASKING").addErrback(_ignore)
            return node.command(*args)

        return self._send(slot_of(args[1]), call)

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Reply]:
        """The reply of a script, whose keys lie in one slot; fails like `command`."""

        def call(node: Node, asking: bool) -> Deferred[Reply]:
            if asking:  # as text: the answer NOSCRIPT would use the ASKING up
                node.command(b"ASKING").addErrback(_ignore)
                return node.evaluate(script, keys, args)
            return node.script(script, keys, args)

        return self._send(slot_of(keys[0]), call)

    def _send(self, slot: int, call: Call) -> Deferred[Reply]:
        limit = self._clock.seconds() + self._patience
        try:
            answer = call(self._nodes.at(self._nodes.owner(slot)), False)
        except Absent as error:
            answer = fail(error)
        return answer.addErrback(self._failed, slot, call, limit)

    def _failed(self, failure: Failure, slot: int, call: Call, limit: float) -> Any:
        """The first try failed: if it was not executed, and that may change soon, there are others."""
        trouble = failure.value
        if isinstance(trouble, Redirected | NotNow | Absent):
            return Deferred.fromCoroutine(self._again(trouble, slot, call, limit))
        if isinstance(trouble, StoreUnavailable):
            self._nodes.hurry()
        return failure

    async def _again(
        self, trouble: Redirected | NotNow | Absent, slot: int, call: Call, limit: float
    ) -> Reply:
        nodes = self._nodes
        place, asking = nodes.owner(slot), False
        for tries in count():
            if isinstance(trouble, Redirected):
                place, asking = nodes.follow(trouble, place), trouble.asking
            elif isinstance(trouble, NotNow):
                place, asking = nodes.owner(slot), False
            elif not nodes.is_new(place):
                nodes.hurry()
                raise trouble
            if tries >= HOPS or not isinstance(trouble, Redirected):
                await self._pause(tries)
            if nodes.stopping or self._clock.seconds() >= limit:
                break
            try:
                return await call(nodes.at(place), asking)
            except (Redirected, NotNow, Absent) as error:
                trouble = error
        raise StoreUnavailable(f"{trouble}; it was tried again until the time was over")

    def _pause(self, tries: int) -> Deferred[None]:
        pause = min(LONGEST, SHORTEST * 2.0 ** min(tries, 10)) * (0.5 + self._chance())
        return deferLater(self._clock, pause, lambda: None)


def _ignore(_failure: Failure) -> None:
    """The command behind an ASKING fails with it, and tells."""
