"""A Redis Cluster with the interface of one `Connection`: a command goes to the node that has its key's slot.

A command that was not executed because its keys have moved (MOVED, ASK), are
being moved (TRYAGAIN), or because the cluster is replacing a lost node
(CLUSTERDOWN) is sent again, until `reply_timeout` after it was issued: then the
call fails, also if a reply is still to come. No command is executed twice by
that: if the connection breaks, the outcome is unknown, and the command is not
sent again.

Commands for one key are executed in the order in which they are issued, unless
one has to be sent again. A caller that needs the order of two commands
therefore awaits the first. Commands for different slots have no order.

The slot of a command is that of its first key. For PUBLISH the channel counts
as a key: the cluster passes messages on to all nodes, so that a subscription at
any node receives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from routemaster.config_types import write_address
from routemaster.errors import StoreUnavailable
from routemaster.redis.address import ClusterAddress, RedisAddress
from routemaster.redis.cluster_nodes import Absent, Node, Nodes
from routemaster.redis.cluster_slots import HostPort, slot_of
from routemaster.redis.connection import Connection, Script
from routemaster.redis.errors import NotNow, Redirected
from routemaster.redis.permissions import Rights
from routemaster.redis.protocol import Reply
from routemaster.util.backoff import backoff

REDIRECTIONS = 3  #: in a row that are followed without a pause
SHORTEST = 0.01   #: seconds before a command is sent again, growing ...
LONGEST = 0.08    #: ... up to this

Call = Callable[[Node, bool], Deferred[Reply]]  #: sends a command to a node, directly after ASKING if that is true


class AnyNode:
    """A `reconnect.Locator`: any connected node, another one each time. Its connection ends with the node."""

    def __init__(self, label: str, nodes: Nodes) -> None:
        self.label, self._nodes = label, nodes
        self._last: HostPort | None = None

    async def locate(self) -> RedisAddress:
        """A node that is connected, as far as is known; not the last one if there is another."""
        address = self._nodes.some(self._last)
        self._last = address.host, address.port
        return address

    async def moved(self, address: RedisAddress) -> str:
        """Return when the node has no slots any more."""
        await self._nodes.when_gone((address.host, address.port))
        return "its node has left the cluster, or lost its slots"


class Cluster:
    """The counterpart of `Connection`; see the head of the file.

    `on_up` is called when all nodes are connected, first and after one was
    not. `chance` returns numbers in [0, 1) for jitter.
    """

    def __init__(
        self,
        address: ClusterAddress,
        *,
        reactor: Any,
        chance: Callable[[], float],
        reply_timeout: float = 1.5,
        scripts: Iterable[Script] = (),
        rights: Rights | None = None,
        on_up: Callable[[], None] | None = None,
    ) -> None:
        self._clock, self._chance, self._reply_timeout = reactor, chance, reply_timeout
        self._nodes = Nodes(address, reactor, reply_timeout, scripts, rights, on_up, chance)
        self.address = AnyNode(address.label, self._nodes)  #: for `PubSub`

    def start(self) -> None:
        """Begin to connect. Raises ConfigError if the address names a file that cannot be used."""
        self._nodes.start()

    async def stop(self) -> None:
        """Refuse new commands, wait for those in flight (at most one reply time-out), disconnect."""
        await self._nodes.stop()

    @property
    def connected(self) -> bool:
        """Whether any node is connected: commands for its keys are served."""
        return self._nodes.connected

    def when_connected(self) -> Deferred[None]:
        """Fires when all nodes are connected. Can be cancelled; `stop` cancels it."""
        return self._nodes.when_whole()

    @property
    def nodes(self) -> Mapping[str, Connection]:
        """The nodes that have slots, by `host:port`."""
        return self._nodes.by_name()

    def node_of(self, key: bytes) -> str:
        """The name of the node that stores a key; empty if none is known."""
        node = self._nodes.owner(slot_of(key))
        return write_address(node) if node else ""

    def slot(self, key: bytes) -> int:
        """Keys of the same slot may be used in one command."""
        return slot_of(key)

    def command(self, *args: bytes) -> Deferred[Reply]:
        """The reply to a command, whose key is its first argument; fails like `Connection.command`."""

        def call(node: Node, asking: bool) -> Deferred[Reply]:
            if asking:
                node.command(b"ASKING").addErrback(_ignore)
            return node.command(*args)

        return self._send(slot_of(args[1]), call)

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Reply]:
        """The reply of a script, whose keys have the same slot; fails like `command`."""

        def call(node: Node, asking: bool) -> Deferred[Reply]:
            if asking:  # EVAL: ASKING would hold only for EVALSHA, not for the EVAL after NOSCRIPT
                node.command(b"ASKING").addErrback(_ignore)
                return node.evaluate(script, keys, args)
            return node.script(script, keys, args)

        return self._send(slot_of(keys[0]), call)

    def _send(self, slot: int, call: Call) -> Deferred[Reply]:
        limit = self._clock.seconds() + self._reply_timeout
        try:
            result = call(self._nodes.at(self._nodes.owner(slot)), False)
        except Absent as error:
            result = fail(error)
        return result.addErrback(self._failed, slot, call, limit)

    def _failed(self, failure: Failure, slot: int, call: Call, limit: float) -> Any:
        """The first try failed: send the command again if it was not executed and another try may succeed."""
        error = failure.value
        if isinstance(error, Redirected | NotNow | Absent):
            return Deferred.fromCoroutine(self._retry(error, slot, call, limit))
        if isinstance(error, StoreUnavailable):
            self._nodes.hurry()
        return failure

    async def _retry(self, error: Redirected | NotNow | Absent, slot: int, call: Call, limit: float) -> Reply:
        nodes = self._nodes
        node, asking = nodes.owner(slot), False
        for tries in count():
            if isinstance(error, Redirected):
                node, asking = nodes.follow(error, node), error.asking
            elif isinstance(error, NotNow):
                node, asking = nodes.owner(slot), False
            elif not nodes.is_new(node):
                nodes.hurry()
                raise error
            if tries >= REDIRECTIONS or not isinstance(error, Redirected):
                pause = backoff(tries + 1, SHORTEST, LONGEST, self._chance())
                left = max(0.0, limit - self._clock.seconds())
                await deferLater(self._clock, min(pause, left), lambda: None)
            if nodes.stopping or self._clock.seconds() >= limit:
                break
            try:
                reply = call(nodes.at(node), asking)
                return await reply.addTimeout(limit - self._clock.seconds(), self._clock, self._too_late)
            except (Redirected, NotNow, Absent) as another:
                error = another
        raise StoreUnavailable(f"{error}; retried until the reply time-out")

    def _too_late(self, _failure: object, _timeout: float) -> None:
        why = f"a node of the Redis Cluster did not reply within {self._reply_timeout:g} s, redirections included"
        raise StoreUnavailable(why, outcome_unknown=True)


def _ignore(_failure: Failure) -> None:
    """The command after an ASKING fails, too, and reports the error."""
