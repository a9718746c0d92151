"""Putting a batch together from several logs."""

from __future__ import annotations

import gc
from math import inf

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.batch import LARGE, Batch, Batches, Limits, TracedBatch, oldest_entries
from routemaster.delivery.log_cache import Entry, LogCache
from routemaster.model import EventID, Span
from tests.delivery.test_log_cache import Log, event

#: per log: the times of its events; spans of (after, until); then limits and the expected (time, log) pairs
NONE, ALL = EventID(0, 0), ((0, None),)


class OldestEntriesTests(SynchronousTestCase):
    """The oldest events of some logs."""

    def read(
        self, times: dict[str, list[int]], spans: dict[str, tuple[tuple[int, int | None], ...]] | None = None,
        events: int = 1000, size: int = 1 << 30, horizon: float = inf,
    ) -> list[str]:  # fmt: skip
        """The events found, each as its log and time."""
        log = Log()
        log.logs = {topic: [(EventID(us, n), b"{%d}" % us) for n, us in enumerate(stamps, 1)]
                    for topic, stamps in times.items()}  # fmt: skip
        logs = []
        for topic, entries in log.logs.items():
            ids = [NONE, *(entry[0] for entry in entries)]
            found = [Span(ids[after], None if until is None else ids[until])
                     for after, until in (spans or {}).get(topic, ALL)]  # fmt: skip
            logs.append((topic, found, ids[-1]))
        entries = oldest_entries(LogCache(log), logs, Limits(events, size, horizon))  # type: ignore[arg-type]
        self.log = log
        found, self.is_full = self.successResultOf(Deferred.fromCoroutine(entries))
        return [f"{topic}{at.us}" for topic, at, _ in found]

    def test_order(self) -> None:
        """Events come by time of acceptance; at equal times in the order of the logs."""
        found = self.read({"a": [1, 4, 7, 9], "b": [2, 3, 7, 8], "c": [7]})
        self.assertEqual(found, ["a1", "b2", "b3", "a4", "a7", "b7", "c7", "b8", "a9"])

    def test_limits(self) -> None:
        """At most so many events, and so many bytes of the body unless it is one event."""
        times = {"a": [1, 3], "b": [2]}
        self.assertEqual(self.read(times, events=2), ["a1", "b2"])
        entry = len(b'{1,"id":"1-1"}') + 1
        for size, count in ((0, 1), (2 * entry, 1), (2 * entry + 1, 2), (3 * entry, 2), (3 * entry + 1, 3)):
            self.assertEqual(len(self.read(times, size=size)), count, size)
            self.assertEqual(self.is_full, count < 3, size)

    def test_full_by_bytes(self) -> None:
        """Bytes ended a batch only if neither the number of events, nor the horizon or the end of the logs did."""
        times, enough = {"a": [1, 3, 5], "b": [2]}, 1000
        for events, size, horizon, is_full in (
            (10, enough, inf, False), (2, enough, inf, False), (10, enough, 2, False), (10, 40, inf, True),
            (2, 40, inf, False), (10, 40, 2, False),
        ):  # fmt: skip
            self.read(times, events=events, size=size, horizon=horizon)
            self.assertEqual(self.is_full, is_full, (events, size, horizon))

    def test_horizon(self) -> None:
        """Events after the horizon wait."""
        self.assertEqual(self.read({"a": [1, 5], "b": [3]}, horizon=3), ["a1", "b3"])
        self.assertEqual(self.read({"a": [4], "b": [5]}, horizon=3), [])

    def test_spans(self) -> None:
        """Events between two spans are left out, wherever the reads of the log end."""
        times = {"a": [*range(1, 601)], "b": [601]}
        spans = {"a": ((10, 20), (20, 20), (300, 302), (598, None))}
        expected = [*range(11, 21), 301, 302, 599, 600]
        self.assertEqual(self.read(times, spans), [*(f"a{n}" for n in expected), "b601"])

    def test_no_later_event(self) -> None:
        """An event accepted after the batch was begun is not in it, though the log holds it by then."""
        log = Log(cats=5)
        entries = oldest_entries(
            LogCache(log), [("cats", [Span(NONE)], event(3))], Limits(10, 1000)  # type: ignore[arg-type]
        )
        found, _ = self.successResultOf(Deferred.fromCoroutine(entries))
        self.assertEqual([entry[1].n for entry in found], [1, 2, 3])

    def test_missing_events(self) -> None:
        """Events that a log does not hold are passed over, at its beginning, its end and in a span."""
        log = Log(cats=9, dogs=2)
        for gone in (slice(7, 9), slice(0, 2)):
            del log.logs["cats"][gone]
        log.logs["dogs"].clear()
        logs = [("cats", [Span(NONE, event(2)), Span(event(2))], event(9)), ("dogs", [Span(NONE)], event(2))]
        entries = oldest_entries(LogCache(log), logs, Limits(10, 1000))  # type: ignore[arg-type]
        found, _ = self.successResultOf(Deferred.fromCoroutine(entries))
        self.assertEqual([entry[1].n for entry in found], [3, 4, 5, 6, 7])

    def test_pieces(self) -> None:
        """However long the logs, each read asks for a few hundred events, and together for not many too many."""
        found = self.read({"a": [*range(1, 5001)]}, events=4000)
        self.assertEqual((len(found), len(self.log.reads)), (4000, 16))
        self.assertEqual({most for _, most in self.log.reads}, {256, 4000 - 15 * 256})
        many = {f"{n}": [n + 1000 * place for place in range(20)] for n in range(100)}
        self.assertEqual(len(self.read(many, events=100)), 100)
        self.assertEqual([(len(starts), most) for starts, most in self.log.reads], [(100, 10)])


