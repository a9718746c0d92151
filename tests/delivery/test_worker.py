"""A worker's hints, leases, reconciliation, sharing and stop, and its cost with many subscribers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from routemaster.delivery.live_workers import preferred
from routemaster.errors import StoreBroken
from routemaster.interfaces import LeaseHeld
from routemaster.model import EventID
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, refused
from routemaster.util.chunks import PAUSE
from routemaster.util.log_throttle import MAX_ALL
from tests.delivery.deliveries import CALLBACK, NOW, RECONCILE, TTL, DeliveryTestCase, FaultyStore, hint

#: two workers, and which of them the subscriber `sub` belongs to
OWNER = preferred("sub", ("w1", "w2"))
OTHER = {"w1": "w2", "w2": "w1"}[OWNER]


class HintTests(DeliveryTestCase):
    """How a worker reacts to messages on the wake-up channel."""

    def test_nonsense(self) -> None:
        """A malformed message on the wake-up channel is ignored and raises nothing."""
        self.subscribe("cats")
        worker = self.worker()
        for message in (
            b"", b" ", b"t", b"t ", b"t cats", b"t cats 1-1", b"t cats x y", b"t cats 1 2", b"t cats 1-1 2-",
            b"t cats 1-1 2-2 3-3", b"t \xff 1-1 2-2", b"s", b"s sub extra", b"k", b"x sub", b"\x00", b"t  1-1 1-1",
        ):
            hint(worker, message)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])

    def test_topic_without_couriers_topic(self) -> None:
        """A hint for a topic without a courier on this worker makes no store call."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.calls.clear()
        hint(worker, b"t dogs 1-1 1-1")
        self.assertEqual(self.store.calls, {})

    def test_new_subscriber(self) -> None:
        """A worker acquires the lease of a new subscription at once."""
        worker = self.worker()
        self.subscribe("cats")
        self.assertEqual(worker.lease_count, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])

    def test_new_subscriber_with_lost_hint(self) -> None:
        """Reconciliation finds a subscription whose hint was lost, and delivers the events accepted since."""
        worker = self.worker()
        self.lose_hints = True
        self.subscribe("cats")
        self.publish("cats")
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1]])

    def test_part_of_the_store_unavailable(self) -> None:
        """Reconciliation repairs lost hints and leases while the subscriber and worker lists are unavailable."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.fail_next("announce", 1000)
        self.store.fail_next("subscribers", 1000)
        self.lose_hints = True
        self.publish("cats")
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1]])
        self.store.fail_next("renew", 5)
        self.pass_time(TTL)
        self.assertEqual(worker.lease_count, 0)
        self.pass_time(4 * TTL)
        self.assertEqual(worker.lease_count, 1)

    def test_workers_key_of_the_wrong_type(self) -> None:
        """A worker that cannot be announced finds new subscribers all the same, and reports the error."""
        worker = self.worker()
        self.lose_hints = True
        self.subscribe("cats")
        self.publish("cats")
        self.store.fail_next("announce", error=StoreBroken("WRONGTYPE"))
        self.failureResultOf(Deferred.fromCoroutine(worker.reconcile()), StoreBroken)
        self.assertEqual(self.batches, [[1]])

    def test_change_with_lost_hint(self) -> None:
        """Reconciliation finds a changed subscription whose hint was lost."""
        self.subscribe("cats", timeout=60_000)
        worker = self.worker()
        self.publish("cats")
        self.lose_hints = True
        self.subscribe("cats", create=False, timeout=0, callback="https://new.example/")
        self.reconcile(worker)
        self.assertEqual([a.callback for a in self.sender.attempts], ["https://new.example/"])

    def test_hint_during_acquire(self) -> None:
        """A subscription made during an acquire call that finds none is acquired after that call."""
        worker = self.worker()
        answer = self.store.delay("acquire")
        hint(worker, b"s sub")
        self.subscribe("cats")
        self.assertEqual(worker.lease_count, 0)
        answer.callback(None)
        self.assertEqual(worker.lease_count, 1)

    def test_change_during_acquire(self) -> None:
        """A change made during the acquire call applies to the first batch."""
        self.subscribe("cats", timeout=60_000)
        self.publish("cats")
        answer = self.store.delay("acquire")
        self.worker()
        self.subscribe("cats", create=False, timeout=0)
        answer.callback(None)
        self.assertEqual(self.batches, [[1]])

    def test_resubscribed_during_repair(self) -> None:
        """A client that subscribes again before its courier saw the unsubscription gets new events at once."""
        self.subscribe("cats")
        worker = self.worker()
        answer = self.store.delay("acquire")
        self.do(self.memory.unsubscribe("sub"))
        self.subscribe("cats", create=False)
        answer.callback(None)
        self.assertEqual(worker.lease_count, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])


class LeaseTests(DeliveryTestCase):
    """One worker at a time delivers to a subscriber, and a lost lease ends its deliveries."""

    def test_single_flight_with_two_workers(self) -> None:
        """Two workers never have two attempts to one subscriber in flight, whatever hints they receive."""
        self.sender.otherwise = None
        self.create("cats", "dogs")
        for number in range(4):
            callback = f"https://s{number}.example/"
            self.subscribe("cats", "dogs", name=f"s{number}", max=2, callback=callback, create=False)
        workers = [self.worker("w1"), self.worker("w2")]
        for round_ in range(60):
            self.publish("cats")
            self.publish("dogs", 2)
            for worker in workers:
                for number in range(4):
                    hint(worker, b"s s%d" % number)
            for place, attempt in enumerate(self.sender.in_flight):
                if (round_ + place) % 3 == 0:
                    attempt.end(refused() if round_ % 4 == 0 else ACKNOWLEDGED)
            self.pass_time(0.5)
        self.assertEqual(set(self.sender.most_at_once.values()), {1})
        self.assertEqual(sum(worker.lease_count for worker in workers), 4)
        self.sender.otherwise = ACKNOWLEDGED
        for attempt in self.sender.in_flight:
            attempt.end(ACKNOWLEDGED)
        self.pass_time(20)
        for number in range(4):
            mine = [a for a in self.sender.attempts if a.callback == f"https://s{number}.example/"]
            delivered = [n for a in mine if a.outcome == ACKNOWLEDGED for n in a.events]
            self.assertEqual(delivered, list(range(1, 181)))

    def test_taken_over_after_a_crash(self) -> None:
        """The subscribers of a crashed worker are taken over within a lease's lifetime plus one second."""
        self.subscribe("cats")
        self.worker(OWNER)
        self.pass_time(4)
        successor = self.worker(OTHER)
        dead = self.workers.pop(0)
        self.publish("cats")  # the dead one's courier heard it, and cannot act: see below
        self.assertEqual(successor.lease_count, 0)
        self.pass_time(TTL + 0.5)
        self.assertEqual(successor.lease_count, 1)
        self.do(dead.stop(0))

    def test_taken_over_at_once_after_a_stop(self) -> None:
        """The subscribers of a worker that stopped cleanly are taken over at once."""
        self.subscribe("cats")
        owner, other = self.worker(OWNER), self.worker(OTHER)
        self.assertEqual((owner.lease_count, other.lease_count), (1, 0))
        self.do(owner.stop(5))
        self.assertEqual((owner.lease_count, other.lease_count), (0, 1))

    def test_leases_live(self) -> None:
        """A lease is kept for as long as reconciliations succeed."""
        self.subscribe("cats")
        worker = self.worker()
        self.pass_time(100)
        self.assertEqual(worker.lease_count, 1)
        self.assertEqual(self.store.calls["acquire"], 1)

    def test_no_attempt_without_the_store(self) -> None:
        """An attempt starts only if the store renewed the lease less than half its life ago."""
        self.subscribe("cats", timeout=4900)
        self.worker()
        self.publish("cats")
        self.clock.advance(4.91)
        self.assertEqual(self.batches, [[1]])
        for late in (5.1, 7.0):
            self.setUp()
            self.subscribe("cats", timeout=round(late * 1000))
            worker = self.worker()
            self.publish("cats")
            self.clock.advance(late + 0.01)
            self.clock.advance(1)
            self.assertEqual(self.batches, [])
            self.reconcile(worker)
            self.clock.advance(0.6)
            self.assertEqual(self.batches, [[1]])
            self.stop_all()

    def test_renewal_counts_from_when_it_was_sent(self) -> None:
        """A renewal counts from when it was sent, because the store may have executed it then."""
        self.subscribe("cats")
        worker = self.worker()
        answer = self.store.delay("renew")
        self.reconcile(worker)
        self.clock.advance(6)
        answer.callback(None)
        self.publish("cats")
        self.assertEqual(self.batches, [])
        self.reconcile(worker)
        self.clock.advance(0.5)
        self.assertEqual(self.batches, [[1]])

    def test_lost_in_flight(self) -> None:
        """Losing the lease aborts the attempt; no cursor moves, no failure counts, the next holder continues."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats", 2)
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        self.reconcile(worker)
        self.assertTrue(self.sender.attempts[0].was_aborted)
        self.assertEqual((self.queued(), self.facts().health.failures, worker.lease_count), (2, 0, 0))
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(TTL + 1)
        self.assertEqual((self.batches, worker.lease_count), ([[1, 2], [1, 2]], 1))

    def test_hint_shows_lost_lease_in_flight(self) -> None:
        """A hint during an attempt reads the lease; if another worker has it, the attempt is aborted at once."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        hint(worker, b"s sub")
        self.assertTrue(self.sender.attempts[0].was_aborted)
        self.assertEqual((self.queued(), worker.lease_count, self.store.calls["release"]), (1, 0, 0))

    def test_expired_in_flight(self) -> None:
        """A lease that cannot be renewed aborts its attempt before another worker could start one."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.store.unavailable = True
        self.pass_time(TTL - 2)
        self.assertEqual(len(self.sender.in_flight), 1)
        self.pass_time(1)
        self.assertEqual(self.sender.in_flight, [])
        self.store.unavailable = False
        self.pass_time(RECONCILE)
        self.assertEqual([a.events for a in self.sender.attempts], [[1], [1]])

    def test_many_expired(self) -> None:
        """When many leases are lost, the log sums them up."""
        self.create("cats")
        for number in range(100):
            self.subscribe("cats", name=f"sub{number}", create=False)
        self.worker()
        self.pass_time(1)
        with capturedLogs() as events:
            self.store.unavailable = True
            self.pass_time(61)
        lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(lines), MAX_ALL + 1)
        self.assertEqual(lines[-1], "lost the leases on 40 further subscribers")

    def test_stalled_in_flight(self) -> None:
        """A response received after a stall beyond the lease neither rewinds the cursor nor skips events."""
        self.sender.otherwise = None
        self.subscribe("cats", max=2)
        self.worker("w1")
        other = FaultyStore(self.memory, self.clock)
        self.publish("cats", 4)
        stalled = self.workers.pop()
        (late,) = self.sender.in_flight
        self.clock.advance(1.5 * TTL)
        self.worker("w2", store=other)
        overlap = self.sender.in_flight[-1]
        overlap.end(ACKNOWLEDGED)
        self.assertEqual(self.sender.in_flight[-1].events, [3, 4])
        late.end(ACKNOWLEDGED)  # the stalled one moves on, and acknowledges what is acknowledged
        self.assertEqual((self.queued(), self.facts().sent), (2, 2))
        stalled.tick()
        self.reconcile(stalled)
        self.sender.in_flight[-1].end(ACKNOWLEDGED)
        self.assertEqual((self.queued(), self.facts().sent), (0, 4))
        self.assertEqual([a.events for a in self.sender.attempts], [[1, 2], [1, 2], [3, 4]])
        self.assertEqual(stalled.lease_count, 0)
        self.do(stalled.stop(0))

    def test_stalled_while_waiting(self) -> None:
        """A worker that stalled beyond its lease starts no attempt when it runs again."""
        self.subscribe("cats", timeout=1000)
        self.worker()
        self.publish("cats")
        self.clock.advance(1.5 * TTL)
        self.assertEqual(self.batches, [])
        self.pass_time(RECONCILE + 1)
        self.assertEqual(self.batches, [[1]])

    def test_late_acknowledgement_moves_forward_only(self) -> None:
        """An acknowledgement under a lost lease moves the cursor over what was delivered, and records nothing."""
        self.sender.otherwise = None
        self.subscribe("cats", max=2)
        self.worker()
        self.publish("cats", 3)
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        self.end()
        self.assertEqual((self.queued(), self.facts().health.last_success), (1, None))

    def test_failure_under_a_lost_lease(self) -> None:
        """A failure under a lost lease is not recorded, and ends this worker's deliveries."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        self.end(refused())
        self.assertEqual((self.facts().health.failures, worker.lease_count), (0, 0))

    def test_lease_gone_and_taken_again(self) -> None:
        """A lease missing in the store is acquired again within two reconciliations, and no event is lost."""
        self.subscribe("cats")
        worker = self.worker()
        self.memory._leases.clear()
        self.pass_time(2 * RECONCILE)
        self.publish("cats")
        self.assertEqual((self.batches, worker.lease_count), ([[1]], 1))

    def test_incomplete_unsubscribe(self) -> None:
        """A half-removed subscription is repaired, without a loop of hints."""
        self.subscribe("cats")
        self.half_remove()
        repairs: list[str] = []

        async def repair(subscriber: str) -> None:
            repairs.append(subscriber)

        self.memory.repair = repair  # type: ignore[method-assign]
        worker = self.worker()
        hint(worker, b"s sub")
        self.assertEqual((worker.lease_count, len(repairs)), (0, 2))
        self.pass_time(3 * RECONCILE)
        self.assertLess(len(repairs), 7)

    def test_answer_of_another(self) -> None:
        """A courier whose lease went to another worker stops, and the worker waits until that lease ends."""
        self.subscribe("cats")
        worker = self.worker()
        self.memory._leases["sub"] = ("another", 1, self.clock.seconds() + 5)
        hint(worker, b"s sub")
        self.assertEqual(worker.lease_count, 0)
        asked = self.store.calls["acquire"]
        self.pass_time(4)
        self.assertEqual(self.store.calls["acquire"], asked)
        self.assertIsInstance(self.do(self.memory.acquire("sub", "w1")), LeaseHeld)
        self.pass_time(2)
        self.assertEqual(worker.lease_count, 1)


