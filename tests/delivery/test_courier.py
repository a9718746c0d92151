"""One subscriber's deliveries: what is sent when, and what an attempt's outcome changes."""

from __future__ import annotations

from itertools import pairwise

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from routemaster.testing.script_sender import ACKNOWLEDGED, LOCAL, refused
from tests.delivery.deliveries import CALLBACK, NOW, RECONCILE, TTL, DeliveryTestCase, hint


def sized(size: int) -> bytes:
    """A fragment of so many bytes."""
    return b'{"n":1,"x":"%s"}' % (b"x" * (size - 14))


class BatchTests(DeliveryTestCase):
    """When a batch is sent, and what it holds."""

    def test_full_batch_at_once(self) -> None:
        """A batch is sent as soon as `max` events wait, however long the timeout."""
        self.subscribe("cats", max=3, timeout=60_000)
        self.worker()
        self.publish("cats", 2)
        self.assertEqual(self.batches, [])
        self.publish("cats")
        self.assertEqual(self.batches, [[1, 2, 3]])

    def test_full_batch_in_one_bulk(self) -> None:
        """A bulk that holds several batches is sent as full batches; the rest waits."""
        self.subscribe("cats", max=3, timeout=60_000)
        self.worker()
        self.publish("cats", 7)
        self.assertEqual(self.batches, [[1, 2, 3], [4, 5, 6]])
        self.assertEqual(self.queued(), 1)

    def test_full_only_by_the_sum(self) -> None:
        """A batch fills by the events of all topics together, in whichever way they are spread."""
        for spread in ("aaaaaaaa", "abcabcab", "aaaaaaab", "abbbbbbc", "cba" "cccca"):
            self.setUp()
            self.subscribe("a", "b", "c", max=8, timeout=60_000)
            self.worker()
            for topic in spread[:-1]:
                self.publish(topic)
            self.assertEqual(self.batches, [], spread)
            self.publish(spread[-1])
            self.assertEqual(self.batches, [[1, 2, 3, 4, 5, 6, 7, 8]], spread)

    def test_timeout(self) -> None:
        """A batch that is not full is sent when its oldest event has waited `timeout`."""
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.clock.advance(0.3)
        self.publish("cats")
        self.clock.advance(0.199)
        self.assertEqual(self.batches, [])
        self.clock.advance(0.002)
        self.assertEqual(self.batches, [[1, 2]])

    def test_timeout_of_the_next(self) -> None:
        """The timeout of the next batch counts from its own oldest event, and nothing is sent before."""
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.clock.advance(0.501)
        self.clock.advance(1)
        self.publish("cats")
        self.clock.advance(0.499)
        self.assertEqual(self.batches, [[1]])
        self.clock.advance(0.002)
        self.assertEqual(self.batches, [[1], [2]])

    def test_accepted_in_flight(self) -> None:
        """An event accepted during an attempt waits from its acceptance, not from the attempt's end."""
        self.sender.otherwise = None
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.clock.advance(0.501)
        self.publish("cats")
        self.clock.advance(0.4)
        self.end()
        self.assertEqual(self.batches, [[1]])
        self.clock.advance(0.099)
        self.assertEqual(self.batches, [[1]])
        self.clock.advance(0.002)
        self.assertEqual(self.batches, [[1], [2]])

    def test_overdue_after_flight(self) -> None:
        """A batch that became due during an attempt is sent as soon as that attempt ends."""
        self.sender.otherwise = None
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.clock.advance(0.501)
        self.publish("cats")
        self.clock.advance(0.6)
        self.end()
        self.assertEqual(self.batches, [[1], [2]])

    def test_by_the_stores_clock(self) -> None:
        """An event's wait is counted by the store's clock, whatever its offset from the worker's clock."""
        for apart in (3600.0, -3600.0, 0.25):
            self.setUp()
            self.store_clock.apart = apart
            self.subscribe("cats", timeout=500)
            self.lose_hints = True
            self.publish("cats")
            self.lose_hints = False
            self.clock.advance(0.3)
            self.worker()
            self.clock.advance(0.199)
            self.assertEqual(self.batches, [], apart)
            self.clock.advance(0.002)
            self.assertEqual(self.batches, [[1]], apart)

    def test_publishers_timestamp_plays_no_part(self) -> None:
        """An event that its publisher dated an hour back, or ahead, waits the timeout like any other."""
        self.subscribe("cats", timeout=500)
        self.worker()
        for t in (0, int(NOW * 1000) + 3_600_000):
            del self.sender.attempts[:]
            self.do(self.memory.publish("cats", "pub", [b'{"n":%d}' % t]))
            self.clock.advance(0.499)
            self.assertEqual(self.batches, [])
            self.clock.advance(0.002)
            self.assertEqual(self.batches, [[t]])

    def test_store_clock_set_back(self) -> None:
        """Events stamped by a store clock that was an hour ahead do not wait that hour."""
        self.subscribe("cats", timeout=500)
        worker = self.worker()
        self.store_clock.apart = 3600.0
        self.publish("cats")
        self.store_clock.apart = 0.0
        self.reconcile(worker)
        self.clock.advance(0.5)
        self.assertEqual(self.batches, [[1]])

    def test_store_clock_jumps(self) -> None:
        """Whatever the store's clock does, no batch waits longer than two timeouts, though events keep coming."""
        for jumps in ([-3600.0], [3600.0], [3600.0, 0.0], [-3600.0, 0.0], [-3600.0, -7200.0]):
            self.setUp()
            self.subscribe("cats", "dogs", timeout=500)
            self.worker()
            delivered, waited = 0, 0.0
            for number in range(120):
                if number % 30 == 15 and jumps:
                    self.store_clock.apart = jumps.pop(0)
                self.publish(("cats", "dogs")[number % 3 == 0])
                self.pass_time(0.125)
                if len(self.batches) > delivered:
                    waited, delivered = 0.0, len(self.batches)
                else:
                    waited += 0.125
                self.assertLessEqual(waited, 1.0, number)
            self.pass_time(1)
            self.assertEqual(sorted(n for batch in self.batches for n in batch), list(range(1, 121)))

    def test_store_clock_set_back_while_others_change_it(self) -> None:
        """After the store's clock was set back, reading the subscription again does not begin the wait anew."""
        self.subscribe("cats", timeout=500)
        worker = self.worker()
        self.store_clock.apart = -3600.0
        self.publish("cats")
        for _ in range(5):
            worker.reload_all()
            self.pass_time(0.125)
        self.assertEqual(self.batches, [[1]])

    def test_timeout_zero(self) -> None:
        """With timeout 0 every event is sent at once."""
        self.subscribe("cats", timeout=0)
        self.worker()
        self.publish("cats")
        self.publish("cats", 2)
        self.assertEqual(self.batches, [[1], [2, 3]])

    def test_at_once_while_events_pour_in(self) -> None:
        """With timeout 0 a batch is sent although further events overtake the reply of each read."""
        self.subscribe("cats", timeout=0, max=10_000)
        self.worker()
        gate = self.store.delay("read")
        self.publish("cats")
        self.publish("cats")
        gate.callback(None)
        self.assertEqual(self.batches, [[1], [2]])

    def test_no_empty_batch(self) -> None:
        """Without events nothing is sent."""
        self.subscribe("cats", "dogs")
        self.worker()
        self.pass_time(60)
        self.assertEqual(self.batches, [])

    def test_backlog_in_order_across_topics(self) -> None:
        """A backlog is drained in full batches, by time of acceptance across topics."""
        self.subscribe("c", "a", "b", max=4, timeout=60_000)
        for topic in "abccbabacbcabcaa":
            self.publish(topic)
        self.worker()
        self.assertEqual(self.batches, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])

    def test_order_across_topics_in_one_snapshot(self) -> None:
        """A batch ends where its topics ended when it began: no event overtakes one of another topic."""
        self.sender.otherwise = None
        self.subscribe("busy", "quiet", max=2)
        self.worker()
        held = self.store.delay("read", before=True)
        self.publish("busy")
        self.publish("quiet")
        self.publish("busy", 2)
        held.callback(None)
        self.assertEqual(self.batches, [[1]])
        self.end()
        self.end()
        self.assertEqual(self.batches, [[1], [2, 3], [4]])

    def test_bytes_are_capped(self) -> None:
        """A batch's body is as large as allowed at the most, and an event larger than that goes alone."""
        self.subscribe("cats", max=100, timeout=60_000)
        self.do(self.memory.publish("cats", "pub", [sized(40)] * 4 + [sized(200)] + [sized(40)] * 95))
        self.worker(max_batch_body=150)  # an event has 40 bytes, and 26 more for its ID
        self.pass_time(61)
        self.assertEqual([len(batch) for batch in self.batches[:4]], [2, 2, 1, 2])
        self.assertEqual(sum(map(len, self.batches)), 100)

    def test_read_once(self) -> None:
        """Events behind a batch, and those that come again, are in memory: the store is not asked again."""
        self.sender.otherwise = None
        self.subscribe("cats", max=2)
        self.worker()
        self.publish("cats", 6)
        self.store.calls.clear()
        self.end()
        self.end(refused())
        self.pass_time(1)
        self.end()
        self.assertEqual(self.store.calls["read"], 1)  # ahead, behind the first
        self.assertEqual(self.batches, [[1, 2], [3, 4], [3, 4], [5, 6]])

    def test_number_of_the_attempt(self) -> None:
        """An attempt bears its number: 1 at first, and one more for each failure in a row, kept in the store."""
        self.sender.otherwise = refused()
        self.subscribe("cats")
        worker = self.worker(retry_delay=1.0)
        self.publish("cats")
        self.pass_time(3.5)
        self.do(worker.stop(1))
        self.workers.remove(worker)
        self.worker("w2", retry_delay=1.0)
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(5)
        self.publish("cats")
        self.assertEqual([attempt.number for attempt in self.sender.attempts], [1, 2, 3, 4, 1])

    def test_what_is_sent(self) -> None:
        """The body is a JSON array of the stored fragments with their IDs, sent to the callback with the uuid."""
        self.subscribe("cats", uuid="alice")
        self.worker()
        fragments = [b'{"n":7,"t": 1}', b'{"n":8,"x":"\xc3\xa9"}']
        published = self.do(self.memory.publish("cats", "pub", fragments))
        first, last = published.first, published.last
        (attempt,) = self.sender.attempts
        expected = b'[{"n":7,"t": 1,"id":"%s"},{"n":8,"x":"\xc3\xa9","id":"%s"}]' % (bytes(first), bytes(last))
        self.assertEqual(attempt.body, expected)
        self.assertEqual((attempt.callback, attempt.uuid), (CALLBACK, "alice"))

    def test_two_round_trips(self) -> None:
        """A batch costs the store at most one reading and one acknowledgement, with a backlog too."""
        self.subscribe("cats", max=2)
        self.worker()
        self.store.calls.clear()
        self.publish("cats")
        self.assertEqual(self.store.calls, {"read": 1, "acknowledge": 1})
        self.publish("cats", 10)
        self.assertEqual(self.store.calls, {"read": 6, "acknowledge": 6})

    def test_waiting_costs_nothing(self) -> None:
        """Events that join a batch which is not due yet cost the store no call."""
        self.subscribe("cats", timeout=60_000, max=1000)
        self.worker()
        self.store.calls.clear()
        for _ in range(500):
            self.publish("cats")
        self.assertEqual(sum(self.store.calls.values()), 0)


