"""The bus on a Redis Cluster under load: slots that move, nodes that are added and killed."""

from __future__ import annotations

import re

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from routemaster.redis.cluster_slots import slot_of
from routemaster.store.keys import Keys
from routemaster.testing.daemon import Client, Daemon
from routemaster.testing.redis_cluster import ClusterNode, PrivateCluster, shared_cluster
from routemaster.testing.redis_server import servers
from tests.system.test_system import BATCH, Load, Sink, SystemCase, stretched, until

TOPICS = ("ants", "bats", "cats", "dogs", "eels", "fish")
KEYS = Keys("rm")
TTL = 4.0     #: seconds that a lease lasts
OUTAGE = 8.0  #: seconds in which a lost node must have been replaced; the cluster itself needs some 2


def topic_slot(topic: str) -> int:
    return slot_of(KEYS.topic(topic)[0])


def subscriber_slot(subscriber: str) -> int:
    return slot_of(KEYS.lease(subscriber))


def counted(node: ClusterNode, what: str) -> int:
    """How often a node has replied with an error, or executed a command."""
    section = "commandstats" if what.startswith("cmdstat") else "errorstats"
    found = re.search(rf"{what}:(?:calls|count)=(\d+)", node.ask("INFO", section).decode())
    return int(found[1]) if found else 0


def replicated(primary: ClusterNode) -> tuple[int, int]:
    """The replication offset of a primary, and that which its replica has confirmed."""
    told = primary.ask("INFO", "replication").decode()
    numbers = (re.search(rf"{name}(\d+)", told) for name in ("master_repl_offset:", "slave0:.*offset="))
    written, kept = (int(number[1]) if number else -1 for number in numbers)
    return written, kept


class ClusterCase(SystemCase):
    """A bus on a cluster, and a subscriber to topics on all nodes."""

    def cluster(self, primaries: int = 3, replicas: int = 0) -> PrivateCluster:
        cluster = PrivateCluster(servers()[0], primaries, replicas)
        self.addCleanup(cluster.stop)
        cluster.start()
        return cluster

    async def bus(self, cluster: PrivateCluster, *options: str) -> tuple[Daemon, Client, Sink]:
        daemon = self.daemon("--redis-url", cluster.url, "--redis-timeout", "1.5", *options)
        await daemon.start()
        client, sink = self.client(daemon), self.sink()
        await self.make_topics(client, *TOPICS)
        await self.ok(client.subscribe(sink.url, *TOPICS, uuid="u", timeout=50, max=BATCH))
        return daemon, client, sink

    async def load(self, client: Client) -> Load:
        load = Load(client, TOPICS, publishers=1)
        self.addCleanup(load.stop)
        await load.further(60)
        return load

    def spread(self, cluster: PrivateCluster) -> dict[ClusterNode, list[str]]:
        """The topics of each node."""
        found: dict[ClusterNode, list[str]] = {}
        for topic in TOPICS:
            found.setdefault(cluster.holder(topic_slot(topic)), []).append(topic)
        return found


