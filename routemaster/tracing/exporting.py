"""Sends spans to a collector by OTLP over HTTP, as the standard variables `OTEL_*` say.

The SDK does it in a thread of its own, from a bounded queue. It reports its troubles to Python's logging; here
they go to the bus's log, throttled, and without the text of exceptions, which may have the URL of the collector.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger

from routemaster.errors import ConfigError
from routemaster.tracing.attempts import AttemptTracer
from routemaster.tracing.requests import RequestTracer
from routemaster.tracing.sampling import following_links
from routemaster.util.log_throttle import LogThrottle

FLUSH: Final = 3.0  #: seconds for the spans that wait when the bus stops
SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_log = Logger()


def check(environment: Mapping[str, str]) -> None:
    """Raise ConfigError if the exporter cannot be made as the variables say."""
    for name in _PROTOCOLS:
        if environment.get(name) not in (None, "", "http/protobuf"):
            raise ConfigError(f"{name} is invalid: got {environment[name]!r}, expected http/protobuf")
    for name in _ENDPOINTS:
        if (url := environment.get(name)) and not _address(url):
            raise ConfigError(f"{name} is invalid: expected an http:// or https:// URL")
    try:
        OTLPSpanExporter().shutdown()
    except Exception as error:
        raise ConfigError(
            f"tracing: an exporter cannot be made as the variables OTEL_* say ({type(error).__name__})"
        ) from None


def collector(environment: Mapping[str, str]) -> str:
    """Host and port of the collector."""
    url = next((environment[name] for name in _ENDPOINTS if environment.get(name)), "http://localhost:4318")
    return _address(url)


def _address(url: str) -> str:
    """Host and port of a URL; empty if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (KeyError, ValueError):
        return ""
    return f"{parts.hostname}:{port}" if parts.hostname else ""


def resource(app_name: str, version: str, process: str, environment: Mapping[str, str]) -> Resource:
    """What describes this process in each span; the standard variables come first."""
    attributes = {"service.name": app_name, "service.version": version, "service.instance.id": process}
    given = {each.partition("=")[0].strip() for each in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")}
    if environment.get("OTEL_SERVICE_NAME"):
        given.add("service.name")
    return Resource.create({name: value for name, value in attributes.items() if name not in given})


class Tracing:
    """The tracers of one process. To be made after the last fork: it starts a thread."""

    def __init__(
        self, reactor: Any, version: str, resource: Resource, exporter: SpanExporter | None = None
    ) -> None:
        """`exporter`: by default one that the standard variables describe."""
        self._reactor = reactor
        self._troubles = _Troubles(reactor)
        self._troubles.follow()
        self._processor = BatchSpanProcessor(OTLPSpanExporter() if exporter is None else exporter)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.sampler = following_links(provider.sampler)
        provider.add_span_processor(self._processor)
        tracer = provider.get_tracer("routemaster", version, SCHEMA)
        self.requests, self.attempts = RequestTracer(tracer), AttemptTracer(tracer)

    async def stop(self) -> None:
        """Send the spans that wait, for at most `FLUSH` seconds. Later spans are dropped."""
        done: Deferred[None] = Deferred()
        # a thread of its own: the reactor would wait for one of its pool when it stops
        Thread(target=self._shut_down, args=[done], name="spans", daemon=True).start()
        done.addTimeout(FLUSH, self._reactor)
        try:
            await done
        except TimeoutError:
            _log.warn("spans are lost: they could not be exported within {seconds} s", seconds=FLUSH)
        finally:
            self._troubles.unfollow()

    def _shut_down(self, done: Deferred[None]) -> None:
        try:
            self._processor.shutdown()
        finally:
            self._reactor.callFromThread(_fire, done)


def _fire(done: Deferred[None]) -> None:
    if not done.called:
        done.callback(None)


class _Troubles(logging.Handler):
    """Passes what the SDK and the exporter log on to the bus's log."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(logging.WARNING)
        self._reactor, self._throttle = reactor, LogThrottle()
        self._logger, self._propagated = logging.getLogger("opentelemetry"), True

    def follow(self) -> None:
        """Take all lines of OpenTelemetry, which nobody else gets then."""
        self._propagated, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)

    def unfollow(self) -> None:
        """Take no more lines."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Log a line of any thread. What a client's headers are is nobody's trouble."""
        if record.name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            self._reactor.callFromThread(self._report, _line(record), _reason(record))

    def _report(self, line: str, reason: str) -> None:
        since = self._throttle.failed(self._reactor.seconds(), reason)
        if since is not None:
            _log.warn("tracing: {line} ({count} since the last line)", line=line, count=since.failures)


def _line(record: logging.LogRecord) -> str:
    """A record in one line, with the types of exceptions instead of their texts."""
    shown = _shown(record)
    try:
        return str(record.msg) % shown if shown else str(record.msg)
    except (TypeError, ValueError):
        return str(record.msg)


def _reason(record: logging.LogRecord) -> str:
    """What repetitions of a record have in common: not the seconds until the next attempt, which are random."""
    return repr((str(record.msg), [each for each in _shown(record) if not isinstance(each, float)]))


def _shown(record: logging.LogRecord) -> tuple[object, ...]:
    arguments = record.args if isinstance(record.args, tuple) else ()
    return tuple(type(each).__name__ if isinstance(each, BaseException) else each for each in arguments)
