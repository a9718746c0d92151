"""Metrics: counting, totals, and the export to each metrics service."""

from __future__ import annotations

import json
from threading import Event
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from routemaster.config import load
from routemaster.errors import ConfigError, StoreBroken, StoreUnavailable
from routemaster.interfaces import Ack, Sample, Snapshot
from routemaster.metrics import statsd
from routemaster.metrics.catalogue import METRICS
from routemaster.metrics.datadog import Datadog, Refused
from routemaster.metrics.meter import BUCKETS, MAX_SERIES, Meter, bounds, parse_series, series
from routemaster.metrics.monitor import Monitor
from routemaster.metrics.printing import Printing
from routemaster.metrics.prometheus import exposition
from routemaster.metrics.reactor_lag import INTERVAL, ReactorLag
from routemaster.metrics.statsd import DATAGRAM, TTL, Statsd
from routemaster.model import StoreStats, Subscription
from routemaster.store.autodrop import Autodrop
from routemaster.store.memory_store import MemoryStore
from routemaster.util.chunks import PAUSE
from tests.store.reading import read

GAUGE = Sample("redis.bytes_used", 1393688, {})
COUNTER = Sample("events.published", 5, {"topic": "cats"})
SNAPSHOT = Snapshot([GAUGE], [COUNTER])


class MeterTests(SynchronousTestCase):
    """Counters of one process."""

    def test_counts_by_name_and_tags(self) -> None:
        """Counts with the same name and tags add up, whatever the order of the tags."""
        meter = Meter()
        meter.count("a", 2, x="1", y="2")
        meter.count("a", 3, y="2", x="1")
        meter.count("a", 1, x="1", y="3")
        meter.count("b")
        self.assertEqual(meter.take(), {"a|x=1,y=2": 5, "a|x=1,y=3": 1, "b": 1})
        self.assertEqual(meter.take(), {})

    def test_series_round_trip(self) -> None:
        """Parsing the text of a series returns its name and tags."""
        for name, tags in (("a.b", {}), ("a", {"queue": "svc:x_y-1"}), ("a", {"le": "+Inf", "z": "1"})):
            self.assertEqual(parse_series(series(name, tags)), (name, tags))

    def test_series_are_limited(self) -> None:
        """Beyond MAX_SERIES combinations of tags a metric is counted with the tag value `other`."""
        meter = Meter()
        for number in range(MAX_SERIES + 50):
            meter.count("a", topic=f"t{number}")
        counts = meter.take()
        self.assertEqual(counts["a|topic=other"], 50)
        self.assertEqual(sum(counts.values()), MAX_SERIES + 50)

    def test_given_back(self) -> None:
        """Counts that are given back are part of the next `take`."""
        meter = Meter()
        meter.count("a", 2)
        taken = meter.take()
        meter.count("a")
        meter.give_back(taken)
        self.assertEqual(meter.take(), {"a": 3})

    def test_buckets(self) -> None:
        """An observation is counted in the first bucket whose bound it does not exceed."""
        meter = Meter()
        for value in (0.25, 1, 1.5, BUCKETS[-1] + 1):
            meter.histogram("h", a="b")(value)
        self.assertEqual(
            meter.take(),
            {"h.bucket|a=b,le=1": 2, "h.bucket|a=b,le=2": 1, "h.bucket|a=b,le=+Inf": 1,
             "h.sum|a=b": 2 + BUCKETS[-1] + 1},
        )  # fmt: skip
        self.assertEqual(meter.take(), {})

    def test_short_observations_add_up(self) -> None:
        """Fractions of a millisecond are added up over several `take`."""
        meter = Meter()
        observe, total = meter.histogram("h"), 0
        for _ in range(8):
            observe(0.25)
            total += meter.take()["h.sum"]
        self.assertEqual(total, 2)

    def test_histograms_are_limited(self) -> None:
        """Beyond MAX_SERIES combinations of tags a histogram is one with the tag value `other`."""
        meter = Meter()
        for number in range(MAX_SERIES + 50):
            meter.histogram("h", topic=f"t{number}")(1)
        self.assertEqual(meter.take()["h.bucket|le=1,topic=other"], 50)

    def test_buckets_of_deliveries(self) -> None:
        """The buckets of `delivery.duration` reach to the greatest value of the option `timeout`."""
        longest = 3600
        load({}, {"ROUTEMASTER_TIMEOUT": str(longest)}, None)
        with self.assertRaises(ConfigError):
            load({}, {"ROUTEMASTER_TIMEOUT": str(longest + 1)}, None)
        self.assertEqual(bounds("delivery.duration")[-1], longest * 1000)


