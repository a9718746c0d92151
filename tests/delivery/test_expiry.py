"""Subscriptions with `retention` or `max_queued`: which events are not delivered any more."""

from __future__ import annotations

from math import inf
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.expiry import MOMENT, PERIOD, Expiry
from routemaster.model import EventID, Subscription
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, refused
from tests.delivery.deliveries import RECONCILE, TTL, DeliveryTestCase

NEVER = -1000.0
#: age of the oldest event, waiting events, seconds since the store was asked
#: -> too old for a batch, too many for a batch, seconds until the store is asked
TABLE = [
    (0.0, 1, NEVER, False, False, 60 + MOMENT),
    (59.9, 10, NEVER, False, False, 0.1 + MOMENT),
    (60.0, 10, NEVER, True, False, MOMENT),
    (99.0, 11, NEVER, True, True, MOMENT - 39),
    (60.1, 11, MOMENT / 2, False, False, PERIOD - MOMENT / 2),  # what expires just now may still go
    (60.1, 11, MOMENT, True, True, PERIOD - MOMENT),
    (60.1, 11, PERIOD, True, True, 0.0),
    (59.5, 11, 0.2, False, True, 0.8),
]


def subscription(**options: Any) -> Subscription:
    return Subscription("sub", ("cats",), "https://sub.example/", **options)


class ExpiryTests(SynchronousTestCase):
    """The rule."""

    def expiry(self, ahead: float = 0.0, **options: Any) -> Expiry:
        """Limits; the store's clock is so many seconds ahead."""
        offset = ClockOffset()
        offset.observe(1000.0, 1000.0, round((1000.0 + ahead) * 1e6))
        expiry = Expiry(offset)
        expiry.limit(subscription(**options))
        return expiry

    def test_table(self) -> None:
        """What is too old or too many has to be passed over before a batch, or when a wait is over for that."""
        for age, waiting, since, too_old, too_many, seconds in TABLE:
            expiry, oldest = self.expiry(retention=60_000, max_queued=10), EventID(round((2000 - age) * 1e6), 1)
            if since != NEVER:
                expiry.asked(2000 - since)
            found = expiry.too_old(oldest, 2000.0), expiry.too_many(waiting, 2000.0)
            self.assertEqual(found, (too_old, too_many), (age, waiting, since))
            self.assertAlmostEqual(expiry.next_call(oldest) - 2000, seconds, places=5)

    def test_by_the_stores_clock(self) -> None:
        """The age counts by the store's clock."""
        for ahead in (-3600.0, 0.0, 3600.0):
            expiry, event = self.expiry(ahead, retention=5000), EventID(round((1000 + ahead) * 1e6), 1)
            self.assertFalse(expiry.too_old(event, 1004.99))
            self.assertTrue(expiry.too_old(event, 1005.01))

    def test_no_limits(self) -> None:
        """Without limits nothing expires, and the store is never asked."""
        expiry, event = self.expiry(), EventID(0, 1)
        self.assertEqual((expiry.limited, expiry.by_age, expiry.next_call(event)), (False, False, inf))
        self.assertFalse(expiry.too_old(event, 2e9) or expiry.too_many(1_000_000_000, 2e9))
        self.assertEqual(self.expiry(max_queued=5).next_call(event), inf)
        self.assertTrue(self.expiry(max_queued=5).limited)

    def test_changed(self) -> None:
        """A shorter retention holds at once."""
        expiry, event = self.expiry(retention=60_000), EventID(1_000_000_000, 1)
        expiry.asked(1010.0)
        expiry.limit(subscription(retention=5000))
        self.assertTrue(expiry.too_old(event, 1010.0))


