"""The trace context in requests, with events and in spans (W3C Trace Context); OpenTelemetry reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from twisted.web.http_headers import Headers

MOST_STATE = 512   #: characters of a tracestate that are kept, as many as the W3C asks for at least
LONG_MEMBER = 128  #: members of a tracestate that are longer are left out first, as it says too

_PLAIN = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PROPAGATOR = TraceContextTextMapPropagator()
_ROOT = Context()  #: without a parent


def parent(headers: Headers) -> SpanContext | None:
    """The parent that a request's headers name; None if they name none, or not exactly one that is valid."""
    given = headers.getRawHeaders(b"traceparent")
    if given is None or len(given) != 1:
        return None
    state = headers.getRawHeaders(b"tracestate") or ()
    if not state and b" " not in given[0]:
        return restored(given[0])
    return _extracted(given[0].decode("latin-1"), bounded(b",".join(state).decode("latin-1")))


def bounded(state: str) -> str:
    """A tracestate without the members that are too much: first long ones, then the last (W3C, 3.3.1.5)."""
    members = [member.strip(" \t") for member in state.split(",")]
    for index in range(len(members) - 1, -1, -1):
        if _length(members) <= MOST_STATE:
            break
        if len(members[index]) > LONG_MEMBER:
            del members[index]
    while _length(members) > MOST_STATE:
        del members[-1]
    return ",".join(members)


def _length(members: list[str]) -> int:
    return sum(map(len, members)) + len(members) - 1


def stored(context: SpanContext) -> bytes:
    """A context as it is kept with an event: traceparent, and after a space tracestate, if there is one."""
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    if context.trace_state:
        text += f" {bounded(context.trace_state.to_header())}"
    return text.encode("ascii")


def restored(text: bytes) -> SpanContext | None:
    """The context that was kept; None if it is not one."""
    plain = _PLAIN.fullmatch(text)
    if plain is not None:  # most have no tracestate, and a batch may have a hundred
        flags = TraceFlags(int(plain[3], 16))
        context = SpanContext(int(plain[1], 16), int(plain[2], 16), is_remote=True, trace_flags=flags)
        return context if context.is_valid else None
    traceparent, _, state = text.decode("latin-1").partition(" ")
    return _extracted(traceparent, state)


def _extracted(traceparent: str, state: str) -> SpanContext | None:
    """By OpenTelemetry's propagator; an invalid tracestate is left out alone."""
    carrier = {"traceparent": traceparent, **({"tracestate": state} if state else {})}
    context = get_current_span(_PROPAGATOR.extract(carrier, _ROOT)).get_span_context()
    return context if context.is_valid else None


def headers(context: SpanContext) -> Mapping[bytes, bytes]:
    """The headers of a request whose caller is this span; none if the SDK is switched off, and it is no span."""
    if not context.is_valid:
        return {}
    traceparent, _, state = stored(context).partition(b" ")
    return {b"traceparent": traceparent, **({b"tracestate": state} if state else {})}


def ids(context: SpanContext) -> Mapping[str, str]:
    """The fields of log lines, by OpenTelemetry's names for formats of logs that are not its own."""
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
