"""The spans of attempts to deliver."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from routemaster.callback_url import parse_callback
from routemaster.interfaces import Outcome, Verdict
from routemaster.traces import BatchFacts
from routemaster.tracing.context import headers, ids
from routemaster.tracing.requests import SYSTEM, links

_ROOT = Context()  #: without a parent


class AttemptTracer:
    """`routemaster.traces.AttemptTracer`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def attempt(
        self, subscriber: str, callback: str, batch: BatchFacts, number: int, traces: Sequence[bytes]
    ) -> AttemptSpan:
        """See there."""
        topic = next(iter(batch.ends)) if len(batch.ends) == 1 else None
        name = "deliver" if topic is None else f"deliver {topic}"
        span = self._tracer.start_span(name, _ROOT, SpanKind.CLIENT, links=links(traces))
        if span.is_recording():
            _describe(span, subscriber, callback, batch, number)
            if topic is not None:
                span.set_attribute("messaging.destination.name", topic)
        return AttemptSpan(span)


def _describe(span: Span, subscriber: str, callback: str, batch: BatchFacts, number: int) -> None:
    span.set_attributes({
        "messaging.system": SYSTEM,
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "send",
        "messaging.destination.subscription.name": subscriber,
        "messaging.batch.message_count": batch.events,
        "routemaster.message.first_id": str(batch.first),
        "routemaster.message.last_id": str(batch.last),
        "http.request.method": "POST",
        "http.request.body.size": len(batch.body),
    })
    if number > 1:
        span.set_attribute("http.request.resend_count", number - 1)
    parts = parse_callback(callback)
    if parts is not None:
        span.set_attributes({
            "server.address": parts.host,
            "server.port": parts.port,
            "url.full": f"https://{parts.netloc}{parts.path}",
        })


class AttemptSpan:
    """`routemaster.traces.AttemptSpan`."""

    __slots__ = ("_span", "headers", "ids")

    def __init__(self, span: Span) -> None:
        context = span.get_span_context()
        self._span, self.headers, self.ids = span, headers(context), ids(context)

    def ended(self, outcome: Outcome | None) -> None:
        """The attempt has ended; None: it was cut."""
        span = self._span
        if not span.is_recording():
            return
        if outcome is None:
            span.set_attribute("error.type", "cancelled")
            span.set_status(StatusCode.ERROR, "the attempt was cut: the bus stops, or the subscription changed")
        else:
            if outcome.status is not None:
                span.set_attribute("http.response.status_code", outcome.status)
            if outcome.verdict is not Verdict.ACKNOWLEDGED:
                span.set_attribute("error.type", str(outcome.status or "_OTHER"))
                # not `error`, which may quote what the subscriber answered
                span.set_status(StatusCode.ERROR, outcome.reason or outcome.error)
        span.end()
