"""The spans of requests to the API, and what is kept with events."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace.sampling import DEFAULT_OFF
from opentelemetry.trace import SpanKind, StatusCode
from twisted.logger import globalLogPublisher

from routemaster.hints import decode
from routemaster.logs import as_text
from routemaster.pull.service import PullService
from routemaster.store.memory_store import MemoryStore
from routemaster.traces import trace_of
from routemaster.tracing.requests import RequestTracer
from routemaster.web.api import Api
from tests.tracing.spans import (
    PARENT,
    TRACE,
    TRACEPARENT,
    UNSAMPLED,
    Spans,
    linked,
    span_id,
    trace_id,
    traceparent,
)
from tests.web.test_api import EVENT, MONITOR_KEY, UNAVAILABLE, A, B, Case

SENT = f"traceparent: {TRACEPARENT}"


class TracedCase(Case):
    """An API with tracing."""

    spans: Spans

    def make_api(self, **options: Any) -> Api:
        self.spans = Spans()
        return super().make_api(tracer=RequestTracer(self.spans.tracer), **options)

    def setUp(self) -> None:
        super().setUp()
        self.publish()
        self.subscribe("cats")
        self.spans._exporter.clear()

    def kept(self) -> list[bytes]:
        """The contexts of the events in the log."""
        return [trace_of(fragment) for _, fragment in self.store.store._topics["cats"].log]

    def send(self, *headers: str, body: Any = EVENT, user: str = A) -> int:
        return self.call("POST", "/topics/cats", body, user, *headers).status


class PublishTests(TracedCase):
    """Publications."""

    def test_span(self) -> None:
        """A publication is a server span below the client's, with the conventions' attributes."""
        self.assertEqual(self.send(SENT, "tracestate: a=1"), 204)
        span = self.spans.only
        self.assertEqual((span.name, span.kind, trace_id(span)), ("POST /topics/<name>", SpanKind.SERVER, TRACE))
        assert span.parent is not None
        self.assertEqual(f"{span.parent.span_id:016x}", PARENT)
        assert span.attributes is not None
        attributes = dict(span.attributes)
        self.assertRegex(str(attributes.pop("messaging.message.id")), r"^\d+-2$")
        self.assertEqual(attributes, {
            "http.request.method": "POST", "http.route": "/topics/<name>", "url.scheme": "https",
            "network.protocol.version": "1.1", "http.response.status_code": 204,
            "messaging.system": "routemaster", "messaging.operation.name": "publish",
            "messaging.operation.type": "send", "messaging.destination.name": "cats",
        })  # fmt: skip
        self.assertEqual(span.status.status_code, StatusCode.UNSET)
        self.assertEqual(self.kept(), [f"00-{TRACE}-{span_id(span)}-01 a=1".encode()])

    def test_no_parent(self) -> None:
        """Without a valid traceparent the span is a root, and its context is kept."""
        for headers in ((), ("traceparent: x",), (SENT, SENT), ("tracestate: a=1",)):
            self.assertEqual(self.send(*headers), 204)
        spans = self.spans.ended
        self.assertEqual([span.parent for span in spans], [None] * 4)
        self.assertEqual(len({trace_id(span) for span in spans} | {TRACE}), 5)
        self.assertEqual(self.kept(), [traceparent(span).encode() for span in spans])

    def test_bulk(self) -> None:
        """A bulk is one span with the number of its events and their IDs; each keeps the context."""
        self.assertEqual(self.send(SENT, body=[EVENT, EVENT, EVENT]), 204)
        span = self.spans.only
        assert span.attributes is not None
        self.assertEqual(span.attributes["messaging.batch.message_count"], 3)
        self.assertRegex(str(span.attributes["routemaster.message.first_id"]), r"-2$")
        self.assertRegex(str(span.attributes["routemaster.message.last_id"]), r"-4$")
        self.assertEqual(self.kept(), [f"00-{TRACE}-{span_id(span)}-01".encode()] * 3)

    def test_unsampled(self) -> None:
        """A client's context that is not sampled makes no span, and is kept with its flag."""
        self.assertEqual(self.send(f"traceparent: {UNSAMPLED}"), 204)
        self.assertEqual(self.spans.ended, [])
        [context] = self.kept()
        self.assertRegex(context, rb"^00-%b-[0-9a-f]{16}-00$" % TRACE.encode())

    def test_refused(self) -> None:
        """A publication that is refused is a span with its status; it is an error only if it is the bus's."""
        self.assertEqual(self.send(SENT, body={}), 400)
        self.assertEqual(self.send(SENT, user=B), 403)
        self.store.error = UNAVAILABLE
        self.assertEqual(self.send(SENT), 503)
        found = [(span.attributes or {}) for span in self.spans.ended]
        self.assertEqual([each["http.response.status_code"] for each in found], [400, 403, 503])
        self.assertEqual([each.get("error.type") for each in found], [None, None, "503"])
        codes = [span.status.status_code for span in self.spans.ended]
        self.assertEqual(codes, [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR])

    def test_disconnected(self) -> None:
        """A client that leaves before the answer ends the span."""
        self.store.holding = True
        self.begin("POST", "/topics/cats", EVENT, A, SENT)
        self.assertEqual(self.spans.ended, [])
        self.wire.transport.lose()
        span = self.spans.only
        self.assertEqual((span.attributes or {})["error.type"], "disconnected")
        self.assertNotIn("http.response.status_code", span.attributes or {})
        self.store.release()

    def test_others(self) -> None:
        """Strangers and all other requests make no span."""
        for path in ("/topics/cats", "/topics/wrong-canary"):
            self.assertEqual(self.call("POST", path, EVENT, "wrong--secret", SENT).status, 401)
            self.assertEqual(self.call("POST", path, EVENT, None, SENT).status, 401)
        for path in ("/health", "/health/ready", "/metrics", "/pulse", "/topics", "/subscriptions"):
            self.call("GET", path, None, A, SENT)
        self.assertEqual(self.spans.ended, [])

    def test_internal_error(self) -> None:
        """The log line of a handler that failed has the IDs of the span."""
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        self.store.error = ValueError("canary")
        self.assertEqual(self.send(SENT), 500)
        [line] = [each for each in lines if "log_failure" in each]
        self.assertEqual((line["trace_id"], line["span_id"]), (TRACE, span_id(self.spans.only)))
        self.assertIn(f"failed trace_id={TRACE} span_id={span_id(self.spans.only)}\n", as_text(line))
        [failure] = self.flushLoggedErrors(ValueError)
        self.assertEqual(failure.getErrorMessage(), "canary")
        self.assertEqual(self.spans.only.status.status_code, StatusCode.ERROR)


