"""The base of the store's tests: each runs on the memory store, on every Redis version at hand, and on a cluster.

A test file writes classes of `StoreTests` and adds what `on_every_store`,
`on_redis` or `on_clusters` make of them to its globals: one TestCase for each store.
"""

from __future__ import annotations

import itertools
from collections.abc import Coroutine, Iterable
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from routemaster.interfaces import Ack, LeaseGrant
from routemaster.model import Subscription
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.redis.pubsub import PubSub
from routemaster.store import commands
from routemaster.store.keys import Keys
from routemaster.store.memory_store import MemoryStore
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.testing.redis_cluster import PrivateCluster, shared_cluster
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers, shared
from tests.store.reading import read

TTL = 10.0  #: seconds that a lease lasts
KINDS = ("sent", "queued", "expired", "skipped", "parked", "dropped")


def subscription(*topics: str, subscriber: str = "sub", **options: Any) -> Subscription:
    return Subscription(subscriber, topics, "https://localhost/events", **options)


class StoreTests:
    """Tests of one store, and short forms of its calls."""

    store: Any
    received: list[bytes]  #: hints

    async def hinted(self, hint: bytes, since: int) -> None:
        """Wait until a hint comes after the first so many; those of other nodes may come between them."""
        while hint not in self.received[since:]:
            count = len(self.received)
            self.assertGreater(len(await self.hints(count + 1)), count, hint)  # type: ignore[attr-defined]

    async def publish(self, topic: str, *fragments: bytes, publisher: str = "pub") -> Any:
        return await self.store.publish(topic, publisher, fragments)

    async def create(self, *topics: str) -> None:
        for topic in topics:
            await self.publish(topic, b"before")

    async def read(self, *topics: str, subscriber: str = "sub", most: int = 100, after: Any = None) -> Any:
        after = after or {}
        wanted = {topic: after.get(topic) for topic in topics}
        return await read(self.store, subscriber, wanted, most, 1 << 30)

    async def fragments(self, *topics: str, **options: Any) -> list[bytes]:
        return [fragment for _, _, fragment in (await self.read(*topics, **options)).entries]

    async def grant(self, subscriber: str = "sub", worker: str = "w1") -> LeaseGrant:
        grant = await self.store.acquire(subscriber, worker)
        self.assertIsInstance(grant, LeaseGrant)
        return grant

    async def deliver(self, *topics: str, most: int = 100, subscriber: str = "sub") -> list[bytes]:
        """Read and acknowledge one batch, as a worker would."""
        grant = await self.grant(subscriber)
        result = await self.read(*topics, most=most, subscriber=subscriber)
        last = {topic: entry_id for topic, entry_id, _ in result.entries}
        cursors = {topic: result.positions[topic].cursor for topic in last}
        acks = [
            Ack(topic, cursors[topic].membership, entry, rewinds=cursors[topic].rewinds)
            for topic, entry in last.items()
        ]
        await self.store.acknowledge(subscriber, "w1", grant.epoch, acks)
        return [fragment for _, _, fragment in result.entries]

    async def facts(self, subscriber: str = "sub") -> Any:
        found = [f for f in await self.store.subscriptions() if f.subscription.subscriber == subscriber]
        return found[0] if found else None

    async def books(self, added: int, subscriber: str = "sub", **counts: int) -> None:
        """Each of the events that were ever to be delivered is counted once, as these counts say."""
        facts = await self.store.subscription(subscriber)
        self.assertEqual(facts, await self.facts(subscriber))
        found = {kind: getattr(facts, kind) for kind in KINDS}
        self.assertEqual(found, dict.fromkeys(KINDS, 0) | counts)
        self.assertEqual((facts.added, sum(found.values())), (added, added))

    async def refused(self, error: type[Exception], call: Coroutine[Any, Any, Any]) -> Exception:
        return await self.assertFailure(Deferred.fromCoroutine(call), error)


class OnMemory:
    """The memory store."""

    def setUp(self) -> None:
        self.clock, self.received = Clock(), []
        self.clock.advance(1_700_000_000)
        self.store = MemoryStore(self.clock, TTL, self.received.append)

    async def hints(self, count: int) -> list[bytes]:
        return self.received

    async def set_clock(self, by: int) -> None:
        """Set the store's clock ahead by so many seconds."""
        self.clock.rightNow += by

    def freeze_clock(self) -> None:
        """Let all calls from now on happen in one microsecond."""
        now = self.store._now()
        self.patch(self.store, "_now", lambda: now)  # type: ignore[attr-defined]

    async def leftovers(self) -> list[object]:
        return [*self.store._topics, *self.store._subscribers, *self.store._leases]


