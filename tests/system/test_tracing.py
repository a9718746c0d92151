"""Traces of a real bus: from a publication to the receiver, and to a collector."""

from __future__ import annotations

import json

from twisted.internet import reactor

from chaos.fleet import stretched
from chaos.release import Release
from routemaster.testing.daemon import LOOPBACK, Daemon
from routemaster.testing.zoo import Answer
from tests.system.test_secrets import SecretCase
from tests.system.test_system import SystemCase, free_port, until
from tests.tracing.collector import Collector, values
from tests.tracing.spans import PARENT, TRACE, TRACEPARENT

EVENT = {"type": "noop", "url": "https://app.example.com/1"}
#: exported as soon as it ends, or nearly
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


class TracingCase(SystemCase):
    """Buses with tracing, and a collector."""

    def setUp(self) -> None:
        super().setUp()
        self.collector = Collector()
        self.addCleanup(self.collector.close)

    def traced(self, *options: str, **environment: str) -> Daemon:
        variables = OFTEN | {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url} | environment
        return self.daemon("--tracing", "otlp", "--log-level", "DEBUG", *options, **variables)

    async def publish(self, daemon: Daemon, **headers: str) -> None:
        client = self.client(daemon)
        await self.ok(client.ask("POST", "/topics/cats", EVENT, **headers))


class TracingTests(TracingCase):
    """One bus."""

    async def test_from_end_to_end(self) -> None:
        """The collector gets publication and attempts, linked; the receiver the attempt's context, in no event."""
        daemon, sink = self.traced(), self.sink()
        await daemon.start()
        client = self.client(daemon)
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=0))
        sink.script.append(Answer(500))
        await self.publish(daemon, traceparent=TRACEPARENT, tracestate="vendor=1")
        await until(lambda: len(sink.received) == 2, "the second attempt")
        await self.publish(daemon, traceparent="nonsense")
        await until(lambda: len(sink.received) == 3, "the third attempt")
        await until(lambda: len(self.collector.named("deliver cats")) == 3, "the spans of the attempts")

        [publication] = [each for each in self.collector.named("POST /topics/<name>") if each.parent_span_id]
        self.assertEqual((publication.trace_id.hex(), publication.parent_span_id.hex()), (TRACE, PARENT))
        self.assertEqual(publication.trace_state, "vendor=1")
        attempts = self.collector.named("deliver cats")
        for span, request in zip(attempts, sink.received, strict=True):
            context = request.headers[b"traceparent"].decode().split("-")
            self.assertEqual(context[1:3], [span.trace_id.hex(), span.span_id.hex()])
            self.assertEqual(set(json.loads(request.body)[0]), {"topic", "type", "url", "t", "id"})
            self.assertNotIn(TRACE.encode(), request.body)
        linked = [[(link.trace_id.hex(), link.span_id.hex()) for link in span.links] for span in attempts]
        self.assertEqual(linked[:2], [[(TRACE, publication.span_id.hex())]] * 2)
        self.assertNotEqual(linked[2][0][0], TRACE)
        statuses = [values(span)["http.response.status_code"] for span in attempts]
        self.assertEqual(statuses, [500, 204, 204])

        failed = f"failed to deliver 1 events to 'demo': answered 500 trace_id={attempts[0].trace_id.hex()} "
        self.assertIn(f"{failed}span_id={attempts[0].span_id.hex()}\n", daemon.log)
        self.assertIn(f"traces are exported to {self.collector.url.removeprefix('http://')}", daemon.log)
        self.assertEqual(await daemon.stop(), 0)

    async def test_stop(self) -> None:
        """Spans that wait when the bus stops are exported; a collector that is down delays nothing."""
        daemon = self.traced(OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_SERVICE_NAME="shop-bus")
        await daemon.start()
        await self.publish(daemon)
        self.assertEqual(self.collector.spans(), [])
        self.assertEqual(await daemon.stop(), 0)
        [(described, [span])] = self.collector.resources()
        self.assertEqual((described["service.name"], span.name), ("shop-bus", "POST /topics/<name>"))

        nobody = f"http://canary:canary@{LOOPBACK}:{free_port()}"
        down = self.traced(OTEL_EXPORTER_OTLP_ENDPOINT=nobody, name="down")
        await down.start()
        for _ in range(3):
            await self.publish(down)
        await down.line("tracing: .*ConnectionError")
        began = reactor.seconds()  # type: ignore[attr-defined]
        self.assertEqual(await down.stop(), 0)
        self.assertLess(reactor.seconds() - began, stretched(10.0))  # type: ignore[attr-defined]
        self.assertNotIn("canary", down.log)
        self.assertNotIn("Traceback", down.log)

    async def test_processes(self) -> None:
        """Each process of a bus exports its own spans."""
        daemon = self.traced("--processes", "2", "--app-name", "twins")
        await daemon.start()

        def instances() -> set[str]:
            return {described["service.instance.id"] for described, _ in self.collector.resources()}

        while len(instances()) < 2:  # which process accepts a connection is the system's choice
            await self.publish(daemon)
        self.assertEqual({described["service.name"] for described, _ in self.collector.resources()}, {"twins"})
        self.assertEqual(await daemon.stop(), 0)

    async def test_refused(self) -> None:
        """A protocol that the exporter does not speak prevents the start, of one process and of several."""
        for more in ((), ("--processes", "2")):
            daemon = self.traced(*more, OTEL_EXPORTER_OTLP_PROTOCOL="grpc", name=f"bus{len(more)}")
            daemon.launch()
            self.assertEqual(await daemon.ended(), 1)
            self.assertIn("OTEL_EXPORTER_OTLP_PROTOCOL is invalid: got 'grpc', expected http/protobuf", daemon.log)