class ClusterTests(ClusterCase):
    """No event is lost, delivered twice or out of order."""

    async def test_topics_on_all_nodes(self) -> None:
        """Events of topics on three nodes arrive in the order of their acceptance, also after a restart."""
        cluster = shared_cluster(servers()[0])
        self.assertEqual(len(self.spread(cluster)), 3)
        daemon, client, sink = await self.bus(cluster)
        for n in range(120):
            await self.ok(client.publish(TOPICS[n % len(TOPICS)], n))
        await until(lambda: len(sink.numbers) >= 120, "all events")
        self.assertEqual(sink.numbers, list(range(120)))
        self.assertIn("the Redis Cluster has 3 primaries", daemon.log)
        self.assertEqual(await daemon.stop(), 0)
        await daemon.start()
        await self.ok(client.publish("cats", 120))
        await until(lambda: len(sink.numbers) >= 121, "the event after the restart")
        self.assertEqual(sink.numbers, list(range(121)))
        (subscription,) = (await self.ok(client.ask("GET", "/subscriptions"), 200)).json
        self.assertEqual(subscription["events"]["sent"], 121)
        self.assertEqual(await daemon.stop(), 0)

    async def test_a_node_more(self) -> None:
        """Slots move to a fourth node under load without a failed request."""
        cluster = self.cluster()
        daemon, client, sink = await self.bus(cluster)
        load = await self.load(client)
        fourth = await deferToThread(cluster.add)
        for topic in TOPICS[:3]:
            await self.move_while_used(cluster, load, topic_slot(topic), fourth)
        await self.move_while_used(cluster, load, subscriber_slot("demo"), fourth)
        before = counted(fourth, "cmdstat_evalsha")
        await load.further(120)
        self.assertEqual(set(self.spread(cluster)[fourth]), set(TOPICS[:3]))
        self.assertGreater(counted(fourth, "cmdstat_evalsha") - before, 30, "it carries its share")
        self.assertEqual((load.refused, load.unknown), (set(), set()), "no publish fails")
        self.assertEqual(await self.settle(load, sink), 0, "and nothing comes twice")
        self.assertIn("the Redis Cluster has 4 primaries", daemon.log)
        for error in ("ASK", "TRYAGAIN", "MOVED"):
            self.assertGreater(sum(counted(node, f"errorstat_{error}") for node in cluster.nodes), 0, error)
        self.assertEqual(await daemon.stop(), 0)

    async def move_while_used(
        self, cluster: PrivateCluster, load: Load, slot: int, target: ClusterNode
    ) -> None:
        """Move a slot, with requests at each stage."""
        source = cluster.open_move(slot, target)
        await load.further(10)
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            cluster.move_key(key, source, target)
            await load.further(2)
        await load.further(5)
        cluster.close_move(slot, target)
        await load.further(10)

    async def test_a_node_dies(self) -> None:
        """When a node is killed its replica takes over: every request has its response in time."""
        cluster = self.cluster(replicas=1)
        daemon, client, sink = await self.bus(cluster, "--lease-ttl", "3")
        load = await self.load(client)
        victim = cluster.nodes[0]
        topics = self.spread(cluster)[victim]
        await load.stop()
        # what a primary had not passed on when it died would be lost: Redis promises no more
        written = replicated(victim)[0]
        await until(lambda: replicated(victim)[1] >= written, "the replica has everything")
        victim.kill()
        died = reactor.seconds()
        again = Load(client, TOPICS, publishers=1, first=1)
        self.addCleanup(again.stop)
        await until(lambda: set(topics) <= {topic for topic, *_ in again.accepted}, "the replica serves", OUTAGE)
        healed = reactor.seconds() - died
        await again.further(60)
        self.assertLess(again.slowest, stretched(2.5), "no request waits for long")
        again.accepted |= load.accepted
        await self.settle(again, sink, faults=1)
        self.assertLess(healed, stretched(OUTAGE))
        self.assertEqual(await daemon.stop(), 0)

    async def test_a_node_without_a_replica_dies(self) -> None:
        """While a node is lost its topics are refused, and those of other nodes are served."""
        cluster = self.cluster()
        daemon, client, sink = await self.bus(cluster, "--lease-ttl", str(TTL))
        places = self.spread(cluster)
        stay = cluster.holder(subscriber_slot("demo"))
        away = next(node for node in places if node is not stay)
        lost, kept = places[away][0], places[stay][0]
        await self.ok(client.subscribe(sink.url, kept, timeout=0))
        away.kill()
        killed, n = reactor.seconds(), 0
        while reactor.seconds() < killed + 2 * TTL:
            await self.ok(client.publish(kept, n))
            n += 1
            await until(lambda: len(sink.numbers) >= n, "what lies elsewhere is delivered")  # noqa: B023
        answer = await client.publish(lost, 0)
        self.assertEqual((answer.status, answer.json.get("outcome")), (503, None))
        away.start()
        while answer.status != 204:
            self.assertLess(reactor.seconds(), killed + 2 * TTL + stretched(OUTAGE), answer)
            answer = await client.publish(lost, 0)
        self.assertEqual(sink.numbers, list(range(n)))
        self.assertNotIn("lost the lease", daemon.log)
