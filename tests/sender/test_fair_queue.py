"""The fair queue."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from routemaster.interfaces import LastAttempt
from routemaster.sender.fair_queue import FairQueue, QueueClosed

GOOD, NEW, BAD = LastAttempt.SUCCEEDED, LastAttempt.NONE, LastAttempt.FAILED


class FairQueueTests(SynchronousTestCase):
    """Who is admitted, and when."""

    def admitted(self, queue: FairQueue, key: str, last: LastAttempt, entries: int) -> int:
        """How many of so many entries are admitted at once."""
        return sum(queue.enter(key, last) is None for _ in range(entries))

    def named(self, queue: FairQueue, served: list[str], last: LastAttempt, *keys: str) -> None:
        """Enter keys that have to wait; each is added to `served` when it is admitted."""
        for key in keys:
            entry = queue.enter(key, last)
            assert entry is not None
            entry.addCallback(lambda _, key=key: served.append(key))

    def test_limits(self) -> None:
        """At most `total` entries are active, and at most `per_key` of one key."""
        queue = FairQueue(4, 2)
        self.assertEqual([self.admitted(queue, key, GOOD, 3) for key in "abc"], [2, 2, 0])
        self.assertEqual((queue.active, queue.waiting), (4, 5))

    def test_shares(self) -> None:
        """Who failed has half of the places of a key, and of all; with those never tried, three quarters."""
        for keys in (["k"] * 3, ["a", "b", "c"]):
            for order, expected in (((BAD, NEW, GOOD), [4, 2, 2]), ((NEW, BAD, GOOD), [6, 0, 2])):
                queue = FairQueue(8, 8)
                pairs = zip(keys, order, strict=True)
                self.assertEqual([self.admitted(queue, *pair, 9) for pair in pairs], expected)

    def test_none_waits_for_those_that_failed(self) -> None:
        """However many that failed wait or hang, at one key or at many, another entry is admitted at once."""
        for key in ("k{}", "k"):
            queue = FairQueue(100, 10)
            for n in range(1000):
                queue.enter(key.format(n), BAD)
            self.assertIsNone(queue.enter("k", NEW))
            self.assertIsNone(queue.enter("k", GOOD))

    def test_one_place(self) -> None:
        """A key with one place serves every kind."""
        queue, served = FairQueue(1, 1), list[str]()
        queue.enter("x", GOOD)
        for last in LastAttempt:
            self.named(queue, served, last, last.value)
        queue.leave("x", GOOD)
        for _ in range(2):
            queue.leave(served[-1], LastAttempt(served[-1]))
        self.assertEqual(sorted(served), ["failed", "none", "succeeded"])

    def test_demoted(self) -> None:
        """An entry that takes long leaves its place at the key to another, up to as many as the key has places."""
        queue, served = FairQueue(100, 4), list[str]()
        self.assertEqual(self.admitted(queue, "k", GOOD, 4), 4)
        self.named(queue, served, GOOD, *"kkkkkkk")
        self.assertEqual([queue.demote("k", GOOD) for _ in range(5)], [True, True, True, True, False])
        self.assertEqual((len(served), queue.active, queue.waiting), (2, 6, 5))
        self.assertEqual(self.admitted(queue, "k", BAD, 1), 0)
        for _ in range(4):
            queue.leave("k", BAD)
        self.assertEqual((len(served), queue.active, queue.waiting), (3, 4, 4))  # and the one that failed

    def test_demoted_in_total(self) -> None:
        """An entry that takes long keeps its place among all."""
        queue = FairQueue(4, 4)
        self.assertEqual([queue.enter(key, GOOD) for key in "abcd"], [None] * 4)
        self.assertTrue(queue.demote("a", GOOD))
        self.assertIsNotNone(queue.enter("e", GOOD))

    def test_paced(self) -> None:
        """In a paced queue one entry that failed is admitted per tick; those that succeeded are not delayed."""
        queue, served = FairQueue(20, 20, paced=True), list[str]()
        self.assertFalse(queue.needs_tick)
        for last in (BAD, NEW, GOOD):
            self.assertIsNone(queue.enter(last.value, last))
        self.named(queue, served, BAD, "bad2", "bad3")
        queue.leave("failed", BAD)
        for expected in (["bad2"], ["bad2", "bad3"]):
            queue.tick()
            self.assertEqual((served, queue.needs_tick), (expected, True))
        queue.tick()
        self.assertFalse(queue.needs_tick)

    def test_pace_grows(self) -> None:
        """If many that failed wait, up to five are admitted per tick: 10,000 within 50 s at 50 ticks a second."""
        queue, served = FairQueue(30_000, 1, paced=True), list[str]()
        queue.enter("x", BAD)
        self.named(queue, served, BAD, *map(str, range(10_000)))
        for _ in range(2500):
            before = len(served)
            queue.tick()
            self.assertLessEqual(len(served) - before, 5)
        self.assertEqual(queue.waiting, 0)

    def test_first_attempts_are_paced(self) -> None:
        """Of those that had no attempt yet four are admitted per tick, ten if many wait; they demote nobody."""
        queue, served = FairQueue(3000, 3000, paced=True), list[str]()
        self.assertEqual(self.admitted(queue, "x", NEW, 4), 4)
        self.named(queue, served, NEW, *map(str, range(1000)))
        self.assertEqual((served, queue.needs_tick, queue.delays_others), ([], True, False))
        steps = []
        while queue.waiting:
            before = len(served)
            self.assertIsNone(queue.enter("good", GOOD))
            queue.tick()
            steps.append(len(served) - before)
        self.assertEqual((steps[0], steps[-2], sum(steps)), (10, 4, 1000))
        self.assertEqual(steps, sorted(steps, reverse=True))

    def test_new_ones_without_place(self) -> None:
        """Those that had none yet do delay others if it is a place that they wait for."""
        queue = FairQueue(4, 4, paced=True)
        self.assertEqual(self.admitted(queue, "x", NEW, 4), 3)
        self.assertTrue(queue.delays_others)

    def test_kinds_in_turn(self) -> None:
        """The three kinds are served in turn."""
        queue, served = FairQueue(4, 4), list[str]()
        self.admitted(queue, "x", GOOD, 4)
        self.named(queue, served, BAD, "bad", "bad")
        self.named(queue, served, NEW, "new", "new")
        self.named(queue, served, GOOD, "good", "good")
        for _ in range(4):
            queue.leave("x", GOOD)
        self.assertEqual(sorted(served[:3]), ["bad", "good", "new"])

    def test_in_turn(self) -> None:
        """Waiting entries are served round robin by key, however many one key has."""
        queue, served = FairQueue(2, 2), list[str]()
        self.admitted(queue, "x", GOOD, 2)
        self.named(queue, served, GOOD, *"aaabc")
        queue.leave("x", GOOD)
        for _ in range(4):
            queue.leave(served[-1], GOOD)
        self.assertEqual(served, ["a", "b", "c", "a", "a"])

    def test_cancel(self) -> None:
        """An entry that is cancelled while it waits is withdrawn."""
        queue = FairQueue(1, 1)
        queue.enter("x", GOOD)
        first, second = queue.enter("y", GOOD), queue.enter("y", GOOD)
        assert first is not None
        assert second is not None
        first.cancel()
        self.failureResultOf(first, CancelledError)
        queue.leave("x", GOOD)
        self.successResultOf(second)
        self.assertEqual(queue.waiting, 0)

    def test_entries_that_end_at_once(self) -> None:
        """Entries that end as soon as they are admitted are served one after another, not nested in each other."""
        queue, served, depth, deepest = FairQueue(10, 2), [], 0, 0
        for key in ("k", "k"):
            self.assertIsNone(queue.enter(key, GOOD))

        def end(_: None) -> None:
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            served.append(1)
            queue.leave("k", GOOD)
            depth -= 1

        for _ in range(2000):
            entry = queue.enter("k", GOOD)
            assert entry is not None
            entry.addCallback(end)
        queue.leave("k", GOOD)
        self.assertEqual((len(served), queue.active, queue.waiting, deepest), (2000, 1, 0, 1))
        queue.leave("k", GOOD)
        self.assertEqual(queue.active, 0)

    def test_close(self) -> None:
        """Closing fails waiting and later entries; active ones still leave, and nothing is remembered."""
        queue = FairQueue(1, 1)
        queue.enter("x", GOOD)
        waiting = queue.enter("y", BAD)
        queue.close()
        assert waiting is not None
        self.failureResultOf(waiting, QueueClosed)
        self.assertRaises(QueueClosed, queue.enter, "z", GOOD)
        queue.leave("x", GOOD)
        self.assertEqual((queue.active, queue.waiting, queue._keys), (0, 0, {}))
