"""Polls: what they are answered, when, and what a waiting one costs."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import CancelledError

from routemaster.errors import HasCallback, Invalid, NotSubscribed, StoreUnavailable
from routemaster.model import TopicSettings
from routemaster.pull import poller
from routemaster.pull.poller import MOST_WAITING, ROOM_CHECK, ROOM_WAIT
from routemaster.pull.reading import Reading
from routemaster.util.byte_budget import SMALLEST, ByteBudget
from tests.pull.case import PullCase, numbers


class AnswerTests(PullCase):
    """What a poll is answered, and what acknowledging does."""

    def test_events(self) -> None:
        """The oldest events come in order, with their IDs and with how many wait; without ack they come again."""
        self.subscribe("cats", "dogs")
        self.publish("cats", 2)
        self.publish("dogs")
        answer = self.pulled(most=2)
        self.assertEqual(numbers(answer), [1, 2])
        self.assertRegex(answer.events, rb'^\[\{"n":1,"id":"\d+-2"\},\{"n":2,"id":"\d+-3"\}\]$')
        self.assertEqual(answer.queued, 3)
        again = self.pulled()
        self.assertEqual((numbers(again), again.queued), ([1, 2, 3], 3))

    def test_acknowledge(self) -> None:
        """An acknowledged event does not come again, and counts as sent, once."""
        self.subscribe("cats", "dogs")
        self.publish("cats", 2)
        self.publish("dogs")
        first = self.pulled(most=2)
        second = self.pulled(ack=first)
        self.assertEqual((numbers(second), second.queued), ([3], 1))
        self.acknowledge(second)
        self.acknowledge(first)
        self.assertEqual((self.facts().sent, self.facts().queued), (3, 0))
        self.assertIsNotNone(self.facts().health.last_success)

    def test_empty(self) -> None:
        """An empty answer has a cursor that acknowledges nothing."""
        self.subscribe("cats")
        empty = self.pulled()
        self.assertEqual((numbers(empty), empty.queued), ([], 0))
        self.publish("cats")
        self.assertEqual(numbers(self.pulled(ack=empty)), [1])

    def test_any_process(self) -> None:
        """A cursor from one process is taken by another."""
        self.subscribe("cats")
        self.publish("cats", 3)
        answer = self.pulled(most=2)
        self.assertEqual(numbers(self.pulled(ack=answer, service=self.service())), [3])

    def test_old_cursors(self) -> None:
        """A cursor from before a rewind moves nothing; one from before an unsubscription is refused."""
        self.subscribe("cats")
        self.do(self.memory.configure_topic("cats", "pub", TopicSettings(history=3_600_000)))
        self.publish("cats", 2)
        answer = self.pulled()
        self.acknowledge(answer)
        self.do(self.memory.rewind("sub", 0))
        again = self.pulled(ack=answer)
        self.assertEqual(numbers(again)[-2:], [1, 2])
        self.do(self.memory.unsubscribe("sub"))
        self.failureResultOf(self.poll(ack=answer), NotSubscribed)
        self.turn(1)
        self.subscribe("cats", create=False)
        self.failureResultOf(self.poll(ack=again), Invalid)

    def test_order_of_topics(self) -> None:
        """Events of several topics come by time of acceptance, whichever process answers."""
        self.subscribe("cats", "dogs", "emus")
        expected = []
        for topic in ("dogs", "cats", "emus", "cats", "dogs"):
            expected += self.publish(topic)
        self.assertEqual(numbers(self.pulled()), expected)
        self.assertEqual(numbers(self.pulled(service=self.service())), expected)

    def test_bytes(self) -> None:
        """An answer ends before `max_bytes`, but has at least one event."""
        self.subscribe("cats", max_bytes=60)
        self.publish("cats", 5)
        self.assertEqual(numbers(self.pulled()), [1])
        self.subscribe("cats", create=False)
        small = self.service(max_bytes=90)
        self.assertEqual(numbers(self.pulled(service=small)), [1, 2])

    def test_many_topics(self) -> None:
        """An answer ends before the 65th topic, and the next goes on there."""
        topics = ["t_" + "abcdefgh"[n // 10] + "abcdefghij"[n % 10] for n in range(70)]
        self.subscribe(*topics)
        for topic in topics:
            self.publish(topic)
        answer = self.pulled()
        self.assertEqual(numbers(answer), list(range(1, 65)))
        self.assertEqual(numbers(self.pulled(ack=answer)), list(range(65, 71)))

    def test_most(self) -> None:
        """The subscription's `max` is the default and the upper bound."""
        self.subscribe("cats", max=2)
        self.publish("cats", 5)
        self.assertEqual([len(numbers(self.pulled(most=most))) for most in (None, 1, 2, 1000)], [2, 1, 2, 2])

    def test_refused(self) -> None:
        """Without a subscription, or with a callback, nothing is pulled."""
        self.failureResultOf(self.poll(), NotSubscribed)
        self.subscribe("cats", callback="https://sub.example/")
        self.failureResultOf(self.poll(), HasCallback)

    def test_left_topic(self) -> None:
        """What was queued in a topic that the client left is pulled, and nothing after it."""
        self.subscribe("cats", "dogs")
        self.publish("cats", 2)
        self.do(self.memory.leave("sub", "cats"))
        self.publish("cats")
        self.publish("dogs")
        answer = self.pulled()
        self.assertEqual(numbers(answer), [1, 2, 4])
        self.acknowledge(answer)
        self.assertEqual((numbers(self.pulled()), self.facts().added), ([], 3))


