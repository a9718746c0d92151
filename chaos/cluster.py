"""The Redis Cluster under test: three primaries with append-only files, TLS, a user with few rights, and links.

With links each node announces the ports of proxies instead of its own, to the
bus and to the other nodes. The nodes connect to each other from IP addresses of
their own, by which the proxies know them: so all traffic of one node can be cut.
"""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import trustme
from twisted.internet.endpoints import TCP4ClientEndpoint

from chaos.link import Gate, Link, Network
from routemaster.redis.server_info import parse_info
from routemaster.testing.redis_cluster import BUS, LOOPBACK, ClusterNode, PrivateCluster, start_node
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers

OPERATIONS = Path(__file__).resolve().parent.parent / "docs" / "operations.rst"
NODES = 3


def minimal_user() -> list[str]:
    """The rule for the bus's user that docs/operations.rst gives, with what a cluster needs besides."""
    found = re.search(r"ACL SETUSER (routemaster on .*?)\n\n", OPERATIONS.read_text(), re.DOTALL)
    assert found is not None
    return [*found[1].split(), "+cluster|slots", "+asking"]


def has_tls(binary: ServerBinary) -> bool:
    """Whether the server was built with TLS."""
    server = PrivateRedis(binary, "--tls-port", "0")
    try:
        server.start()
    except RuntimeError:
        return False
    finally:
        server.stop()
    return True


class ClusterWithFaults(PrivateCluster):
    """The cluster, a `RedisUnderTest`; with `tls` its ports speak TLS only."""

    def __init__(self, fsync: str, tls: bool) -> None:
        binary = servers()[0]
        if tls and not has_tls(binary):
            raise RuntimeError(f"{binary.path} has no TLS")
        self._folder = Path(tempfile.mkdtemp(prefix="rm-"))
        self._roots = self._folder / "roots"
        self._tls = tls
        self._gates: list[Gate] = []                        #: for clients, of each node
        self._bus_gates: list[Gate] = []                    #: for other nodes, of each node
        self._client_links: list[Link] = []                 #: likewise
        self._node_links: dict[tuple[int, int], Link] = {}  #: from one node to another
        options = ("--appendonly", "yes", "--appendfsync", fsync, "--user", *minimal_user())
        super().__init__(binary, NODES, 0, *options, *(self._certificate() if tls else ()))

    def _certificate(self) -> list[str]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self._roots)
        own = str(self._folder / "own")
        authority.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(own)
        return ["--tls-cert-file", own, "--tls-key-file", own, "--tls-ca-cert-file", str(self._roots),
                "--tls-auth-clients", "no"]  # fmt: skip

    @property
    def url(self) -> str:
        """As the option `redis_url` names it."""
        ports = [gate.port for gate in self._gates] or [node.port for node in self.nodes]
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in ports)
        user = "routemaster:PASSWORD"
        if self._tls:
            return f"rediss+cluster://{user}@{hosts}?ca_file={self._roots}"
        return f"redis+cluster://{user}@{hosts}"

    def new_node(self) -> ClusterNode:
        """A node that connects from an address of its own."""
        own = _source(len(self.nodes))
        source = ("--bind-source-addr", own) if self.binary.modern else ()  # before, it was the first of `bind`
        binding = ("--bind", own, LOOPBACK, *source, "--cluster-announce-ip", LOOPBACK)
        return start_node(self.binary, *self.args, *binding)

    # -- as a Redis under test

    def choose(self, chance: random.Random) -> ClusterNode:
        """One node."""
        return chance.choice(self.nodes)

    def start(self) -> None:
        """Start the cluster, or those of its nodes that do not run."""
        if not self.nodes:
            super().start()
        for node in self.nodes:
            if not node.running:
                node.start()

    def kill(self) -> None:
        """SIGKILL to all nodes."""
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        """SIGSTOP to all nodes."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """SIGCONT to all nodes."""
        for node in self.nodes:
            node.resume()

    def ready(self) -> bool:
        """Whether every node serves its slots, and is connected to the others at the ports that they announce."""
        for node in self.nodes:
            table = [line.split() for line in node.ask("CLUSTER", "NODES").decode().splitlines()]
            if any(words[2] not in ("master", "myself,master") or words[7] != "connected" for words in table):
                return False
            if {int(words[1].split("@")[1].split(",")[0]) for words in table} != {*self._bus_ports()}:
                return False
            if parse_info(node.ask("CLUSTER", "INFO"))["cluster_state"] != "ok":
                return False
        return True

    def stop(self) -> None:
        """End all nodes, and remove what they leave."""
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- links

    def insert_links(self, reactor: Any) -> Network:
        """Put proxies before all nodes; `ready` tells when the nodes have found each other again."""
        nodes = range(len(self.nodes))

        def link(node: ClusterNode, port: int) -> Link:
            return Link(reactor, TCP4ClientEndpoint(reactor, LOOPBACK, node.port + port))

        self._client_links = [link(node, 0) for node in self.nodes]
        self._node_links = {(one, other): link(self.nodes[other], BUS) for one in nodes for other in nodes}
        self._gates = [Gate(reactor, lambda _, each=each: each) for each in self._client_links]  # type: ignore[misc]
        sources = {_source(index): index for index in nodes}
        self._bus_gates = [
            Gate(reactor, lambda host, node=node: self._node_links[sources[host], node])  # type: ignore[misc]
            for node in nodes
        ]
        for node, gate, bus_gate in zip(self.nodes, self._gates, self._bus_gates, strict=True):
            port = "--cluster-announce-tls-port" if self._tls else "--cluster-announce-port"
            node.args += (port, str(gate.port), "--cluster-announce-bus-port", str(bus_gate.port))
            node.restart()
        gates = [*self._gates, *self._bus_gates]
        return Network(gates, self._client_links, list(self._node_links.values()))

    def _bus_ports(self) -> list[int]:
        return [gate.port for gate in self._bus_gates] or [node.port + BUS for node in self.nodes]

    def links_of(self, node: ClusterNode) -> list[Link]:
        """All links of a node: from the bus, and from and to the other nodes."""
        own = self.nodes.index(node)
        return [self._client_links[own], *(link for pair, link in self._node_links.items() if own in pair)]


def _source(index: int) -> str:
    """The IP address from which a node connects to others."""
    return f"127.0.0.{2 + index}"
