"""The spans of requests: publications and polls.

Requests for monitoring and of probes have none, nor streams, which last for hours. Strangers make no spans: one
whose request is refused for its token, or because there were too many such, is not ended, and so never exported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from twisted.python.failure import Failure

from routemaster.model import Published
from routemaster.tracing.context import ids, parent, restored, stored

SYSTEM: Final = "routemaster"

_ENDPOINTS: Final[Mapping[str, tuple[str, str]]] = {
    "POST /topics/<name>": ("publish", "send"),
    "GET /subscription/events": ("poll", "receive"),
    "GET /subscriptions/<name>/events": ("poll", "receive"),
}
_ROOT: Final = Context()  #: without a parent
_STRANGERS: Final = (401, 429)  #: statuses
_TOPIC: Final = re.compile(rb"/topics/([a-z_]{1,32})")


class RequestTracer:
    """`routemaster.traces.RequestTracer`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, request: Any) -> None:
        """Begin the span of a complete request, as its `span`, if requests to its endpoint have one."""
        operation = _ENDPOINTS.get(request.endpoint)
        if operation is None:
            return
        above = parent(request.requestHeaders)
        context = _ROOT if above is None else set_span_in_context(NonRecordingSpan(above), _ROOT)
        span = self._tracer.start_span(request.endpoint, context, SpanKind.SERVER)
        request.span = RequestSpan(span, above is not None)
        if span.is_recording():
            span.set_attributes(_attributes(request, *operation))
            request.notifyFinish().addBoth(request.span.ended, request)


def _attributes(request: Any, name: str, kind: str) -> dict[str, str]:
    method, _, route = request.endpoint.partition(" ")
    attributes = {
        "http.request.method": method,
        "http.route": route,
        "url.scheme": "https",
        "network.protocol.version": request.clientproto.decode("latin-1").removeprefix("HTTP/"),
        "messaging.system": SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }
    topic = _TOPIC.fullmatch(request.path)
    if topic is not None:
        attributes["messaging.destination.name"] = topic[1].decode()
    return attributes


class RequestSpan:
    """`routemaster.traces.RequestSpan`."""

    __slots__ = ("_span", "trace")

    def __init__(self, span: Span, has_parent: bool) -> None:
        """What is not sampled is kept only if the client gave a context: else nobody could look it up."""
        context = span.get_span_context()
        self._span = span
        self.trace = stored(context) if has_parent or context.trace_flags.sampled else None

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id`, for log lines."""
        return ids(self._span.get_span_context())

    def published(self, stored: Published) -> None:
        """The request's events are stored."""
        if not self._span.is_recording():
            return
        count = stored.last.n - stored.first.n + 1
        if count == 1:
            self._span.set_attribute("messaging.message.id", str(stored.first))
        else:
            self._span.set_attribute("messaging.batch.message_count", count)
            self._span.set_attribute("routemaster.message.first_id", str(stored.first))
            self._span.set_attribute("routemaster.message.last_id", str(stored.last))

    def pulled(self, events: int, traces: Sequence[bytes]) -> None:
        """The request is answered with so many events, whose publications have these contexts."""
        if not self._span.is_recording():
            return
        self._span.set_attribute("messaging.batch.message_count", events)
        for link in links(traces):
            self._span.add_link(link.context)

    def ended(self, result: object, request: Any) -> None:
        """The request is answered, or its connection is lost."""
        span = self._span
        if request.code in _STRANGERS:
            return
        if isinstance(result, Failure):
            span.set_attribute("error.type", "disconnected")
            span.set_status(StatusCode.ERROR, "the client disconnected before the answer")
        else:
            span.set_attribute("http.response.status_code", request.code)
            if request.code >= 500:
                span.set_attribute("error.type", str(request.code))
                span.set_status(StatusCode.ERROR)
        span.end()


def links(traces: Sequence[bytes]) -> list[Link]:
    """Links to the contexts that were kept with events; what is not one is left out."""
    return [Link(context) for trace in traces if (context := restored(trace)) is not None]