class LimitTests(PullCase):
    """Retention, `max_queued`, dropped events and pauses."""

    def test_retention(self) -> None:
        """An event that is older than `retention` is not pulled, and is counted once."""
        self.subscribe("cats", "dogs", retention=1000)
        self.publish("cats", 2)
        self.turn(0.75)
        self.publish("dogs")
        self.turn(0.5)
        self.assertEqual(numbers(self.pulled()), [3])
        facts = self.facts()
        self.assertEqual((facts.expired, facts.queued, facts.added), (2, 1, 3))
        self.assertEqual(self.store.calls["expire"], 1)
        self.pulled()
        self.assertEqual(self.store.calls["expire"], 1)

    def test_retention_and_timeout(self) -> None:
        """Events that have expired make no others due: these wait for a full batch, or for their own `timeout`."""
        self.subscribe("cats", retention=1000, timeout=3000, max=4)
        for expired in (2, 3):  # with the next two, fewer than `max`, and more
            self.publish("cats", expired)
            self.turn(4)
            fresh = self.publish("cats", 2)
            self.assertEqual(numbers(self.pulled()), [])
            self.assertEqual(self.facts().queued, 2)
            answer = self.poll(wait=9)
            self.publish("cats", 2)
            self.turn()
            self.assertEqual(numbers(self.successResultOf(answer))[:2], fresh)
            self.acknowledge(self.pulled())

    def test_max_queued(self) -> None:
        """Only the newest `max_queued` events are pulled."""
        self.subscribe("cats", max_queued=2)
        self.publish("cats", 5)
        answer = self.pulled()
        self.assertEqual((numbers(answer), answer.queued), ([4, 5], 2))
        self.assertEqual(self.facts().expired, 3)

    def test_dropped(self) -> None:
        """Events that autodrop removed are passed over, and counted as dropped."""
        self.subscribe("cats")
        self.publish("cats", 3)
        self.do(self.memory.drop_oldest(100))
        self.publish("cats")
        self.acknowledge(self.pulled())
        facts = self.facts()
        self.assertEqual((facts.sent + facts.dropped, facts.queued), (4, 0))

    def test_all_dropped(self) -> None:
        """When autodrop removed all that waits, a poll waits for the next event."""
        self.subscribe("cats")
        self.publish("cats", 3)
        self.do(self.memory.drop_oldest(100))
        poll = self.poll(wait=30)
        self.turn()
        self.assertNoResult(poll)
        self.publish("cats")
        self.turn()
        self.assertEqual(numbers(self.successResultOf(poll)), [4])
        self.assertEqual(self.facts().dropped, 3)

    def test_paused(self) -> None:
        """A paused subscription's poll waits, and is answered empty at its end; resuming answers it at once."""
        self.subscribe("cats")
        self.publish("cats", 2)
        self.do(self.memory.pause("sub"))
        self.assertEqual(numbers(self.pulled()), [])
        poll, later = self.poll(wait=1), self.poll(wait=30)
        self.turn(1)
        answer = self.successResultOf(poll)
        self.assertEqual((numbers(answer), answer.queued), ([], 2))
        self.assertNoResult(later)
        self.do(self.memory.resume("sub"))
        self.turn()
        self.assertEqual(numbers(self.successResultOf(later)), [1, 2])


