"""The export of spans: what the standard variables say, a collector that is down, and the stop."""

from __future__ import annotations

import logging
import os
from threading import Event
from typing import Any

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from twisted.internet import reactor
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.delivery.batch import Batch
from routemaster.errors import ConfigError
from routemaster.model import EventID
from routemaster.tracing import exporting
from routemaster.tracing.exporting import Tracing, check, collector, resource
from tests.tracing.collector import Collector, values

ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def set_variables(case: SynchronousTestCase, **variables: str) -> None:
    """Set these standard variables and no others, until the test ends."""
    before = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)

    def restore() -> None:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)

    case.addCleanup(restore)


class VariablesTests(SynchronousTestCase):
    """Variables of the environment."""

    def refused(self, environment: dict[str, str]) -> str:
        return str(self.assertRaises(ConfigError, check, environment))

    def test_check(self) -> None:
        """What cannot work prevents the start, in one line that names the variable and quotes no URL."""
        check({})
        check({PROTOCOL: "http/protobuf", ENDPOINT: "https://collector:4318/x"})
        self.assertEqual(
            self.refused({PROTOCOL: "grpc"}), f"{PROTOCOL} is invalid: got 'grpc', expected http/protobuf"
        )
        for url in ("canary:4318", "grpc://canary", "http://", "http://canary:port", "https://[canary"):
            self.assertEqual(
                self.refused({TRACES: url}), f"{TRACES} is invalid: expected an http:// or https:// URL"
            )

    def test_exporter(self) -> None:
        """A variable that the exporter refuses is a fault of the configuration."""
        self.patch(exporting, "OTLPSpanExporter", lambda: int("canary"))
        message = self.refused({})
        self.assertIn("OTEL_*", message)
        self.assertNotIn("canary", message)

    def test_collector(self) -> None:
        """Host and port of the collector are shown, and nothing else of its URL."""
        self.assertEqual(collector({}), "localhost:4318")
        url = "https://canary:canary@collector.example/canary?key=canary"
        self.assertEqual(collector({ENDPOINT: url}), "collector.example:443")
        self.assertEqual(collector({ENDPOINT: url, TRACES: "http://[::1]:99/"}), "::1:99")

    def test_resource(self) -> None:
        """The name is the app's unless a standard variable has another; each process has an ID."""
        set_variables(self)
        found = resource("my-bus", "1.2", "host-1", {}).attributes
        self.assertEqual(found["service.name"], "my-bus")
        self.assertEqual((found["service.version"], found["service.instance.id"]), ("1.2", "host-1"))
        environment = {"OTEL_RESOURCE_ATTRIBUTES": "service.version=7,k=v", "OTEL_SERVICE_NAME": "named"}
        set_variables(self, **environment)
        found = resource("my-bus", "1.2", "host-1", environment).attributes
        self.assertEqual((found["service.name"], found["service.version"], found["k"]), ("named", "7", "v"))


class Stuck(SpanExporter):
    """An exporter whose collector does not answer until the test ends it."""

    def __init__(self) -> None:
        self.over = Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.over.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.over.set()


class ExportCase(TestCase):
    """A process with tracing, whose log lines are kept."""

    timeout = 60

    def setUp(self) -> None:
        self.lines: list[str] = []

        def keep(event: Any) -> None:
            if event.get("log_namespace") == exporting.__name__:
                self.lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)

    def tracing(self, exporter: SpanExporter | None = None) -> Tracing:
        return Tracing(reactor, "1.2", resource("app", "1.2", "p", {}), exporter)

    def attempt(self, tracing: Tracing) -> None:
        """Begin and end a span."""
        batch = Batch.of([("cats", EventID(1, 1), b"{}")])
        tracing.attempts.attempt("sub", "https://h.example/", batch, 1, ()).ended(None)


class StopTests(ExportCase):
    """The end of the process."""

    async def test_flushed(self) -> None:
        """Spans that wait are exported when the bus stops."""
        server = Collector()
        self.addCleanup(server.close)
        set_variables(self, **{ENDPOINT: server.url})
        tracing = self.tracing()
        for _ in range(3):
            self.attempt(tracing)
        await tracing.stop()
        [(described, spans)] = server.resources()
        self.assertEqual((described["service.name"], [span.name for span in spans]), ("app", ["deliver cats"] * 3))
        self.assertEqual(values(spans[0])["error.type"], "cancelled")
        self.assertEqual((server.received[0].path, self.lines), ("/v1/traces", []))

    async def test_stuck(self) -> None:
        """A collector that does not answer delays the stop by a few seconds at most, and the loss is logged."""
        self.patch(exporting, "FLUSH", 0.05)
        stuck = Stuck()
        self.addCleanup(stuck.over.set)
        tracing = self.tracing(stuck)
        self.attempt(tracing)
        await tracing.stop()
        self.assertEqual(self.lines, ["spans are lost: they could not be exported within 0.05 s"])

    async def test_logger(self) -> None:
        """The logger of OpenTelemetry is afterwards as it was."""
        logger = logging.getLogger("opentelemetry")
        before = list(logger.handlers), logger.propagate
        tracing = self.tracing(Stuck())
        self.assertFalse(logger.propagate)
        await tracing.stop()
        self.assertEqual((list(logger.handlers), logger.propagate), before)


class DisabledTests(ExportCase):
    """OTEL_SDK_DISABLED."""

    async def test_nothing(self) -> None:
        """An SDK that is switched off makes no span, and the bus sends no header without one."""
        set_variables(self, OTEL_SDK_DISABLED="true")
        tracing = self.tracing(Stuck())
        batch = Batch.of([("cats", EventID(1, 1), b"{}")])
        context = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        span = tracing.attempts.attempt("sub", "https://h.example/", batch, 1, (context,))
        span.ended(None)
        self.assertEqual((dict(span.headers), dict(span.ids)), ({}, {}))
        await tracing.stop()
        self.assertEqual(self.lines, [])


class TroubleTests(ExportCase):
    """What OpenTelemetry logs."""

    async def test_throttled(self) -> None:
        """Its warnings become lines of the bus's log, each reason seldom, and without the text of exceptions.

        A reason is the same whatever the times in it.
        """
        tracing = self.tracing(Stuck())
        logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        for number in range(50):
            delay = 1 + number / 100
            logger.warning("Transient error %s encountered, retrying in %.2fs.", ConnectionError("canary"), delay)
        logger.error("Failed to export %s batch code: %s, reason: %s", "spans", 401, "Unauthorized")
        logger.error("broken %s %s", 1)
        logging.getLogger("opentelemetry.trace.span").warning("Invalid pair (%s) found", "canary")
        logging.getLogger("opentelemetry.sdk.x").info("of no interest")
        await tracing.stop()
        self.assertEqual(self.lines, [
            "tracing: Transient error ConnectionError encountered, retrying in 1.00s. (1 since the last line)",
            "tracing: Failed to export spans batch code: 401, reason: Unauthorized (50 since the last line)",
            "tracing: broken %s %s (1 since the last line)",
        ])  # fmt: skip

    async def test_other_thread(self) -> None:
        """A warning of the exporting thread is logged in the reactor's."""
        server = Collector()
        self.addCleanup(server.close)
        server.status = 400
        set_variables(self, **{ENDPOINT: server.url})
        tracing = self.tracing()
        self.attempt(tracing)
        await tracing.stop()
        self.assertEqual(len(self.lines), 1, self.lines)
        self.assertIn("400", self.lines[0])
