"""The bound on the bodies of attempts under way."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.outgoing_bodies import SMALLEST, OutgoingBodies

MIB = 1024 * 1024


class OutgoingBodiesTests(SynchronousTestCase):
    """Who gets how many bytes."""

    def setUp(self) -> None:
        self.bodies = OutgoingBodies(64 * MIB)

    def start(self, wanted: int) -> Deferred[int]:
        return Deferred.fromCoroutine(self.bodies.reserve(wanted))

    def reserve(self, wanted: int) -> int:
        reserved: int = self.successResultOf(self.start(wanted))
        return reserved

    def test_enough(self) -> None:
        """A small body gets what it needs, a large one at most an eighth of all."""
        self.assertEqual(self.reserve(100 * MIB), 8 * MIB)
        self.assertEqual(self.reserve(100), 100)
        self.assertEqual(self.reserve(6 * MIB), 6 * MIB)

    def test_scarce(self) -> None:
        """Hundreds of receivers with large backlogs leave room for small bodies, and none gets next to nothing."""
        taken = [self.reserve(8 * MIB) for _ in range(300)]
        self.assertLess(sum(taken), 63 * MIB)
        self.assertGreater(taken[60], 64 * 1024)
        self.assertEqual(self.reserve(2000), 2000)

    def test_waits(self) -> None:
        """Who finds nothing left waits until something is given back; the first in the queue is served first."""
        taken = []
        while (waiting := self.start(8 * MIB)).called:
            taken.append(self.successResultOf(waiting))
        self.assertLessEqual(sum(taken), 64 * MIB)
        second = self.start(8 * MIB)
        self.bodies.release(SMALLEST)
        self.assertEqual(self.successResultOf(waiting), SMALLEST)
        self.assertNoResult(second)
        self.bodies.release(SMALLEST)
        self.assertEqual(self.successResultOf(second), SMALLEST)

    def test_cancelled(self) -> None:
        """A wait that is cancelled takes nothing."""
        small = OutgoingBodies(SMALLEST)
        self.successResultOf(Deferred.fromCoroutine(small.reserve(SMALLEST)))
        first, second = (Deferred.fromCoroutine(small.reserve(SMALLEST)) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        small.release(SMALLEST)
        self.assertEqual(self.successResultOf(second), SMALLEST)

    def test_larger_than_all(self) -> None:
        """A single event that is larger than the bound is sent when nothing else is under way."""
        small = OutgoingBodies(10)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(small.reserve(100))), 100)
        small.release(100 - 500)
        waiting = Deferred.fromCoroutine(small.reserve(1))
        self.assertNoResult(waiting)
        small.release(500)
        self.assertEqual(self.successResultOf(waiting), 1)