class OutcomeTests(DeliveryTestCase):
    """What an attempt's outcome changes."""

    def test_only_acknowledged_moves(self) -> None:
        """Only an acknowledged attempt moves a cursor; a failed, local-fault or aborted one does not."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats", 2)
        for outcome in (refused(), refused(302), refused(503, 1.0), LOCAL):
            self.end(outcome)
            self.assertEqual(self.queued(), 2)
            self.pass_time(70)
        stopping = Deferred.fromCoroutine(worker.stop(0))
        self.clock.advance(0)
        self.successResultOf(stopping)
        self.assertTrue(self.sender.attempts[-1].was_aborted)
        self.assertEqual((self.queued(), self.facts().sent), (2, 0))
        self.worker("w2")
        self.end()
        self.assertEqual((self.queued(), self.facts().sent), (0, 2))

    def test_not_before_it_is_acknowledged(self) -> None:
        """While an attempt is in flight its events stay in the backlog."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.assertEqual(self.queued(), 1)
        self.assertEqual(self.store.calls["acknowledge"], 0)

    def test_same_events_first(self) -> None:
        """After a failure the same events come again, first, and more may follow them."""
        self.sender.then(refused(), refused())
        self.subscribe("a", "b", max=4)
        self.worker()
        self.publish("b", 2)
        self.publish("a")
        self.pass_time(0.2)
        self.publish("b", 3)
        self.pass_time(1)
        self.assertEqual(self.batches, [[1, 2], [1, 2, 3], [1, 2, 3, 4], [5, 6]])

    def test_read_ahead_is_dropped_by_failure(self) -> None:
        """Events read ahead behind a failed batch are not sent before that batch."""
        self.sender.then(refused())
        self.subscribe("cats", max=2)
        self.worker()
        self.publish("cats", 6)
        self.assertEqual(self.batches, [[1, 2]])
        self.pass_time(1)
        self.assertEqual(self.batches, [[1, 2], [1, 2], [3, 4], [5, 6]])

    def test_dropped_after_failure(self) -> None:
        """Events of a failed batch that autodrop removed are not sent again."""
        self.sender.then(refused())
        self.subscribe("cats")
        self.worker()
        self.publish("cats", 2)
        log = self.memory._topics["cats"]
        (span,) = log.cursors["sub"].spans
        log.cursors["sub"] = evolve(log.cursors["sub"], spans=(evolve(span, after=log.log.pop(0)[0]),))
        self.pass_time(1)
        self.assertEqual((self.batches, self.queued()), ([[1, 2], [2]], 0))

    def test_pauses_grow(self) -> None:
        """Pauses double with each failure in a row, up to the longest, and retries never end."""
        self.sender.otherwise = refused()
        self.subscribe("cats")
        times: list[float] = []
        self.sender.on_post = lambda attempt: times.append(self.at())
        self.worker(retry_delay=1.0, max_backoff=10.0)
        self.publish("cats")
        self.pass_time(60)
        pauses = [later - earlier for earlier, later in pairwise(times)]
        self.assertEqual([round(p, 1) for p in pauses], [1, 2, 4, 8, 10, 10, 10, 10])

    def test_jitter(self) -> None:
        """Jitter spreads the pauses."""
        self.chance, self.sender.otherwise = 0.5, refused()
        self.subscribe("cats")
        self.worker(retry_delay=1.0)
        self.publish("cats")
        self.clock.advance(1.249)
        self.assertEqual(len(self.batches), 1)
        self.clock.advance(0.002)
        self.assertEqual(len(self.batches), 2)

    def test_retry_after(self) -> None:
        """Retry-After lengthens the pause, up to the longest."""
        for asked, paused in ((5.0, 5.0), (3600.0, 60.0), (0.0, 0.1)):
            self.setUp()
            self.sender.then(refused(503, asked))
            self.subscribe("cats")
            self.worker()
            self.publish("cats")
            self.pass_time(paused - 0.1)
            self.assertEqual(len(self.batches), 1, asked)
            self.pass_time(0.2)
            self.assertEqual(len(self.batches), 2, asked)

    def test_success_resets(self) -> None:
        """After a success the first failure counts as the first."""
        self.sender.then(refused(), refused(), refused(), ACKNOWLEDGED, refused())
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.pass_time(2)
        self.assertEqual((len(self.batches), self.facts().health.failures), (4, 0))
        self.publish("cats")
        self.assertEqual((len(self.batches), self.facts().health.failures), (5, 1))
        self.clock.advance(0.1)
        self.assertEqual(len(self.batches), 6)

    def test_backoff_holds_everything_back(self) -> None:
        """During a pause nothing is sent: no full batch, no new event, no other topic."""
        self.sender.then(refused(503, 5.0))
        self.subscribe("cats", "dogs", max=2)
        self.worker()
        self.publish("cats")
        for _ in range(38):
            self.publish("dogs", 3)
            self.pass_time(0.125)
        self.assertEqual(len(self.batches), 1)

    def test_failures_are_kept(self) -> None:
        """Failures and the pause are stored, and another worker continues from them."""
        self.sender.otherwise = refused()
        self.subscribe("cats")
        worker = self.worker(retry_delay=1.0)
        self.publish("cats")
        self.pass_time(7.5)  # attempts at 0, 1, 3 and 7; the next is due at 15
        self.assertEqual((len(self.batches), self.facts().health.failures), (4, 4))
        self.do(worker.stop(1))
        self.workers.remove(worker)
        self.worker("w2", retry_delay=1.0)
        self.pass_time(7.4)
        self.assertEqual(len(self.batches), 4)
        self.pass_time(0.2)
        self.assertEqual((len(self.batches), self.facts().health.failures), (5, 5))
        self.pass_time(15.8)
        self.assertEqual(len(self.batches), 5)
        self.pass_time(0.3)
        self.assertEqual(len(self.batches), 6)

    def test_pause_kept_is_bounded(self) -> None:
        """A pause found in the store is never waited for longer than the longest, whatever clocks did."""
        self.subscribe("cats")
        known = self.memory._subscribers["sub"]
        known.health = evolve(known.health, failures=1, retry_at=NOW + 3600)
        self.publish("cats")
        self.worker()
        self.pass_time(59)
        self.assertEqual(self.batches, [])
        self.pass_time(2)
        self.assertEqual(self.batches, [[1]])

    def test_pause_is_not_extended(self) -> None:
        """After the store's clock was set back, reading a stored pause again does not begin it anew."""
        self.sender.then(refused())
        self.subscribe("cats")
        worker = self.worker(retry_delay=40.0)
        self.publish("cats")
        self.store_clock.apart = -3600.0
        for _ in range(5):
            self.pass_time(15)
            worker.reload_all()
        self.assertEqual(self.batches, [[1], [1]])

    def test_local_faults_do_not_count(self) -> None:
        """A fault of this machine is no failure of the subscriber: a short pause, no count, nothing stored."""
        self.sender.then(LOCAL, LOCAL, LOCAL, LOCAL, LOCAL)
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.pass_time(2.9)
        self.assertEqual(len(self.batches), 5)
        self.assertEqual(self.store.calls["fail"], 0)
        self.assertEqual(self.facts().health.failures, 0)
        self.pass_time(0.3)
        self.assertEqual((len(self.batches), self.queued()), (6, 0))

    def test_local_pause_outlasts_a_reload(self) -> None:
        """The pause after a fault of this machine is kept when the subscription is read again."""
        self.sender.then(LOCAL)
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        for _ in range(5):
            worker.reload_all()
            self.pass_time(0.1, step=0.1)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(0.2)
        self.assertEqual(len(self.batches), 2)

    def test_error_is_recorded(self) -> None:
        """The last error is stored with the failure."""
        self.sender.then(refused(418))
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.assertEqual(self.facts().health.last_error, "answered 418")

    def test_hint_flood_is_no_second_attempt(self) -> None:
        """While an attempt is in flight, no number of hints starts another."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        worker = self.worker()
        for _ in range(50):
            self.publish("cats")
            hint(worker, b"s sub")
            self.reconcile(worker)
        self.assertEqual(len(self.sender.attempts), 1)
        self.assertEqual(self.sender.most_at_once[CALLBACK], 1)

    def test_next_attempt_after_the_acknowledgement_is_stored(self) -> None:
        """The next batch is sent only after the last acknowledgement is stored: a crash repeats one at most."""
        self.subscribe("cats", max=1)
        self.worker()
        gate = self.store.delay("acknowledge", before=True)
        self.publish("cats", 3)
        self.assertEqual(self.batches, [[1]])
        gate.callback(None)
        self.assertEqual(self.batches, [[1], [2], [3]])


class RaceTests(DeliveryTestCase):
    """Events accepted and changes made at every step of a courier."""

    def test_accepted_during_any_await(self) -> None:
        """An event accepted during a store call, or while its reply is late, is delivered."""
        for call in ("acquire", "positions", "read", "acknowledge", "fail", "repair"):
            for before in (True, False):
                for timeout in (0, 500):
                    with self.subTest(call=call, before=before, timeout=timeout):
                        self.setUp()
                        self.sender.then(refused())
                        self.subscribe("cats", timeout=timeout)
                        worker = self.worker()
                        gate = self.store.delay(call, before=before)
                        self.publish("cats")
                        hint(worker, b"s sub")  # asks for the lease again
                        self.clock.advance(1)  # due, failed, tried again
                        self.publish("cats")
                        gate.callback(None)
                        for _ in range(20):
                            self.clock.advance(0.2)  # no reconciliation
                        self.assertEqual(self.queued(), 0)
                        self.stop_all()

    def test_first_reading_overtaken(self) -> None:
        """An event accepted between the first read and its reply is delivered, although the reply lacks it."""
        self.subscribe("cats", "dogs")
        gate = self.store.delay("read")
        self.worker()
        self.publish("dogs")
        gate.callback(None)
        self.assertEqual(self.batches, [[1]])

    def test_lost_hint(self) -> None:
        """A lost hint delays an event by one reconciliation interval at most."""
        self.subscribe("cats")
        worker = self.worker()
        self.lose_hints = True
        self.publish("cats")
        self.assertEqual(self.batches, [])
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1]])

    def test_lost_hint_keeps_the_timeout(self) -> None:
        """An event found by reconciliation waits from its acceptance, not from when it was found."""
        self.subscribe("cats", timeout=2000)
        worker = self.worker()
        self.lose_hints = True
        self.publish("cats")
        self.clock.advance(1.5)
        self.reconcile(worker)
        self.clock.advance(0.499)
        self.assertEqual(self.batches, [])
        self.clock.advance(0.002)
        self.assertEqual(self.batches, [[1]])

    def test_lost_hint_before_a_received_one(self) -> None:
        """A hint that does not follow on what is known does not make the oldest event younger than it is."""
        self.subscribe("cats", timeout=1000)
        self.worker()
        self.lose_hints = True
        self.publish("cats")
        self.lose_hints = False
        self.clock.advance(0.9)
        self.publish("cats")
        self.clock.advance(0.101)
        self.assertEqual(self.batches, [[1, 2]])

    def test_hint_for_another_topic_after_a_lost_one(self) -> None:
        """A hint for one topic does not change the age of an event that reconciliation found in another."""
        self.subscribe("cats", "dogs", timeout=1000)
        worker = self.worker()
        self.lose_hints = True
        self.publish("cats")
        self.lose_hints = False
        self.clock.advance(0.5)
        self.store.fail_next("read")
        self.reconcile(worker)
        self.publish("dogs")
        self.clock.advance(0.25)
        self.clock.advance(0.251)
        self.assertEqual(self.batches, [[1, 2]])

    def test_subscription_changed_while_waiting(self) -> None:
        """A new timeout, maximum or callback applies at once to waiting events."""
        for changed in ({"timeout": 0}, {"max": 2}, {"timeout": 0, "callback": "https://new.example/"}):
            self.setUp()
            self.subscribe("cats", timeout=60_000, max=10)
            self.worker()
            self.publish("cats", 2)
            self.assertEqual(self.batches, [])
            self.subscribe("cats", create=False, **{"timeout": 60_000, "max": 10, **changed})
            self.assertEqual(self.batches, [[1, 2]])
            self.assertEqual(self.sender.attempts[0].callback, changed.get("callback", CALLBACK))

    def test_callback_changed_in_backoff(self) -> None:
        """A changed callback ends the backoff and its failure count."""
        self.sender.then(refused(503, 50.0), refused())
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.subscribe("cats", create=False, callback="https://new.example/")
        self.assertEqual([a.callback for a in self.sender.attempts], [CALLBACK, "https://new.example/"])
        self.assertEqual(self.facts().health.failures, 1)
        self.clock.advance(0.1)
        self.assertEqual(self.queued(), 0)

    def test_subscribed_again_in_backoff(self) -> None:
        """Subscribing again, even unchanged, ends the pause; the failures in a row stay."""
        for options in ({}, {"max": 7}):
            self.setUp()
            self.sender.then(refused(503, 50.0), refused(503, 5.0))
            self.subscribe("cats")
            self.worker()
            self.publish("cats")
            self.assertEqual(len(self.batches), 1)
            self.subscribe("cats", create=False, **options)
            self.assertEqual((len(self.batches), self.facts().health.failures), (2, 2))
            self.pass_time(4.9)
            self.assertEqual(len(self.batches), 2)
            self.pass_time(0.2)
            self.assertEqual((len(self.batches), self.queued()), (3, 0))

    def test_callback_changed_in_flight(self) -> None:
        """When callback or uuid changes, the attempt under way is cut and its events go to the new one at once."""
        for changed in ({"callback": "https://new.example/"}, {"uuid": "bob"}):
            self.setUp()
            self.sender.otherwise = None
            self.subscribe("cats", max=1)
            self.worker()
            self.publish("cats", 2)
            self.subscribe("cats", create=False, max=1, **changed)
            old, new = self.sender.attempts
            self.assertEqual((old.was_aborted, old.number, new.number), (True, 1, 1))
            self.assertEqual(new.callback, changed.get("callback", CALLBACK))
            self.assertEqual(new.uuid, changed.get("uuid", old.uuid))
            self.assertEqual((self.in_flight.events, self.facts().health.failures), ([1], 0))
            self.end()
            self.end()
            self.assertEqual((self.batches, self.queued()), ([[1], [1], [2]], 0))

    def test_changed_in_flight_without_store(self) -> None:
        """A change that cannot be read at once cuts the attempt when the lease is renewed."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.store.fail_next("acquire")
        self.subscribe("cats", create=False, callback="https://new.example/")
        self.assertFalse(self.sender.attempts[0].was_aborted)
        self.pass_time(TTL / 2)
        self.assertTrue(self.sender.attempts[0].was_aborted)
        self.assertEqual(self.in_flight.callback, "https://new.example/")

    def test_changed_while_waiting_for_a_turn(self) -> None:
        """A courier that waits for a turn at the old callback asks for one at the new callback instead."""
        self.sender.busy = True
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.assertEqual(len(self.sender.waiting), 1)
        self.sender.busy = False
        self.subscribe("cats", create=False, callback="https://new.example/")
        self.assertEqual([a.callback for a in self.sender.attempts], ["https://new.example/"])
        self.assertEqual((self.sender.waiting, self.queued()), ([], 0))

    def test_changed_in_flight_and_failed(self) -> None:
        """A failure during which only options changed counts as ever."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.subscribe("cats", create=False, max=7)
        self.end(refused(503, 5.0))
        self.assertEqual(self.facts().health.failures, 1)
        self.pass_time(4.9)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(0.2)
        self.assertEqual(len(self.batches), 2)

    def test_failed_while_the_change_cannot_be_read(self) -> None:
        """A failure counts, and its pause follows, though the store was unavailable at a change before it."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.store.fail_next("acquire", times=4)
        hint(worker, b"s sub")
        self.end(refused(503, 5.0))
        self.assertEqual(self.facts().health.failures, 1)
        self.pass_time(4.9)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(1)
        self.assertEqual(len(self.batches), 2)

    def test_failed_while_stopping(self) -> None:
        """A failure counts though the worker stops and the subscription has changed meanwhile."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        hint(worker, b"s sub")
        stopping = Deferred.fromCoroutine(worker.stop(10))
        self.end(refused(503, 5.0))
        self.successResultOf(stopping)
        self.assertEqual(self.facts().health.failures, 1)

    def test_callback_changed_and_failed_before_it_was_read(self) -> None:
        """A failure of the old callback does not count for the new one, which is tried at once."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.store.fail_next("acquire")
        self.subscribe("cats", create=False, callback="https://new.example/")
        self.end(refused(503, 5.0))
        self.assertEqual((self.in_flight.callback, self.in_flight.number), ("https://new.example/", 1))
        self.assertEqual(self.facts().health.failures, 0)

    def test_cancelled_attempts_are_no_failures(self) -> None:
        """An attempt that is cancelled, for a new callback or a stop, is not logged as a failed delivery."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        with capturedLogs() as events:
            self.subscribe("cats", create=False, callback="https://new.example/")
            stopping = Deferred.fromCoroutine(worker.stop(0))
            self.clock.advance(0)
        self.successResultOf(stopping)
        self.assertEqual([attempt.was_aborted for attempt in self.sender.attempts], [True, True])
        self.assertEqual([event for event in events if event["log_level"] is not LogLevel.debug], [])

    def test_hints_in_flight_are_cheap(self) -> None:
        """Hints during an attempt cost one look at the subscription at a time, and none is missed."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.store.calls.clear()
        gate = self.store.delay("acquire")
        for _ in range(50):
            hint(worker, b"s sub")
        self.lose_hints = True
        self.subscribe("cats", create=False, callback="https://new.example/")
        hint(worker, b"s sub")
        gate.callback(None)
        self.assertEqual(self.in_flight.callback, "https://new.example/")
        self.assertEqual(self.store.calls["acquire"], 3)  # two looks, and one before the next attempt

    def test_changed_options_are_looked_at_once(self) -> None:
        """After a change of other options the renewals during an attempt do not look at it again."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats")
        self.subscribe("cats", create=False, max=7)
        self.store.calls.clear()
        self.pass_time(TTL)
        self.assertEqual(self.store.calls["acquire"], 0)

    def test_maximum_lowered_in_flight(self) -> None:
        """Events read ahead under another maximum are not sent."""
        self.sender.otherwise = None
        self.subscribe("cats", max=3)
        self.worker()
        self.publish("cats", 6)
        self.subscribe("cats", create=False, max=1)
        self.end()
        self.assertEqual(self.batches, [[1, 2, 3], [4]])

    def test_changed_while_reading(self) -> None:
        """A change during a read applies to the batch being read."""
        self.subscribe("cats")
        self.worker()
        gate = self.store.delay("read")
        self.publish("cats", 3)
        self.subscribe("cats", create=False, callback="https://new.example/", max=2)
        gate.callback(None)
        self.assertEqual({a.callback for a in self.sender.attempts}, {"https://new.example/"})
        self.assertEqual(self.batches, [[1, 2], [3]])

    def test_topic_joined(self) -> None:
        """A topic that joins is delivered from its next event on, in order with the others."""
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.create("dogs")
        self.subscribe("cats", "dogs", create=False, timeout=500)
        self.publish("dogs")
        self.publish("cats")
        self.clock.advance(0.501)
        self.assertEqual(self.batches, [[1, 2, 3]])

    def test_topic_left(self) -> None:
        """A topic that was left still delivers its backlog and no later event; other topics continue."""
        for moment in ("waiting", "backoff", "flight"):
            with self.subTest(moment=moment):
                self.setUp()
                self.sender.then({"waiting": ACKNOWLEDGED, "backoff": refused(503, 0.5), "flight": None}[moment])
                self.subscribe("cats", "dogs", timeout=500 if moment == "waiting" else 0)
                self.worker()
                self.publish("cats")
                self.do(self.memory.leave("sub", "cats"))
                self.publish("cats")
                self.publish("dogs")
                if moment == "flight":
                    self.end()
                self.pass_time(1)
                delivered = [n for a in self.sender.attempts if a.outcome == ACKNOWLEDGED for n in a.events]
                self.assertEqual(delivered, [1, 3])
                self.assertEqual(self.facts().subscription.topics, ("dogs",))
                self.stop_all()

    def test_last_topic_left(self) -> None:
        """A subscriber that left its last topic gets its backlog, then nothing, and causes no store calls."""
        self.subscribe("cats", timeout=500)
        self.worker()
        self.publish("cats")
        self.do(self.memory.leave("sub", "cats"))
        self.publish("cats")
        self.pass_time(10)
        self.assertEqual(self.batches, [[1]])
        self.store.calls.clear()
        self.clock.advance(2)
        self.assertEqual(self.store.calls, {})

    def test_unsubscribed(self) -> None:
        """After an unsubscription no attempt starts, and one in flight is not aborted."""
        for moment in ("waiting", "backoff", "flight"):
            with self.subTest(moment=moment):
                self.setUp()
                self.sender.then({"waiting": ACKNOWLEDGED, "backoff": refused(), "flight": None}[moment])
                self.subscribe("cats", timeout=500 if moment == "waiting" else 0)
                worker = self.worker()
                self.publish("cats")
                before = len(self.batches)
                self.do(self.memory.unsubscribe("sub"))
                if moment == "flight":
                    self.end()
                self.pass_time(20)
                self.assertEqual((len(self.batches), worker.lease_count), (before, 0))
                self.stop_all()

    def test_unsubscribed_with_lost_hint(self) -> None:
        """The acknowledgement's reply also shows that a subscription ended in flight."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats", 2)
        self.lose_hints = True
        self.do(self.memory.unsubscribe("sub"))
        self.end()
        self.assertEqual(worker.lease_count, 0)

    def test_dissolved(self) -> None:
        """A half-removed subscription is repaired, and nothing is sent for it."""
        self.subscribe("cats", timeout=500)
        worker = self.worker()
        self.publish("cats")
        self.half_remove()
        hint(worker, b"s sub")
        self.assertEqual((worker.lease_count, self.store.calls["repair"]), (0, 1))
        self.clock.advance(1)
        self.assertEqual(self.batches, [])

    def test_unsubscribed_and_back(self) -> None:
        """A client that resubscribes gets the events accepted from then on, once and at once."""
        for moment in ("waiting", "flight", "failing"):
            with self.subTest(moment=moment):
                self.setUp()
                if moment != "waiting":
                    self.sender.then(None)
                self.subscribe("cats", timeout=500 if moment == "waiting" else 0)
                self.worker()
                self.publish("cats")
                self.do(self.memory.unsubscribe("sub"))
                self.publish("cats")
                self.subscribe("cats", create=False)
                self.publish("cats")
                if moment != "waiting":
                    self.end(refused(503, 30.0) if moment == "failing" else ACKNOWLEDGED)
                self.clock.advance(0.1)  # no reconciliation
                self.assertEqual(self.batches[-1], [3])
                self.assertEqual((len(self.batches), self.queued()), (2 - (moment == "waiting"), 0))
                self.stop_all()

    def test_topic_deleted_and_made_again(self) -> None:
        """What a deleted topic owed comes; of the new one of that name only what is subscribed to anew."""
        for in_flight in (False, True):
            for lost in (False, True):
                with self.subTest(in_flight=in_flight, lost=lost):
                    self.setUp()
                    self.sender.otherwise = None if in_flight else ACKNOWLEDGED
                    self.subscribe("cats", "dogs")
                    self.worker()
                    self.publish("cats", 3)
                    self.lose_hints = lost
                    self.do(self.memory.delete_topic("cats", "pub"))
                    self.publish("cats")
                    self.subscribe("cats", "dogs", create=False)
                    self.publish("cats")
                    self.publish("dogs")
                    self.lose_hints = False
                    if in_flight:
                        self.sender.otherwise = ACKNOWLEDGED
                        self.end()
                    self.pass_time(4)
                    self.assertEqual([n for batch in self.batches for n in batch], [1, 2, 3, 5, 6])
                    self.assertEqual(self.queued(), 0)
                    self.stop_all()


