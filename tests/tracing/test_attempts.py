"""The spans of attempts to deliver, made by workers on the store in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace.sampling import DEFAULT_OFF
from opentelemetry.trace import SpanKind, StatusCode
from twisted.logger import globalLogPublisher

from routemaster.delivery.batch import MOST_TRACES
from routemaster.interfaces import Outcome, Verdict
from routemaster.testing.script_sender import ACKNOWLEDGED, LOCAL, refused
from routemaster.traces import Traced
from routemaster.tracing.attempts import AttemptTracer
from tests.delivery.deliveries import CALLBACK, DeliveryTestCase
from tests.tracing.spans import TRACE, Spans, linked, span_id, trace_id, traceparent


def context(number: int, flags: str = "01") -> str:
    return f"00-{TRACE}-{number:016x}-{flags}"


class AttemptCase(DeliveryTestCase):
    """Workers with tracing."""

    def setUp(self) -> None:
        super().setUp()
        self.trace(Spans())
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)

    def trace(self, spans: Spans) -> None:
        self.spans = spans
        self.tracer = AttemptTracer(spans.tracer)

    def traced(self, topic: str, *contexts: str) -> None:
        """Publish an event for each context, all at once; an empty one: without."""
        fragments = [Traced.of(b'{"n":1}', each.encode()) if each else b'{"n":1}' for each in contexts]
        self.do(self.memory.publish(topic, "pub", fragments))

    def links(self) -> list[str]:
        """Of the attempt that has ended: the numbers of the publications' spans."""
        return [each.partition("-")[2].lstrip("0") for each in linked(self.spans.only)]


