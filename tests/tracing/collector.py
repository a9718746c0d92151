"""A collector of traces for tests: OTLP over HTTP on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.error_reporting.test_error_reporting import FakeServer


class Collector(FakeServer):
    """Keeps what is posted; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        super().__init__(lambda _: (self.status, {}))

    @property
    def url(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def resources(self) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """For each process and request: the attributes that describe it, and its spans."""
        for got in list(self.received):
            for each in ExportTraceServiceRequest.FromString(got.body).resource_spans:
                yield values(each.resource), [span for scope in each.scope_spans for span in scope.spans]

    def spans(self, wanted: Callable[[Any], bool] = lambda span: True) -> list[Any]:
        """All spans so far that are wanted."""
        return [span for _, spans in self.resources() for span in spans if wanted(span)]

    def named(self, name: str) -> list[Any]:
        """The spans of this name."""
        return self.spans(lambda span: span.name == name)

    def everything(self) -> str:
        """All that was received, as text."""
        parts = []
        for got in list(self.received):
            request = ExportTraceServiceRequest.FromString(got.body)
            parts += [got.path, str(got.headers), str(request), got.body.decode("latin-1")]
        return "\n".join(parts)


def values(what: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in what.attributes}
