"""Leases, hints and sweeps, the end of a worker, and what many subscribers cost."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from routemaster.delivery.worker_membership import preferred
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
    """What a worker makes of messages on the wake-up channel."""

    def test_nonsense(self) -> None:
        """A message that is not understood is no hint, and raises nothing."""
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
        """News of topics that nobody here is subscribed to costs the store nothing."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.calls.clear()
        hint(worker, b"t dogs 1-1 1-1")
        self.assertEqual(self.store.calls, {})

    def test_new_subscriber(self) -> None:
        """A subscription that is made while the worker runs is taken at once."""
        worker = self.worker()
        self.subscribe("cats")
        self.assertEqual(worker.leases, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])

    def test_new_subscriber_with_lost_hint(self) -> None:
        """A subscription whose hint was lost is found by the sweep, events since then included."""
        worker = self.worker()
        self.lose_hints = True
        self.subscribe("cats")
        self.publish("cats")
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1]])

    def test_part_of_the_store_unavailable(self) -> None:
        """Where a cluster has lost the names and the workers, lost hints and leases are made good."""
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
        self.assertEqual(worker.leases, 0)
        self.pass_time(4 * TTL)
        self.assertEqual(worker.leases, 1)

    def test_change_with_lost_hint(self) -> None:
        """A change whose hint was lost is found by the sweep."""
        self.subscribe("cats", timeout=60_000)
        worker = self.worker()
        self.publish("cats")
        self.lose_hints = True
        self.subscribe("cats", create=False, timeout=0, callback="https://new.example/")
        self.reconcile(worker)
        self.assertEqual([a.callback for a in self.sender.attempts], ["https://new.example/"])

    def test_hint_during_acquire(self) -> None:
        """A subscription made while the store still answers that there is none is not overlooked."""
        worker = self.worker()
        answer = self.store.delay("acquire")
        hint(worker, b"s sub")
        self.subscribe("cats")
        self.assertEqual(worker.leases, 0)
        answer.callback(None)
        self.assertEqual(worker.leases, 1)

    def test_change_during_acquire(self) -> None:
        """A change made while the lease is being asked for is in force from the beginning."""
        self.subscribe("cats", timeout=60_000)
        self.publish("cats")
        answer = self.store.delay("acquire")
        self.worker()
        self.subscribe("cats", create=False, timeout=0)
        answer.callback(None)
        self.assertEqual(self.batches, [[1]])

    def test_resubscribed_during_repair(self) -> None:
        """A client that is back before its courier has noticed the end of its subscription is served at once."""
        self.subscribe("cats")
        worker = self.worker()
        answer = self.store.delay("acquire")
        self.do(self.memory.unsubscribe("sub"))
        self.subscribe("cats", create=False)
        answer.callback(None)
        self.assertEqual(worker.leases, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])


