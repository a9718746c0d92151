"""Events that a receiver refuses for themselves: parked after some attempts, and tried again on request."""

from __future__ import annotations

import json
from unittest.mock import patch

from attrs import evolve
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster import administration
from routemaster.delivery.attempt_report import report
from routemaster.delivery.batch import Batch
from routemaster.delivery.parking import Refusals, parked_event, retried_batch
from routemaster.delivery.worker import Worker
from routemaster.errors import StoreFull
from routemaster.interfaces import LeaseGrant
from routemaster.model import OLDEST, EventID, ParkedEvent, TopicSettings, with_id
from routemaster.testing.script_sender import ACKNOWLEDGED, LOCAL, Attempt, refused
from tests.delivery.deliveries import RECONCILE, DeliveryTestCase


def batch(*numbers: int, topic: str = "cats") -> Batch:
    """The events with these numbers, in one batch."""
    return Batch.of([(topic, EventID(n, n), with_id(b'{"n":%d}' % n, EventID(n, n))) for n in numbers])


#: attempts that failed (batch, status), then how many refusals of the oldest event in a row there were
TABLE: list[tuple[list[tuple[Batch, int]], int]] = [
    ([], 0),
    ([(batch(1), 400)], 1),
    ([(batch(1), 413), (batch(1), 422), (batch(1), 400)], 3),
    ([(batch(1, 2), 400)], 0),                                    # not alone
    ([(batch(1, 2), 400), (batch(1), 400)], 1),
    ([(batch(1), 400), (batch(1), 500), (batch(1), 400)], 2),     # other failures between
    ([(batch(1), 500)] * 3, 0),
    ([(batch(1), 400), (batch(1, 2), 503), (batch(1), 400)], 2),
    ([(batch(1), 400)] * 3 + [(batch(2), 400)], 1),               # another event
    ([(batch(1), 400)] * 3 + [(batch(2), 500)], 0),
    ([(batch(1), 400), (batch(1, topic="dogs"), 400)], 1),        # of another topic
]


class RefusalsTests(SynchronousTestCase):
    """The count."""

    def grant(self, **changed: int) -> LeaseGrant:
        return evolve(LeaseGrant(7, 5_000_000, 1, None, {}, 0, 0), **changed)

    def test_table(self) -> None:
        """Only refusals of the oldest event alone count, and only those in a row but for other failures."""
        for attempts, count in TABLE:
            refusals = Refusals()
            for tried, status in attempts:
                counts = refusals.failed(tried, refused(status))
                self.assertEqual(counts, tried.events == 1 and status < 500)
            self.assertEqual(refusals.count, count, attempts)

    def test_success(self) -> None:
        """A success resets it."""
        refusals = Refusals()
        refusals.failed(batch(1), refused(400))
        refusals.ended()
        self.assertEqual(refusals.count, 0)
        refusals.failed(batch(1), refused(400))
        self.assertEqual(refusals.count, 1)

    def test_successor(self) -> None:
        """The next holder of the lease goes on counting, if the oldest event is the one that was refused last."""
        last = report(batch(1), refused(400), 1.0, 0.1)
        for reports, oldest, count in (
            ([last], 1, 4), ([last, b"{}"], 1, 4), ([last], 2, 1), ([], 1, 1), ([b"{}"], 1, 1), ([b"x"], 1, 1),
            ([b'{"topics":["cats"],"first":5}'], 1, 1), ([b'{"topics":["cats"],"first":"x"}'], 1, 1),
            ([report(Batch.of([("a", EventID(1, 1), b"{}"), ("b", EventID(1, 1), b"{}")]), LOCAL, 1, 1)], 1, 1),
        ):  # fmt: skip
            refusals = Refusals()
            refusals.load(self.grant(failures=3, refusals=3))
            self.assertTrue(refusals.is_unknown)
            refusals.identify(reports)
            self.assertFalse(refusals.is_unknown)
            refusals.failed(batch(oldest), refused(400))
            self.assertEqual(refusals.count, count, (reports, oldest))

    def test_reload(self) -> None:
        """Under the same lease the event stays known; with another callback nothing has been refused."""
        refusals = Refusals()
        refusals.load(self.grant())
        refusals.failed(batch(1), refused(400))
        refusals.load(self.grant(failures=1, refusals=1))
        self.assertEqual((refusals.count, refusals.is_unknown), (1, False))
        refusals.load(self.grant(failures=0, refusals=1))
        self.assertEqual((refusals.count, refusals.is_unknown), (0, False))

    def test_parked_and_back(self) -> None:
        """A parked event is kept as it was published, and delivered again as before."""
        tried = batch(5)
        event = parked_event(tried, "answered 400", 9.0)
        self.assertEqual(event, ParkedEvent("cats", EventID(5, 5), b'{"n":5}', "answered 400", 9.0))
        self.assertEqual(retried_batch(event), tried)


