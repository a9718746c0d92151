"""When Python's garbage collector runs in a daemon."""

from __future__ import annotations

import gc
import sys
import weakref

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.garbage_collector import CHECK, GROWTH, LATEST, PAUSE, GarbageCollector


class Cycle:
    """Garbage for the collector."""

    def __init__(self) -> None:
        self.itself = self


class GarbageCollectorTests(SynchronousTestCase):
    """`GarbageCollector`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.thresholds = gc.get_threshold()
        self.blocks, self.took, real = 100, 1.0, gc.collect

        def collect(generation: int = 2) -> int:
            if generation == 2:
                self.clock.rightNow += self.took
            return real(generation)

        self.patch(sys, "getallocatedblocks", lambda: self.blocks)
        self.patch(gc, "collect", collect)
        self.collector = GarbageCollector(self.clock)
        self.collector.start()

    def tearDown(self) -> None:
        self.successResultOf(ensureDeferred(self.collector.stop()))
        self.assertEqual((gc.get_threshold(), gc.get_freeze_count()), (self.thresholds, 0))
        self.assertNotIn(self.collector._collected, gc.callbacks)

    def old_garbage(self) -> weakref.ref[Cycle]:
        """A cycle that was in use while the young objects were looked at."""
        cycle = Cycle()
        gc.collect(0)
        return weakref.ref(cycle)

    def test_young(self) -> None:
        """A young cycle is collected; what is in use then is frozen."""
        young, frozen = weakref.ref(Cycle()), gc.get_freeze_count()
        kept = [Cycle() for _ in range(10)]
        gc.collect(0)
        self.assertIsNone(young())
        self.assertGreaterEqual(gc.get_freeze_count(), frozen + len(kept))

    def test_growth(self) -> None:
        """An older cycle is collected when memory has grown by a quarter."""
        garbage = self.old_garbage()
        self.clock.advance(PAUSE * self.took)
        for blocks, found in ((GROWTH * 100 - 1, False), (GROWTH * 100, True)):
            self.blocks = int(blocks)
            self.clock.advance(CHECK)
            self.assertEqual(garbage() is None, found, blocks)
        garbage = self.old_garbage()
        self.clock.advance(PAUSE * self.took)
        self.assertIsNotNone(garbage(), "it has not grown since")

    def test_latest(self) -> None:
        """An older cycle is collected after an hour, though there are no more objects than before."""
        garbage = self.old_garbage()
        self.clock.advance(LATEST - CHECK)
        self.assertIsNotNone(garbage())
        self.clock.advance(2 * CHECK)
        self.assertIsNone(garbage())

    def test_shrinking(self) -> None:
        """Growth counts from the fewest objects since the last collection."""
        garbage = self.old_garbage()
        self.clock.advance(PAUSE * self.took)
        for blocks, found in ((40, False), (40 * GROWTH - 1, False), (40 * GROWTH, True)):
            self.blocks = int(blocks)
            self.clock.advance(CHECK)
            self.assertEqual(garbage() is None, found, blocks)

    def test_pause(self) -> None:
        """A full collection is not made before so many times the time have passed that the last one took."""
        garbage = self.old_garbage()
        self.blocks *= 2
        until = PAUSE * self.took
        while self.clock.seconds() < until - CHECK:
            self.assertIsNotNone(garbage())
            self.clock.advance(CHECK)
        self.clock.advance(2 * CHECK)
        self.assertIsNone(garbage())