class LeaseTests(DeliveryTestCase):
    """One worker at a time, and what becomes of those that lose a lease."""

    def test_single_flight_with_two_workers(self) -> None:
        """Two workers on one store never have two attempts to one subscriber in flight, whatever hints pour in."""
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
        self.assertEqual(sum(worker.leases for worker in workers), 4)
        self.sender.otherwise = ACKNOWLEDGED
        for attempt in self.sender.in_flight:
            attempt.end(ACKNOWLEDGED)
        self.pass_time(20)
        for number in range(4):
            mine = [a for a in self.sender.attempts if a.callback == f"https://s{number}.example/"]
            delivered = [n for a in mine if a.outcome == ACKNOWLEDGED for n in a.events]
            self.assertEqual(delivered, list(range(1, 181)))

    def test_taken_over_after_a_crash(self) -> None:
        """The subscribers of a worker that died are taken over within a lease's life and a second."""
        self.subscribe("cats")
        self.worker(OWNER)
        self.pass_time(4)
        successor = self.worker(OTHER)
        dead = self.workers.pop(0)
        self.publish("cats")  # the dead one's courier heard it, and cannot act: see below
        self.assertEqual(successor.leases, 0)
        self.pass_time(TTL + 0.5)
        self.assertEqual(successor.leases, 1)
        self.do(dead.stop(0))

    def test_taken_over_at_once_after_a_stop(self) -> None:
        """The subscribers of a worker that stopped in good order are taken over at once."""
        self.subscribe("cats")
        owner, other = self.worker(OWNER), self.worker(OTHER)
        self.assertEqual((owner.leases, other.leases), (1, 0))
        self.do(owner.stop(5))
        self.assertEqual((owner.leases, other.leases), (0, 1))

    def test_leases_live(self) -> None:
        """A lease is kept for as long as sweeps go through."""
        self.subscribe("cats")
        worker = self.worker()
        self.pass_time(100)
        self.assertEqual(worker.leases, 1)
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
        """A renewal whose answer was late is good for less, for it may have been carried out at once."""
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
        """A lease lost in flight cuts the attempt: nothing moves, nothing counts, the next holder goes on."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats", 2)
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        self.reconcile(worker)
        self.assertTrue(self.sender.attempts[0].was_aborted)
        self.assertEqual((self.queued(), self.facts().health.failures, worker.leases), (2, 0, 0))
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(TTL + 1)
        self.assertEqual((self.batches, worker.leases), ([[1, 2], [1, 2]], 1))

    def test_expired_in_flight(self) -> None:
        """A lease that cannot be renewed cuts the attempt before another worker could begin one."""
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
        """Leases lost by the hundred, with the store away, are summed up in the log."""
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
        """A worker that stalled beyond its lease, and then hears the answer, neither rewinds nor skips."""
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
        self.assertEqual(stalled.leases, 0)
        self.do(stalled.stop(0))

    def test_stalled_while_waiting(self) -> None:
        """A worker that stalled beyond its lease starts no attempt on waking up."""
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
        """A failure under a lost lease is not recorded, and ends the deliveries from here."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.memory._leases.clear()
        self.do(self.memory.acquire("sub", "another"))
        self.end(refused())
        self.assertEqual((self.facts().health.failures, worker.leases), (0, 0))

    def test_lease_gone_and_taken_again(self) -> None:
        """A lease that the store has forgotten is taken again within two sweeps; nothing is lost."""
        self.subscribe("cats")
        worker = self.worker()
        self.memory._leases.clear()
        self.pass_time(2 * RECONCILE)
        self.publish("cats")
        self.assertEqual((self.batches, worker.leases), ([[1]], 1))

    def test_incomplete_unsubscribe(self) -> None:
        """A subscription that is dissolved but not cleared away is repaired, and makes no loop of hints."""
        self.subscribe("cats")
        repairs: list[str] = []

        async def repair(subscriber: str) -> None:
            repairs.append(subscriber)

        self.memory.repair = repair  # type: ignore[method-assign]
        self.memory._subscribers["sub"].subscription = None
        worker = self.worker()
        hint(worker, b"s sub")
        self.assertEqual((worker.leases, len(repairs)), (0, 2))
        self.pass_time(3 * RECONCILE)
        self.assertLess(len(repairs), 7)

    def test_answer_of_another(self) -> None:
        """A courier whose lease went to another while it looked ends, and the worker waits for its end."""
        self.subscribe("cats")
        worker = self.worker()
        self.memory._leases["sub"] = ("another", 1, self.clock.seconds() + 5)
        hint(worker, b"s sub")
        self.assertEqual(worker.leases, 0)
        asked = self.store.calls["acquire"]
        self.pass_time(4)
        self.assertEqual(self.store.calls["acquire"], asked)
        self.assertIsInstance(self.do(self.memory.acquire("sub", "w1")), LeaseHeld)
        self.pass_time(2)
        self.assertEqual(worker.leases, 1)