class SharingTests(DeliveryTestCase):
    """How workers share subscribers and hand them over."""

    def test_handed_over_between_attempts(self) -> None:
        """A new worker gets its subscribers after the attempt in flight, and continues behind that batch."""
        self.sender.otherwise = None
        self.subscribe("cats", max=2)
        first = self.worker(OTHER)
        self.publish("cats", 4)
        second = self.worker(OWNER)
        self.pass_time(2 * TTL)
        self.assertEqual((first.lease_count, second.lease_count, len(self.sender.in_flight)), (1, 0, 1))
        self.end()
        self.assertEqual((first.lease_count, second.lease_count), (0, 1))
        self.end()
        self.assertEqual([a.events for a in self.sender.attempts], [[1, 2], [3, 4]])

    def test_rest_is_kept(self) -> None:
        """The pause after a failure continues on the worker that takes over."""
        self.sender.otherwise = refused()
        self.subscribe("cats")
        self.worker(OTHER, retry_delay=8)
        self.publish("cats")
        self.sender.otherwise = ACKNOWLEDGED
        second = self.worker(OWNER, retry_delay=8)
        self.assertEqual((second.lease_count, len(self.batches)), (1, 1))
        self.pass_time(3.9)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(4.2)
        self.assertEqual(len(self.batches), 2)

    def test_newcomer_with_lost_hint(self) -> None:
        """The next reconciliation finds a new worker whose hint was lost."""
        self.subscribe("cats")
        first = self.worker(OTHER)
        self.lose_hints = True
        second = self.worker(OWNER)
        self.lose_hints = False
        self.assertEqual((first.lease_count, second.lease_count), (1, 0))
        self.reconcile(first)
        self.assertEqual((first.lease_count, second.lease_count), (0, 1))

    def test_end_with_lost_hint(self) -> None:
        """After the next reconciliation a withdrawn peer is not live, and its subscribers are acquired."""
        self.subscribe("cats")
        owner, other = self.worker(OWNER), self.worker(OTHER)
        self.lose_hints = True
        self.do(owner.stop(0))
        self.lose_hints = False
        self.workers.remove(owner)
        self.assertEqual(other.lease_count, 0)
        self.reconcile(other)
        self.assertEqual(other.lease_count, 1)

    def test_peer_that_goes_while_it_is_handed_over_to(self) -> None:
        """A subscriber whose new owner leaves before the hand-over stays on its worker."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        first = self.worker(OTHER)
        self.publish("cats", 2)
        self.do(self.memory.announce(OWNER, TTL))
        self.do(self.memory.withdraw(OWNER))
        self.end()
        self.assertEqual((first.lease_count, self.in_flight.events), (1, [2]))

    def test_given_back_while_it_is_taken_over(self) -> None:
        """A peer that joins while a lease has no courier yet does not break the worker's round."""
        self.subscribe("cats")
        self.half_remove()
        held = self.store.delay("repair")
        worker = self.worker(OTHER)
        self.do(self.memory.announce(OWNER, TTL))
        hint(worker, b"w %s on" % OWNER.encode())
        worker.tick()
        held.callback(None)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_neglected(self) -> None:
        """A subscriber that a live peer neglects is acquired, and kept until the peers change."""
        self.subscribe("cats")
        self.do(self.memory.announce(OWNER, TTL))
        other = self.worker(OTHER)
        for leases, seconds in ((0, 3 * TTL - 1), (1, 2), (1, 2 * TTL)):
            for _ in range(round(seconds)):
                self.do(self.memory.announce(OWNER, TTL))
                self.pass_time(1)
            self.assertEqual(other.lease_count, leases, seconds)
        self.assertEqual(self.store.calls["acquire"], 1)
        owner = self.worker(OWNER)  # which was announced all the time: nothing changes
        self.pass_time(2 * RECONCILE)
        self.assertEqual((owner.lease_count, other.lease_count), (0, 1))
        self.do(self.memory.announce("third", TTL))
        self.do(self.memory.withdraw("third"))
        self.pass_time(2 * RECONCILE)
        self.assertEqual(owner.lease_count + other.lease_count, 1)
        self.assertEqual(other.lease_count, 0)

    def test_withdrawn_for_good(self) -> None:
        """A stopping worker no longer counts as live, although it reconciles until its last attempt ends."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        stopping = Deferred.fromCoroutine(worker.stop(25))
        self.reconcile(worker)
        self.assertEqual(self.memory._workers, {})
        self.end()
        self.successResultOf(stopping)

    def test_store_away_at_the_end(self) -> None:
        """A worker stops although its withdrawal fails."""
        worker = self.worker()
        self.store.unavailable = True
        self.do(worker.stop(0))

    def test_nonsense(self) -> None:
        """A malformed hint about a peer is ignored."""
        self.subscribe("cats")
        worker = self.worker(OTHER)
        for message in (b"w", b"w ", b"w " + OWNER.encode(), f"w {OWNER} off".encode(), f"w {OWNER} up".encode(),
                        f"w {OTHER} on".encode(), f"w {OTHER} off".encode(), b"w \xff on off"):
            hint(worker, message)
        self.assertEqual(worker.lease_count, 1)


class TimeTests(DeliveryTestCase):
    """The difference between the store's clock and the worker's."""

    def local(self, worker: Any, store_seconds: float) -> float:
        found: float = worker._offset.local(round(store_seconds * 1e6)) - NOW
        return found

    def test_late_answer(self) -> None:
        """A late reply does not widen the offset that a quick reply gave."""
        self.subscribe("cats")
        self.store_clock.apart = 100.0
        worker = self.worker()
        self.assertAlmostEqual(self.local(worker, NOW + 100), 0.0, 3)
        for before in (True, False):
            answer = self.store.delay("renew", before=before)
            self.reconcile(worker)
            self.clock.advance(2)
            answer.callback(None)
            self.assertAlmostEqual(self.local(worker, NOW + 100), 0.0, 2)

    def test_quick_answer_mends(self) -> None:
        """A quick reply narrows the offset that a late reply gave."""
        answer = self.store.delay("renew", before=True)
        worker = self.worker()
        self.clock.advance(2)
        answer.callback(None)
        self.assertAlmostEqual(self.local(worker, NOW), -1.0, 3)
        self.reconcile(worker)
        self.assertAlmostEqual(self.local(worker, NOW), 0.0, 3)

    def test_clock_set(self) -> None:
        """The offset follows at the next reply when the store's clock is set ahead or back."""
        worker = self.worker()
        for apart in (3600.0, -3600.0, 0.5):
            self.memory._last_us = 0
            self.store_clock.apart = apart
            self.reconcile(worker)
            self.assertAlmostEqual(self.local(worker, NOW + apart), 0.0, 3)

    def test_drift(self) -> None:
        """The offset follows a store clock that runs fast, although some replies are late."""
        worker = self.worker()
        for round_ in range(60):
            self.clock.advance(RECONCILE)
            self.store_clock.apart += RECONCILE * 1e-4
            gate = self.store.delay("renew", before=True)
            self.reconcile(worker)
            if round_ % 2:
                self.clock.advance(1)
            gate.callback(None)
            self.assertLess(abs(self.local(worker, NOW + self.store_clock.apart)), 0.01)

    def test_store_clock_jumps(self) -> None:
        """When the store's clock jumps, events stay in order and none waits long."""
        self.subscribe("cats", timeout=500)
        self.worker()
        for apart in (0.0, 3600.0, -3600.0, 0.0):
            self.memory._last_us = 0
            self.store_clock.apart = apart
            self.publish("cats")
            self.pass_time(RECONCILE + 1)
        self.assertEqual([n for batch in self.batches for n in batch], [1, 2, 3, 4])


