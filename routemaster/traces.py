"""The trace context of a publication, and what the bus expects of tracing. Without OpenTelemetry.

A context is kept with each event of a publication, as one text: the traceparent of the publication, and after a
space its tracestate, if it has one (W3C Trace Context). Only `routemaster.tracing` looks into it. It is no part of
what is delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from routemaster.interfaces import Outcome
from routemaster.model import EventID, Published, with_id

_ODD = frozenset(b"%x" % digit for digit in range(1, 16, 2))


class Traced(bytes):
    """An event's fragment, or its JSON object, with the trace context of its publication."""

    trace: bytes  #: not empty

    @classmethod
    def of(cls, text: bytes, trace: bytes) -> Traced:
        """The same bytes, with a context."""
        made = cls(text)
        made.trace = trace
        return made


def trace_of(text: bytes) -> bytes:
    """The trace context of a fragment; empty: it has none."""
    return text.trace if isinstance(text, Traced) else b""


def is_sampled(trace: bytes) -> bool:
    """Whether the span of a publication, whose context this is, is recorded: the last bit of traceparent."""
    return trace[54:55] in _ODD


def traced_with_id(fragment: bytes, event: EventID) -> bytes:
    """As `model.with_id`; the trace context stays."""
    made = with_id(fragment, event)
    return Traced.of(made, fragment.trace) if isinstance(fragment, Traced) else made


class RequestSpan(Protocol):
    """The span of one request to the bus."""

    trace: bytes | None  #: what is kept with the events that the request publishes; None: nothing

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id`, for log lines."""

    def published(self, stored: Published) -> None:
        """The request's events are stored."""

    def pulled(self, events: int, traces: Sequence[bytes]) -> None:
        """The request is answered with so many events, whose publications have these contexts."""


class AttemptSpan(Protocol):
    """The span of one attempt to deliver."""

    headers: Mapping[bytes, bytes]  #: for the request to the subscriber
    ids: Mapping[str, str]          #: as in `RequestSpan`

    def ended(self, outcome: Outcome | None) -> None:
        """The attempt has ended; None: it was cut."""


class BatchFacts(Protocol):
    """What a span says of a batch (`routemaster.delivery.batch.Batch`)."""

    @property
    def body(self) -> bytes:
        """The JSON array."""

    @property
    def events(self) -> int:
        """How many there are."""

    @property
    def first(self) -> EventID:
        """The ID of the first."""

    @property
    def last(self) -> EventID:
        """The ID of the last."""

    @property
    def ends(self) -> Mapping[str, EventID]:
        """The last event of each topic."""


class AttemptTracer(Protocol):
    """Makes the spans of attempts."""

    def attempt(
        self, subscriber: str, callback: str, batch: BatchFacts, number: int, traces: Sequence[bytes]
    ) -> AttemptSpan:
        """Begin a span: the `number`-th attempt in a row to POST a batch to a callback.

        `subscriber`: its public name; `traces`: the contexts of the events' publications, each once.
        """


class Tracing(Protocol):
    """The tracers of one process (`routemaster.tracing.exporting.Tracing`)."""

    @property
    def requests(self) -> RequestTracer:
        """Of the web part."""

    @property
    def attempts(self) -> AttemptTracer:
        """Of the worker."""

    async def stop(self) -> None:
        """Send what waits, for a few seconds at most."""


class RequestTracer(Protocol):
    """Makes the spans of requests."""

    def begin(self, request: Any) -> None:
        """Begin the span of a complete request, as its `span`, if requests to its endpoint have one."""