class SharingTests(DeliveryTestCase):
    """How workers share subscribers out, and hand them over."""

    def test_handed_over_between_attempts(self) -> None:
        """A newcomer gets what belongs to it after the attempt in flight, and goes on behind that."""
        self.sender.otherwise = None
        self.subscribe("cats", max=2)
        first = self.worker(OTHER)
        self.publish("cats", 4)
        second = self.worker(OWNER)
        self.pass_time(2 * TTL)
        self.assertEqual((first.leases, second.leases, len(self.sender.in_flight)), (1, 0, 1))
        self.end()
        self.assertEqual((first.leases, second.leases), (0, 1))
        self.end()
        self.assertEqual([a.events for a in self.sender.attempts], [[1, 2], [3, 4]])

    def test_rest_is_kept(self) -> None:
        """The pause after a failure goes on with whoever takes over."""
        self.sender.otherwise = refused()
        self.subscribe("cats")
        self.worker(OTHER, retry_delay=8)
        self.publish("cats")
        self.sender.otherwise = ACKNOWLEDGED
        second = self.worker(OWNER, retry_delay=8)
        self.assertEqual((second.leases, len(self.batches)), (1, 1))
        self.pass_time(3.9)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(4.2)
        self.assertEqual(len(self.batches), 2)

    def test_newcomer_with_lost_hint(self) -> None:
        """A newcomer whose hint was lost is found by the next sweep."""
        self.subscribe("cats")
        first = self.worker(OTHER)
        self.lose_hints = True
        second = self.worker(OWNER)
        self.lose_hints = False
        self.assertEqual((first.leases, second.leases), (1, 0))
        self.reconcile(first)
        self.assertEqual((first.leases, second.leases), (0, 1))

    def test_end_with_lost_hint(self) -> None:
        """A peer that withdrew counts as live no more after the next sweep, and what it gave back is taken."""
        self.subscribe("cats")
        owner, other = self.worker(OWNER), self.worker(OTHER)
        self.lose_hints = True
        self.do(owner.stop(0))
        self.lose_hints = False
        self.workers.remove(owner)
        self.assertEqual(other.leases, 0)
        self.reconcile(other)
        self.assertEqual(other.leases, 1)

    def test_peer_that_goes_while_it_is_handed_over_to(self) -> None:
        """A subscriber whose new owner is gone before it got it stays where it was."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        first = self.worker(OTHER)
        self.publish("cats", 2)
        self.do(self.memory.announce(OWNER, TTL))
        self.do(self.memory.withdraw(OWNER))
        self.end()
        self.assertEqual((first.leases, self.in_flight.events), (1, [2]))

    def test_neglected(self) -> None:
        """What a peer that lives leaves lying about is taken in the end, and kept until the peers change."""
        self.subscribe("cats")
        self.do(self.memory.announce(OWNER, 3600))
        other = self.worker(OTHER)
        self.pass_time(3 * TTL - 1)
        self.assertEqual(other.leases, 0)
        self.pass_time(2)
        self.assertEqual(other.leases, 1)
        self.pass_time(2 * TTL)
        self.assertEqual(other.leases, 1)
        self.assertEqual(self.store.calls["acquire"], 1)
        owner = self.worker(OWNER)  # which lived all the time: nothing changes
        self.pass_time(2 * RECONCILE)
        self.assertEqual((owner.leases, other.leases), (0, 1))
        self.do(self.memory.announce("third", 1))
        self.pass_time(2 * RECONCILE)
        self.assertEqual(owner.leases + other.leases, 1)
        self.assertEqual(other.leases, 0)

    def test_withdrawn_for_good(self) -> None:
        """A worker that stops counts as live no more, also when it sweeps to the end of its last attempt."""
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
        """A worker that cannot withdraw stops all the same."""
        worker = self.worker()
        self.store.unavailable = True
        self.do(worker.stop(0))

    def test_nonsense(self) -> None:
        """What is no news of a peer changes nothing."""
        self.subscribe("cats")
        worker = self.worker(OTHER)
        for message in (b"w", b"w ", b"w " + OWNER.encode(), f"w {OWNER} off".encode(), f"w {OWNER} up".encode(),
                        f"w {OTHER} on".encode(), f"w {OTHER} off".encode(), b"w \xff on off"):
            hint(worker, message)
        self.assertEqual(worker.leases, 1)


class TimeTests(DeliveryTestCase):
    """The difference between the store's clock and ours."""

    def local(self, worker: Any, store_seconds: float) -> float:
        found: float = worker._offset.local(round(store_seconds * 1e6)) - NOW
        return found

    def test_late_answer(self) -> None:
        """An answer that took seconds does not spoil what a quick one told."""
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
        """What a late answer told roughly a quick one tells well."""
        answer = self.store.delay("renew", before=True)
        worker = self.worker()
        self.clock.advance(2)
        answer.callback(None)
        self.assertAlmostEqual(self.local(worker, NOW), -1.0, 3)
        self.reconcile(worker)
        self.assertAlmostEqual(self.local(worker, NOW), 0.0, 3)

    def test_clock_set(self) -> None:
        """A store clock that was set, ahead or back, is believed at the next answer."""
        worker = self.worker()
        for apart in (3600.0, -3600.0, 0.5):
            self.memory._last_us = 0
            self.store_clock.apart = apart
            self.reconcile(worker)
            self.assertAlmostEqual(self.local(worker, NOW + apart), 0.0, 3)

    def test_drift(self) -> None:
        """A store clock that runs fast is followed, also while some answers are late."""
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
        """Whatever the store's clock does, events go in order, and none waits for long."""
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
        self.assertEqual((worker.leases, self.clock.getDelayedCalls()), (0, []))
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
        self.assertEqual(worker.leases, 3)
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
        """A batch whose reading is under way when the worker stops is not sent."""
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
        """A lease that is granted after the stop was ordered is given back before the worker has stopped."""
        self.subscribe("cats")
        answer = self.store.delay("acquire")
        worker = self.worker()
        stopping = self.stop(worker)
        self.assertNoResult(stopping)
        answer.callback(None)
        self.stopped(stopping, worker)

    def test_acknowledgement_waits_for_the_store(self) -> None:
        """An acknowledgement that the store cannot take yet is tried until the grace is over."""
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
        """A store that stays away does not keep a worker from stopping."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.fail_next("acknowledge", times=999)
        self.publish("cats")
        self.store.unavailable = True
        stopping = self.stop(worker, 5)
        self.pass_time(5.5)
        self.successResultOf(stopping)
        self.assertEqual((worker.leases, self.clock.getDelayedCalls()), (0, []))

    def test_hints_after_stop(self) -> None:
        """A stopped worker takes nothing, whatever it hears, and a sweep is harmless."""
        self.subscribe("cats")
        worker = self.worker()
        self.do(worker.stop(5))
        hint(worker, b"s sub")
        self.reconcile(worker)
        worker.tick()
        self.publish("cats")
        self.assertEqual((self.batches, worker.leases), ([], 0))

    def test_stopped_twice(self) -> None:
        """A second order to stop changes nothing."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        first, second = self.stop(worker), self.stop(worker)
        self.end()
        self.successResultOf(first)
        self.stopped(second, worker)

    def test_courier_that_ends_at_once(self) -> None:
        """A courier that ends in the very moment of its start leaves nothing behind."""
        self.subscribe("cats")
        answer = self.store.delay("acquire", before=True)
        worker = self.worker()
        answer2 = self.store.delay("read")
        answer.callback(None)
        stopping = self.stop(worker)
        answer2.callback(None)
        self.stopped(stopping, worker)