class WaitingTests(PullCase):
    """When a waiting poll is answered."""

    def test_next_event(self) -> None:
        """A waiting poll is answered with the next event of any of its topics."""
        self.subscribe("cats", "dogs")
        for topic, number in (("dogs", 1), ("cats", 2)):
            poll = self.poll(wait=30)
            self.turn(5)
            self.assertNoResult(poll)
            self.publish(topic)
            self.turn()
            answer = self.successResultOf(poll)
            self.assertEqual(numbers(answer), [number])
            self.acknowledge(answer)

    def test_freed_at_once(self) -> None:
        """What has answered polls is free at once, without the garbage collector."""
        self.subscribe("cats")
        self.publish("cats")
        garbage = self.garbage(poller.Poller, Reading)
        self.pulled()
        self.assertEqual(self.pull.waiting, 0)
        self.assertEqual(garbage(), [])

    def test_end(self) -> None:
        """It is answered empty when its wait ends, and not before."""
        self.subscribe("cats")
        poll = self.poll(wait=2)
        self.turn(1.75)
        self.assertNoResult(poll)
        self.turn(0.25)
        self.assertEqual(numbers(self.successResultOf(poll)), [])

    def test_costs_nothing(self) -> None:
        """While it waits there is no call to the store, whatever happens in other topics."""
        self.subscribe("cats")
        self.subscribe("dogs", name="other")
        poll = self.poll(wait=60)
        self.turn()
        before = self.store.calls.copy()
        for _ in range(59):
            self.publish("dogs")
            self.turn(1)
        self.turn(1)
        self.successResultOf(poll)
        self.assertEqual(self.store.calls - before, {})

    def test_sweep_is_one_call(self) -> None:
        """The look that replaces lost hints is one call for all pollers, and none when nobody waits."""
        self.do(self.pull.sweep())
        self.assertEqual(self.store.calls["tails"], 0)
        self.subscribe("cats")
        self.subscribe("dogs", name="other")
        polls = [self.poll(wait=60), self.poll(wait=60, name="other")]
        self.turn()
        before = self.store.calls.copy()
        self.do(self.pull.sweep())
        self.assertEqual(self.store.calls - before, {"tails": 1})
        self.turn(60)
        for poll in polls:
            self.successResultOf(poll)

    def test_lost_hint(self) -> None:
        """After a lost hint the next sweep answers."""
        self.subscribe("cats")
        poll = self.poll(wait=60)
        self.lose_hints = True
        self.publish("cats")
        self.turn(5)
        self.assertNoResult(poll)
        self.do(self.pull.sweep())
        self.turn()
        self.assertEqual(numbers(self.successResultOf(poll)), [1])

    def test_reconnected(self) -> None:
        """When the wake-ups were interrupted, a sweep finds what has become of the subscription."""
        self.subscribe("cats")
        poll = self.poll(wait=60)
        self.lose_hints = True
        self.do(self.memory.unsubscribe("sub"))
        self.pull.hints_missed()
        self.do(self.pull.sweep())
        self.turn()
        self.failureResultOf(poll, NotSubscribed)

    def test_together(self) -> None:
        """Polls of one client that wait together get the same answer, from one read."""
        self.subscribe("cats")
        polls = [self.poll(wait=60) for _ in range(3)]
        self.turn()
        before = self.store.calls.copy()
        self.publish("cats")
        self.turn()
        answers = [self.successResultOf(poll) for poll in polls]
        self.assertEqual(len(set(answers)), 1)
        self.assertEqual(self.store.calls - before, {"positions": 1, "read": 1})

    def test_different_most(self) -> None:
        """Each gets at most as many events as it asked for."""
        self.subscribe("cats")
        polls = [self.poll(wait=60, most=most) for most in (1, 2, None)]
        self.turn()
        self.publish("cats", 3)
        self.turn()
        found = [numbers(self.successResultOf(poll)) for poll in polls]
        self.assertEqual(found, [[1], [1, 2], [1, 2, 3]])

    def test_timeout(self) -> None:
        """With a `timeout` an answer comes when the oldest event has waited so long, or when it is full."""
        self.subscribe("cats", "dogs", timeout=2000, max=3)
        poll = self.poll(wait=60)
        self.publish("cats")
        self.turn(1.5)
        self.publish("dogs")
        self.assertNoResult(poll)
        self.turn(0.75)
        answer = self.successResultOf(poll)
        self.assertEqual(numbers(answer), [1, 2])
        poll = self.poll(wait=60, ack=answer)
        self.publish("cats", 2)
        self.turn()
        self.assertNoResult(poll)
        self.publish("cats")
        self.turn()
        self.assertEqual(numbers(self.successResultOf(poll)), [3, 4, 5])

    def test_timeout_longer_than_wait(self) -> None:
        """A poll that ends before the events are due is answered empty, and says how many wait."""
        self.subscribe("cats", timeout=5000)
        self.publish("cats")
        answer = self.pulled()
        self.assertEqual((numbers(answer), answer.queued), ([], 1))
        poll = self.poll(wait=1)
        self.turn(1)
        self.assertEqual(numbers(self.successResultOf(poll)), [])

    def test_acknowledged_elsewhere(self) -> None:
        """A waiting poll does not get what was acknowledged through another process meanwhile, hint or not."""
        self.subscribe("cats", timeout=2000, max=2)
        other = self.service()
        for self.lose_hints in (False, True):
            self.publish("cats")
            poll = self.poll(wait=60)
            self.turn(1)
            self.assertNoResult(poll)
            self.acknowledge(self.pulled(most=1, service=other), service=other)
            self.lose_hints = False
            [last] = self.publish("cats")
            self.turn(1.5)
            self.assertNoResult(poll)
            self.turn(0.75)
            answer = self.successResultOf(poll)
            self.assertEqual(numbers(answer), [last])
            self.acknowledge(answer)

    def test_changed(self) -> None:
        """A topic that is subscribed to while a poll waits wakes it; a callback ends it."""
        self.subscribe("dogs", name="other")
        self.subscribe("cats")
        poll = self.poll(wait=60)
        self.subscribe("cats", "dogs", create=False)
        self.publish("dogs")
        self.turn()
        answer = self.successResultOf(poll)
        self.assertEqual(numbers(answer), [1])
        self.acknowledge(answer)
        poll = self.poll(wait=60)
        self.subscribe("cats", create=False, callback="https://sub.example/")
        self.turn()
        self.failureResultOf(poll, HasCallback)

    def test_store_unavailable(self) -> None:
        """If the store is unavailable when an answer is due, each poll fails with an error of its own."""
        self.subscribe("cats")
        polls = [self.poll(wait=60), self.poll(wait=60)]
        self.store.unavailable = True
        self.publish("cats")
        self.turn()
        errors = {id(self.failureResultOf(poll, StoreUnavailable).value) for poll in polls}
        self.assertEqual(len(errors), 2)
        self.store.recover()
        self.assertEqual(numbers(self.pulled()), [1])

    def test_unavailable_while_waiting(self) -> None:
        """A store that is unavailable while nothing is due costs a waiting poll nothing."""
        self.subscribe("cats")
        poll = self.poll(wait=5)
        self.store.unavailable = True
        self.turn(5)
        self.assertEqual(numbers(self.successResultOf(poll)), [])

    def test_disconnected(self) -> None:
        """A poll whose client disconnects is given up; the others wait on."""
        self.subscribe("cats")
        polls = [self.poll(wait=60), self.poll(wait=60)]
        polls[0].cancel()
        self.failureResultOf(polls[0], CancelledError)
        self.assertEqual(self.pull.waiting, 1)
        polls[1].cancel()
        self.failureResultOf(polls[1], CancelledError)
        self.turn()
        self.assertEqual(self.pull.subscribers, 0)

    def test_too_many(self) -> None:
        """Of more than 100 waiting polls of one client the oldest is answered empty at once."""
        self.subscribe("cats")
        polls = []
        for _ in range(MOST_WAITING + 1):
            polls.append(self.poll(wait=60))
            self.turn()
        self.assertEqual(numbers(self.successResultOf(polls[0])), [])
        self.assertNoResult(polls[1])
        self.assertEqual(self.pull.waiting, MOST_WAITING)

    def test_stop(self) -> None:
        """Stopping answers waiting polls with an empty list; later ones do not wait; nothing is lost."""
        self.subscribe("cats")
        poll = self.poll(wait=60)
        self.do(self.pull.stop())
        self.assertEqual(numbers(self.successResultOf(poll)), [])
        self.assertEqual(numbers(self.pulled(wait=60)), [])
        self.publish("cats")
        self.assertEqual(numbers(self.pulled(wait=60)), [1])

    def test_stop_during_a_read(self) -> None:
        """A poll whose events are being read when the bus stops is answered empty, and they come again."""
        self.subscribe("cats")
        self.publish("cats")
        gate = self.store.delay("read")
        poll = self.poll(wait=60)
        self.do(self.pull.stop())
        self.assertEqual(numbers(self.successResultOf(poll)), [])
        gate.callback(None)
        self.assertEqual(numbers(self.pulled()), [1])

    def test_request_during_a_look(self) -> None:
        """A poll that comes while positions are read is answered by a later read, which knows its `ack`."""
        self.subscribe("cats")
        self.publish("cats", 2)
        answer = self.pulled(most=1)
        gate = self.store.delay("positions")
        first = self.poll()
        second = self.poll(ack=answer)
        gate.callback(None)
        self.turn()
        self.assertEqual(numbers(self.successResultOf(first)), [1, 2])
        self.assertEqual(numbers(self.successResultOf(second)), [2])


