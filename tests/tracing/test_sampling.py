"""Which spans are sampled."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)  # fmt: skip
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from twisted.trial.unittest import SynchronousTestCase

from routemaster.tracing.sampling import following_links
from tests.tracing.spans import Spans


def context(sampled: bool) -> SpanContext:
    return SpanContext(1, 2, True, TraceFlags(sampled))


def is_sampled(sampler: Sampler, *linked: bool, parent: bool | None = None) -> bool:
    """Whether a span is sampled, with links and a parent that are, or are not."""
    above = Context() if parent is None else set_span_in_context(NonRecordingSpan(context(parent)))
    links = [Link(context(each)) for each in linked]
    span = Spans(sampler).tracer.start_span("x", above, links=links)
    return bool(span.get_span_context().trace_flags.sampled)


class SamplingTests(SynchronousTestCase):
    """A sampler that follows links."""

    def test_links(self) -> None:
        """A root with links is sampled if one of these is; the ratio of other roots plays no part."""
        for sampler in (DEFAULT_ON, DEFAULT_OFF, ParentBasedTraceIdRatio(0.0), ParentBasedTraceIdRatio(1.0)):
            self.assertTrue(is_sampled(sampler, False, True))
            self.assertFalse(is_sampled(sampler, False, False))

    def test_roots(self) -> None:
        """A root without links is sampled as the sampler says."""
        self.assertTrue(is_sampled(DEFAULT_ON))
        self.assertFalse(is_sampled(DEFAULT_OFF))
        self.assertFalse(is_sampled(ParentBasedTraceIdRatio(0.0)))

    def test_parents(self) -> None:
        """With a parent it alone decides."""
        for sampler in (DEFAULT_ON, DEFAULT_OFF):
            self.assertTrue(is_sampled(sampler, False, parent=True))
            self.assertFalse(is_sampled(sampler, True, parent=False))

    def test_others(self) -> None:
        """A sampler that asks no parent asks no links."""
        for sampler in (ALWAYS_ON, ALWAYS_OFF, TraceIdRatioBased(0.5)):
            self.assertIs(following_links(sampler), sampler)
        self.assertFalse(is_sampled(ALWAYS_OFF, True))
        self.assertTrue(is_sampled(ALWAYS_ON, False))
        self.assertIn("ParentBased", following_links(DEFAULT_ON).get_description())