class InternalErrorTests(DeliveryTestCase):
    """What nobody foresaw: reported once, and no loop."""

    def internal_errors(self) -> int:
        """Tracebacks logged since the last call; trial fails a test that leaves any."""
        return len(self.flushLoggedErrors())

    def test_store_broken(self) -> None:
        """A subscriber whose data break the store's calls rests, ever longer, and is reported once."""
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
                self.assertEqual((self.queued(), worker.leases), (0, 1))
                self.stop_all()

    def test_many_fail(self) -> None:
        """Subscribers that fail by the hundred are summed up in the log, once a minute."""
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
        """A subscriber that breaks down holds back no other."""
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
        """A poison subscriber goes to another worker only when its lease has ended, not at once."""
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
        """A breakdown long after the last one is reported anew, and counts as the first."""
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
        """A fault met in reading ahead is not hidden: the reading that counts meets it too."""
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
    """What many subscribers cost."""

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
        """A sweep over a thousand idle subscribers is seven calls, and between sweeps there is none."""
        self.many()
        worker = self.worker()
        self.assertEqual(worker.leases, self.MANY)
        self.store.calls.clear()
        self.reconcile(worker)
        self.clock.pump([PAUSE] * 4)
        self.assertEqual(self.store.calls, {"renew": 4, "announce": 1, "tails": 1, "subscribers": 1})
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store.calls.clear()
        self.pass_time(10 * RECONCILE)
        self.assertEqual(self.store.calls, {"renew": 40, "announce": 10, "tails": 10, "subscribers": 10})

    def test_second_worker(self) -> None:
        """A second worker asks once for each half that is its own, and not at all for the first one's."""
        self.many()
        first = self.worker("w1")
        other = FaultyStore(self.memory, self.clock)
        other.hot *= 10
        second = self.worker("w2", store=other)
        self.assertEqual(first.leases + second.leases, self.MANY)
        self.assertLess(abs(second.leases - self.MANY / 2), self.MANY / 10)
        self.pass_time(2.5 * TTL)
        self.assertEqual(other.calls["acquire"], second.leases)
        self.assertEqual(self.store.calls["release"], second.leases)

    def test_one_topic_of_ten(self) -> None:
        """An event costs those who are subscribed to its topic, and no others."""
        self.many()
        self.worker()
        self.store.calls.clear()
        self.publish("topic_a")
        self.assertEqual(self.store.calls, {"read": 100, "acknowledge": 100})

    def test_waiting(self) -> None:
        """A thousand who wait for their batches to fill cost the store nothing for each event."""
        self.many(topics=1, timeout=3_600_000, max=100)
        worker = self.worker()
        self.store.calls.clear()
        for _ in range(99):
            self.publish("topic_a")
        self.assertEqual(self.store.calls, {})
        self.publish("topic_a")
        self.assertEqual(self.store.calls, {"read": self.MANY, "acknowledge": self.MANY})
        self.assertEqual(worker.leases, self.MANY)

    def test_wakes_only_those_who_must_act(self) -> None:
        """While a batch fills its courier is woken twice: by the first event, and by the last."""
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
        """A store that is away is pressed little by a thousand couriers with work to do; they go on with it."""
        self.many(topics=1)
        worker = self.worker()
        self.store.unavailable = True
        self.publish("topic_a")
        self.store.calls.clear()
        for _ in range(32):
            self.clock.advance(1 / 16)
        self.assertLess(sum(self.store.calls.values()), 6 * self.MANY)
        self.pass_time(30)
        self.assertEqual(worker.leases, 0)
        self.store.calls.clear()
        self.pass_time(10)
        self.assertLess(sum(self.store.calls.values()), 20)
        self.store.unavailable = False
        self.pass_time(2 * RECONCILE)
        self.assertEqual((worker.leases, len(self.sender.attempts)), (self.MANY, self.MANY))

    def test_slow_acquire_does_not_delay_renewals(self) -> None:
        """However long it takes to ask for free leases, those that are held are renewed meanwhile."""
        self.subscribe("cats")
        worker = self.worker()
        self.lose_hints = True
        self.subscribe("dogs", name="slow")
        self.lose_hints = False
        answer = self.store.delay("acquire")
        self.pass_time(5 * TTL)
        self.assertEqual(worker.leases, 1)
        self.publish("cats")
        self.assertEqual(self.batches, [[1]])
        answer.callback(None)
        self.pass_time(2 * RECONCILE)
        self.assertEqual(worker.leases, 2)

    def test_concurrent_reconciliations(self) -> None:
        """A sweep that begins while another is under way does no harm."""
        self.subscribe("cats")
        self.lose_hints = True
        gate = self.store.delay("subscribers")
        worker = self.worker()
        self.publish("cats")
        self.reconcile(worker)
        self.reconcile(worker)
        gate.callback(None)
        self.assertEqual((self.batches, worker.leases, self.store.calls["acquire"]), ([[1]], 1, 1))