class StopTests(DeliveryTestCase):
    """The end of a worker."""

    def stop(self, worker: Any, grace: float = 25.0) -> Deferred[None]:
        return Deferred.fromCoroutine(worker.stop(grace))

    def stopped(self, stopping: Deferred[None], worker: Any) -> None:
        """It has stopped, and left nothing."""
        self.successResultOf(stopping)
        self.clock.advance(0)
        self.assertEqual((worker.lease_count, self.clock.getDelayedCalls()), (0, []))
        self.assertEqual(self.memory._leases, {})

    def test_at_rest(self) -> None:
        """A worker whose couriers idle, wait or rest stops at once, and gives every lease back."""
        self.sender.then(refused())
        self.subscribe("cats", name="failing")
        self.subscribe("dogs", name="waiting", timeout=60_000)
        self.subscribe("emus", name="idle")
        worker = self.worker()
        self.publish("cats")
        self.publish("dogs")
        self.assertEqual(worker.lease_count, 3)
        self.stopped(self.stop(worker), worker)
        self.publish("emus")
        self.assertEqual(self.batches, [[1]])

    def test_attempt_in_flight_finishes(self) -> None:
        """An attempt in flight goes on to its end and is acknowledged; no other starts."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        worker = self.worker()
        self.publish("cats", 3)
        stopping = self.stop(worker)
        self.pass_time(20)
        self.assertNoResult(stopping)
        self.end()
        self.stopped(stopping, worker)
        self.assertEqual((self.batches, self.queued()), ([[1]], 2))

    def test_grace_exceeded(self) -> None:
        """What is in flight when the grace is over is cut; its events stay owed."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        stopping = self.stop(worker, 5)
        self.clock.advance(4.9)
        self.assertNoResult(stopping)
        self.clock.advance(0.2)
        self.stopped(stopping, worker)
        self.assertEqual((self.sender.attempts[0].was_aborted, self.queued()), (True, 1))
        self.assertEqual(self.facts().health.failures, 0)

    def test_no_attempt_after_a_read(self) -> None:
        """A batch that is being read when the worker stops is not sent."""
        self.subscribe("cats")
        worker = self.worker()
        gate = self.store.delay("read")
        self.publish("cats")
        stopping = self.stop(worker)
        self.assertNoResult(stopping)
        gate.callback(None)
        self.stopped(stopping, worker)
        self.assertEqual(self.batches, [])

    def test_lease_granted_meanwhile(self) -> None:
        """A lease granted during the stop is released before the stop ends."""
        self.subscribe("cats")
        answer = self.store.delay("acquire")
        worker = self.worker()
        stopping = self.stop(worker)
        self.assertNoResult(stopping)
        answer.callback(None)
        self.stopped(stopping, worker)

    def test_acknowledgement_waits_for_the_store(self) -> None:
        """An acknowledgement that fails is retried until the grace period ends."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.unavailable = False
        self.store.fail_next("acknowledge", times=5)
        self.publish("cats")
        stopping = self.stop(worker)
        self.assertNoResult(stopping)
        self.pass_time(10)
        self.stopped(stopping, worker)
        self.assertEqual((self.batches, self.queued()), ([[1]], 0))

    def test_store_unavailable_at_stop(self) -> None:
        """A worker stops although the store stays unavailable."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.fail_next("acknowledge", times=999)
        self.publish("cats")
        self.store.unavailable = True
        stopping = self.stop(worker, 5)
        self.pass_time(5.5)
        self.successResultOf(stopping)
        self.assertEqual((worker.lease_count, self.clock.getDelayedCalls()), (0, []))

    def test_hints_after_stop(self) -> None:
        """A stopped worker acquires no lease, whatever hint or reconciliation follows."""
        self.subscribe("cats")
        worker = self.worker()
        self.do(worker.stop(5))
        hint(worker, b"s sub")
        self.reconcile(worker)
        worker.tick()
        self.publish("cats")
        self.assertEqual((self.batches, worker.lease_count), ([], 0))

    def test_stopped_twice(self) -> None:
        """A second call of stop changes nothing."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        first, second = self.stop(worker), self.stop(worker)
        self.end()
        self.successResultOf(first)
        self.stopped(second, worker)

    def test_courier_that_ends_at_once(self) -> None:
        """A courier that ends as soon as it starts leaves no lease and no timer."""
        self.subscribe("cats")
        answer = self.store.delay("acquire", before=True)
        worker = self.worker()
        answer2 = self.store.delay("read")
        answer.callback(None)
        stopping = self.stop(worker)
        answer2.callback(None)
        self.stopped(stopping, worker)


class InternalErrorTests(DeliveryTestCase):
    """Internal errors are reported once, and cause no loop."""

    def internal_errors(self) -> int:
        """Tracebacks logged since the last call; trial fails a test that leaves any."""
        return len(self.flushLoggedErrors())

    def test_store_broken(self) -> None:
        """A subscriber whose data break store calls is retried at growing intervals, and reported once."""
        for call in ("read", "acquire", "acknowledge"):
            with self.subTest(call=call):
                self.setUp()
                self.subscribe("cats")
                self.publish("cats")
                self.store.fail_next(call, times=99, error=StoreBroken("WRONGTYPE"))
                worker = self.worker()
                for _ in range(100):
                    hint(worker, b"s sub")
                self.assertLess(self.store.calls[call], 3)
                self.pass_time(300)
                self.assertLess(self.store.calls[call], 12)
                self.assertLess(len(self.batches), 12)
                self.assertEqual(self.internal_errors(), 1)
                self.store.recover()
                self.pass_time(61)
                self.assertEqual((self.queued(), worker.lease_count), (0, 1))
                self.stop_all()

    def test_many_fail(self) -> None:
        """When many subscribers fail, the log sums them up once a minute."""
        self.create("cats")
        for number in range(200):
            self.subscribe("cats", name=f"sub{number}", create=False)
        self.worker()
        self.sender.otherwise = refused()
        with capturedLogs() as events:
            self.publish("cats")
            self.pass_time(61, step=1 / 4)
        lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        self.assertLessEqual(len(lines), 2 * MAX_ALL + 1)
        (summary,) = [line for line in lines if "further" in line]
        self.assertRegex(summary, r"^\d+ further deliveries failed in the last minute, to 140 subscribers, ")

    def test_other_subscribers_continue(self) -> None:
        """An internal error for one subscriber delays no other."""
        self.subscribe("cats", name="poison", callback="https://poison.example/")
        self.subscribe("cats", name="sane", create=False)

        def explode(attempt: Attempt) -> None:
            if "poison" in attempt.callback:
                raise RuntimeError("nobody thought of this")

        self.sender.on_post = explode
        self.worker()
        for _ in range(30):
            self.publish("cats")
            self.pass_time(1)
        self.assertEqual([n for a in self.sender.attempts if a.callback == CALLBACK for n in a.events],
                         list(range(1, 31)))
        self.assertEqual(self.internal_errors(), 1)
        self.assertEqual(self.queued("poison"), 30)

    def test_lease_stays_after_an_internal_error(self) -> None:
        """A subscriber with an internal error moves to another worker only when its lease has expired."""
        self.subscribe("cats")
        self.publish("cats")
        self.store.fail_next("read", times=999, error=StoreBroken("WRONGTYPE"))
        for name in ("w1", "w2", "w3"):
            self.worker(name)
        self.pass_time(0.5)
        self.assertEqual(self.store.calls["read"], 1)
        self.pass_time(120)
        self.assertLess(self.store.calls["read"], 20)
        self.assertEqual(self.internal_errors(), 3)

    def test_new_internal_error_after_recovery(self) -> None:
        """An internal error long after the last one is reported again, and counts as the first."""
        self.subscribe("cats")
        self.worker()
        for _ in range(2):
            self.store.fail_next("read", error=StoreBroken("WRONGTYPE"))
            self.publish("cats")
            self.assertEqual(self.internal_errors(), 1)
            self.pass_time(15 + TTL)
            self.assertEqual(self.queued(), 0)
            self.pass_time(120)

    def test_read_ahead_error_is_reported_by_the_next_read(self) -> None:
        """An error while reading ahead is reported by the next regular read."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        self.worker()
        gate = self.store.delay("read")
        self.publish("cats", 2)
        self.store.fail_next("read", times=2, error=StoreBroken("WRONGTYPE"))
        gate.callback(None)
        self.assertEqual(self.internal_errors(), 0)
        self.end()
        self.assertEqual((self.internal_errors(), self.queued()), (1, 1))


