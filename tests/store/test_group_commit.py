"""Group commit: what goes together, when it goes, and what becomes of it when the store fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import NotYourTopic, StoreBroken, StoreUnavailable
from routemaster.metrics.meter import Meter
from routemaster.model import EventID, Published
from routemaster.store import group_commit
from routemaster.store.group_commit import AT_ONCE, GroupCommit

DOWN = StoreUnavailable("the store is away", outcome_unknown=True)


class SlowStore:
    """Keeps each call to `publish` until the test answers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[bytes]]] = []
        self.under_way: list[Deferred[Any]] = []
        self.n = 0  #: of the last event

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Any:
        self.calls.append((topic, publisher, list(fragments)))
        self.under_way.append(Deferred())
        return await self.under_way[-1]

    def answer(self, error: Exception | None = None) -> None:
        """End the oldest call that is under way."""
        call = self.under_way.pop(0)
        if error is None:
            first, self.n = self.n + 1, self.n + len(self.sent[-1 - len(self.under_way)])
            call.callback(Published(EventID(5, first), EventID(5, self.n)))
        else:
            call.errback(error)

    @property
    def sent(self) -> list[list[bytes]]:
        return [fragments for _, _, fragments in self.calls]


class GroupCommitTests(SynchronousTestCase):
    """One store, many publishers."""

    def setUp(self) -> None:
        self.store = SlowStore()
        self.meter = Meter()
        self.clock = Clock()
        self.commit = GroupCommit(self.store, self.meter, self.clock)  # type: ignore[arg-type]

    def publish(self, *fragments: bytes, topic: str = "cats", publisher: str = "pub") -> Deferred[Published]:
        return self.commit.publish(topic, publisher, fragments)

    def drain(self) -> None:
        while self.store.under_way:
            self.store.answer()

    def test_told(self) -> None:
        """Each call is a line at debug, with its publisher's public name, what was stored and under which IDs."""
        with capturedLogs() as events:
            for part in (b"a", b"bb", b"ccc"):
                self.publish(part, publisher="pub--secret")
            self.drain()
        shown = [[event[name] for name in ("name", "topic", "events", "publications", "bytes", "first", "last")]
                 for event in events]  # fmt: skip
        self.assertEqual(shown, [["pub", "cats", 1, 1, 1, "5-1", "5-1"], ["pub", "cats", 2, 2, 5, "5-2", "5-3"]])

    def test_many_are_told_in_turn(self) -> None:
        """Of many that share a call, so many are told in one iteration of the reactor, each its own IDs."""
        self.publish(b"first")
        told = [self.publish(b"%d" % n) for n in range(2 * AT_ONCE + 1)]
        self.store.answer()
        self.store.answer()
        for count in (AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1):
            self.assertEqual(sum(each.called for each in told), count)
            calls, self.clock.calls = self.clock.calls, []
            for call in calls:
                call.func(*call.args)
        self.assertEqual([self.successResultOf(each).first.n for each in told], [*range(2, 2 * AT_ONCE + 3)])
        self.nothing_left()

    def nothing_left(self) -> None:
        """No lane, no byte is remembered, and the next publication goes at once."""
        self.assertEqual((self.commit._lanes, self.commit._held), ({}, 0))
        calls = len(self.store.calls)
        self.publish(b"last")
        self.assertEqual(len(self.store.calls), calls + 1)

    def test_idle_goes_at_once(self) -> None:
        """A publication to an idle topic is sent without delay, and told when the store has answered."""
        done = self.publish(b"a")
        self.assertEqual(self.store.calls, [("cats", "pub", [b"a"])])
        self.assertNoResult(done)
        self.store.answer()
        self.assertEqual(self.successResultOf(done), Published(EventID(5, 1), EventID(5, 1)))
        self.nothing_left()

    def test_busy_goes_together(self) -> None:
        """What comes while a call is under way goes in one call when it ends, in the order in which it came."""
        done = [self.publish(b"a"), self.publish(b"b", b"c"), self.publish(b"d")]
        self.assertEqual(self.store.sent, [[b"a"]])
        self.store.answer()
        self.assertEqual(self.store.sent, [[b"a"], [b"b", b"c", b"d"]])
        self.successResultOf(done[0])
        self.assertNoResult(done[1])
        done.append(self.publish(b"e"))
        self.store.answer()
        self.assertEqual(self.store.sent[2:], [[b"e"]])
        for each in done[1:3]:
            self.successResultOf(each)
        self.store.answer()
        self.successResultOf(done[3])
        self.nothing_left()

    def test_ids(self) -> None:
        """Each of the publications that share a call gets the IDs of its own events."""
        done = [self.publish(*fragments) for fragments in ([b"a"], [b"b"], [b"c", b"d", b"e"], [b"f", b"g"])]
        done[1].cancel()
        self.failureResultOf(done.pop(1), CancelledError)
        self.drain()
        ids = [self.successResultOf(each) for each in done]
        self.assertEqual([(each.first.n, each.last.n) for each in ids], [(1, 1), (3, 5), (6, 7)])

    def test_next_call_before_the_telling(self) -> None:
        """The next call is under way before those of the last one are told, so the store is never kept waiting."""
        seen: list[int] = []
        self.publish(b"a").addCallback(lambda _: seen.append(len(self.store.calls)))
        self.publish(b"b")
        self.store.answer()
        self.assertEqual(seen, [2])
        self.drain()

    def test_publishing_again_when_told(self) -> None:
        """Whoever publishes again as soon as it is told is neither lost nor out of order."""
        again: list[Deferred[Published]] = []
        self.publish(b"a").addCallback(lambda _: again.append(self.publish(b"b")))
        self.store.answer()
        self.assertEqual(self.store.sent, [[b"a"], [b"b"]])
        self.store.answer()
        self.successResultOf(again[0])
        self.nothing_left()

    def test_topics_and_publishers_apart(self) -> None:
        """Topics do not wait for one another, and different publishers never share a call."""
        self.publish(b"a")
        self.publish(b"b", topic="dogs")
        self.publish(b"c", publisher="other")
        self.assertEqual(len(self.store.calls), 3)
        self.publish(b"d")
        self.publish(b"e", publisher="other")
        for _ in range(3):
            self.store.answer()
        self.assertEqual(self.store.calls[3:], [("cats", "pub", [b"d"]), ("cats", "other", [b"e"])])
        self.drain()

    def test_caps(self) -> None:
        """A call holds at most so many events and bytes, unless one publication alone is more; none is split."""
        self.patch(group_commit, "GROUP_EVENTS", 4)
        self.patch(group_commit, "GROUP_BYTES", 10)
        for fragments in ([b"first"], [b"a"] * 2, [b"b"] * 2, [b"c"], [b"d"] * 5, [b"e" * 10], [b"f"], [b"g" * 11],
                          [b"h" * 9], [b"i"], [b"j"]):  # fmt: skip
            self.publish(*fragments)
        self.drain()
        self.assertEqual(
            self.store.sent,
            [
                [b"first"],
                [b"a", b"a", b"b", b"b"],
                [b"c"],
                [b"d"] * 5,
                [b"e" * 10],
                [b"f"],
                [b"g" * 11],
                [b"h" * 9, b"i"],
                [b"j"],
            ],
        )
        self.nothing_left()

    def test_store_failure(self) -> None:
        """When the store fails a call, those who wait behind it are refused at once, unsent."""
        done = [self.publish(b"a"), self.publish(b"b"), self.publish(b"c")]
        self.store.answer(DOWN)
        self.assertEqual(self.store.sent, [[b"a"]])
        error = self.failureResultOf(done[0], StoreUnavailable).value
        self.assertEqual((str(error), error.outcome_unknown), (str(DOWN), True))
        for waited in done[1:]:
            error = self.failureResultOf(waited, StoreUnavailable).value
            self.assertFalse(error.outcome_unknown)
            self.assertIn("nothing was stored", str(error))
        self.nothing_left()

    def test_a_group_shares_its_end(self) -> None:
        """All publications of one call get its outcome, the unknown one too."""
        self.publish(b"a")
        done = [self.publish(b"b"), self.publish(b"c")]
        self.store.answer()
        self.store.answer(DOWN)
        errors = [self.failureResultOf(each, StoreUnavailable).value for each in done]
        self.assertEqual([error.outcome_unknown for error in errors], [True, True])
        self.assertIsNot(errors[0], errors[1])  # each raises one of its own
        self.nothing_left()

    def test_refusal_of_one_call(self) -> None:
        """What only concerns one call (not your topic, a bug) does not refuse those behind it."""
        for error in (NotYourTopic("no"), StoreBroken("bad"), ValueError("bug")):
            done = [self.publish(b"a"), self.publish(b"b")]
            self.store.answer(error)
            self.failureResultOf(done[0], type(error))
            self.store.answer()
            self.successResultOf(done[1])
        self.nothing_left()

    def test_cancelled_waiters(self) -> None:
        """A group whose clients have all gone is stored all the same, and so is what comes after it."""
        done = [self.publish(b"a"), self.publish(b"b"), self.publish(b"c")]
        for each in done:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        last = self.publish(b"d")
        self.drain()
        self.assertEqual(self.store.sent, [[b"a"], [b"b", b"c", b"d"]])
        self.successResultOf(last)
        self.nothing_left()

    def test_cancelled_and_failed(self) -> None:
        """A failure that nobody waits for any more is no unhandled error."""
        for each in (self.publish(b"a"), self.publish(b"b")):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.store.answer(DOWN)
        self.nothing_left()

    def test_memory_cap(self) -> None:
        """Beyond a total of bytes, sent and waiting, publications are refused at once and nothing is stored."""
        self.patch(group_commit, "HELD_BYTES", 10 + 3 * group_commit.OVERHEAD)
        done = [self.publish(b"aaaa"), self.publish(b"bbbb", topic="dogs"), self.publish(b"cc")]
        refused = [self.publish(b"d"), self.publish(b"e", topic="birds")]
        for each in refused:
            error = self.failureResultOf(each, StoreUnavailable).value
            self.assertFalse(error.outcome_unknown)
        self.store.answer()
        more = self.publish(b"ffff", topic="dogs")
        self.drain()
        for each in (*done, more):
            self.successResultOf(each)
        self.assertEqual(self.store.sent, [[b"aaaa"], [b"bbbb"], [b"cc"], [b"ffff"]])
        self.nothing_left()

    def test_a_long_row(self) -> None:
        """However many calls end at once, one after the other, the stack does not grow."""
        self.patch(group_commit, "GROUP_EVENTS", 1)
        done = [self.publish(b"%d" % n) for n in range(3000)]

        async def refuse(*_: object) -> None:
            raise NotYourTopic("no")

        self.store.publish = refuse  # type: ignore[assignment, method-assign]
        self.store.answer()
        self.successResultOf(done[0])
        for each in done[1:]:
            self.failureResultOf(each, NotYourTopic)