class OnRedis:
    """One Redis."""

    binary: ServerBinary
    server: PrivateRedis | PrivateCluster
    connection: Connection | Cluster
    namespace = "rm"

    def connect(self) -> None:
        """Start the server, if it does not run yet, and make a connection to it."""
        self.server = shared(self.binary)
        self.connection = Connection(self.server.address, reactor=reactor, scripts=SCRIPTS.values())

    async def setUp(self) -> None:
        self.connect()
        self.connection.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.connection.stop()))
        await self.connection.when_connected()
        self.store = RedisStore(self.connection, self.namespace, TTL)
        self.received: list[bytes] = []
        self.waiting: list[tuple[int, Deferred[None]]] = []  #: by number of hints
        listening: Deferred[None] = Deferred()
        wakeups = PubSub(
            self.connection.address,
            Keys(self.namespace).wakeups,
            reactor=reactor,
            on_message=self.on_message,
            on_up=lambda: listening.callback(None),
        )
        wakeups.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(wakeups.stop()))
        await listening

    def on_message(self, message: bytes) -> None:
        self.received.append(message)
        for count, enough in self.waiting:
            if len(self.received) == count:
                enough.callback(None)

    async def hints(self, count: int) -> list[bytes]:
        if len(self.received) < count:
            enough: Deferred[None] = Deferred()
            self.waiting.append((count, enough))
            await enough.addTimeout(5, reactor)
        return self.received

    ahead = 0  #: seconds by which the clock that the scripts see is ahead

    async def set_clock(self, by: int) -> None:
        """Set the clock ahead by so many seconds.

        Redis's clock cannot be set: the scripts are changed to see another
        time, and the time to live of every key that expires is changed.
        """
        self.ahead += by
        self.change_scripts(b"now[1] * 1000000", b"(now[1] + %d) * 1000000" % self.ahead)
        for node in self.connection.nodes.values():
            for key in await node.command(b"KEYS", b"*"):
                left = await node.command(b"PTTL", key)
                if left >= 0:
                    await node.command(b"PEXPIRE", key, b"%d" % (left - by * 1000))

    def freeze_clock(self) -> None:
        """Let all calls from now on happen in one microsecond."""
        self.change_scripts(b"now[1] * 1000000 + now[2]", b"%d" % (reactor.seconds() * 1e6))  # type: ignore[attr-defined]

    def change_scripts(self, old: bytes, new: bytes) -> None:
        changed = {
            name: evolve(script, body=script.body.replace(old, new)) for name, script in SCRIPTS.items()
        }
        self.assertFalse([name for name, script in changed.items() if script == SCRIPTS[name]])  # type: ignore[attr-defined]
        self.patch(commands, "SCRIPTS", changed)  # type: ignore[attr-defined]

    async def leftovers(self) -> list[object]:
        keys = await gatherResults([node.command(b"KEYS", b"*") for node in self.connection.nodes.values()])
        return [key for some in keys for key in some if not key.endswith((b":tokens_version", b"tokens}:log"))]


class OnCluster(OnRedis):
    """A Redis Cluster."""

    runs = itertools.count()

    def connect(self) -> None:
        # hints of the test before may still be on their way from node to node
        self.namespace = f"rm{next(self.runs)}"
        self.keys = Keys(self.namespace)
        self.server = shared_cluster(self.binary)
        self.connection = Cluster(
            self.server.address, reactor=reactor, chance=lambda: 0.5, scripts=SCRIPTS.values()
        )


def _cases(tests: type, stores: Iterable[tuple[str, type, dict[str, Any]]]) -> dict[str, type]:
    made = {}
    for store, base, attributes in stores:
        name = f"{store}{tests.__name__}"
        about = {"__doc__": f"{tests.__doc__} On: {store}.", "__module__": tests.__module__}
        made[name] = type(name, (tests, base, TestCase), {**attributes, **about})
    return made


def _servers(kind: str, base: type) -> list[tuple[str, type, dict[str, Any]]]:
    return [(f"{kind}{binary.version.replace('.', '_')}", base, {"binary": binary}) for binary in servers()]


def on_clusters(tests: type) -> dict[str, type]:
    """Test cases by name: these tests on a cluster of each Redis version."""
    return _cases(tests, _servers("Cluster", OnCluster))


def on_redis(tests: type) -> dict[str, type]:
    """Test cases by name: these tests on one Redis and on a cluster of each version."""
    return _cases(tests, _servers("Redis", OnRedis)) | on_clusters(tests)


def on_every_store(tests: type) -> dict[str, type]:
    """Test cases by name: these tests on the memory store, and on Redis."""
    return _cases(tests, [("Memory", OnMemory, {})]) | on_redis(tests)
