"""What the store keeps of each attempt."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.attempt_report import MOST_TOPICS, report
from routemaster.delivery.batch import Batch
from routemaster.interfaces import Outcome, Verdict
from routemaster.model import EventID
from routemaster.testing.script_sender import ACKNOWLEDGED, LOCAL, Attempt, refused
from tests.delivery.deliveries import NOW, DeliveryTestCase


class ReportTests(SynchronousTestCase):
    """The object."""

    def test_fields(self) -> None:
        """It says when, how long, which events, and what was answered."""
        batch = Batch.of([("cats", EventID(5, 1), b"{}"), ("dogs", EventID(6, 9), b"{}")])
        outcome = Outcome(Verdict.FAILED, 400, "answered 400: \u00e9", answer="\u00e9 \"quoted\"\nline")
        text = report(batch, outcome, 1_700_000_000.1234567, 0.25)
        self.assertEqual(json.loads(text), {
            "at": 1_700_000_000.123457, "duration": 0.25, "events": 2, "first": "5-1", "last": "6-9",
            "topics": ["cats", "dogs"], "status": 400, "reason": "answered 400: \u00e9",
            "answer": "\u00e9 \"quoted\"\nline",
        })  # fmt: skip
        self.assertTrue(text.isascii() and b"\n" not in text and b": " not in text.partition(b"reason")[0])

    def test_success(self) -> None:
        """A success has no reason; an attempt without an answer no status."""
        batch = Batch.of([("cats", EventID(5, 1), b"{}")])
        known = json.loads(report(batch, ACKNOWLEDGED, 1.0, 0.0))
        self.assertEqual((known["status"], known["reason"], known["answer"]), (204, None, ""))
        known = json.loads(report(batch, Outcome(Verdict.FAILED, error="connection refused"), 1.0, 0.0))
        self.assertEqual((known["status"], known["reason"], known["answer"]), (None, "connection refused", ""))

    def test_many_topics(self) -> None:
        """It stays small however many topics the batch has."""
        batch = Batch.of([(f"t{number}", EventID(number, 1), b"{}") for number in range(1000)])
        self.assertEqual(len(json.loads(report(batch, ACKNOWLEDGED, 1.0, 0.0))["topics"]), MOST_TOPICS)


class ReportedTests(DeliveryTestCase):
    """What a courier reports."""

    def reports(self) -> tuple[list[dict[str, object]], dict[str, object] | None]:
        """The failed attempts, newest first, and the last success."""
        found = self.do(self.memory.attempts("sub"))
        return [json.loads(each) for each in found.failed], found.success and json.loads(found.success)

    def test_each_attempt(self) -> None:
        """Each failed attempt and the last success are reported, by the store's clock and in no further call."""
        self.store_clock.apart = 3600.0
        outcomes = [refused(503), evolve(refused(400), answer="bad"), ACKNOWLEDGED]
        self.sender.otherwise = None

        def receive(attempt: Attempt) -> None:
            self.clock.callLater(0.25, attempt.end, outcomes.pop(0))

        self.sender.on_post = receive
        self.subscribe("cats")
        self.worker(retry_delay=1.0)
        self.clock.advance(1)
        self.store.calls.clear()
        published = self.do(self.memory.publish("cats", "pub", [b'{"n":1}']))
        self.pass_time(6)
        failed, success = self.reports()
        self.assertEqual([each["status"] for each in failed], [400, 503])
        self.assertEqual([each["answer"] for each in failed], ["bad", ""])
        assert success is not None
        for each in (*failed, success):
            self.assertEqual((each["first"], each["last"], each["events"]), (str(published.last),) * 2 + (1,))
            self.assertAlmostEqual(float(str(each["duration"])), 0.25, 5)
        self.assertAlmostEqual(float(str(failed[1]["at"])), NOW + 3600 + 1, 1)
        self.assertEqual((self.store.calls["fail"], self.store.calls["acknowledge"]), (2, 1))
        self.assertNotIn("attempts", self.store.calls)

    def test_local_faults(self) -> None:
        """A fault of this machine is no attempt at the subscriber."""
        self.sender.then(LOCAL)
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.pass_time(5)
        failed, success = self.reports()
        self.assertEqual((failed, success is None), ([], False))

    def test_reply_lost(self) -> None:
        """A failure whose reply is lost is kept once."""
        self.sender.then(refused())
        self.subscribe("cats")
        self.worker()
        self.store.fail_next("fail", times=2, done=True)
        self.publish("cats")
        self.pass_time(5)
        self.assertEqual(len(self.reports()[0]), 1)