class RootsOffTests(TracedCase):
    """A bus that samples nothing by itself."""

    def make_api(self, **options: Any) -> Api:
        self.spans = Spans(DEFAULT_OFF)
        return Case.make_api(self, tracer=RequestTracer(self.spans.tracer), **options)

    def test_nothing_kept(self) -> None:
        """Without a client's context nothing is kept; with one it is."""
        self.assertEqual([self.send(), self.send(SENT)], [204, 204])
        self.assertEqual(self.kept(), [b"", f"00-{TRACE}-{span_id(self.spans.only)}-01".encode()])


class PollTests(TracedCase):
    """Polls."""

    def make_api(self, **options: Any) -> Api:
        self.store.store = MemoryStore(self.clock, 10, self.on_hint)
        self.pull = PullService(self.store, self.clock, traces=True)  # type: ignore[arg-type]
        return super().make_api(pull=self.pull, **options)

    def on_hint(self, message: bytes) -> None:
        hint = decode(message)
        assert hint is not None
        self.pull.on_hint(hint)

    def setUp(self) -> None:
        super().setUp()
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]})
        self.spans._exporter.clear()

    def tearDown(self) -> None:
        self.done(self.pull.stop())
        self.clock.advance(0)

    def test_links(self) -> None:
        """A poll is a server span with a link to each publication in its answer, which is as without tracing."""
        self.send(SENT)
        self.send(SENT, body=[EVENT, EVENT])
        publications = [f"{TRACE}-{span_id(span)}" for span in self.spans.ended]
        answer = self.call("GET", "/subscription/events?max=10")
        span = self.spans.ended[-1]
        self.assertEqual((answer.status, span.name), (200, "GET /subscription/events"))
        self.assertEqual(linked(span), publications)
        attributes = span.attributes or {}
        self.assertEqual(attributes["messaging.batch.message_count"], 3)
        self.assertEqual(attributes["messaging.operation.type"], "receive")
        self.assertNotIn("messaging.destination.name", attributes)
        for word in (b"trace", TRACE.encode(), PARENT.encode()):
            self.assertNotIn(word, answer.body)

    def test_waiting(self) -> None:
        """A poll that waits ends its span with the answer, with a link to what was published meanwhile."""
        self.begin("GET", "/subscription/events?wait=5000")
        poll = self.wire.channel
        self.assertEqual(self.spans.ended, [])
        self.send(SENT)
        self.clock.advance(0)
        publication, span = self.spans.ended
        self.assertEqual(linked(span), [f"{TRACE}-{span_id(publication)}"])
        self.assertIsNot(poll, self.wire.channel)

    def test_by_root(self) -> None:
        """A monitor's look at the events of a client is a poll too; an empty answer has no link."""
        answer = self.call("GET", "/subscriptions/alice/events", None, MONITOR_KEY)
        span = self.spans.only
        self.assertEqual((answer.status, span.name), (200, "GET /subscriptions/<name>/events"))
        self.assertEqual((linked(span), (span.attributes or {})["messaging.batch.message_count"]), ([], 0))
