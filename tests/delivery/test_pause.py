"""Deliveries that the subscriber pauses, resumes, retries, or has begin again further back."""

from __future__ import annotations

from routemaster.delivery.forecast import batches_due, step_of
from routemaster.model import OLDEST, TopicSettings
from routemaster.testing.script_sender import ACKNOWLEDGED, refused
from tests.delivery.deliveries import RECONCILE, TTL, DeliveryTestCase


class PauseTests(DeliveryTestCase):
    """A paused courier keeps its lease and sends nothing."""

    def test_paused(self) -> None:
        """While paused, events gather and nothing is sent; at the resumption all goes out at once, in order."""
        self.subscribe("cats", max=3)
        worker = self.worker()
        self.do(self.memory.pause("sub"))
        self.publish("cats", 4)
        self.pass_time(3 * TTL)
        self.assertEqual((self.batches, self.queued(), worker.lease_count), ([], 4, 1))
        self.assertEqual(step_of(self.facts(), self.clock.seconds()).state.value, "paused")
        self.assertEqual(batches_due(self.facts(), self.clock.seconds()), 0)
        self.do(self.memory.resume("sub"))
        self.assertEqual(self.batches, [[1, 2, 3], [4]])
        self.assertEqual(step_of(self.facts(), self.clock.seconds()).state.value, "idle")

    def test_costs_nothing(self) -> None:
        """A paused courier calls the store for nothing but its lease, however many events are accepted."""
        for timeout in (0, 500):
            self.setUp()
            self.subscribe("cats", timeout=timeout)
            self.worker()
            self.publish("cats")
            self.do(self.memory.pause("sub"))
            self.store.calls.clear()
            for _ in range(50):
                self.publish("cats")
            self.pass_time(RECONCILE - 1)
            self.assertEqual(set(self.store.calls) & {"read", "positions", "acquire", "expire"}, set())

    def test_in_flight(self) -> None:
        """An attempt that is under way when deliveries are paused ends as any other, and no other follows."""
        for outcome, left in ((ACKNOWLEDGED, 1), (refused(), 2)):
            self.setUp()
            self.sender.otherwise = None
            self.subscribe("cats", max=1)
            self.worker()
            self.publish("cats", 2)
            self.do(self.memory.pause("sub"))
            self.end(outcome)
            self.pass_time(60)
            self.assertEqual((self.batches, self.queued()), ([[1]], left))
            self.assertEqual(self.facts().health.failures, left - 1)

    def test_waiting_for_a_turn(self) -> None:
        """A courier that waits for its turn when deliveries are paused sends nothing when it comes."""
        self.sender.busy = True
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.do(self.memory.pause("sub"))
        self.sender.give_turns()
        self.assertEqual((self.batches, self.queued()), ([], 1))

    def test_before_the_lease(self) -> None:
        """Who takes over a paused subscriber sends nothing either."""
        self.subscribe("cats")
        self.do(self.memory.pause("sub"))
        self.publish("cats")
        self.worker()
        self.pass_time(TTL)
        self.assertEqual(self.batches, [])

    def test_subscribed_again(self) -> None:
        """Subscribing again does not end the pause."""
        self.subscribe("cats")
        self.worker()
        self.do(self.memory.pause("sub"))
        self.subscribe("cats", create=False, max=5)
        self.publish("cats")
        self.assertEqual(self.batches, [])

    def test_hint_lost(self) -> None:
        """Pause, resume and retry take effect with the next renewal at the latest."""
        self.subscribe("cats")
        self.worker(retry_delay=60.0)
        self.lose_hints = True
        self.do(self.memory.pause("sub"))
        self.pass_time(RECONCILE)
        self.lose_hints = False
        self.publish("cats")
        self.assertEqual(self.batches, [])
        self.lose_hints = True
        self.sender.then(refused())
        self.do(self.memory.resume("sub"))
        self.pass_time(RECONCILE)
        self.assertEqual(self.batches, [[1]])
        self.do(self.memory.retry("sub"))
        self.pass_time(RECONCILE)
        self.assertEqual(self.batches, [[1], [1]])

    def test_retry(self) -> None:
        """Resume and retry end the pause after failures at once; the failures in a row go on to count."""
        for control in (self.memory.resume, self.memory.retry):
            self.setUp()
            self.subscribe("cats")
            self.worker(retry_delay=60.0)
            self.sender.then(refused(), refused())
            self.publish("cats")
            self.assertEqual(self.batches, [[1]])
            self.do(getattr(self.memory, control.__name__)("sub"))
            self.assertEqual((self.batches, self.facts().health.failures), ([[1], [1]], 2))

    def test_retry_while_paused(self) -> None:
        """Retry alone does not end a pause."""
        self.subscribe("cats")
        self.worker()
        self.do(self.memory.pause("sub"))
        self.publish("cats")
        self.do(self.memory.retry("sub"))
        self.assertEqual(self.batches, [])


