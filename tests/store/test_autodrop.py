"""Autodrop: when it drops events, how many, and what it logs."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.errors import StoreUnavailable
from routemaster.model import StoreStats, Subscription
from routemaster.redis.connection import Connection
from routemaster.store.autodrop import Autodrop, Marks, marks
from routemaster.store.memory_store import MemoryStore
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from tests.store.reading import read


class MarksTests(SynchronousTestCase):
    """The marks."""

    def test_marks(self) -> None:
        """The marks follow from the configured limit, else from Redis's own."""
        for given, expected in (
            ((1000, 100, True, 0), Marks(1000, 800, 900)),
            ((1000, 100, False, 0), Marks(1000, 800, 900)),
            ((1000, 100, True, 500), Marks(1000, 800, 900)),
            ((1000, 100, False, 5000), Marks(5000, 4800, 4900)),
            ((1000, 100, False, 500), Marks(500, 400, 450)),
        ):
            self.assertEqual(marks(*given), expected, given)

    def test_nearness(self) -> None:
        """Nearness is 0 up to the low mark, 1 at the high one, and goes on beyond; 0 or 1 where these are one."""
        for used, nearness in ((0, 0.0), (800, 0.0), (850, 0.5), (900, 1.0), (1000, 2.0)):
            self.assertEqual(marks(1000, 100, True, 0).nearness(used), nearness, used)
        for used, nearness in ((999, 0.0), (1000, 0.0), (1001, 1.0)):
            self.assertEqual(marks(1000, 0, True, 0).nearness(used), nearness, used)


class SizedStore(MemoryStore):
    """A memory store that uses a hundred bytes for an event, beside other data, and has no limit of its own."""

    others = 0

    async def stats(self) -> list[StoreStats]:
        return [StoreStats(await self.log_bytes() + self.others, 0, 0.0, 0.0)]

    async def log_bytes(self, node: str = "") -> int:
        return 100 * sum(len(topic.log) for topic in self._topics.values())


