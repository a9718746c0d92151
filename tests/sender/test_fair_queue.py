"""The fair queue."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender.fair_queue import FairQueue, QueueClosed


class FairQueueTests(SynchronousTestCase):
    """Who is admitted, and when."""

    def test_no_verdict(self) -> None:
        """`succeeded=None` leaves the key's health unchanged."""
        queue = FairQueue(4, 2)
        queue.leave(*self.entered(queue, "a", succeeded=True))
        for key, not_healthy in (("a", 0), ("b", 1)):
            queue.leave(*self.entered(queue, key, succeeded=None))
            self.entered(queue, key, succeeded=None)
            self.assertEqual(queue.not_healthy, not_healthy)

    def test_limits(self) -> None:
        """At most `total` entries are active, and at most `per_key` of one key."""
        queue = FairQueue(4, 2)
        queue.leave(*self.entered(queue, "a", succeeded=True))
        self.assertEqual([queue.enter("a") is None for _ in range(3)], [True, True, False])
        self.assertEqual(queue.active, 2)

    def entered(self, queue: FairQueue, key: str, succeeded: bool | None) -> tuple[str, bool | None]:
        self.assertIsNone(queue.enter(key))
        return key, succeeded

    def test_capacity_for_healthy_keys(self) -> None:
        """Unknown and failing keys have at most half; a healthy key enters at once."""
        queue = FairQueue(4, 4)
        queue.leave(*self.entered(queue, "good", succeeded=True))
        entries = [queue.enter(f"dead{n}") for n in range(10)]
        self.assertEqual([entry is None for entry in entries], [True, True] + [False] * 8)
        self.assertIsNone(queue.enter("good"))
        self.assertEqual((queue.active, queue.not_healthy, queue.waiting), (3, 2, 8))

    def test_paced(self) -> None:
        """In a paced queue one entry of a failing key is admitted per tick; other keys are not delayed."""
        queue, served = FairQueue(20, 20, paced=True), []
        for key in ("good", "bad1", "bad2", "bad3"):
            queue.leave(*self.entered(queue, key, succeeded=key == "good"))
        self.assertFalse(queue.needs_tick)
        for key in ("bad1", "bad2", "bad3", "new1", "good", "new2"):
            entry = queue.enter(key)
            if entry is None:
                served.append(key)
            else:
                entry.addCallback(lambda _, key=key: served.append(key))
        self.assertEqual(served, ["bad1", "new1", "good", "new2"])
        queue.leave("bad1", succeeded=False)
        self.assertEqual(len(served), 4)
        for key in ("bad2", "bad3"):
            queue.tick()
            self.assertEqual(served[-1], key)
        self.assertTrue(queue.needs_tick)
        queue.tick()
        self.assertEqual((len(served), queue.needs_tick), (6, False))

    def test_groups_in_turn(self) -> None:
        """Healthy, unknown and failing keys are served in turn."""
        queue, served = FairQueue(4, 4), []
        for key in ("good", "bad"):
            queue.leave(*self.entered(queue, key, succeeded=key == "good"))
        for _ in range(4):
            self.entered(queue, "good", succeeded=None)
        for key in ("bad", "bad", "new", "new", "good", "good"):
            entry = queue.enter(key)
            assert entry is not None
            entry.addCallback(lambda _, key=key: served.append(key))
        for _ in range(4):
            queue.leave("good", succeeded=True)
        self.assertEqual(sorted(served[:3]), ["bad", "good", "new"])

    def test_in_turn(self) -> None:
        """Waiting entries are served round robin by key, however many one key has."""
        queue, served = FairQueue(2, 2), []
        queue.enter("x")
        for key in ("a", "a", "a", "b", "c"):
            entry = queue.enter(key)
            assert entry is not None
            entry.addCallback(lambda _, key=key: served.append(key))
        queue.leave("x", succeeded=None)
        for _ in range(4):
            queue.leave(served[-1], succeeded=None)
        self.assertEqual(served, ["a", "b", "c", "a", "a"])

    def test_health_changes(self) -> None:
        """All active entries of a key count as not healthy from its failure on."""
        queue = FairQueue(4, 4)
        queue.leave(*self.entered(queue, "k", succeeded=True))
        for _ in range(4):
            self.assertIsNone(queue.enter("k"))
        queue.leave("k", succeeded=False)
        self.assertEqual(queue.not_healthy, 3)
        self.assertIsNotNone(queue.enter("other"))
        queue.leave("k", succeeded=True)
        self.assertEqual((queue.not_healthy, queue.active, queue.waiting), (1, 3, 0))

    def test_cancel(self) -> None:
        """Cancelling a delivery closes its socket in every phase, and raises only CancelledError."""
        queue = FairQueue(2, 2)
        queue.enter("x")
        first, second = queue.enter("y"), queue.enter("y")
        assert first is not None
        assert second is not None
        first.cancel()
        self.failureResultOf(first, CancelledError)
        queue.leave("x", succeeded=False)
        self.successResultOf(second)
        self.assertEqual(queue.waiting, 0)

    def test_entries_that_end_at_once(self) -> None:
        """Entries that end as soon as they are admitted are served one after another, not nested in each other."""
        queue, served, depth, deepest = FairQueue(10, 2), [], 0, 0
        for key in ("k", "k"):
            self.assertIsNone(queue.enter(key))

        def end(_: None) -> None:
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            served.append(1)
            queue.leave("k", succeeded=None)
            depth -= 1

        for _ in range(2000):
            entry = queue.enter("k")
            assert entry is not None
            entry.addCallback(end)
        queue.leave("k", succeeded=None)
        self.assertEqual((len(served), queue.active, queue.waiting, deepest), (2000, 1, 0, 1))
        queue.leave("k", succeeded=True)
        self.assertEqual((queue.active, queue.not_healthy), (0, 0))

    def test_close(self) -> None:
        """Closing ends active, waiting and later attempts with LOCAL."""
        queue = FairQueue(2, 2)
        queue.enter("x")
        waiting = queue.enter("y")
        queue.close()
        assert waiting is not None
        self.failureResultOf(waiting, QueueClosed)
        self.assertRaises(QueueClosed, queue.enter, "z")
        queue.leave("x", succeeded=True)
        self.assertEqual((queue.active, queue.waiting, queue.known), (0, 0, 1))

    def test_memory(self) -> None:
        """A key without entries is forgotten, except for the health of `max_known` keys."""
        queue = FairQueue(2, 2, max_known=10)
        for n in range(100):
            queue.enter(n)
            queue.leave(n, succeeded=n % 2 == 0)
        self.assertEqual(queue.known, 10)
