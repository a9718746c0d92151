"""Who is woken when a log grows, and what that costs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.wakeup_index import SLACK, WakeupIndex
from routemaster.model import EventID


def at(n: int, us: int | None = None) -> EventID:
    return EventID(1000 + n if us is None else us, n)


class Recorder:
    """A sleeper that notes its wake-ups."""

    def __init__(self) -> None:
        self.woke: list[tuple[str, EventID | None]] = []

    def wake(self, topic: str, first: EventID | None) -> None:
        self.woke.append((topic, first))


class WakeupIndexTests(SynchronousTestCase):
    """`WakeupIndex` with sleepers that take notes."""

    def setUp(self) -> None:
        self.index = WakeupIndex()
        self.one, self.two = Recorder(), Recorder()

    def follow(self, *sleepers: Recorder, topic: str = "cats") -> None:
        for sleeper in sleepers:
            self.index.follow(topic, sleeper)

    def test_woken_at_its_number(self) -> None:
        """A sleeper is woken when the log reaches its number, not before."""
        self.follow(self.one)
        self.index.wake_at("cats", 5, self.one)
        self.index.advance("cats", at(4), at(4))
        self.assertEqual(self.one.woke, [])
        self.index.advance("cats", at(5), at(7))
        self.assertEqual(self.one.woke, [("cats", at(5))])

    def test_woken_once(self) -> None:
        """A wish is fulfilled once; who wants more asks again."""
        self.follow(self.one)
        self.index.wake_at("cats", 5, self.one)
        self.index.advance("cats", None, at(5))
        self.index.advance("cats", None, at(9))
        self.assertEqual(len(self.one.woke), 1)

    def test_last_wish_counts(self) -> None:
        """A new wish replaces the earlier one of the same sleeper, be it nearer or farther."""
        self.follow(self.one, self.two)
        for first, second, sleeper in [(2, 5, self.one), (5, 2, self.two)]:
            self.index.wake_at("cats", first, sleeper)
            self.index.wake_at("cats", second, sleeper)
        self.index.advance("cats", None, at(2))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (0, 1))
        self.index.advance("cats", None, at(5))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (1, 1))

    def test_only_those_who_must_act(self) -> None:
        """Of a thousand sleepers only those whose number is reached are called."""
        sleepers = [Recorder() for _ in range(1000)]
        for n, sleeper in enumerate(sleepers, 1):
            self.index.follow("cats", sleeper)
            self.index.wake_at("cats", n, sleeper)
        self.index.advance("cats", None, at(3))
        self.assertEqual([n for n, s in enumerate(sleepers, 1) if s.woke], [1, 2, 3])

    def test_old_news(self) -> None:
        """A hint that comes late wakes nobody and moves nothing back."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.wake_at("cats", 10, self.one)
        self.index.advance("cats", at(1), at(3))
        self.index.advance("cats", at(9), at(9))
        self.assertEqual((self.index.tail("cats"), self.one.woke), (at(9), []))

    def test_begun_again(self) -> None:
        """A log that counts from 1 again, its topic made anew, wakes all: their numbers mean nothing."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.wake_at("cats", 10, self.one)
        self.index.advance("cats", None, at(1, us=2000))
        self.assertEqual((self.index.tail("cats"), len(self.one.woke)), (at(1, us=2000), 1))

    def test_gone_back(self) -> None:
        """A store that answers with less than was told before it was asked has lost it: the watch believes it."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.step_back("cats", at(9), at(7))
        self.assertEqual(self.index.tail("cats"), at(7))

    def test_answer_overtaken(self) -> None:
        """An answer that a hint has overtaken takes nothing back."""
        self.follow(self.one)
        self.index.advance("cats", None, at(7))
        self.index.advance("cats", None, at(9))  # after the store was asked
        self.index.step_back("cats", at(7), at(7))
        self.index.step_back("cats", at(7), at(6))
        self.index.step_back("cats", None, at(6))
        self.assertEqual(self.index.tail("cats"), at(9))

    def test_leaving(self) -> None:
        """Who leaves is not woken; a topic that nobody attends to is forgotten, tail and all."""
        self.follow(self.one, self.two)
        self.index.advance("cats", None, at(3))
        self.index.wake_at("cats", 4, self.one)
        self.index.wake_at("cats", 4, self.two)
        self.index.unfollow("cats", self.one)
        self.index.advance("cats", None, at(4))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (0, 1))
        self.index.unfollow("cats", self.two)
        self.index.unfollow("cats", self.two)
        self.assertEqual((self.index.topics(), self.index.tail("cats")), ([], None))

    def test_request_ends_with_unfollow(self) -> None:
        """Who leaves and comes back has no wish."""
        self.follow(self.one, self.two)
        self.index.wake_at("cats", 4, self.one)
        self.index.unfollow("cats", self.one)
        self.follow(self.one)
        self.index.advance("cats", None, at(4))
        self.assertEqual(self.one.woke, [])

    def test_topic_without_couriers(self) -> None:
        """News of a topic that nobody attends to is not kept."""
        self.index.advance("dogs", None, at(4))
        self.assertEqual((self.index.topics(), self.index.tail("dogs")), ([], None))

    def test_replaced_requests_use_bounded_memory(self) -> None:
        """A sleeper that asks again for ever, far ahead of the log, costs a bounded memory."""
        self.follow(self.one, self.two)
        self.index.wake_at("cats", 5, self.two)
        for n in range(10_000):
            self.index.wake_at("cats", 100_000 + n, self.one)
        self.assertLess(len(self.index._logs["cats"].heap), 2 * SLACK)
        self.index.advance("cats", None, at(5))
        self.index.advance("cats", None, at(109_999))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (1, 1))

    def test_request_during_wake(self) -> None:
        """A sleeper may ask anew, and leave, in the very call that wakes it."""
        watch = self.index

        class Restless(Recorder):
            def wake(self, topic: str, first: EventID | None) -> None:
                super().wake(topic, first)
                if len(self.woke) == 1:
                    watch.wake_at(topic, 6, self)
                else:
                    watch.unfollow(topic, self)

        restless = Restless()
        self.follow(restless)
        self.index.wake_at("cats", 5, restless)
        for n in (5, 6, 7):
            self.index.advance("cats", None, at(n))
        self.assertEqual(len(restless.woke), 2)
        self.assertEqual(self.index.topics(), [])