class BatchTests(SynchronousTestCase):
    """A batch's value."""

    def test_values(self) -> None:
        """A batch is one JSON array, and names the first and the last event of each topic."""
        starts, ends = {"a": event(1), "b": event(2)}, {"a": event(3), "b": event(2)}
        batch = Batch.of([("a", event(1), b"{1}"), ("b", event(2), b"{2}"), ("a", event(3), b"{3}")])
        self.assertEqual(batch, Batch(b"[{1},{2},{3}]", 3, event(1), event(3), starts, ends))


class BatchesTests(SynchronousTestCase):
    """Batches of the same events are one object, as long as it is in use."""

    def entries(self, count: int, topic: str = "cats", first: int = 1) -> list[Entry]:
        return [(topic, event(number), b"{%d}" % number) for number in range(first, first + count)]

    def test_same(self) -> None:
        """The same large number of events of one log make one batch, which is kept no longer than it is used."""
        batches = Batches()
        one = batches.of(self.entries(LARGE))
        self.assertIs(batches.of(self.entries(LARGE)), one)
        self.assertEqual(one, Batch.of(self.entries(LARGE)))
        del one
        gc.collect()
        self.assertEqual(len(batches._large), 0)

    def test_others(self) -> None:
        """Events of another topic, other events, events with gaps, of several topics, or few, make their own."""
        batches, entries = Batches(), self.entries(LARGE)
        one = batches.of(entries)
        middle = LARGE // 2
        for others in (
            self.entries(LARGE, "dogs"), self.entries(LARGE, first=2), self.entries(LARGE + 1),
            [*entries[:middle], *self.entries(1, "dogs"), *entries[middle + 1 :]],
            [*entries[:middle], *entries[middle + 1 :]],
        ):  # fmt: skip
            found = batches.of(others)
            self.assertIsNot(found, one)
            self.assertEqual(found, Batch.of(others))
        few = entries[: LARGE - 1]
        self.assertIsNot(batches.of(few), batches.of(few))

    def test_traced(self) -> None:
        """Batches with trace contexts are shared as well."""
        batches = Batches(TracedBatch)
        one = batches.of(self.entries(LARGE))
        self.assertIsInstance(one, TracedBatch)
        self.assertIs(batches.of(self.entries(LARGE)), one)