class RecoveryTests(DeliveryTestCase):
    """A courier that cannot continue pauses, and resumes."""

    def lose_events(self) -> None:
        """Remove the log's entries; keep the cursor."""
        self.memory._topics["cats"].log.clear()

    def test_missing_events(self) -> None:
        """Missing events cause one read every few seconds and one log line, not a loop."""
        self.lose_hints = True
        for options in ({"timeout": 0}, {"timeout": 500}, {"timeout": 60_000, "max": 1}):
            with self.subTest(**options):
                self.setUp()
                self.subscribe("cats", **options)
                self.publish("cats", 2)
                self.lose_events()
                self.worker()
                self.pass_time(1)
                self.store.calls.clear()
                self.pass_time(60)
                self.assertEqual(self.batches, [])
                self.assertLess(self.store.calls["read"], 30)
                self.assertLess(self.store.calls["acquire"] + self.store.calls["repair"], 5)
                self.stop_all()

    def test_missing_first_events(self) -> None:
        """Events behind missing ones are delivered."""
        self.subscribe("cats")
        worker = self.worker()
        self.sender.otherwise = None
        self.publish("cats")
        self.end(refused())
        self.lose_events()
        worker._cache.clear()
        self.publish("cats")
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(1)
        self.assertEqual((self.batches, self.queued()), ([[1], [2]], 0))

    def test_missing_events_and_a_new_event(self) -> None:
        """An event accepted during a read that found nothing is delivered at once."""
        self.subscribe("cats")
        self.publish("cats")
        self.lose_events()
        gate = self.store.delay("read")
        self.worker()
        self.publish("cats")
        gate.callback(None)
        self.assertEqual(self.batches, [[2]])

    def test_next_event_ends_the_wait_for_lost_ones(self) -> None:
        """An event accepted after the loss is not delayed by it."""
        self.subscribe("cats")
        self.publish("cats")
        self.lose_events()
        self.worker()
        self.clock.advance(1)
        self.publish("cats")
        self.assertEqual((self.batches, self.queued()), ([[2]], 0))

    def test_wrong_hint(self) -> None:
        """A hint of events that the store does not hold causes no loop."""
        for timeout in (0, 500):
            self.setUp()
            self.subscribe("cats", timeout=timeout)
            worker = self.worker()
            self.store.calls.clear()
            hint(worker, b"t cats %d-%d %d-%d" % (NOW * 1e6 + 9e6, 2, NOW * 1e6 + 9e6, 90))
            self.assertLess(sum(self.store.calls.values()), 5)
            self.pass_time(10)
            self.assertLess(self.store.calls["read"], 10)
            self.publish("cats")
            self.pass_time(5)
            self.assertEqual(self.batches, [[1]])
            self.stop_all()

    def test_topic_recreated(self) -> None:
        """A recreated log that ends before its old cursor does not reduce the count of other topics."""
        self.subscribe("cats", "dogs", timeout=60_000, max=4)
        worker = self.worker()
        self.publish("cats", 4)
        us = NOW * 1e6 + 9e6
        hint(worker, b"t cats %d-%d %d-%d" % (us, 1, us, 1))
        self.publish("dogs", 4)
        self.assertEqual(self.batches, [[1, 2, 3, 4], [5, 6, 7, 8]])

    def test_membership_to_end(self) -> None:
        """A cursor left open in a membership that is to end is repaired at the first reload."""
        self.subscribe("cats", "dogs")
        known = self.memory._subscribers["sub"]
        known.topics["cats"] = evolve(known.topics["cats"], state="left")
        self.worker()
        self.assertEqual(self.store.calls["repair"], 1)

    def test_membership_without_cursor(self) -> None:
        """A membership without a cursor is repaired once, then left to the store's clean-up."""
        self.subscribe("cats", "dogs")
        cursor = self.memory._topics["cats"].cursors.pop("sub")
        repairs: list[str] = []

        async def repair(subscriber: str) -> None:
            repairs.append(subscriber)

        self.memory.repair = repair  # type: ignore[method-assign]
        self.worker()
        self.pass_time(20)
        self.assertEqual(len(repairs), 1)
        self.publish("dogs")
        self.assertEqual(self.batches, [[1]])
        self.memory._topics["cats"].cursors["sub"] = cursor

    def test_cursor_of_an_earlier_membership(self) -> None:
        """Events under the cursor of an ended membership are not sent."""
        self.subscribe("cats")
        self.publish("cats")
        log = self.memory._topics["cats"]
        log.cursors["sub"] = evolve(log.cursors["sub"], membership=1)
        self.worker()
        self.pass_time(20)
        self.assertEqual(self.batches, [])

    def test_store_unavailable_at_each_await(self) -> None:
        """A store unavailable at any step loses no event, and one batch at most is repeated."""
        for call in ("acquire", "positions", "read", "acknowledge", "fail", "repair"):
            for done in (False, True):
                for times in (1, 3):
                    with self.subTest(call=call, done=done, times=times):
                        self.setUp()
                        self.sender.then(refused())
                        self.subscribe("cats", "dogs", max=2)
                        worker = self.worker()
                        self.store.fail_next(call, times=times, done=done)
                        hint(worker, b"s sub")
                        self.publish("cats", 2)
                        self.do(self.memory.leave("sub", "cats"))
                        self.publish("dogs", 2)
                        self.pass_time(15)
                        sent = [n for a in self.sender.attempts if a.outcome == ACKNOWLEDGED for n in a.events]
                        self.assertEqual(sent, [1, 2, 3, 4])
                        self.assertEqual((self.queued(), worker.lease_count), (0, 1))
                        self.stop_all()

    def test_unavailable_store_gets_few_calls(self) -> None:
        """An unavailable store is called at growing intervals, not in a loop."""
        self.subscribe("cats")
        self.worker()
        self.store.unavailable = True
        self.publish("cats")
        self.store.calls.clear()
        for _ in range(80):
            self.clock.advance(0.1)
        self.assertLess(sum(self.store.calls.values()), 12)
        self.assertGreater(sum(self.store.calls.values()), 3)

    def test_store_recovers(self) -> None:
        """A successful renewal ends the pause of a courier that waits for the store."""
        self.sender.otherwise = None
        self.subscribe("cats")
        worker = self.worker()
        self.publish("cats")
        self.store.unavailable = True
        self.end()
        self.clock.advance(0.21)
        self.clock.advance(0.41)  # from now on it rests for nearly a second
        self.store.unavailable = False
        self.assertEqual(self.queued(), 1)
        self.reconcile(worker)
        self.assertEqual(self.queued(), 0)
        self.store.fail_next("read", times=2)
        self.publish("cats")
        self.clock.advance(0.21)
        self.assertEqual(self.batches, [[1]])
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1], [2]])

    def test_lease_that_waits_for_renewal(self) -> None:
        """A courier whose lease is too old for an attempt starts it as soon as the lease is renewed."""
        self.subscribe("cats")
        worker = self.worker()
        self.clock.advance(TTL * 0.6)
        self.publish("cats")
        self.assertEqual(self.batches, [])
        self.reconcile(worker)
        self.assertEqual(self.batches, [[1]])

    def test_lease_is_kept_through_trouble(self) -> None:
        """A short outage of the store does not lose the lease."""
        self.subscribe("cats")
        worker = self.worker()
        self.store.fail_next("read", times=2)
        self.publish("cats")
        self.pass_time(2)
        self.assertEqual((self.batches, worker.lease_count), ([[1]], 1))
        self.assertEqual(self.store.calls["acquire"], 1)
        self.assertEqual(self.store.calls["release"], 0)

    def test_failure_that_cannot_be_stored(self) -> None:
        """A failure is stored when the store recovers, with the rest of its pause."""
        self.sender.otherwise = refused(503, 5.0)
        self.subscribe("cats")
        self.worker()
        self.store.fail_next("fail", times=3)
        self.publish("cats")
        self.pass_time(2)
        health = self.facts().health
        self.assertEqual(health.failures, 1)
        self.assertAlmostEqual(health.retry_at - NOW, 5.0, 3)
        self.pass_time(2.9)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(0.2)
        self.assertEqual(len(self.batches), 2)

    def test_lost_reply_counts_once(self) -> None:
        """A failure whose recording is repeated after a lost reply counts once."""
        self.sender.then(refused(503, 5.0))
        self.subscribe("cats")
        self.worker()
        self.store.fail_next("fail", times=2, done=True)
        self.publish("cats")
        self.pass_time(2)
        self.assertEqual((self.store.calls["fail"], self.facts().health.failures), (3, 1))

    def test_failed_read_ahead(self) -> None:
        """A failed read-ahead delays only that read."""
        self.sender.otherwise = None
        self.subscribe("cats", max=1)
        self.worker()
        gate = self.store.delay("read")
        self.publish("cats", 2)
        self.store.fail_next("read")
        gate.callback(None)
        self.end()
        self.assertEqual(self.batches, [[1], [2]])

    def test_slow_reading_ahead(self) -> None:
        """A late read-ahead delays the next batch, and nothing is sent twice."""
        self.subscribe("cats", max=1)
        self.worker()
        self.sender.otherwise = None
        self.publish("cats")
        gate = self.store.delay("read")
        self.end(refused())
        self.publish("cats")
        self.clock.advance(0.1)
        gate.callback(None)
        self.assertEqual(self.batches, [[1], [1]])
        late = self.store.delay("read")
        self.publish("cats")
        self.end()
        self.sender.otherwise = ACKNOWLEDGED
        for attempt in self.sender.in_flight:
            attempt.end(ACKNOWLEDGED)
        late.callback(None)
        self.clock.advance(0.1)
        self.assertEqual([n for batch in self.batches[2:] for n in batch], [2, 3])