class ParkingCase(DeliveryTestCase):
    """A receiver that refuses some events."""

    def setUp(self) -> None:
        super().setUp()
        self.bad: set[int] = set()
        self.accepted: list[int] = []
        self.status = 400
        self.sender.otherwise = None
        self.sender.on_post = self.receive

    def receive(self, attempt: Attempt) -> None:
        """End the attempt."""
        attempt.end(refused(self.status) if self.bad & set(attempt.events) else ACKNOWLEDGED)

    def received(self) -> list[int]:
        """The events that the receiver took, in order."""
        return [
            number for attempt in self.sender.attempts if attempt.outcome is ACKNOWLEDGED
            for number in attempt.events
        ]  # fmt: skip

    def parked(self) -> list[int]:
        """The numbers of the parked events."""
        events, _ = self.do(self.memory.parked("sub", "", 100))
        return [json.loads(event.fragment)["n"] for event in events]

    def check_books(self) -> None:
        """Every event is in one place."""
        facts = self.facts()
        self.assertEqual(facts.added, len(self.accepted))

    def publish(self, topic: str, count: int = 1) -> list[int]:
        numbers = super().publish(topic, count)
        self.accepted += numbers
        return numbers


class ParkTests(ParkingCase):
    """When an event is parked, and what follows."""

    def test_poison(self) -> None:
        """One bad event is found by halving, refused `park_after` times alone, and parked; the others come."""
        for status in (400, 413, 422):
            self.setUp()
            self.bad, self.status = {7}, status
            self.subscribe("cats", max=16, park_after=3)
            self.worker()
            self.publish("cats", 20)
            self.pass_time(30)
            self.assertEqual(self.received(), [number for number in range(1, 21) if number != 7])
            self.assertEqual(self.batches.count([7]), 3)
            self.assertEqual((self.parked(), self.facts().parked, self.queued()), ([7], 1, 0))
            self.check_books()

    def test_at_once(self) -> None:
        """The events behind it go at once, without the pause of the failure, as first attempts."""
        self.bad = {1}
        self.subscribe("cats", park_after=1)
        self.worker(retry_delay=60.0)
        self.publish("cats")
        self.assertEqual((self.batches, self.parked()), ([[1]], [1]))
        stored = self.memory._subscribers["sub"]
        self.assertEqual((stored.refusals, stored.health.failures), (0, 0))
        self.publish("cats")
        self.assertEqual(self.batches, [[1], [2]])
        self.assertEqual([attempt.number for attempt in self.sender.attempts], [1, 1])

    def test_not_without_park_after(self) -> None:
        """Without `park_after` it blocks the others for ever."""
        self.bad = {1}
        self.subscribe("cats")
        self.worker(max_backoff=1.0)
        self.publish("cats", 3)
        self.pass_time(60)
        self.assertEqual((self.received(), self.facts().parked), ([], 0))

    def test_other_failures(self) -> None:
        """An event that fails for other reasons is not parked, however often, and does not reset the count."""
        self.bad = {1}
        self.subscribe("cats", max=1, park_after=3)
        self.worker(retry_delay=1.0, max_backoff=1.0)
        self.status = 400
        self.publish("cats", 2)
        for status in (500, 400, 503, 404, 500):
            self.status = status
            self.pass_time(1)
            self.assertEqual(self.parked(), [])
        self.status = 422
        self.pass_time(1)
        self.assertEqual((self.parked(), self.received()), ([1], [2]))

    def test_all_bad(self) -> None:
        """A receiver that refuses everything gets each event `park_after` times, in order."""
        self.bad = set(range(1, 6))
        self.subscribe("cats", max=1, park_after=2)
        self.worker()
        self.publish("cats", 5)
        self.pass_time(10)
        self.assertEqual(self.batches, [[n] for n in range(1, 6) for _ in range(2)])
        self.assertEqual((self.parked(), self.facts().parked), ([1, 2, 3, 4, 5], 5))

    def test_what_is_kept(self) -> None:
        """The reason, the time and the ID are kept with it."""
        self.bad = {1}
        self.subscribe("cats", park_after=1)
        self.worker()
        published = self.do(self.memory.publish("cats", "pub", [b'{"n":1}']))
        (event,), _ = self.do(self.memory.parked("sub", "", 10))
        self.assertEqual((event.topic, event.id, event.fragment), ("cats", published.first, b'{"n":1}'))
        self.assertEqual((event.reason, round(event.at)), ("answered 400", round(self.clock.seconds())))

    def test_restarts(self) -> None:
        """Workers that stop after each attempt go on counting."""
        self.bad = {1}
        self.subscribe("cats", max=1, park_after=4)
        self.publish("cats", 2)
        for number in range(1, 5):
            self.assertEqual(self.parked(), [])
            worker = self.worker(f"w{number}", retry_delay=60.0)
            self.stop_all()
            self.do(self.memory.retry("sub"))
            self.workers.remove(worker)
        self.assertEqual((self.parked(), self.batches), ([1], [[1], [1], [1], [1], [2]]))

    def test_restart_with_another_oldest(self) -> None:
        """An event that became the oldest between two workers is not parked for the refusals of another."""
        self.bad = {1, 2}
        self.subscribe("cats", max=1, park_after=3)
        worker = self.worker(retry_delay=60.0)
        self.publish("cats")
        self.do(self.memory.retry("sub"))
        self.assertEqual(self.batches, [[1], [1]])
        self.stop_all()
        self.workers.remove(worker)
        self.do(self.memory.skip("sub", None))
        self.publish("cats")
        self.do(self.memory.retry("sub"))
        self.worker("w2", retry_delay=60.0)
        self.assertEqual((self.batches, self.parked()), ([[1], [1], [2]], []))

    def test_other_callback(self) -> None:
        """What one callback refused does not count for another."""
        self.bad = {1}
        self.subscribe("cats", max=1, park_after=2)
        self.worker(retry_delay=60.0)
        self.publish("cats")
        self.subscribe("cats", create=False, max=1, park_after=2, callback="https://other.example/")
        self.assertEqual((self.batches, self.parked()), ([[1], [1]], []))

    def test_several_topics(self) -> None:
        """An event is parked in its own topic; the others of both topics come in order."""
        self.bad = {3}
        self.subscribe("cats", "dogs", park_after=1)
        self.worker()
        self.do(self.memory.pause("sub"))
        for topic in ("cats", "dogs", "dogs", "cats", "dogs"):
            self.publish(topic)
        self.do(self.memory.resume("sub"))
        self.pass_time(10)
        self.assertEqual((self.received(), self.parked()), ([1, 2, 4, 5], [3]))
        self.check_books()

    def test_last_of_a_left_topic(self) -> None:
        """When the last event of a topic that was left is parked, the membership ends."""
        self.bad = {1}
        self.subscribe("cats", "dogs", park_after=2)
        self.worker(retry_delay=2.0)
        self.publish("cats")
        self.do(self.memory.leave("sub", "cats"))
        self.pass_time(5)
        self.assertEqual(self.parked(), [1])
        self.assertEqual(set(self.memory._subscribers["sub"].topics), {"dogs"})
        self.check_books()

    def test_store_unavailable(self) -> None:
        """A store that is unavailable at any step of it loses nothing, and parks the event once."""
        for call in ("park", "fail", "positions", "acquire"):
            for done in (False, True):
                self.setUp()
                self.bad = {1}
                self.subscribe("cats", park_after=1)
                self.worker()
                self.store.fail_next(call, times=2, done=done)
                self.publish("cats")
                self.publish("cats", 2)
                self.pass_time(20)
                self.assertEqual((self.received(), self.parked()), ([2, 3], [1]), (call, done))
                self.assertEqual((self.facts().parked, self.queued()), (1, 0), (call, done))
                self.stop_all()

    def test_crash_between_the_steps(self) -> None:
        """If a worker dies when the copy is made and the cursor not moved, the next moves it; one copy stays."""
        self.bad = {1}
        self.subscribe("cats", max=1, park_after=2)
        worker = self.worker()
        with patch.object(self.memory, "_pass", lambda *arguments: 0):  # the second step is lost
            self.publish("cats", 2)
            gate = self.store.delay("park")
            self.pass_time(0.25)
            self.assertEqual((self.parked(), self.queued()), ([1], 2))
            self.crash(worker)
            gate.callback(None)
        self.pass_time(20)
        self.assertEqual(self.batches, [[1], [1]])
        self.worker("w2")
        self.pass_time(20)
        self.assertEqual((self.received(), self.parked(), self.facts().parked), ([2], [1], 1))
        self.check_books()

    def test_crash_after_the_steps(self) -> None:
        """If a worker dies before it has stored that it parked an event, the next event gets all its attempts."""
        self.bad = {1, 2}
        self.subscribe("cats", max=1, park_after=2)
        worker = self.worker()
        self.publish("cats", 2)
        gate = self.store.delay("park")
        self.pass_time(0.25)
        self.assertEqual((self.parked(), self.queued()), ([1], 1))
        self.crash(worker)
        gate.callback(None)
        self.worker("w2")
        self.pass_time(20)
        self.assertEqual((self.batches, self.parked()), ([[1], [1], [2], [2]], [1, 2]))

    def crash(self, worker: Worker) -> None:
        """End a worker at once: what it has under way is stored no more."""
        self.workers.remove(worker)
        for courier in list(worker._couriers.values()):
            courier.abort()
        self.memory._leases.clear()

    def test_full(self) -> None:
        """Without room for it the event blocks as before, and `last_error` says so; with room it is parked."""
        self.bad = {1, 2}
        self.subscribe("cats", max=1, park_after=1)
        with patch("routemaster.store.memory_administration.MAX_PARKED", 1):
            self.worker(retry_delay=1.0, max_backoff=4.0)
            self.publish("cats", 3)
            self.pass_time(30)
            self.assertEqual((self.parked(), self.received(), self.queued()), ([1], [], 2))
            health = self.facts().health
            self.assertIn("are parked, the most; answered 400", health.last_error)
            self.assertIn(str(administration.MAX_PARKED), health.last_error)
            self.assertGreater(health.failures, 5)
            self.do(self.memory.drop_parked("sub"))
            self.pass_time(8)
        self.assertEqual((self.parked(), self.received(), self.queued()), ([2], [3], 0))

    def test_out_of_memory(self) -> None:
        """While Redis has no memory to park an event it is tried again: a receiver that accepts it gets all."""
        self.bad = {1}
        self.subscribe("cats", max=1, park_after=1)
        self.worker(retry_delay=1.0, max_backoff=4.0)
        self.store.fail_next("park", times=100, error=StoreFull("out of memory"))
        self.publish("cats", 3)
        self.pass_time(10)
        self.assertEqual((self.parked(), self.received(), self.queued()), ([], [], 3))
        self.assertIn("no memory to park the event; answered 400", self.facts().health.last_error)
        self.bad = set()
        self.pass_time(8)
        self.assertEqual((self.parked(), self.received(), self.queued()), ([], [1, 2, 3], 0))

    def test_full_and_other_failures(self) -> None:
        """While it blocks, only a refusal tries to park it."""
        self.bad = {1, 2}
        self.subscribe("cats", max=1, park_after=1)
        with patch("routemaster.store.memory_administration.MAX_PARKED", 0):
            self.worker(retry_delay=1.0, max_backoff=1.0)
            self.publish("cats")
            self.status = 500
            self.store.calls.clear()
            self.pass_time(5)
        self.assertEqual((self.store.calls["park"], self.queued()), (0, 1))

    def test_lease_lost(self) -> None:
        """Who has lost the lease parks nothing."""
        self.bad = {1}
        self.sender.on_post = lambda attempt: None
        self.subscribe("cats", park_after=1)
        self.worker()
        self.publish("cats")
        self.memory._leases["sub"] = ("another", 1, self.clock.seconds() + 5)
        self.receive(self.in_flight)
        self.assertEqual((self.parked(), self.facts().health.failures, self.queued()), ([], 0, 1))

    def test_rewound_in_flight(self) -> None:
        """An event that is not the next any more is not passed: what comes again is delivered before it."""
        self.create("cats")
        self.do(self.memory.configure_topic("cats", "pub", TopicSettings(history=3_600_000)))
        self.subscribe("cats", create=False, max=1, park_after=1)
        self.worker()
        self.publish("cats")
        self.sender.on_post, self.bad = lambda attempt: None, {2}
        self.publish("cats")
        self.lose_hints = True
        self.do(self.memory.rewind("sub", OLDEST))
        self.sender.on_post = self.receive
        self.receive(self.in_flight)
        self.assertEqual((self.batches, self.parked()), ([[1], [2], [1], [2]], [2]))
        self.assertEqual((self.facts().sent, self.facts().parked, self.queued()), (2, 1, 0))

    def test_comes_again(self) -> None:
        """An event that was accepted or parked, and comes again, has to be refused `park_after` times anew."""
        for refusals, tries in ((1, 2), (2, 2)):
            self.setUp()
            self.create("cats")
            self.do(self.memory.configure_topic("cats", "pub", TopicSettings(history=3_600_000)))
            self.subscribe("cats", create=False, max=1, park_after=2)
            self.worker(retry_delay=60.0)
            self.bad = {1}
            self.publish("cats")
            if refusals == 1:
                self.bad = set()
            self.do(self.memory.retry("sub"))
            self.assertEqual((len(self.batches), self.queued()), (tries, 0))
            self.do(self.memory.drop_parked("sub"))
            self.bad = {1}
            self.do(self.memory.rewind("sub", OLDEST))
            self.assertEqual((self.batches, self.parked()), ([[1]] * (tries + 1), []))
            self.do(self.memory.retry("sub"))
            self.assertEqual(self.parked(), [1])

    def test_logged(self) -> None:
        """A line says what was parked; further lines of a minute are counted."""
        self.bad = set(range(1, 101))
        self.subscribe("cats", max=1, park_after=1)
        self.worker()
        with capturedLogs() as logs:
            self.publish("cats", 100)
            self.pass_time(65)
        lines = [each["log_format"] for each in logs if each["log_level"] is LogLevel.warn]
        self.assertEqual(sum(line.startswith("parked event {event} of topic '{topic}'") for line in lines), 60)
        (summary,) = [each for each in logs if each.get("log_format", "").startswith("parked {times} further")]
        self.assertEqual((summary["times"], summary["subscribers"]), (40, 1))


