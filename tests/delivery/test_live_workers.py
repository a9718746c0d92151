"""Which worker is preferred for a subscriber."""

from __future__ import annotations

from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.live_workers import LiveWorkers, preferred

SUBSCRIBERS = [f"client--{number:032x}" for number in range(2000)]


class PreferredTests(SynchronousTestCase):
    """Rendezvous hashing."""

    def test_equal_shares(self) -> None:
        """Each of five workers gets a fifth of the subscribers, within 20 %."""
        shares = Counter(preferred(each, [f"host-{n}" for n in range(5)]) for each in SUBSCRIBERS)
        for share in shares.values():
            self.assertLess(abs(share - 400), 80)

    def test_order_of_peers_does_not_matter(self) -> None:
        """The order of the peers does not change the result."""
        for each in SUBSCRIBERS[:100]:
            self.assertEqual(preferred(each, ["a", "b", "c"]), preferred(each, ["c", "a", "b"]))

    def test_little_moves(self) -> None:
        """When a worker leaves, only its own subscribers move."""
        for each in SUBSCRIBERS:
            before = preferred(each, ["a", "b", "c"])
            if before != "c":
                self.assertEqual(preferred(each, ["a", "b"]), before)


class LiveWorkersTests(SynchronousTestCase):
    """`LiveWorkers`: the live peers of a worker."""

    def setUp(self) -> None:
        self.membership = LiveWorkers("me")

    def mine(self) -> int:
        return sum(self.membership.is_preferred(each) for each in SUBSCRIBERS)

    def test_alone(self) -> None:
        """A worker without peers is preferred for every subscriber; its own announcement changes nothing."""
        self.assertFalse(self.membership.update({"me": 10.0}, 0.0))
        self.assertFalse(self.membership.joined("me", 10.0))
        self.assertEqual(self.mine(), len(SUBSCRIBERS))

    def test_shared(self) -> None:
        """Exactly one of two workers that know each other is preferred for each subscriber."""
        other = LiveWorkers("other")
        self.membership.joined("other", 10.0)
        other.joined("me", 10.0)
        for each in SUBSCRIBERS:
            self.assertNotEqual(self.membership.is_preferred(each), other.is_preferred(each))

    def test_change_is_returned_once(self) -> None:
        """Each update returns whether the set of peers changed."""
        for expected, step in (
            (True, lambda: self.membership.joined("a", 10.0)),
            (False, lambda: self.membership.joined("a", 20.0)),
            (False, lambda: self.membership.update({"me": 9.0, "a": 5.0}, 1.0)),
            (True, lambda: self.membership.update({"a": 5.0, "b": 7.0}, 1.0)),
            (False, lambda: self.membership.expire(5.9)),
            (True, lambda: self.membership.expire(6.0)),
            (False, lambda: self.membership.left("a")),
            (True, lambda: self.membership.left("b")),
            (False, lambda: self.membership.expire(100.0)),
        ):
            self.assertEqual(step(), expected)
        self.assertEqual(self.mine(), len(SUBSCRIBERS))

    def test_adopted(self) -> None:
        """An adopted subscriber is preferred here until the peers change."""
        self.membership.joined("a", 10.0)
        foreign = next(each for each in SUBSCRIBERS if not self.membership.is_preferred(each))
        self.membership.adopt(foreign)
        self.membership.update({"a": 10.0}, 3.0)
        self.assertTrue(self.membership.is_preferred(foreign))
        self.membership.joined("b", 10.0)
        self.membership.left("b")
        self.assertFalse(self.membership.is_preferred(foreign))

    def test_retain(self) -> None:
        """Subscribers that no longer exist are dropped."""
        self.membership.joined("a", 10.0)
        self.mine()
        self.membership.retain({"x", SUBSCRIBERS[0]})
        self.assertEqual(list(self.membership._preferred), [SUBSCRIBERS[0]])