class FakeService:
    """A metrics service that keeps the snapshots, or fails."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.error: Exception | None = None
        self.answer: Deferred[None] | None = None

    async def send(self, snapshot: Snapshot) -> None:
        if self.answer is not None:
            await self.answer
        if self.error:
            raise self.error
        self.snapshots.append(snapshot)

    async def close(self) -> None:
        """Nothing is open."""

    def counters(self) -> dict[str, float]:
        """The counters of the last snapshot."""
        return {series(sample.name, dict(sample.tags)): sample.value for sample in self.snapshots[-1].counters}


class MonitorTests(SynchronousTestCase):
    """Measuring and exporting."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.store = MemoryStore(self.clock, 10.0)
        self.service, self.meter = FakeService(), Meter()
        self.monitor = self.process("p1")
        self.done(self.store.publish("cats", "pub", [b"first"]))
        self.done(self.store.subscribe(Subscription("svc--secret", ("cats",), "https://localhost/", max=2)))

    def process(self, name: str) -> Monitor:
        autodrop = Autodrop(self.store, 1000, 100, True)
        return Monitor(self.store, self.meter, autodrop, self.service, self.clock, name, 10.0)

    def done(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def deliver(self) -> None:
        grant = self.done(self.store.acquire("svc--secret", "w"))
        reading = self.done(read(self.store, "svc--secret", {"cats": None}, 10, 1000))
        ack = Ack("cats", grant.memberships["cats"].id, reading.entries[0][1])
        self.done(self.store.acknowledge("svc--secret", "w", grant.epoch, [ack]))

    def test_export_sends_growth(self) -> None:
        """An export has the growth since the last one; totals are in the store, so a restart changes nothing."""
        self.meter.count("events.published", 3, topic="cats")
        self.done(self.monitor.flush())
        self.done(self.monitor.export())
        self.assertEqual(self.service.counters()["events.published|topic=cats"], 3)
        self.done(self.monitor.export())
        self.assertNotIn("events.published|topic=cats", self.service.counters())
        self.meter.count("events.published", 4, topic="cats")
        self.done(self.monitor.flush())
        self.clock.advance(60)
        self.done(self.process("p2").export())
        self.assertEqual(self.service.counters()["events.published|topic=cats"], 4)

    def test_without_redis(self) -> None:
        """Without Redis there are the gauges of the process, and `redis.up` is 0."""
        own = [Sample("leases", 3, {})]
        autodrop = Autodrop(self.store, 1000, 100, True)
        monitor = Monitor(
            self.store, self.meter, autodrop, None, self.clock, "p", 10.0, own_gauges=lambda: own
        )
        gauges = {gauge.name: gauge.value for gauge in self.measured(monitor).gauges}
        self.assertEqual((gauges["redis.up"], gauges["leases"], gauges["subscriber.queue.events"]), (1, 3, 0))

        async def away() -> Any:
            raise StoreUnavailable("away")

        for call in ("stats", "counts"):
            self.patch(self.store, call, away)
            snapshot = self.measured(monitor)
            gauges = {gauge.name: gauge.value for gauge in snapshot.gauges}
            self.assertEqual(gauges, {"redis.up": 0, "leases": 3})
            self.assertEqual(snapshot.counters, [])

    def measured(self, monitor: Monitor) -> Snapshot:
        measured = Deferred.fromCoroutine(monitor.measure())
        self.clock.pump([PAUSE] * 3)
        return self.successResultOf(measured)

    def test_labels_of_the_process(self) -> None:
        """The metrics of the process have the labels that tell it from others on the same port."""
        for tags in ({}, {"process": "2"}):
            text = exposition(SNAPSHOT, "bus", tags).decode()
            families = {each.name: each.samples for each in text_string_to_metric_families(text)}
            [sample] = families["process_open_fds"]
            self.assertEqual(sample.labels, tags)

    def test_health_of_subscribers(self) -> None:
        """The state of each subscriber, its failures in a row and the age of its oldest event are gauges."""
        self.done(self.store.publish("cats", "pub", [b"1"]))
        grant = self.done(self.store.acquire("svc--secret", "w"))
        self.done(self.store.fail("svc--secret", "w", grant.epoch, 60.0, "x"))
        self.clock.advance(7)
        gauges = [(g.name, g.value, g.tags) for g in self.measured(self.monitor).gauges]
        for name, value, tags in (
            ("subscriber.failures", 1, {}), ("subscriber.oldest_seconds", 7.0, {}),
            ("subscriber.state", 1, {"state": "backoff"}),
        ):  # fmt: skip
            self.assertIn((name, value, {"subscriber": "svc"} | tags), gauges)

    def test_overdue(self) -> None:
        """An event is overdue when it has waited for longer than the timeout of the subscription."""
        self.done(self.store.subscribe(Subscription("svc--secret", ("cats",), "https://localhost/", timeout=5000)))
        self.done(self.store.publish("cats", "pub", [b"1"]))
        for seconds, overdue in ((0, 0), (5, 0), (2, 2), (3, 5)):
            self.clock.advance(seconds)
            [found] = [g for g in self.measured(self.monitor).gauges if g.name == "subscriber.overdue_seconds"]
            self.assertEqual((round(found.value), found.tags), (overdue, {"subscriber": "svc"}))

    def test_last_success(self) -> None:
        """The time of the last success is a gauge, 0 before the first; of one name the worst counts."""


        def last() -> Any:
            [found] = [g for g in self.measured(self.monitor).gauges if g.name == "subscriber.last_success"]
            return int(found.value), found.tags

        self.assertEqual(last(), (0, {"subscriber": "svc"}))
        self.done(self.store.publish("cats", "pub", [b"1"]))
        self.deliver()
        self.clock.advance(9)
        self.assertEqual(last(), (1_700_000_000, {"subscriber": "svc"}))
        self.done(self.store.subscribe(Subscription("svc--other", ("cats",), "https://localhost/")))
        self.assertEqual(last(), (0, {"subscriber": "svc"}))

    def test_workers(self) -> None:
        """The number of live workers is a gauge, 0 without any."""
        for announced in (0, 1, 2):
            if announced:
                self.done(self.store.announce(f"w{announced}", 10.0))
            [found] = [g for g in self.measured(self.monitor).gauges if g.name == "workers"]
            self.assertEqual(found.value, announced)

    def test_clock_offset(self) -> None:
        """How far Redis's clock is ahead or behind is a gauge, less the time that its reply took."""
        for ahead, offset in ((0, 0), (0.5, 0), (2, 1), (-3, -3)):

            async def figures(ahead: float = ahead) -> list[StoreStats]:
                time = self.clock.seconds() + ahead
                self.clock.advance(1)
                return [StoreStats(1, 0, 0.0, 0.0, time=time)]

            self.patch(self.store, "stats", figures)
            [found] = [g for g in self.measured(self.monitor).gauges if g.name == "redis.clock_offset"]
            self.assertEqual(found.value, offset)

    def test_many_subscribers_take_turns(self) -> None:
        """The values of many subscribers are computed in several turns of the reactor, and are complete."""
        for number in range(250):
            name = f"many{number}--secret"
            self.done(self.store.subscribe(Subscription(name, ("cats",), "https://localhost/", max=2)))
        self.done(self.store.publish("cats", "pub", [b"1", b"2", b"3"]))
        export = Deferred.fromCoroutine(self.monitor.export())
        self.assertNoResult(export)
        self.clock.pump([PAUSE] * 10)
        self.successResultOf(export)
        sent = {series(each.name, dict(each.tags)): each.value for each in self.service.snapshots[-1].gauges}
        for number in range(250):
            self.assertEqual(sent[f"subscriber.queue.events|subscriber=many{number}"], 3)
            self.assertEqual(sent[f"subscriber.queue.batches|subscriber=many{number}"], 2)
        self.assertEqual(self.service.counters()["events.added|queue=many249"], 3)

    def test_stop(self) -> None:
        """A stop ends an export at its next subscribers, or while the service does not answer; nothing is lost."""
        for number in range(1000):
            name = f"many{number}--secret"
            self.done(self.store.subscribe(Subscription(name, ("cats",), "https://localhost/", max=2)))
        self.meter.count("events.published", 3, topic="cats")
        self.done(self.monitor.flush())
        export = Deferred.fromCoroutine(self.monitor.export())
        self.monitor.stop()
        self.clock.pump([PAUSE] * 2)
        self.successResultOf(export)
        self.assertEqual((self.service.snapshots, self.clock.getDelayedCalls()), ([], []))
        hanging = self.process("p1")
        self.service.answer = Deferred()
        export = Deferred.fromCoroutine(hanging.export())
        self.clock.pump([PAUSE] * 40)
        self.assertNoResult(export)
        hanging.stop()
        self.successResultOf(export)
        self.service.answer = None
        export = Deferred.fromCoroutine(self.process("p1").export())
        self.clock.pump([PAUSE] * 40)
        self.successResultOf(export)
        self.assertEqual(self.service.counters()["events.published|topic=cats"], 3)

    def test_one_process_exports(self) -> None:
        """One of several processes exports; another takes over when its leader lock expires."""
        other = self.process("p2")
        self.done(self.monitor.export())
        self.done(other.export())
        self.assertEqual(len(self.service.snapshots), 1)
        self.clock.advance(26)
        self.done(other.export())
        self.assertEqual(len(self.service.snapshots), 2)

    def test_certificates(self) -> None:
        """Each process sends when its certificate expires, whoever sends the rest; nothing else of its own."""
        own = [Sample("certificate.expires", 60, {"file": "/a"}), Sample("leases", 3, {})]
        for leads in (True, False):
            autodrop = Autodrop(self.store, 1000, 100, True)
            monitor = Monitor(
                self.store, self.meter, autodrop, self.service, self.clock, f"leads {leads}", 10.0,
                own_gauges=lambda: own,
            )  # fmt: skip
            self.done(monitor.export())
            sent = [gauge.name for gauge in self.service.snapshots[-1].gauges]
            self.assertEqual(("certificate.expires" in sent, "leases" in sent), (True, False))
            self.assertEqual("redis.bytes_used" in sent, leads)
        monitor.stop()
        self.done(monitor.export())
        self.assertEqual(len(self.service.snapshots), 2)

    def test_failed_export_is_repeated(self) -> None:
        """The export after a failed one has the same growth, and the failure is counted."""
        self.meter.count("events.published", 3, topic="cats")
        self.done(self.monitor.flush())
        self.service.error = OSError("no route")
        self.done(self.monitor.export())
        self.service.error = None
        self.done(self.monitor.flush())
        self.done(self.monitor.export())
        sent = self.service.counters()
        self.assertEqual((sent["events.published|topic=cats"], sent["metrics.failures"]), (3, 1))

    def test_service_unavailable_for_long(self) -> None:
        """An unavailable service is logged once a minute, and so is its return."""
        self.service.error = OSError("no route")
        with capturedLogs() as events:
            for _ in range(13):
                self.done(self.monitor.export())
                self.clock.advance(10)
            self.service.error = None
            self.done(self.monitor.export())
        self.assertEqual([formatEvent(event) for event in events], [
            "sending metrics failed: no route",
            *["sending metrics failed, 6 times since the last line: no route"] * 2,
            "sending metrics succeeds again",
        ])  # fmt: skip

    def test_store_unavailable(self) -> None:
        """Counts that the store refused are kept; if the outcome is unknown, they are not counted twice."""
        lost, refused = StoreUnavailable("connection lost", True), StoreUnavailable("connection lost")
        for error, kept in ((refused, {"a": 1}), (lost, {}), (StoreBroken("WRONGTYPE"), {"a": 1})):
            self.meter.take()
            self.meter.count("a")

            async def fail(counts: Any, error: Exception = error) -> None:
                raise error

            self.patch(self.store, "add_counts", fail)
            self.failureResultOf(Deferred.fromCoroutine(self.monitor.flush()), type(error))
            self.assertEqual(self.meter.take(), kept)

    def test_gauges_and_queues(self) -> None:
        """Queues, batches, due deliveries and the counters of queues are computed exactly from the store."""
        self.done(self.store.publish("cats", "pub", [b"1", b"2", b"3", b"4", b"5"]))
        self.deliver()
        self.done(self.store.drop_oldest(1))
        self.done(self.store.repair("svc--secret"))
        snapshot = self.done(self.monitor.measure())
        gauges = {series(sample.name, dict(sample.tags)): sample.value for sample in snapshot.gauges}
        counters = {series(sample.name, dict(sample.tags)): sample.value for sample in snapshot.counters}
        self.assertEqual(gauges["subscriber.queue.events|subscriber=svc"], 3)
        self.assertEqual(gauges["subscriber.queue.batches|subscriber=svc"], 2)
        self.assertEqual(gauges["jobs.count|queue=main,status=instant"], 1)
        self.assertEqual(gauges["jobs.count|queue=main,status=scheduled"], 1)
        marks = [gauges[f"redis.{mark}"] for mark in ("max_mem", "low_mark", "high_mark")]
        self.assertEqual(marks, [1000, 800, 900])
        self.assertEqual(counters["events.added|queue=svc"], 5)
        self.assertEqual(counters["events.removed|queue=svc"], 2)
        self.assertEqual(counters["events.autodropped|queue=svc"], 1)
        self.assertNotIn("secret", str(snapshot))

    def test_autodrop_nearness(self) -> None:
        """The gauge redis.autodrop_nearness is 0 up to the low mark and 1 at the high mark."""
        for used, nearness in ((0, 0), (850, 0.5), (901, 1.01)):

            async def figures(used: int = used) -> list[StoreStats]:
                return [StoreStats(used, 0, 0.0, 0.0)]

            self.patch(self.store, "stats", figures)
            text = exposition(self.done(self.monitor.measure()), "test").decode()
            (family,) = [each for each in text_string_to_metric_families(text)
                         if each.name == "routemaster_redis_autodrop_nearness"]  # fmt: skip
            self.assertEqual([sample.value for sample in family.samples], [nearness])

    def test_total_restarts(self) -> None:
        """The totals of a subscription that was created again start at zero, and no growth is negative."""
        self.done(self.store.publish("cats", "pub", [b"1", b"2"]))
        self.done(self.monitor.export())
        self.done(self.store.unsubscribe("svc--secret"))
        self.done(self.store.subscribe(Subscription("svc--secret", ("cats",), "https://localhost/")))
        self.done(self.store.publish("cats", "pub", [b"3"]))
        self.done(self.monitor.export())
        self.assertEqual(self.service.counters()["events.added|queue=svc"], 1)


class PrintingTests(SynchronousTestCase):
    """The metrics service `print`."""

    def test_lines(self) -> None:
        """Each value is a log line of a fixed form."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if "line" in event:
                lines.append(event["line"])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        clock = Clock()
        export = Deferred.fromCoroutine(Printing("bus", clock).send(SNAPSHOT))
        clock.pump([0, 0, 0])
        self.successResultOf(export)
        self.assertEqual(
            lines,
            ["gauge:routemaster.redis.bytes_used:1393688 (app:bus)",
             "counter:routemaster.events.published:5 (app:bus,topic:cats)"],
        )  # fmt: skip


class Listener(DatagramProtocol):
    """Fires `enough` after `count` datagrams."""

    def __init__(self, count: int) -> None:
        self.datagrams: list[bytes] = []
        self.enough: Deferred[None] = Deferred()
        self._count = count

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.datagrams.append(datagram)
        if len(self.datagrams) == self._count:
            self.enough.callback(None)


class LateReactor:
    """The reactor, with another time."""

    now = 0.0

    def seconds(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class StatsdTests(TestCase):
    """The metrics service `statsd`, on a real socket."""

    async def received(self, snapshot: Snapshot, datagrams: int) -> list[bytes]:
        listener = Listener(datagrams)
        port = reactor.listenUDP(0, listener, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        adapter = Statsd(reactor, "bus", "127.0.0.1", port.getHost().port)
        self.addCleanup(lambda: Deferred.fromCoroutine(adapter.close()))
        await adapter.send(snapshot)
        await listener.enough.addTimeout(5, reactor)
        return listener.datagrams

    async def test_what_arrives(self) -> None:
        """Gauges and counters arrive with DogStatsD's tags."""
        self.assertEqual(
            await self.received(SNAPSHOT, 1),
            [b"routemaster.redis.bytes_used:1393688|g|#app:bus\n"
             b"routemaster.events.published:5|c|#app:bus,topic:cats"],
        )  # fmt: skip

    async def test_host_name(self) -> None:
        """A host name is resolved, again after TTL seconds; a failed look-up leaves the last address in use."""
        listener = Listener(1)
        port = reactor.listenUDP(0, listener, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        found: list[str] = []

        def resolve(host: str, number: int, **_: Any) -> list[Any]:
            self.assertEqual((host, number), ("statsd.example", port.getHost().port))
            if not found:
                raise OSError("no such name")
            return [(None, None, None, "", (found.pop(), number))]

        clock = LateReactor()
        adapter = Statsd(clock, "bus", "statsd.example", port.getHost().port, resolve=resolve)
        self.addCleanup(lambda: Deferred.fromCoroutine(adapter.close()))
        with self.assertRaisesRegex(OSError, "the host name statsd.example does not resolve"):
            await adapter.send(SNAPSHOT)
        found[:] = ["127.0.0.1"]
        await adapter.send(SNAPSHOT)
        await listener.enough.addTimeout(5, reactor)
        for _ in range(2):
            clock.now += TTL
            listener.enough = Deferred()
            listener.datagrams.clear()
            await adapter.send(SNAPSHOT)
            await listener.enough.addTimeout(5, reactor)

    async def test_slow_resolver(self) -> None:
        """Sending waits at most PATIENCE seconds for the first address, and no second look-up starts meanwhile."""
        calls: list[int] = []
        release = Event()

        def resolve(*_: Any, **__: Any) -> list[Any]:
            calls.append(1)
            release.wait(5)
            raise OSError

        self.patch(statsd, "PATIENCE", 0.01)
        adapter = Statsd(reactor, "bus", "statsd.example", 1, resolve=resolve)
        for _ in range(2):
            with self.assertRaisesRegex(OSError, "the DNS look-up of statsd.example took over"):
                await adapter.send(SNAPSHOT)
        self.assertEqual(calls, [1])
        await adapter.close()
        release.set()

    async def test_datagrams_are_small(self) -> None:
        """No datagram exceeds DATAGRAM bytes, and no value is split."""
        samples = [Sample("events.published", n, {"topic": f"topic_{n}"}) for n in range(40)]
        datagrams = await self.received(Snapshot([], samples), 2)
        self.assertTrue(all(len(datagram) <= DATAGRAM for datagram in datagrams))
        self.assertEqual(sum(len(datagram.split(b"\n")) for datagram in datagrams), 40)


class Intake(Resource):
    """A fake of Datadog's API."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.status = 202

    def render_POST(self, request: Any) -> bytes:
        key = request.requestHeaders.getRawHeaders("dd-api-key")
        self.requests.append((request.path, key, json.loads(request.content.read())))
        request.setResponseCode(self.status)
        return b'{"status":"ok"}'


class DatadogTests(TestCase):
    """The metrics service `datadog`, against a local fake of its API."""

    def setUp(self) -> None:
        self.intake = Intake()
        port = reactor.listenTCP(0, Site(self.intake), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}"
        self.service = Datadog(reactor, "bus", "key", "app", 10.0, url, client=_Client())

    async def test_what_arrives(self) -> None:
        """Gauges and counters arrive as series, and the API key in a header."""
        await self.service.send(SNAPSHOT)
        [(path, key, body)] = self.intake.requests
        self.assertEqual((path, key), (b"/api/v1/series", ["key"]))
        gauge, count = body["series"]
        self.assertEqual((gauge["metric"], gauge["type"]), ("routemaster.redis.bytes_used", "gauge"))
        self.assertEqual(gauge["points"][0][1], 1393688)
        self.assertEqual((count["type"], count["interval"]), ("count", 10))
        self.assertEqual(count["tags"], ["app:bus", "topic:cats"])

    async def test_error_status(self) -> None:
        """An error status raises Refused, so that the next export repeats the growth."""
        self.intake.status = 403
        await self.assertFailure(Deferred.fromCoroutine(self.service.send(SNAPSHOT)), Refused)


class _Client:
    """treq without persistent connections, which the test would leave open."""

    def post(self, url: str, **options: Any) -> Any:
        import treq

        return treq.post(url, persistent=False, **options)


class ReactorLagTests(SynchronousTestCase):
    """`ReactorLag`."""

    def test_lag(self) -> None:
        """Each measurement is how much later than due it runs, in milliseconds; after `stop` there is none."""
        clock, found = Clock(), list[float]()
        lag = ReactorLag(clock, found.append)
        lag.start()
        clock.advance(INTERVAL)
        clock.advance(INTERVAL + 0.25)
        clock.advance(INTERVAL)
        self.assertEqual(found, [0, 250, 0])
        lag.stop()
        self.assertEqual(clock.getDelayedCalls(), [])


def samples(meter: Meter) -> list[Sample]:
    """What a meter has counted."""
    counts = meter.take()
    return [Sample(name, counts[text], tags) for text in counts for name, tags in [parse_series(text)]]


class PrometheusTests(SynchronousTestCase):
    """The exposition, read by the parser of prometheus_client."""

    def families(self, snapshot: Snapshot) -> dict[str, Any]:
        text = exposition(snapshot, "bus").decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def test_gauges_and_counters(self) -> None:
        """Gauges and totals have their labels."""
        families = self.families(SNAPSHOT)
        gauge = families["routemaster_redis_used_bytes"]
        sample = gauge.samples[0]
        self.assertEqual((gauge.type, sample.value, sample.labels), ("gauge", 1393688, {"app": "bus"}))
        counter = families["routemaster_events_published"]
        self.assertEqual((counter.type, counter.samples[0].labels), ("counter", {"app": "bus", "topic": "cats"}))

    def test_histogram(self) -> None:
        """The buckets of a histogram are cumulative, in seconds, for each subscriber."""
        meter = Meter()
        for queue, value in (("a", 0.5), ("a", 30), ("a", 30.75), ("a", 10**9), ("b", 60_001)):
            meter.histogram("delivery.duration", queue=queue)(value)
        family = self.families(Snapshot([], samples(meter)))["routemaster_delivery_duration_seconds"]
        self.assertEqual(family.type, "histogram")
        found = {(each.labels["subscriber"], each.labels.get("le", each.name)): each.value
                 for each in family.samples}  # fmt: skip
        self.assertEqual([found["a", le] for le in ("0.01", "0.05", "3600.0", "+Inf")], [1, 3, 3, 4])
        self.assertEqual([found["b", le] for le in ("60.0", "3600.0", "+Inf")], [0, 1, 1])
        self.assertEqual(found["a", "routemaster_delivery_duration_seconds_count"], 4)
        self.assertEqual(found["a", "routemaster_delivery_duration_seconds_sum"], 1000000.061)

    def test_buckets_of_older_versions(self) -> None:
        """A bucket which there is no more counts in the next larger one, so that none is lost."""
        old = [Sample("delivery.duration.bucket", 7, {"le": "20"}), Sample("delivery.duration.sum", 100, {})]
        family = self.families(Snapshot([], old))["routemaster_delivery_duration_seconds"]
        found = {each.labels.get("le", each.name): each.value for each in family.samples}
        self.assertEqual((found["0.01"], found["0.05"], found["+Inf"]), (0, 7, 7))

    def everything(self) -> dict[str, Any]:
        """The families of a snapshot with every metric that is known."""
        tags = {"queue": "svc"}
        meter, gauges = Meter(), []
        for name in METRICS:
            if name in ("http.request.duration", "reactor.lag", "latency.first_attempt", "latency.acknowledged",
                        "delivery.duration"):  # fmt: skip
                meter.histogram(name, **tags)(5)
            elif name.split(".")[0] in ("subscriber", "jobs", "redis", "build_info", "connections", "leases",
                                        "certificate"):  # fmt: skip
                gauges.append(Sample(name, 1000, tags))
            else:
                meter.count(name, 1000, **tags)
        return self.families(Snapshot(gauges, samples(meter)))

    def test_conventions(self) -> None:
        """Counters alone end in `_total`, histograms alone in `_count`; nothing is in ms; help is a sentence."""
        families = {name: each for name, each in self.everything().items() if name.startswith("routemaster_")}
        self.assertEqual(len(families), len(METRICS))
        for name, family in families.items():
            self.assertTrue(family.documentation.endswith("."), name)
            for sample in family.samples:
                self.assertEqual(sample.name.endswith("_total"), family.type == "counter", sample.name)
                if sample.name.endswith(("_count", "_sum", "_bucket")):
                    self.assertEqual(family.type, "histogram", sample.name)
                self.assertNotRegex(sample.name, r"_ms|millisecond|\.", sample.name)
            if family.type == "histogram":
                self.assertTrue(name.endswith("_seconds"), name)

    def test_one_label_for_subscribers(self) -> None:
        """The label of a subscriber is `subscriber` everywhere; only the queue of jobs is another thing."""
        with_queue = [name for name, family in self.everything().items()
                      if any("queue" in sample.labels for sample in family.samples)]  # fmt: skip
        self.assertEqual(with_queue, ["routemaster_jobs"])

    def test_units(self) -> None:
        """Milliseconds of the bus are seconds here, and their squares are squared."""
        counts = [Sample("delivery.time", 2500, {}), Sample("delivery.time2", 2_000_000, {})]
        families = self.families(Snapshot([Sample("redis.used_cpu_user", 1500, {})], counts))
        for name, value in (("delivery_time", 2.5), ("delivery_time_squared", 2.0), ("redis_cpu_user", 1.5)):
            family = families[f"routemaster_{name}_seconds"]
            self.assertEqual((family.type, family.samples[0].value), ("counter", value), name)

    def test_odd_labels(self) -> None:
        """Quotes, backslashes and line feeds in labels arrive as they are."""
        odd = 'C:\\"a"\nb{},#\u00e9'
        gauge = Sample("certificate.expires", 5, {"file": odd})
        families = text_string_to_metric_families(exposition(Snapshot([gauge], []), odd).decode())
        [sample] = next(each for each in families if "certificate" in each.name).samples
        self.assertEqual(sample.labels, {"app": odd, "file": odd})

    def test_unknown_metric(self) -> None:
        """A counter that another version of the bus has stored is shown under its name."""
        families = self.families(Snapshot([], [Sample("from.future", 5, {"queue": "svc"})]))
        [sample] = families["routemaster_from_future"].samples
        self.assertEqual(sample.labels, {"app": "bus", "subscriber": "svc"})
