"""Which attempts are sampled: a batch with a sampled publication, whatever the sampler says of roots."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


class FollowsLinks(Sampler):
    """A sampler based on the parent, for which the links of a root decide as a parent does.

    At 1 % of publications sampled, 1 % of the attempts at random would lead to publications that are not.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler.should_sample`."""
        sampler = self._sampler
        if links and not get_current_span(parent_context).get_span_context().is_valid:
            sampler = ALWAYS_ON if any(link.context.trace_flags.sampled for link in links) else ALWAYS_OFF
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """See `Sampler.get_description`."""
        return f"FollowsLinks{{{self._sampler.get_description()}}}"


def following_links(sampler: Sampler) -> Sampler:
    """The sampler for the bus: one that asks no parent (`always_off`, `traceidratio`) asks no links either."""
    return FollowsLinks(sampler) if isinstance(sampler, ParentBased) else sampler