class UpgradeTests(TracingCase):
    """A bus with tracing beside processes of the last release."""

    async def test_last_release(self) -> None:
        """Its workers deliver events that are kept with a context exactly as others, and know nothing of it."""
        redis = self.redis("--port", str(port := free_port()))
        self.assertIsNotNone(redis)
        url = ("--redis-url", f"redis://{LOOPBACK}:{port}")
        web, worker = self.traced("--role", "web", *url), self.daemon("--role", "worker", *url, name="worker")
        worker.environment |= Release.unpack(self.place / "release").environment()
        await web.start()
        await worker.start("ready")
        client, sink = self.client(web), self.sink()
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(sink.url, "cats", timeout=200))
        for _ in range(3):
            await self.publish(web, traceparent=TRACEPARENT, tracestate="vendor=1")
        await until(lambda: sum(map(len, sink.batches)) == 3, "the deliveries")
        for batch in sink.batches:
            for event in batch:
                self.assertEqual(set(event), {"topic", "type", "url", "t", "id"})
        self.assertFalse([each for each in sink.received if b"traceparent" in each.headers])
        self.assertEqual((await worker.stop(), await web.stop()), (0, 0))


class CanaryTests(SecretCase):
    """A bus with a canary in the place of every secret."""

    async def test_spans(self) -> None:
        """No span has a secret: tokens, uuid, secrets, queries, passwords, data, what receivers answer."""
        collector = Collector()
        self.addCleanup(collector.close)
        daemon, redis = await self.bus(
            "--tracing", "otlp", **OFTEN, METRIC_COLLECTION_SERVICE="print",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        )  # fmt: skip
        await self.live(daemon)
        puller = self.client(daemon, "other--canary-three")
        await self.ok(puller.ask("POST", "/subscription", {"topics": ["cats"]}))
        await self.ok(puller.ask("GET", "/subscription/events?max=1"), 200)
        await self.ok(puller.ask("GET", "/subscription/events?ack=canary-cursor"), 400)
        root = self.client(daemon, "canary-root")
        await self.ok(root.ask("GET", "/subscriptions/other--canary-three/events"), 200)
        wrong = self.client(daemon, "wrong--canary-six")
        await self.ok(wrong.ask("POST", "/topics/cats?canary", EVENT, traceparent=TRACEPARENT), 401)
        await self.break_down(daemon, redis)
        self.assertEqual(await daemon.stop(), 0)
        names = {span.name for span in collector.spans()}
        self.assertEqual(names, {
            "POST /topics/<name>", "deliver cats", "GET /subscription/events", "GET /subscriptions/<name>/events",
        })  # fmt: skip
        sinks = {"spans": (collector.everything(), "deliver cats"), "the log": (daemon.log, "trace_id=")}
        self.assert_silent(sinks)