class RetriedTests(ParkingCase):
    """Parked events that are tried again."""

    def setUp(self) -> None:
        super().setUp()
        self.bad = {1, 3}
        self.subscribe("cats", max=1, park_after=1)
        self.worker(retry_delay=1.0)
        self.publish("cats", 4)
        self.assertEqual((self.parked(), self.received()), ([1, 3], [2, 4]))
        del self.sender.attempts[:]

    def retry(self) -> None:
        self.do(self.memory.retry_parked("sub", None))

    def test_delivered(self) -> None:
        """They are delivered at once, the oldest first, each alone, and are gone."""
        self.bad = set()
        self.retry()
        self.assertEqual((self.batches, self.parked(), self.queued()), ([[1], [3]], [], 0))
        self.assertEqual((self.facts().sent, self.facts().health.failures), (4, 0))
        self.check_books_after_retry(2)

    def check_books_after_retry(self, retried: int) -> None:
        """A parked event that is tried again was added again."""
        self.assertEqual(self.facts().added, len(self.accepted) + retried)

    def test_latency(self) -> None:
        """How long they were parked is in no figure of how long deliveries take."""
        self.bad = set()
        self.pass_time(3600, step=1)
        self.meter.take()
        self.retry()
        latency = {name: by for name, by in self.meter.take().items() if name.startswith("latency.batches.")}
        self.assertEqual(set(latency.values()), {0, 2})  # milliseconds, and how many batches

    def test_chosen(self) -> None:
        """Only the chosen ones."""
        self.bad = set()
        events, _ = self.do(self.memory.parked("sub", "", 10))
        self.do(self.memory.retry_parked("sub", [events[1].id]))
        self.assertEqual((self.batches, self.parked()), ([[3]], [1]))

    def test_before_the_backlog(self) -> None:
        """They go before the next batch, and the backlog goes on after them."""
        self.bad = set()
        self.do(self.memory.pause("sub"))
        self.publish("cats", 2)
        self.retry()
        self.assertEqual(self.batches, [])
        self.do(self.memory.resume("sub"))
        self.assertEqual(self.batches, [[1], [3], [5], [6]])

    def test_during_an_attempt(self) -> None:
        """An attempt that is under way ends first."""
        self.bad = set()
        self.sender.on_post = lambda attempt: None
        self.publish("cats", 2)
        self.retry()
        self.sender.on_post = self.receive
        self.receive(self.in_flight)
        self.assertEqual(self.batches, [[5], [1], [3], [6]])

    def test_refused_again(self) -> None:
        """Refused for itself, it is parked again at once, and the others go on."""
        self.bad = {1}
        self.publish("cats")
        self.retry()
        self.assertEqual((self.batches, self.parked()), ([[5], [1], [3]], [1]))
        self.publish("cats")
        self.assertEqual(self.batches[3:], [[6]])
        events, _ = self.do(self.memory.parked("sub", "", 10))
        self.assertEqual(events[0].reason, "answered 400")
        self.assertEqual(self.do(self.memory.attempts("sub")).failed[0][:6], b'{"at":')

    def test_other_failure(self) -> None:
        """Any other failure has a pause, and the event is tried again; the backlog waits meanwhile."""
        self.status = 503
        self.retry()
        self.publish("cats")
        self.assertEqual((self.batches, self.facts().health.failures), ([[1]], 1))
        self.bad = set()
        self.pass_time(1.2)
        self.assertEqual((self.batches, self.parked()), ([[1], [1], [3], [5]], []))
        self.assertEqual([attempt.number for attempt in self.sender.attempts], [1, 2, 1, 1])

    def test_failure_after_a_success(self) -> None:
        """Its failure stores no refusals of an event that was delivered since."""
        self.subscribe("cats", create=False, max=1, park_after=9)
        self.bad = {5}
        self.publish("cats")
        self.assertEqual(self.memory._subscribers["sub"].refusals, 1)
        self.bad = set()
        self.pass_time(1)
        self.bad, self.status = {1}, 503
        self.retry()
        self.assertEqual((self.batches, self.memory._subscribers["sub"].refusals), ([[5], [5], [1]], 0))

    def test_local_fault(self) -> None:
        """A fault of this machine is no failure of it."""
        self.bad = set()
        self.sender.on_post = lambda attempt: None
        self.retry()
        self.end(LOCAL)
        self.sender.on_post = self.receive
        self.pass_time(2)
        self.assertEqual((self.batches, self.facts().health.failures), ([[1], [1], [3]], 0))

    def test_hint_lost(self) -> None:
        """Without the hint they are tried at the next renewal."""
        self.bad = set()
        self.lose_hints = True
        self.retry()
        self.assertEqual(self.batches, [])
        self.pass_time(RECONCILE)
        self.assertEqual((self.batches, self.parked()), ([[1], [3]], []))

    def test_store_unavailable(self) -> None:
        """A store that is unavailable at any step loses none of them, and one attempt at most is repeated."""
        for call in ("next_retried", "settle_retried", "acknowledge", "acquire", "positions"):
            for done in (False, True):
                self.setUp()
                self.bad = set()
                self.store.fail_next(call, times=2, done=done)
                self.retry()
                self.pass_time(20)
                self.assertEqual((self.batches, self.parked()), ([[1], [3]], []), (call, done))
                self.assertEqual(self.facts().sent, 4)
                self.stop_all()

    def test_restart(self) -> None:
        """The next worker tries what is left."""
        self.bad = set()
        self.do(self.memory.pause("sub"))
        self.retry()
        self.stop_all()
        self.workers.clear()
        self.do(self.memory.resume("sub"))
        self.worker("w2")
        self.assertEqual((self.batches, self.parked()), ([[1], [3]], []))

    def test_paced(self) -> None:
        """A rate holds for them, too."""
        self.bad = set()
        self.subscribe("cats", create=False, max=1, park_after=1, rate=1)
        self.retry()
        self.assertEqual(self.batches, [[1]])
        self.pass_time(1.1)
        self.assertEqual(self.batches, [[1], [3]])

    def test_none_left(self) -> None:
        """If there is none any more, the backlog goes on."""
        self.bad = set()
        self.do(self.memory.pause("sub"))
        self.retry()
        self.publish("cats")
        self.lose_hints = True
        known = self.memory._subscribers["sub"]
        self.do(self.memory.resume("sub"))
        gate = self.store.delay("next_retried", before=True)
        self.lose_hints = False
        self.workers[-1].reload_all()
        known.retried.clear()
        gate.callback(None)
        self.assertEqual(self.batches, [[5]])