class AutodropTests(SynchronousTestCase):
    """Autodrop on a memory store."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.store = SizedStore(self.clock, 10.0)
        self.lines: list[tuple[LogLevel, str]] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith(("routemaster.store.autodrop", "routemaster.store.losses")):
            self.lines.append((event["log_level"], event["log_format"].format(**event)))

    def fill(self, events: int) -> None:
        async def publish() -> None:
            if not await self.store.topics():
                await self.store.publish("cats", "pub", [b"first"])
                for name in ("one--secret", "two"):
                    await self.store.subscribe(Subscription(name, ("cats",), "https://localhost/"))
            for _ in range(events):
                await self.store.publish("cats", "pub", [b"x"])

        self.successResultOf(Deferred.fromCoroutine(publish()))

    def autodrop(self) -> Autodrop:
        # memory for 10,000 events, 1,000 of it to be kept free: marks at 8,000 and 9,000 events
        return Autodrop(self.store, 1_000_000, 100_000, True)

    def run_once(self, autodrop: Autodrop | None = None) -> None:
        self.successResultOf(Deferred.fromCoroutine((autodrop or self.autodrop()).run()))

    def queued(self) -> list[int]:
        return [fact.queued for fact in self.successResultOf(Deferred.fromCoroutine(self.store.subscriptions()))]

    def test_below_the_high_mark(self) -> None:
        """At the high mark nothing is dropped; above half the way to it a warning is logged."""
        self.fill(9000)
        self.run_once()
        self.assertEqual(self.queued(), [9000, 9000])
        self.assertEqual([level for level, _ in self.lines], [LogLevel.warn])

    def test_below_the_warning(self) -> None:
        """Below half the way from the low mark to the high one nothing is logged."""
        self.fill(8500)
        self.run_once()
        self.assertEqual(self.lines, [])

    def test_drops_to_the_low_mark(self) -> None:
        """Above the high mark the oldest events are dropped down to the low mark, at most one step more."""
        self.fill(9001)
        self.run_once()
        for queued in self.queued():
            self.assertLessEqual(queued, 8000)
            self.assertGreater(queued, 8000 - 500)

    def test_losses_are_logged(self) -> None:
        """The events that each subscriber lost are logged with its public name only."""
        self.fill(9001)
        self.run_once()
        lost = 9001 - self.queued()[0]
        lines = [line for level, line in self.lines if level is LogLevel.error]
        self.assertIn(f"autodrop: one lost {lost} events", lines)
        self.assertIn(f"autodrop: two lost {lost} events", lines)
        self.assertNotIn("secret", " ".join(lines))

    def test_other_data(self) -> None:
        """If other data fill Redis, only what the bus grows by is dropped; an error names their size."""
        for before, others, grown, left in (
            (8000, 0, 500, 8500),  # below the high mark
            (500, 840_000, 0, 500),  # below the high mark
            (4000, 799_900, 0, 1),  # without events at the low mark
            (4000, 800_100, 0, 4000),
            (4000, 900_000, 900, 4000),
            (10, 2_000_000, 0, 10),
            (10, 2_000_000, 3000, 10),
        ):
            self.setUp()
            self.fill(before)
            self.store.others = others
            autodrop = self.autodrop()
            self.run_once(autodrop)
            self.fill(grown)
            for _ in range(3):
                self.run_once(autodrop)
            with self.subTest(before=before, others=others, grown=grown):
                for queued in self.queued():
                    self.assertTrue(left - 500 < queued <= left)
                errors = [line for _, line in self.lines if f"of which {others} are no events" in line]
                self.assertEqual(len(errors), others > 800_000 and before * 100 + others > 900_000)

    def test_warning_before_other_data_fill_redis(self) -> None:
        """If other data are at fault, no line says that events are dropped; each line comes once."""
        autodrop, warn, error = self.autodrop(), LogLevel.warn, LogLevel.error
        self.fill(100)
        for others, levels in (
            (840_000, []), (850_000, [warn]), (850_000, []), (900_000, [error]), (850_000, []), (900_000, []),
            (100_000, []), (850_000, [warn]), (900_000, [error]),
        ):  # fmt: skip
            self.store.others = others
            self.lines.clear()
            self.run_once(autodrop)
            self.assertEqual([level for level, _ in self.lines], levels, others)
            for _, line in self.lines:
                self.assertIn(str(others), line)
                self.assertNotIn("oldest events", line)
        self.assertEqual(self.queued(), [100, 100])

    def test_grown_over_the_mark(self) -> None:
        """If Redis was below the high mark at the last check, what the bus has grown by since then is dropped."""
        self.fill(500)
        self.store.others = 840_000
        autodrop = self.autodrop()
        self.run_once(autodrop)
        self.assertEqual(self.queued(), [500, 500])
        self.fill(1000)
        self.run_once(autodrop)
        self.assertEqual(self.queued(), [500, 500])

    def test_nothing_is_left(self) -> None:
        """If the estimate was wrong, and no event is left above the mark, an error says so once."""
        self.fill(9001)

        async def always_full() -> list[StoreStats]:
            return [StoreStats(999_999, 0, 0.0, 0.0)]

        self.patch(self.store, "stats", always_full)
        self.run_once()
        self.assertEqual(self.queued(), [0, 0])
        self.assertEqual(len([line for _, line in self.lines if "no event is left to drop" in line]), 1)

    def test_drops_before_a_failure(self) -> None:
        """If the store fails half-way, the events dropped until then are logged."""
        self.fill(9001)
        drop, calls = self.store.drop_oldest, []

        async def failing(most: int, node: str) -> Any:
            if calls:
                raise StoreUnavailable("gone")
            calls.append(most)
            return await drop(most, node)

        self.patch(self.store, "drop_oldest", failing)
        autodrop = Autodrop(self.store, 1_000_000, 100_000, True)
        self.failureResultOf(Deferred.fromCoroutine(autodrop.run()), StoreUnavailable)
        self.assertTrue([line for _, line in self.lines if "removed 500 events" in line])


class FullRedisContract:
    """Autodrop on a Redis that has reached its maxmemory."""

    binary: ServerBinary

    async def setUp(self) -> None:
        self.server = PrivateRedis(self.binary)
        self.server.start()
        self.addCleanup(self.server.stop)
        self.connection = Connection(
            self.server.address, reactor=reactor, scripts=SCRIPTS.values(), reply_timeout=15
        )
        self.connection.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.connection.stop()))
        await self.connection.when_connected()
        self.store = RedisStore(self.connection, "rm", 10.0)

    async def test_full_redis(self) -> None:
        """Two at once free memory of a full Redis; each event is counted once, and the rest is in order."""
        for topic in ("cats", "dogs"):
            await self.store.publish(topic, "pub", [b"first"])
        await self.store.subscribe(Subscription("sub", ("cats", "dogs"), "https://localhost/"))
        empty = (await self.store.stats())[0].bytes_used
        limit = empty + 12_000_000
        self.server.call(b"CONFIG", b"SET", b"maxmemory", b"%d" % limit)
        published = 0
        with self.assertRaises(StoreUnavailable):
            while True:
                fragments = [b'{"n":%08d,"pad":"%s"}' % (n, b"x" * 200) for n in range(published, published + 200)]
                await self.store.publish(("cats", "dogs")[published // 200 % 2], "pub", fragments)
                published += 200
        droppers = [Autodrop(self.store, limit, 2_000_000, True) for _ in range(2)]
        await gatherResults([Deferred.fromCoroutine(dropper.run()) for dropper in droppers])
        self.assertLess((await self.store.stats())[0].bytes_used, limit - 2_000_000)
        fact = (await self.store.subscriptions())[0]
        self.assertGreater(fact.dropped, 0)
        self.assertEqual(fact.dropped + fact.queued, published)
        reading = await read(self.store, "sub", {"cats": None, "dogs": None}, 10_000_000, 1 << 40)
        left = [int(fragment[5:13]) for _, _, fragment in reading.entries]
        self.assertEqual(left, list(range(fact.dropped, published)))
        await self.store.publish("cats", "pub", [b"after"])

    async def test_other_data(self) -> None:
        """Other keys that fill Redis cost no event, and the error names their bytes, nearly."""
        await self.store.publish("cats", "pub", [b"first"])
        await self.store.subscribe(Subscription("sub", ("cats",), "https://localhost/"))
        for _ in range(50):
            await self.store.publish("cats", "pub", [b"x" * 200] * 100)
        others = 20_000_000
        for number in range(200):
            self.server.call(b"SET", b"other%d" % number, b"x" * (others // 200))
        lines: list[str] = []
        globalLogPublisher.addObserver(observer := lambda event: lines.append(formatEvent(event)))
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        autodrop = Autodrop(self.store, 20_000_000, 1_000_000, True)
        await autodrop.run()
        (error,) = [line for line in lines if "no events of this bus" in line]
        named = int(error.split("of which ")[1].split()[0])
        self.assertTrue(others < named < others * 1.3, error)
        self.assertEqual([(fact.queued, fact.dropped) for fact in await self.store.subscriptions()], [(5000, 0)])
        await self.store.publish("cats", "pub", [b"x" * 200] * 1000)
        await autodrop.run()
        (fact,) = await self.store.subscriptions()
        self.assertTrue(4000 <= fact.queued <= 5000, fact)
        self.assertEqual(len([line for line in lines if "no events of this bus" in line]), 1)

    async def test_own_limit_is_used(self) -> None:
        """Redis's own maxmemory sets the marks if no limit is configured."""
        self.server.call(b"CONFIG", b"SET", b"maxmemory", b"50000000")
        figures = await self.store.stats()
        found = Autodrop(self.store, 100_000_000, 10_000_000, False).marks(figures[0])
        self.assertEqual(found, Marks(50_000_000, 40_000_000, 45_000_000))


for binary in servers():
    name = f"Redis{binary.version.replace('.', '_')}AutodropTests"
    globals()[name] = type(
        name,
        (FullRedisContract, TestCase),
        {"binary": binary, "__doc__": f"Autodrop on Redis {binary.version}.", "__module__": __name__},
    )
