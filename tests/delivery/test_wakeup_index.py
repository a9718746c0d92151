"""Which couriers are woken when a log grows, and what that costs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.wakeup_index import SLACK, WakeupIndex
from routemaster.model import EventID


def at(n: int, us: int | None = None) -> EventID:
    return EventID(1000 + n if us is None else us, n)


class Recorder:
    """A courier that records its wake-ups."""

    def __init__(self) -> None:
        self.woke: list[tuple[str, EventID | None]] = []

    def wake(self, topic: str, first: EventID | None) -> None:
        self.woke.append((topic, first))


class WakeupIndexTests(SynchronousTestCase):
    """`WakeupIndex` with recording couriers."""

    def setUp(self) -> None:
        self.index = WakeupIndex()
        self.one, self.two = Recorder(), Recorder()

    def follow(self, *couriers: Recorder, topic: str = "cats") -> None:
        for courier in couriers:
            self.index.follow(topic, courier)

    def test_woken_at_its_number(self) -> None:
        """A courier is woken when the log reaches its number, not before."""
        self.follow(self.one)
        self.index.wake_at("cats", 5, self.one)
        self.index.advance("cats", at(4), at(4))
        self.assertEqual(self.one.woke, [])
        self.index.advance("cats", at(5), at(7))
        self.assertEqual(self.one.woke, [("cats", at(5))])

    def test_woken_once(self) -> None:
        """A request wakes its courier once."""
        self.follow(self.one)
        self.index.wake_at("cats", 5, self.one)
        self.index.advance("cats", None, at(5))
        self.index.advance("cats", None, at(9))
        self.assertEqual(len(self.one.woke), 1)

    def test_last_wish_counts(self) -> None:
        """A new request replaces the same courier's earlier one, whether nearer or farther."""
        self.follow(self.one, self.two)
        for first, second, courier in [(2, 5, self.one), (5, 2, self.two)]:
            self.index.wake_at("cats", first, courier)
            self.index.wake_at("cats", second, courier)
        self.index.advance("cats", None, at(2))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (0, 1))
        self.index.advance("cats", None, at(5))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (1, 1))

    def test_only_those_who_must_act(self) -> None:
        """Only the couriers whose number is reached are woken."""
        couriers = [Recorder() for _ in range(1000)]
        for n, courier in enumerate(couriers, 1):
            self.index.follow("cats", courier)
            self.index.wake_at("cats", n, courier)
        self.index.advance("cats", None, at(3))
        self.assertEqual([n for n, s in enumerate(couriers, 1) if s.woke], [1, 2, 3])

    def test_old_news(self) -> None:
        """A late hint wakes no courier and moves no tail back."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.wake_at("cats", 10, self.one)
        self.index.advance("cats", at(1), at(3))
        self.index.advance("cats", at(9), at(9))
        self.assertEqual((self.index.tail("cats"), self.one.woke), (at(9), []))

    def test_begun_again(self) -> None:
        """A log that counts from 1 again, because its topic was created anew, wakes all its couriers."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.wake_at("cats", 10, self.one)
        self.index.advance("cats", None, at(1, us=2000))
        self.assertEqual((self.index.tail("cats"), len(self.one.woke)), (at(1, us=2000), 1))

    def test_gone_back(self) -> None:
        """A tail that the store reads lower than it was before the call moves the index back."""
        self.follow(self.one)
        self.index.advance("cats", None, at(9))
        self.index.step_back("cats", at(9), at(7))
        self.assertEqual(self.index.tail("cats"), at(7))

    def test_answer_overtaken(self) -> None:
        """A reply that a hint has overtaken does not move the tail back."""
        self.follow(self.one)
        self.index.advance("cats", None, at(7))
        self.index.advance("cats", None, at(9))  # after the store was asked
        self.index.step_back("cats", at(7), at(7))
        self.index.step_back("cats", at(7), at(6))
        self.index.step_back("cats", None, at(6))
        self.assertEqual(self.index.tail("cats"), at(9))

    def test_leaving(self) -> None:
        """A courier that unfollows is not woken, and a topic without couriers is dropped with its tail."""
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
        """A request ends when its courier unfollows the topic."""
        self.follow(self.one, self.two)
        self.index.wake_at("cats", 4, self.one)
        self.index.unfollow("cats", self.one)
        self.follow(self.one)
        self.index.advance("cats", None, at(4))
        self.assertEqual(self.one.woke, [])

    def test_topic_without_couriers(self) -> None:
        """A hint for a topic without couriers is not kept."""
        self.index.advance("dogs", None, at(4))
        self.assertEqual((self.index.topics(), self.index.tail("dogs")), ([], None))

    def test_replaced_requests_use_bounded_memory(self) -> None:
        """Replaced requests far ahead of the log use bounded memory."""
        self.follow(self.one, self.two)
        self.index.wake_at("cats", 5, self.two)
        for n in range(10_000):
            self.index.wake_at("cats", 100_000 + n, self.one)
        self.assertLess(len(self.index._logs["cats"].heap), 2 * SLACK)
        self.index.advance("cats", None, at(5))
        self.index.advance("cats", None, at(109_999))
        self.assertEqual((len(self.one.woke), len(self.two.woke)), (1, 1))

    def test_request_during_wake(self) -> None:
        """A courier may make a new request, or unfollow, in the call that wakes it."""
        index = self.index

        class Requesting(Recorder):
            def wake(self, topic: str, first: EventID | None) -> None:
                super().wake(topic, first)
                if len(self.woke) == 1:
                    index.wake_at(topic, 6, self)
                else:
                    index.unfollow(topic, self)

        requesting = Requesting()
        self.follow(requesting)
        self.index.wake_at("cats", 5, requesting)
        for n in (5, 6, 7):
            self.index.advance("cats", None, at(n))
        self.assertEqual(len(requesting.woke), 2)
        self.assertEqual(self.index.topics(), [])