class TurnTests(DeliveryTestCase):
    """An attempt waits for its turn, and the facts may change meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.sender.busy = True
        self.subscribe("cats")
        self.first = self.worker()
        self.publish("cats", 2)
        self.assertEqual((len(self.sender.waiting), self.batches), (1, []))

    def test_holds_nothing(self) -> None:
        """A courier that waits for a turn holds no events, and events accepted meanwhile join the batch."""
        self.assertEqual(self.store.calls["read"], 0)
        self.publish("cats")
        self.sender.give_turns()
        self.assertEqual(self.batches, [[1, 2, 3]])
        self.assertEqual(self.queued(), 0)

    def test_nothing_left(self) -> None:
        """Nothing is sent when the backlog is empty at the turn."""
        self.do(self.memory.drop_oldest(10))
        self.sender.give_turns()
        self.pass_time(5)
        self.assertEqual(self.batches, [])
        self.publish("cats")
        self.assertEqual(self.batches, [[3]])

    def test_not_due_any_more(self) -> None:
        """The subscription's timeout at the turn decides."""
        self.subscribe("cats", create=False, timeout=20_000)
        self.sender.give_turns()
        self.pass_time(19)
        self.assertEqual(self.batches, [])
        self.pass_time(2)
        self.assertEqual(self.batches, [[1, 2]])

    def test_other_callback(self) -> None:
        """An attempt uses the callback that the subscription has at the turn."""
        self.subscribe("cats", create=False, callback="https://other.example/")
        self.sender.give_turns()
        self.assertEqual([attempt.callback for attempt in self.sender.attempts], ["https://other.example/"])

    def test_timeout_and_long_queues(self) -> None:
        """A batch that is due by its timeout uses the first turn."""
        self.subscribe("dogs", name="patient", timeout=1000)
        self.publish("dogs")
        self.pass_time(2)
        self.assertEqual(len(self.sender.waiting), 2)
        self.sender.waiting.pop().callback(None)
        self.assertEqual(self.batches, [[3]])

    def test_not_connected(self) -> None:
        """An attempt that has to connect starts as one of these."""
        reserve, asked = self.first._budget.reserve, []

        async def spy(wanted: int, connected: bool) -> int:
            asked.append(connected)
            return await reserve(wanted, connected)

        self.patch(self.first._budget, "reserve", spy)
        self.sender.connected = False
        self.sender.give_turns()
        self.assertEqual((asked, self.batches), ([False], [[1, 2]]))

    def test_stop_without_bytes(self) -> None:
        """A courier that waits for bytes for its body stops at once, too."""
        self.do(self.first._budget.reserve(1 << 30))
        self.first._budget.release((1 << 23) - (1 << 30))
        self.sender.give_turns()
        self.clock.advance(0)
        self.assertEqual(self.batches, [])
        self.successResultOf(Deferred.fromCoroutine(self.first.stop(10)))
        self.assertEqual(self.first.lease_count, 0)

    def test_stop(self) -> None:
        """A courier that waits for a turn stops at once and releases its lease."""
        stopping = Deferred.fromCoroutine(self.first.stop(10))
        self.successResultOf(stopping)
        self.assertEqual((self.sender.waiting, self.first.lease_count), ([], 0))
        self.sender.give_turns()
        self.worker("w2")
        self.assertEqual(self.batches, [[1, 2]])

    def test_store_unavailable(self) -> None:
        """A turn that comes while the store is unavailable is returned and requested again."""
        self.store.fail_next("read")
        self.sender.give_turns()
        self.assertEqual(self.batches, [])
        self.pass_time(1)
        self.assertEqual(self.batches, [[1, 2]])

    def test_lease_lost(self) -> None:
        """No attempt begins when the lease was not renewed while it waited."""
        self.store.unavailable = True
        self.pass_time(TTL * 0.6)
        self.store.recover()
        self.sender.give_turns()
        self.assertEqual(self.batches, [])
        self.pass_time(RECONCILE)
        self.assertEqual(self.batches, [[1, 2]])