class CostTests(DeliveryTestCase):
    """The cost of many subscribers."""

    MANY = 1000

    def many(self, topics: int = 10, **options: Any) -> None:
        self.store.hot *= 10
        self.create(*(f"topic_{chr(97 + n)}" for n in range(topics)))
        for number in range(self.MANY):
            topic = f"topic_{chr(97 + number % topics)}"
            self.subscribe(
                topic, name=f"s{number}", callback=f"https://s{number}.example/", create=False, **options
            )

    def test_idle(self) -> None:
        """Reconciling a thousand idle subscribers takes seven calls, and there is no call in between."""
        self.many()
        worker = self.worker()
        self.assertEqual(worker.lease_count, self.MANY)
        self.store.calls.clear()
        self.reconcile(worker)
        self.clock.pump([PAUSE] * 4)
        self.assertEqual(self.store.calls, {"renew": 4, "announce": 1, "tails": 1, "subscribers": 1})
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store.calls.clear()
        self.pass_time(10 * RECONCILE)
        self.assertEqual(self.store.calls, {"renew": 40, "announce": 10, "tails": 10, "subscribers": 10})

    def test_second_worker(self) -> None:
        """A second worker requests each lease of its half once, and none of the first worker's."""
        self.many()
        first = self.worker("w1")
        other = FaultyStore(self.memory, self.clock)
        other.hot *= 10
        second = self.worker("w2", store=other)
        self.assertEqual(first.lease_count + second.lease_count, self.MANY)
        self.assertLess(abs(second.lease_count - self.MANY / 2), self.MANY / 10)
        self.pass_time(2.5 * TTL)
        self.assertEqual(other.calls["acquire"], second.lease_count)
        self.assertEqual(self.store.calls["release"], second.lease_count)

    def test_one_topic_of_ten(self) -> None:
        """An event causes store calls only for the subscribers of its topic, and is read once for all of them."""
        self.many()
        self.worker()
        self.store.calls.clear()
        self.publish("topic_a")
        self.clock.advance(0)
        self.assertEqual(self.store.calls, {"read": 1, "acknowledge": 100})

    def test_waiting(self) -> None:
        """An event that joins a thousand unfilled batches makes no store call."""
        self.many(topics=1, timeout=3_600_000, max=100)
        worker = self.worker()
        self.store.calls.clear()
        for _ in range(99):
            self.publish("topic_a")
        self.assertEqual(self.store.calls, {})
        self.publish("topic_a")
        self.clock.advance(0)
        self.assertEqual(self.store.calls, {"read": 1, "acknowledge": self.MANY})
        self.assertEqual(worker.lease_count, self.MANY)

    def test_wakes_only_those_who_must_act(self) -> None:
        """While a batch fills, its courier is woken only by the first and the last event."""
        self.subscribe("cats", timeout=3_600_000, max=1000)
        worker = self.worker()
        woken: list[tuple[str, EventID | None]] = []
        courier = worker._couriers["sub"]
        original = courier.wake

        def count(topic: str, first: EventID | None) -> None:
            woken.append((topic, first))
            original(topic, first)

        courier.wake = count  # type: ignore[method-assign]
        for _ in range(1000):
            self.publish("cats")
        self.assertEqual((len(woken), len(self.batches)), (2, 1))

    def test_outage_causes_few_calls(self) -> None:
        """A thousand couriers with work make few calls to an unavailable store, and continue after the outage."""
        self.many(topics=1)
        worker = self.worker()
        self.store.unavailable = True
        self.publish("topic_a")
        self.store.calls.clear()
        for _ in range(32):
            self.clock.advance(1 / 16)
        self.assertLess(sum(self.store.calls.values()), 6 * self.MANY)
        self.pass_time(30)
        self.assertEqual(worker.lease_count, 0)
        self.store.calls.clear()
        self.pass_time(10)
        self.assertLess(sum(self.store.calls.values()), 20)
        self.store.unavailable = False
        self.pass_time(2 * RECONCILE)
        self.assertEqual((worker.lease_count, len(self.sender.attempts)), (self.MANY, self.MANY))

    def test_slow_acquire_does_not_delay_renewals(self) -> None:
        """Held leases are renewed however long an acquire call takes."""
        self.subscribe("cats")
        worker = self.worker()
        self.lose_hints = True
        self.subscribe("dogs", name="slow")
        self.lose_hints = False
        answer = self.store.delay("acquire")
        self.pass_time(5 * TTL)
        self.assertEqual(worker.lease_count, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])
        answer.callback(None)
        self.pass_time(2 * RECONCILE)
        self.assertEqual(worker.lease_count, 2)

    def test_concurrent_reconciliations(self) -> None:
        """Reconciliations may overlap."""
        self.subscribe("cats")
        self.lose_hints = True
        gate = self.store.delay("subscribers")
        worker = self.worker()
        self.publish("cats")
        self.reconcile(worker)
        self.reconcile(worker)
        gate.callback(None)
        self.assertEqual((self.batches, worker.lease_count, self.store.calls["acquire"]), ([[1]], 1, 1))