class RetentionTests(DeliveryTestCase):
    """A courier whose subscription has a `retention`."""

    def setUp(self) -> None:
        super().setUp()
        self.accepted: dict[int, float] = {}
        self.late: list[int] = []  #: events that were delivered after their retention

    def publish(self, topic: str, count: int = 1) -> list[int]:
        numbers = range(self._count + 1, self._count + 1 + count)
        self.accepted.update(dict.fromkeys(numbers, self.clock.seconds()))
        return super().publish(topic, count)

    def watch(self, retention: float) -> None:
        """Note each event that comes later than a moment after its retention."""

        def check(attempt: Attempt) -> None:
            now = self.clock.seconds()
            self.late += [each for each in attempt.events if now - self.accepted[each] > retention + 2 * MOMENT]

        self.sender.on_post = check

    def test_never_delivered(self) -> None:
        """After a time of failures only the events that are young enough come, and the others count as expired."""
        self.watch(5)
        self.subscribe("cats", retention=5000)
        self.sender.otherwise = refused()
        self.worker(retry_delay=1.0, max_backoff=4.0)
        for _ in range(10):
            self.publish("cats")
            self.pass_time(1)
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(8)
        facts = self.facts()
        self.assertEqual((self.late, facts.queued), ([], 0))
        self.assertGreater(facts.expired, 2)
        self.assertEqual(facts.sent + facts.expired, facts.added)
        self.assertEqual(facts.added, 10)

    def test_before_the_first_attempt(self) -> None:
        """What expired while no worker was there is not delivered by the next one."""
        self.subscribe("cats", retention=5000)
        self.publish("cats", 3)
        self.clock.advance(3)
        self.publish("cats", 2)
        self.clock.advance(3)
        self.worker()
        self.assertEqual((self.batches, self.facts().expired), ([[4, 5]], 3))

    def test_while_waiting_for_a_turn(self) -> None:
        """What expires while the courier waits for its turn is not in the batch."""
        self.sender.busy = True
        self.subscribe("cats", retention=5000)
        self.worker()
        self.publish("cats")
        self.pass_time(3)
        self.publish("cats")
        self.pass_time(3)
        self.sender.give_turns()
        self.assertEqual((self.batches, self.facts().expired), ([[2]], 1))

    def test_not_due_any_more(self) -> None:
        """If what is left after that is no full batch, it waits for its own timeout."""
        self.sender.busy = True
        self.subscribe("cats", retention=5000, max=3, timeout=4000)
        self.worker()
        self.publish("cats", 2)
        self.pass_time(3)
        self.publish("cats")
        self.pass_time(2.5)
        self.sender.give_turns()
        self.assertEqual(self.batches, [])
        self.pass_time(1.5)
        self.assertEqual((self.batches, self.facts().expired), ([[3]], 2))

    def test_expires_while_pausing(self) -> None:
        """In a long pause after a failure events expire when they are too old, not when the pause is over."""
        self.subscribe("cats", retention=5000)
        self.sender.otherwise = refused()
        self.worker(retry_delay=60.0)
        self.publish("cats")
        self.pass_time(2)
        self.publish("cats")
        self.pass_time(3.2)
        self.assertEqual((self.queued(), self.facts().expired), (1, 1))
        self.pass_time(2.5)
        self.assertEqual((self.queued(), self.facts().expired), (0, 2))

    def test_expires_while_paused(self) -> None:
        """So do events of a subscriber that has paused, those that come in meanwhile included."""
        self.subscribe("cats", retention=5000)
        self.worker()
        self.do(self.memory.pause("sub"))
        for _ in range(2):
            self.publish("cats")
            self.pass_time(5.2)
            self.assertEqual(self.queued(), 0)
        self.assertEqual(self.facts().expired, 2)

    def test_expires_while_the_batch_fills(self) -> None:
        """So do events that wait longer for the batch to fill than they are kept."""
        self.subscribe("cats", retention=2000, timeout=60_000)
        self.worker()
        self.publish("cats")
        self.pass_time(2.2)
        self.assertEqual((self.batches, self.queued(), self.facts().expired), ([], 0, 1))

    def test_asks_seldom(self) -> None:
        """However many events expire one after another in a pause, the store is asked once a second at most."""
        self.subscribe("cats", retention=1000)
        self.worker()
        self.do(self.memory.pause("sub"))
        for _ in range(200):
            self.publish("cats")
            self.clock.advance(0.02)
        self.assertLess(self.store.calls["expire"], 5)

    def test_clocks_that_disagree(self) -> None:
        """An event that expires by the clock here but not by the store's makes no loop, and is delivered."""
        self.subscribe("cats", retention=2000)
        self.sender.busy = True
        self.worker()
        self.publish("cats")
        self.store_clock.apart = -2.0
        self.clock.advance(2.5)
        self.store.calls.clear()
        self.sender.give_turns()
        self.assertEqual((self.batches, self.store.calls["expire"]), ([[1]], 1))

    def test_overload(self) -> None:
        """A subscriber that is slower than its publisher gets events all the time, none of them expired."""
        self.watch(1)
        self.sender.otherwise = None
        self.subscribe("cats", retention=1000, max=5)
        self.worker()
        for step in range(200):
            self.publish("cats", 2)
            self.pass_time(1 / 16)
            if step % 4 == 3:
                self.end()
        facts = self.facts()
        self.assertEqual(self.late, [])
        self.assertGreater(facts.sent, 240)  # 5 in each of 50 attempts, the first aside
        self.assertGreater(facts.expired, 100)

    def test_several_topics(self) -> None:
        """The oldest events of each topic expire."""
        self.subscribe("cats", "dogs", retention=5000)
        self.publish("dogs")
        self.clock.advance(3)
        self.publish("cats")
        self.publish("dogs")
        self.clock.advance(3)
        self.worker()
        self.assertEqual((self.batches, self.facts().expired), ([[2, 3]], 1))

    def test_topic_left(self) -> None:
        """When the backlog of a topic that was left expires, the membership ends."""
        self.subscribe("cats", "dogs", retention=5000)
        self.sender.otherwise = refused()
        self.worker(retry_delay=60.0)
        self.publish("cats")
        self.do(self.memory.leave("sub", "cats"))
        self.pass_time(6)
        self.assertEqual((self.facts().expired, self.queued()), (1, 0))
        self.assertEqual(set(self.memory._subscribers["sub"].topics), {"dogs"})


