"""Spans in memory, for tests; and contexts as clients send them."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler

from routemaster.tracing.sampling import following_links

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


class Spans:
    """A tracer, and the spans that have ended."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(following_links(sampler), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("tests")

    @property
    def ended(self) -> list[ReadableSpan]:
        """In the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    @property
    def only(self) -> ReadableSpan:
        """The one that has ended."""
        (span,) = self.ended
        return span


def trace_id(span: ReadableSpan) -> str:
    """In hexadecimal digits."""
    return f"{span.context.trace_id:032x}"


def span_id(span: ReadableSpan) -> str:
    """In hexadecimal digits."""
    return f"{span.context.span_id:016x}"


def traceparent(span: ReadableSpan) -> str:
    """The header of a request whose caller the span is; the SDK sets a second flag in traces that it begins."""
    return f"00-{trace_id(span)}-{span_id(span)}-{span.context.trace_flags:02x}"


def linked(span: ReadableSpan) -> list[str]:
    """The spans to which a span is linked, `trace-span` each."""
    return [f"{link.context.trace_id:032x}-{link.context.span_id:016x}" for link in span.links]