class DroppedTests(DeliveryTestCase):
    """Events that autodrop removes, at each moment of a courier's work."""

    def drop(self, most: int) -> None:
        self.do(self.memory.drop_oldest(most))
        self.do(self.memory.clean_up())

    def counts(self) -> tuple[int, int, int]:
        """Events sent, dropped, queued."""
        facts = self.facts()
        return facts.sent, facts.dropped, facts.queued

    def test_in_flight(self) -> None:
        """Events that are dropped in flight count as sent if acknowledged; those behind them are lost."""
        self.sender.otherwise = None
        self.subscribe("cats", max=3)
        self.worker()
        self.publish("cats", 10)
        self.assertEqual(self.batches, [[1, 2, 3]])
        self.drop(8)
        self.assertEqual(self.counts(), (0, 0, 10))
        self.end()
        self.assertEqual(self.counts(), (3, 5, 2))
        self.assertEqual(self.batches, [[1, 2, 3], [9, 10]])
        self.end()
        self.assertEqual(self.counts(), (5, 5, 0))

    def test_read_ahead(self) -> None:
        """Events that are dropped after they were read ahead are delivered, and count as sent."""
        self.sender.otherwise = None
        self.subscribe("cats", max=3)
        self.worker()
        self.publish("cats", 10)
        self.lose_hints = True
        self.drop(8)
        self.end()
        self.assertEqual(self.batches, [[1, 2, 3], [4, 5, 6]])
        self.end()
        self.end()
        self.assertEqual((self.batches[2:], self.counts()), ([[9, 10]], (8, 2, 0)))

    def test_failed(self) -> None:
        """Events that are dropped in flight are lost if the attempt fails."""
        self.sender.otherwise = None
        self.subscribe("cats")
        self.worker()
        self.publish("cats", 10)
        self.drop(8)
        self.end(refused())
        self.assertEqual(self.counts(), (0, 8, 2))
        self.sender.otherwise = ACKNOWLEDGED
        self.pass_time(1)
        self.assertEqual(self.batches[1:], [[9, 10]])

    def test_waiting(self) -> None:
        """Events that are dropped while no attempt is under way are lost at once; the rest waits as before."""
        self.subscribe("cats", timeout=60_000, max=5)
        self.worker()
        self.publish("cats", 4)
        self.clock.advance(1)
        self.drop(3)
        self.assertEqual(self.counts(), (0, 3, 1))
        self.publish("cats", 3)
        self.assertEqual(self.batches, [])
        self.publish("cats")
        self.assertEqual(self.batches, [[4, 5, 6, 7, 8]])

    def test_all(self) -> None:
        """A backlog that is dropped as a whole leaves an idle courier."""
        self.sender.then(refused())
        self.subscribe("cats")
        self.worker(retry_delay=30.0)
        self.publish("cats", 4)
        self.drop(4)
        self.assertEqual(self.counts(), (0, 4, 0))
        self.pass_time(40)
        self.assertEqual(self.batches, [[1, 2, 3, 4]])
        self.publish("cats")
        self.assertEqual(self.batches[1:], [[5]])

    def test_all_without_a_hint(self) -> None:
        """A courier that finds the whole backlog dropped has it counted, and goes on."""
        self.subscribe("cats", timeout=5000)
        self.worker()
        self.publish("cats", 4)
        self.lose_hints = True
        self.drop(4)
        self.lose_hints = False
        self.pass_time(6)
        self.assertEqual((self.batches, self.counts()), ([], (0, 4, 0)))
        self.publish("cats")
        self.pass_time(6)
        self.assertEqual(self.batches, [[5]])