class AttemptTests(AttemptCase):
    """Attempts."""

    def test_span(self) -> None:
        """An attempt is a client span, a root, linked to its events' publications; the POST names it as parent."""
        self.subscribe("cats", name="shop--secret", uuid="canary")
        self.worker()
        self.traced("cats", context(1), context(2), context(1), "")
        span = self.spans.only
        self.assertEqual((span.name, span.kind, span.parent), ("deliver cats", SpanKind.CLIENT, None))
        self.assertEqual(self.links(), ["1", "2"])
        self.assertNotEqual(trace_id(span), TRACE)
        (attempt,) = self.sender.attempts
        self.assertEqual(attempt.headers, {b"traceparent": traceparent(span).encode()})
        self.assertNotIn(b"trace", attempt.body)
        assert span.attributes is not None
        attributes = dict(span.attributes)
        self.assertRegex(str(attributes.pop("routemaster.message.first_id")), r"-2$")
        self.assertRegex(str(attributes.pop("routemaster.message.last_id")), r"-5$")
        self.assertEqual(attributes, {
            "messaging.system": "routemaster", "messaging.operation.name": "deliver",
            "messaging.operation.type": "send", "messaging.destination.name": "cats",
            "messaging.destination.subscription.name": "shop", "messaging.batch.message_count": 4,
            "http.request.method": "POST", "http.request.body.size": len(attempt.body),
            "http.response.status_code": 204, "server.address": "sub.example", "server.port": 443,
            "url.full": CALLBACK,
        })  # fmt: skip
        self.assertEqual(span.status.status_code, StatusCode.UNSET)

    def test_topics(self) -> None:
        """A batch of several topics names none."""
        self.subscribe("cats", "dogs", timeout=500)
        self.worker()
        self.traced("cats", context(1))
        self.traced("dogs", context(2))
        self.pass_time(1)
        self.assertEqual((self.spans.only.name, self.links()), ("deliver", ["1", "2"]))
        self.assertNotIn("messaging.destination.name", self.spans.only.attributes or {})

    def test_failed(self) -> None:
        """Each attempt is a span of its own, with the status or the reason of its failure."""
        told = Outcome(Verdict.FAILED, 500, "answered 500: canary", reason="answered 500")
        self.sender.then(told, Outcome(Verdict.FAILED, error="connection refused"), LOCAL, ACKNOWLEDGED)
        self.subscribe("cats")
        self.worker()
        self.traced("cats", context(1))
        self.pass_time(5)
        spans = self.spans.ended
        self.assertEqual([linked(span) for span in spans], [linked(spans[0])] * 4)
        self.assertEqual(len({trace_id(span) for span in spans}), 4)
        found = [(span.attributes or {}) for span in spans]
        self.assertEqual([each.get("error.type") for each in found], ["500", "_OTHER", "_OTHER", None])
        self.assertEqual([each.get("http.response.status_code") for each in found], [500, None, None, 204])
        self.assertEqual([each.get("http.request.resend_count") for each in found], [None, 1, 2, 2])
        texts = [span.status.description for span in spans]
        self.assertEqual(texts, ["answered 500", "connection refused", "too many open files", None])

    def test_cut(self) -> None:
        """An attempt that is cut ends its span."""
        self.sender.then(None)
        self.subscribe("cats")
        worker = self.worker()
        self.traced("cats", context(1))
        self.assertEqual(self.spans.ended, [])
        self.stop_all()
        self.workers.remove(worker)
        self.assertEqual((self.spans.only.attributes or {})["error.type"], "cancelled")

    def test_many_links(self) -> None:
        """The links of a span are bounded; which events they stand for is not checked again."""
        self.subscribe("cats", max=1000, timeout=500)
        self.worker()
        self.traced("cats", *(context(number) for number in range(1, 2 * MOST_TRACES)))
        self.pass_time(1)
        self.assertEqual(self.links(), [f"{number:x}" for number in range(1, MOST_TRACES + 1)])

    def test_unsampled(self) -> None:
        """Links lead to publications that are sampled, however many others come first."""
        self.subscribe("cats", max=1000, timeout=500)
        self.worker()
        self.traced("cats", *(context(number, "00") for number in range(1, 2 * MOST_TRACES)), context(999))
        self.pass_time(1)
        self.assertEqual(self.links(), [f"{999:x}"])

    def test_damaged(self) -> None:
        """A context that is none is passed over."""
        self.subscribe("cats")
        self.worker()
        self.traced("cats", "what another program wrote", context(3))
        self.assertEqual(self.links(), ["3"])

    def test_sampling(self) -> None:
        """Where the bus samples no roots, attempts with a sampled publication are; each POST has a context."""
        self.trace(Spans(DEFAULT_OFF))
        self.subscribe("cats")
        self.worker()
        self.traced("cats", "")
        self.traced("cats", context(1, "00"))
        self.assertEqual(self.spans.ended, [])
        self.traced("cats", context(2, "00"), context(3))
        self.assertEqual(self.links(), ["3"])
        flags = [int(attempt.headers[b"traceparent"][-2:], 16) for attempt in self.sender.attempts]
        self.assertEqual([each & 1 for each in flags], [0, 0, 1])

    def test_retried(self) -> None:
        """A parked event that is tried again is an attempt as others; its link is not kept."""
        self.sender.then(refused(422), refused(422))
        self.subscribe("cats", park_after=1)
        self.worker()
        self.traced("cats", context(1))
        self.pass_time(2)
        self.do(self.memory.retry_parked("sub", None))
        self.pass_time(2)
        self.assertEqual([len(linked(span)) for span in self.spans.ended][-1], 0)
        self.assertEqual((self.spans.ended[-1].attributes or {})["messaging.batch.message_count"], 1)


class LogTests(AttemptCase):
    """Log lines."""

    def logged(self, beginning: str) -> dict[str, Any]:
        (line,) = [each for each in self.lines if each.get("log_format", "").startswith(beginning)]
        return line

    def test_ids(self) -> None:
        """Lines about an attempt have the IDs of its span."""
        self.sender.then(refused())
        self.subscribe("cats")
        self.worker()
        self.traced("cats", context(1))
        self.pass_time(2)
        failed, delivered = self.spans.ended
        for beginning, span in {
            "attempt {attempt} with": failed, "failed to deliver": failed, "delivered": delivered,
            "deliveries to '{name}' succeed again": delivered,
        }.items():  # fmt: skip
            line = self.logged(beginning)
            self.assertEqual((line["trace_id"], line["span_id"]), (trace_id(span), span_id(span)), beginning)


class OffTests(DeliveryTestCase):
    """Workers without tracing."""

    def test_nothing(self) -> None:
        """A worker without tracing delivers what has a context, with no further header and no IDs in its lines."""
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        self.subscribe("cats")
        self.worker()
        self.do(self.memory.publish("cats", "pub", [Traced.of(b'{"n":1}', context(1).encode())]))
        (attempt,) = self.sender.attempts
        self.assertEqual((attempt.events, attempt.headers), ([1], {}))
        self.assertTrue([line for line in lines if line.get("log_format", "").startswith("delivered")])
        self.assertEqual([line for line in lines if "trace_id" in line], [])
