"""How topics spread over the nodes of a Redis Cluster, and how much load an added node takes over.

    PYTHONPATH=. python bench/cluster.py [--topics 60] [--seconds 4]

One process publishes to all topics through the store (no HTTP, a call for
each event) to a cluster of three primaries on loopback, then a fourth is
added and a quarter of the slots that hold topics is moved there under load.
On one machine the nodes share its processors: the figures show where the load
goes, not what a further machine adds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import product
from string import ascii_lowercase
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from routemaster.redis.cluster import Cluster
from routemaster.redis.cluster_slots import slot_of
from routemaster.store.keys import Keys
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.testing.redis_cluster import PrivateCluster
from routemaster.testing.redis_server import servers

KEYS = Keys("rm")


def names(count: int) -> Iterator[str]:
    for index, letters in enumerate(product(ascii_lowercase, repeat=2)):
        if index == count:
            return
        yield "topic_" + "".join(letters)


def calls(cluster: PrivateCluster) -> Counter[str]:
    """Script calls executed by each node."""
    found: Counter[str] = Counter()
    for node in cluster.nodes:
        for line in node.ask("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_evalsha:calls="):
                found[node.name] = int(line.partition("=")[2].partition(",")[0])
    return found


async def load(reactor: Any, store: RedisStore, topics: list[str], seconds: float) -> int:
    """Publish to all topics at once, one call after the other for each; how many were accepted."""
    end, accepted = reactor.seconds() + seconds, 0

    async def publish(topic: str) -> None:
        nonlocal accepted
        while reactor.seconds() < end:
            await store.publish(topic, "bench", [b"x" * 100])
            accepted += 1

    await gatherResults([Deferred.fromCoroutine(publish(topic)) for topic in topics])
    return accepted


async def measure(reactor: Any, options: argparse.Namespace, cluster: PrivateCluster) -> None:
    connection = Cluster(cluster.address, reactor=reactor, chance=lambda: 0.5, scripts=SCRIPTS.values())
    connection.start()
    await connection.when_connected()
    store, topics = RedisStore(connection, "rm", 10.0), list(names(options.topics))
    await load(reactor, store, topics, 0.1)

    async def show(what: str, moving: Any = None) -> None:
        before = calls(cluster)
        running = Deferred.fromCoroutine(load(reactor, store, topics, options.seconds))
        if moving is not None:
            await moving
        accepted = await running
        parts = calls(cluster) - before
        spread = Counter(connection.node_of(KEYS.topic(topic)[0]) for topic in topics)
        print(f"{what}: {accepted / options.seconds:,.0f} publications/s")
        for node in cluster.nodes:
            share = parts[node.name] / max(1, sum(parts.values()))
            print(f"    {node.name}  {spread[node.name]:3} topics  {share:6.1%} of the calls")

    await show("three nodes")
    fourth = await deferToThread(cluster.add)
    slots = [slot_of(KEYS.topic(topic)[0]) for topic in topics[:: 4]]

    def move() -> None:
        for slot in slots:
            cluster.move(slot, fourth)

    await show("a quarter of the topics moves to a fourth", deferToThread(move))
    await show("four nodes")
    await connection.stop()


async def main(reactor: Any, options: argparse.Namespace) -> None:
    cluster = PrivateCluster(servers()[0])
    try:
        cluster.start()
        await measure(reactor, options, cluster)
    finally:
        cluster.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="topics over the nodes of a Redis Cluster")
    parser.add_argument("--topics", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, arguments)))