class MaxQueuedTests(DeliveryTestCase):
    """A courier whose subscription has `max_queued`."""

    def test_burst(self) -> None:
        """Of a burst the newest `max_queued` events are delivered, in order; the others count as expired."""
        self.subscribe("cats", max_queued=10, max=4)
        self.worker()
        self.publish("cats", 100)
        self.assertEqual([number for batch in self.batches for number in batch], list(range(91, 101)))
        self.assertEqual(self.facts().expired, 90)

    def test_after_an_attempt(self) -> None:
        """What gathers during an attempt beyond that expires before the next batch."""
        self.sender.otherwise = None
        self.subscribe("cats", max_queued=3, max=2)
        self.worker()
        self.publish("cats", 2)
        self.publish("cats", 5)
        self.clock.advance(1)
        self.sender.otherwise = ACKNOWLEDGED
        self.end()
        self.assertEqual((self.batches, self.facts().expired), ([[1, 2], [5, 6], [7]], 2))

    def test_hint(self) -> None:
        """In a pause events expire when the clean-up asks for it, and what was dropped is counted, too."""
        self.subscribe("cats", max_queued=3)
        self.sender.otherwise = refused()
        self.worker(retry_delay=60.0, max_backoff=60.0)
        self.do(self.memory.pause("sub"))
        self.publish("cats", 10)
        self.pass_time(1)
        self.store.calls.clear()
        self.do(self.memory.clean_up())
        self.assertEqual((self.queued(), self.facts().expired), (3, 7))
        self.assertEqual((self.store.calls["expire"], self.store.calls["repair"]), (1, 1))

    def test_hint_without_limits(self) -> None:
        """A subscription without limits is not asked for."""
        self.subscribe("cats")
        worker = self.worker()
        worker._couriers["sub"].dropped()
        self.assertEqual((self.store.calls["expire"], self.store.calls["repair"]), (0, 1))

    def test_hint_lost(self) -> None:
        """If the hint of the clean-up is lost, nothing that expired is delivered all the same."""
        self.subscribe("cats", max_queued=3)
        self.worker()
        self.do(self.memory.pause("sub"))
        self.publish("cats", 10)
        self.lose_hints = True
        self.do(self.memory.clean_up())
        self.do(self.memory.resume("sub"))
        self.pass_time(RECONCILE)
        self.assertEqual((self.batches, self.facts().expired), ([[8, 9, 10]], 7))

    def test_store_unavailable(self) -> None:
        """If the store is unavailable when it is asked, nothing that expired is delivered, and the rest later."""
        for done in (False, True):
            self.setUp()
            self.subscribe("cats", max_queued=3)
            self.worker()
            self.store.fail_next("expire", times=2, done=done)
            self.publish("cats", 10)
            self.assertEqual(self.batches, [])
            self.pass_time(TTL)
            self.assertEqual((self.batches, self.facts().expired), ([[8, 9, 10]], 7))
