"""Private Redis Clusters for tests: primaries and replicas on loopback, gone without a trace.

A cluster takes some two seconds to agree that it is one, so tests share it:
`shared_cluster(binary)` gives one of three primaries for the whole run, which
each test flushes first. Slots are moved as `redis-cli --cluster reshard` does.
"""

from __future__ import annotations

import atexit
import random
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import hiredis

from routemaster.redis.address import ClusterAddress, parse
from routemaster.redis.cluster_slots import SLOTS
from routemaster.redis.server_info import parse_info
from routemaster.testing.redis_server import START_LIMIT, PrivateRedis, ServerBinary

LOOPBACK = "127.0.0.1"
NODE_TIMEOUT = 1000  #: milliseconds after which a silent node counts as lost
BUS = 10_000         #: the nodes talk to each other on the port that is so much higher
PORTS = range(11_000, 22_000)  #: both below those that the system gives to outgoing connections
TRIES = 20


class ClusterNode(PrivateRedis):
    """One node; what holds for a `PrivateRedis` holds for it, `restart` and `pause` too.

    With options of TLS among `args` (`--tls-cert-file` and others), the port speaks
    TLS to clients and to the other nodes.
    """

    def __init__(self, binary: ServerBinary, port: int, *args: str) -> None:
        self.port = port
        tls = ("--tls-cluster", "yes", "--tls-replication", "yes", "--port", "0", "--tls-port")
        super().__init__(
            binary, *(tls if "--tls-cert-file" in args else ["--port"]), str(port),
            "--bind", LOOPBACK, "--cluster-enabled", "yes", "--cluster-config-file",
            "nodes.conf", "--cluster-node-timeout", str(NODE_TIMEOUT), "--cluster-require-full-coverage", "no",
            "--cluster-replica-validity-factor", "0", "--repl-diskless-sync", "yes",
            "--repl-diskless-sync-delay", "0", *args,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """As the bus calls it."""
        return f"{LOOPBACK}:{self.port}"

    def ask(self, *args: object) -> Any:
        """The reply to one command, of any length; RuntimeError for an error."""
        reader = hiredis.Reader()
        words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        with self.dial() as connection:
            connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))
            while (reply := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionResetError
                reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise RuntimeError(f"{self.name} answers {args[:3]!r} with {reply}")
        return reply

    @property
    def id(self) -> str:
        """The node's name in the cluster."""
        return str(self.ask("CLUSTER", "MYID").decode())


def start_node(binary: ServerBinary, *args: str) -> ClusterNode:
    """A running node with ports of its own, which knows of no other yet."""
    for _ in range(TRIES):
        port = random.choice(PORTS)  # noqa: S311
        if _is_free(port) and _is_free(port + BUS):
            node = ClusterNode(binary, port, *args)
            try:
                node.start()
            except RuntimeError:  # somebody was faster
                node.stop()
            else:
                return node
    raise RuntimeError("no free ports for a node of a cluster were found")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class PrivateCluster:
    """A cluster of one's own; `replicas` for each primary. Further `args` go to each node."""

    def __init__(self, binary: ServerBinary, primaries: int = 3, replicas: int = 0, *args: str) -> None:
        self.binary, self.args = binary, args
        self._primaries, self._replicas = primaries, replicas
        self.nodes: list[ClusterNode] = []  #: primaries first; replica k serves primary k modulo their number

    @property
    def url(self) -> str:
        """The URL that names all nodes there were at the start."""
        return "redis+cluster://" + ",".join(node.name for node in self.nodes)

    @property
    def address(self) -> ClusterAddress:
        """The same, parsed."""
        return cast(ClusterAddress, parse(self.url))

    def start(self) -> None:
        """Start the nodes, share the slots out, return when all nodes agree."""
        count = self._primaries
        for _ in range(count * (1 + self._replicas)):
            self.nodes.append(self.new_node())
        bounds = [SLOTS * index // count for index in range(count + 1)]
        for index, node in enumerate(self.nodes[:count]):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.ask("CLUSTER", "ADDSLOTS", *range(bounds[index], bounds[index + 1]))
        for node in self.nodes[1:]:
            self._meet(node)
        self.until(self._agreed)
        for index, node in enumerate(self.nodes[count:]):
            node.ask("CLUSTER", "REPLICATE", self.nodes[index % count].id)
        for node in self.nodes[count:]:
            self.until(partial(_follows, node))

    def new_node(self) -> ClusterNode:
        """A running node, for this cluster."""
        return start_node(self.binary, *self.args)

    def add(self) -> ClusterNode:
        """One more primary, without slots."""
        node = self.new_node()
        self._meet(node)
        self.nodes.append(node)
        self.until(self._agreed)
        return node

    def _meet(self, node: ClusterNode) -> None:
        for other in self.nodes:
            if other is not node:
                other.ask("CLUSTER", "MEET", LOOPBACK, node.port)

    def _agreed(self) -> bool:
        for node in self.nodes:
            told = parse_info(node.ask("CLUSTER", "INFO"))
            if told["cluster_state"] != "ok" or int(told["cluster_known_nodes"]) != len(self.nodes):
                return False
            if int(told["cluster_slots_assigned"]) != SLOTS or b"handshake" in node.ask("CLUSTER", "NODES"):
                return False
        return True

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, blocking, until the condition holds."""
        limit = time.monotonic() + START_LIMIT
        while not condition():
            if time.monotonic() > limit:
                raise RuntimeError("\n".join(node.log[-2000:] for node in self.nodes))
            time.sleep(0.02)

    # -- slots

    def holder(self, slot: int) -> ClusterNode:
        """The node that has a slot, by the first that answers."""
        for first, last, (_host, port, *_), *_replicas in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise RuntimeError(f"nobody has slot {slot}")

    def move(self, slot: int, target: ClusterNode) -> None:
        """Move a slot with all its keys while it is in use."""
        source = self.open_move(slot, target)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                self.move_key(key, source, target)
        self.close_move(slot, target)

    def open_move(self, slot: int, target: ClusterNode) -> ClusterNode:
        """Begin to move a slot; the node that has it until now."""
        source = self.holder(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_key(self, key: bytes, source: ClusterNode, target: ClusterNode) -> None:
        """Move one key of a slot that is being moved."""
        source.ask("MIGRATE", LOOPBACK, target.port, key, 0, 5000)

    def close_move(self, slot: int, target: ClusterNode) -> None:
        """The slot is moved: tell all primaries, the new one first."""
        primaries = [node for node in self.nodes if _replication(node)["role"] == "master"]
        for node in (target, *(node for node in primaries if node is not target)):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def cancel_move(self, slot: int) -> None:
        """The slot stays where it is."""
        self.call(b"CLUSTER", b"SETSLOT", b"%d" % slot, b"STABLE")

    # -- all nodes

    def call(self, *args: bytes) -> None:
        """The same command to every node."""
        for node in self.nodes:
            node.ask(*args)

    def flush(self) -> None:
        """Delete all keys."""
        self.call(b"FLUSHALL")

    def stop(self) -> None:
        """End all nodes at once, and remove what they leave; harmless when repeated."""
        for node in self.nodes:
            node.stop()


def _follows(node: ClusterNode) -> bool:
    return _replication(node).get("master_link_status") == "up"


def _replication(node: ClusterNode) -> dict[str, str]:
    return parse_info(node.ask("INFO", "replication"))


_shared: dict[str, PrivateCluster] = {}


def shared_cluster(binary: ServerBinary) -> PrivateCluster:
    """The one cluster of this binary for the whole run, three primaries, running and empty; ended at exit."""
    cluster = _shared.get(binary.path)
    if cluster is None:
        cluster = _shared[binary.path] = PrivateCluster(binary)
        atexit.register(cluster.stop)
        cluster.start()
    cluster.flush()
    return cluster