class RewindTests(DeliveryTestCase):
    """A cursor that moves back while a batch is under way."""

    def setUp(self) -> None:
        super().setUp()
        self.create("cats")
        self.do(self.memory.configure_topic("cats", "pub", TopicSettings(history=3_600_000)))
        self.subscribe("cats", create=False, max=2)

    def test_in_flight(self) -> None:
        """An acknowledgement of what was read before the rewind changes nothing: all comes again, in order."""
        self.worker()
        self.publish("cats", 3)
        self.sender.otherwise = None
        self.publish("cats")
        self.do(self.memory.rewind("sub", OLDEST))
        self.assertEqual(self.facts().sent, 3)
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.assertEqual(self.batches, [[1, 2], [3], [4], [1, 2], [3, 4]])
        self.assertEqual((self.facts().sent, self.queued()), (7, 0))

    def test_without_hints(self) -> None:
        """So it is when the hint is lost: the acknowledgement's reply says that the cursor moved back."""
        self.worker()
        self.publish("cats", 2)
        self.sender.otherwise = None
        self.publish("cats")
        self.lose_hints = True
        self.do(self.memory.rewind("sub", OLDEST))
        self.sender.otherwise = ACKNOWLEDGED
        self.store.calls.clear()
        self.end()
        self.assertEqual(self.batches, [[1, 2], [3], [1, 2], [3]])
        self.assertEqual(self.store.calls["repair"], 0)

    def test_reply_lost(self) -> None:
        """An acknowledgement that is repeated because its reply was lost is still that of the old read."""
        self.worker()
        self.publish("cats", 2)
        self.sender.otherwise = None
        self.publish("cats")
        self.do(self.memory.rewind("sub", OLDEST))
        self.store.fail_next("acknowledge", times=2, done=True)
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.pass_time(5)
        self.assertEqual(self.batches, [[1, 2], [3], [1, 2], [3]])

    def test_several_topics(self) -> None:
        """Only the topic that was moved back comes again."""
        self.subscribe("dogs")
        self.subscribe("cats", "dogs", create=False, max=2)
        self.worker()
        self.publish("cats", 2)
        self.sender.otherwise = None
        self.publish("cats")
        self.publish("dogs")
        self.do(self.memory.rewind("sub", OLDEST, ["cats"]))
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.assertEqual(self.batches, [[1, 2], [3], [1, 2], [3, 4]])

    def test_topic_that_is_not_in_the_batch(self) -> None:
        """When the reply says that a cursor moved back, those of all other topics are read again, too."""
        self.subscribe("dogs")
        self.do(self.memory.configure_topic("dogs", "pub", TopicSettings(history=3_600_000)))
        self.subscribe("cats", "dogs", create=False, max=2)
        self.worker()
        self.publish("dogs")
        self.publish("cats")
        self.sender.otherwise = None
        self.publish("cats")
        self.lose_hints = True
        self.do(self.memory.rewind("sub", OLDEST))
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.assertEqual(self.batches, [[1], [2], [3], [1, 2], [3]])

    def test_idle(self) -> None:
        """With nothing under way the events come again at once."""
        self.worker()
        self.publish("cats", 2)
        self.do(self.memory.rewind("sub", OLDEST))
        self.assertEqual(self.batches, [[1, 2], [1, 2]])

    def test_skipped_in_flight(self) -> None:
        """What is skipped while a batch is under way does not come; the batch's own events count once."""
        self.sender.otherwise = None
        self.worker()
        self.publish("cats", 5)
        self.do(self.memory.skip("sub", None))
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.publish("cats")
        facts = self.facts()
        self.assertEqual((self.batches, facts.sent + facts.skipped, facts.added), ([[1, 2], [6]], 6, 6))
