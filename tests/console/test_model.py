"""Figures of a bus that follow from its lists."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.model import Snapshot
from tests.console.made import NOW, bus, measured, subscriber


class BusTests(SynchronousTestCase):
    """Sums and selections."""

    def test_sums(self) -> None:
        """What waits, since when, and how many subscribers are in each state."""
        found = bus(
            subscriber("a", queued=2, oldest=NOW - 5),
            subscriber("b", queued=3, oldest=NOW - 9, state="backoff"),
            subscriber("c"),
        )
        self.assertEqual((found.queued, found.oldest), (5, NOW - 9))
        self.assertEqual(dict(found.states), {"idle": 2, "backoff": 1})
        self.assertEqual((bus().queued, bus().oldest), (0, None))

    def test_in_trouble(self) -> None:
        """Those that fail come first, then late ones, then paused ones; of each the longest queue first."""
        found = bus(
            subscriber("a", trouble="paused"), subscriber("b", trouble="late"), subscriber("c"),
            subscriber("d", trouble="failing"), subscriber("e", trouble="failing", queued=1),
        )  # fmt: skip
        self.assertEqual([each.name for each in found.in_trouble], ["e", "d", "b", "a"])

    def test_lost(self) -> None:
        """Events lost are added up over the subscribers; without metrics there are none."""
        found = bus(measured=measured(lost={"expired": {"a": 1, "b": 2}, "parked": {"a": 4}}))
        self.assertEqual((found.expired, found.parked, found.autodropped), (3, 4, 0))
        self.assertEqual(
            (bus(measured=None).expired, bus(measured=None).redis, bus(measured=None).version), (0, (), "")
        )

    def test_reachable(self) -> None:
        """A bus is reachable if its last reading has succeeded."""
        self.assertTrue(bus().reachable)
        self.assertFalse(bus(at=None).reachable)
        self.assertFalse(bus(unreachable_since=NOW).reachable)

    def test_by_name(self) -> None:
        """Topics, subscribers and buses are found by name; of a shared name it is the first."""
        found = bus(subscriber("a", sent=1, shared=True), subscriber("a", sent=2, shared=True))
        self.assertEqual((found.subscriber("a"), found.subscriber("b")), (found.subscribers[0], None))
        self.assertEqual((found.topic("cats"), found.topic("dogs")), (found.topics[0], None))
        snapshot = Snapshot(1, NOW, (found,))
        self.assertEqual((snapshot.bus("main"), snapshot.bus("two")), (found, None))