class BudgetTests(PullCase):
    """What the answers of all clients take together."""

    def setUp(self) -> None:
        super().setUp()
        self.budget = ByteBudget(8 * SMALLEST, corrected=True)
        self.patch(self.pull, "_shared", evolve(self.pull._shared, budget=self.budget))
        self.subscribe("cats", name="one", max=10_000)
        self.subscribe("cats", name="two", max=10_000, create=False)
        self.do(self.memory.publish("cats", "pub", [b'{"n":1,"x":"%b"}' % (b"x" * 1000)] * 20))

    def fill(self) -> int:
        """Take everything, as answers do that are not read; how much that is."""
        taken = 0
        while (share := self.budget.reserve(8 * SMALLEST)).called:
            taken += self.successResultOf(share)
        share.addErrback(lambda _: None).cancel()
        return taken

    def test_shares(self) -> None:
        """The more is under way, the fewer events an answer has; what is sent makes room."""
        whole = self.pulled(name="one")
        self.assertEqual(len(numbers(whole)), 7, "an eighth of all, or the smallest share")
        self.fill()
        poll = self.poll(name="two")
        self.turn(ROOM_WAIT - 0.01)
        self.assertNoResult(poll)
        whole.sent()
        self.turn()
        self.assertEqual(len(numbers(self.successResultOf(poll))), 7)

    def test_refused(self) -> None:
        """A poll that finds no room is refused after its time, or `ROOM_WAIT` if it has less."""
        self.fill()
        polls = {wait: self.poll(name="two", wait=wait) for wait in (0, 20)}
        self.turn()
        for wait, seconds in ((0, ROOM_WAIT - 0.1), (20, 20 - ROOM_WAIT - 0.2)):
            self.turn(seconds)
            self.assertNoResult(polls[wait])
            self.turn(0.2)
            self.assertIn("no room", str(self.failureResultOf(polls[wait], StoreUnavailable).value))
        self.turn()
        self.assertEqual(self.pull.subscribers, 0)

    def test_order(self) -> None:
        """Room goes to who has waited longest, to one at a time, who looks at the positions once."""
        names = ("one", "two", "three", "four")
        for name in names[2:]:
            self.subscribe("cats", name=name, max=10_000, create=False)
        self.do(self.memory.publish("cats", "pub", [b'{"n":1,"x":"%b"}' % (b"x" * 1000)] * 20))
        self.fill()
        answered: list[str] = []
        for name in names:
            self.poll(name=name, wait=60).addCallback(lambda _, name=name: answered.append(name))
            self.turn()
        before = self.store.calls["positions"]
        self.budget.release(SMALLEST)
        for _ in range(10):
            self.turn()
        self.assertEqual(answered, ["one"])
        self.assertLessEqual(self.store.calls["positions"] - before, 2)
        for count in (2, 3, 4):
            self.budget.release(SMALLEST)
            for _ in range(5):
                self.turn()
            self.assertEqual(answered, [*names[:count]])

    def test_own_share(self) -> None:
        """A client that does not read its answers gets no further ones, until it has read; others do."""
        self.patch(poller, "MOST_HELD", 5000)
        unread = self.pulled(name="one")
        poll = self.poll(name="one", wait=60)
        self.turn()
        self.assertNoResult(poll)
        self.assertEqual(len(numbers(self.pulled(name="two"))), 7)
        unread.sent()
        self.turn(ROOM_CHECK)
        self.successResultOf(poll).sent()
        self.assertEqual(self.pull._shared.held["one"], 0)

    def test_new_events_change_nothing(self) -> None:
        """While a client's polls wait for room, new events cost no call to the store."""
        self.patch(poller, "MOST_HELD", 5000)
        unread, poll = self.pulled(name="one"), self.poll(name="one", wait=60, most=2)
        self.turn()
        before = self.store.calls["positions"]
        for _ in range(10):
            self.publish("cats")
            self.turn()
        self.assertLessEqual(self.store.calls["positions"] - before, 1)
        unread.sent()
        self.turn(ROOM_CHECK)
        self.assertEqual(len(numbers(self.successResultOf(poll))), 2)

    def test_beside_one_that_is_due(self) -> None:
        """A poll that is not due has its empty answer in time, though another of its client waits for room."""
        self.subscribe("cats", name="one", max=1000, timeout=60_000, create=False)
        self.fill()
        due, other = (self.poll(name="one", most=most, wait=30 // most) for most in (3, 30))
        self.turn()
        self.turn(1.1)
        self.assertEqual(self.successResultOf(other).events, b"[]")
        self.assertNoResult(due)
        due.addErrback(lambda _: None).cancel()

    def test_of_several_polls(self) -> None:
        """An answer that several polls get counts once, until all of them are sent it."""
        self.subscribe("cats", name="three", create=False)
        polls = [self.poll(name="three", wait=60) for _ in range(3)]
        self.turn()
        self.publish("cats")
        self.turn()
        answers = [self.successResultOf(poll) for poll in polls]
        for answer in answers:
            self.assertEqual(self.budget._free, 8 * SMALLEST - len(answer.events))
            answer.sent()
        self.assertEqual(self.budget._free, 8 * SMALLEST)

    def test_gone(self) -> None:
        """A poll that is given up while it waits for room takes none, and leaves what it is given."""
        taken = self.fill()
        poll = self.poll(name="one")
        self.turn()
        poll.cancel()
        self.failureResultOf(poll, CancelledError)
        self.turn()
        self.budget.release(taken)
        self.turn()
        self.assertEqual((self.budget._free, self.pull.subscribers), (8 * SMALLEST, 0))

    def test_store_fails(self) -> None:
        """A poll that fails while it waits for room leaves what it would be given."""
        taken = self.fill()
        poll = self.poll(name="one", wait=60)
        self.turn()
        self.store.fail_next("positions")
        self.pull._pollers["one"].moved()
        self.turn()
        self.failureResultOf(poll, StoreUnavailable)
        self.budget.release(taken)
        self.turn()
        self.assertEqual((self.budget._free, self.pull.subscribers), (8 * SMALLEST, 0))

    def test_acknowledged_meanwhile(self) -> None:
        """Room for an answer that is not due any more is given back; the poll goes on waiting."""
        taken = self.fill()
        poll = self.poll(name="one", wait=60)
        self.turn()
        other = self.service()
        self.acknowledge(self.pulled(name="one", service=other), name="one", service=other)
        self.budget.release(taken)
        self.turn()
        self.assertNoResult(poll)
        self.assertEqual(self.budget._free, 8 * SMALLEST)
