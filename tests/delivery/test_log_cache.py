"""The cache of logs: what is read once, what is shared, and what is dropped."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery import log_cache
from routemaster.delivery.log_cache import LogCache
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import LogEntry
from routemaster.model import EventID
from routemaster.traces import Traced, trace_of, traced_with_id


def event(n: int) -> EventID:
    return EventID(1000 + n, n)


class Log:
    """A store with logs of events that are numbered from 1; reads wait if told to."""

    def __init__(self, **lengths: int) -> None:
        self.logs = {topic: [(event(n), b'{"n":%d}' % n) for n in range(1, length + 1)]
                     for topic, length in lengths.items()}  # fmt: skip
        self.reads: list[tuple[dict[str, EventID], int]] = []
        self.gate: Deferred[None] | None = None

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[LogEntry]]:
        self.reads.append((dict(starts), most))
        if self.gate is not None:
            gate, self.gate = self.gate, None
            await gate
        return {topic: [entry for entry in self.logs[topic] if entry[0] > after][:most]
                for topic, after in starts.items()}  # fmt: skip


class LogCacheTests(SynchronousTestCase):
    """Reading through the cache."""

    def setUp(self) -> None:
        self.log = Log(cats=1000, dogs=10)
        self.cache = LogCache(self.log)  # type: ignore[arg-type]

    def start(self, most: int, **starts: int) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            self.cache.read({topic: event(n) if n else EventID(0, 0) for topic, n in starts.items()}, most)
        )

    def read(self, most: int, **starts: int) -> dict[str, list[int]]:
        read = self.successResultOf(self.start(most, **starts))
        return {topic: [entry[1].n for entry in entries] for topic, entries in read.items()}

    def test_event_as_it_is_delivered(self) -> None:
        """An event in the cache bears its ID as the last member."""
        read = self.successResultOf(self.start(1, cats=0))
        self.assertEqual(read, {"cats": [("cats", event(1), b'{"n":1,"id":"1001-1"}')]})

    def test_read_once(self) -> None:
        """What was read, from any place in it, is not read again."""
        self.assertEqual(self.read(10, cats=0), {"cats": [*range(1, 11)]})
        self.assertEqual(self.read(10, cats=4), {"cats": [*range(5, 11)]})
        self.assertEqual(self.read(3, cats=0), {"cats": [1, 2, 3]})
        self.assertEqual(len(self.log.reads), 1)

    def test_grows(self) -> None:
        """A read behind what is cached joins it; parts that were read apart from it are found, too."""
        for start in (0, 10, 40, 50, 20):
            self.read(10, cats=start)
        self.assertEqual(self.read(100, cats=5), {"cats": [*range(6, 31)]})
        self.assertEqual(self.read(100, cats=45), {"cats": [*range(46, 61)]})
        self.assertEqual(len(self.log.reads), 5)

    def test_overlap(self) -> None:
        """A read that runs into what is cached, or starts inside, returns all and keeps each event once."""
        self.read(10, cats=10)
        self.assertEqual(self.read(30, cats=0), {"cats": [*range(1, 31)]})
        self.assertEqual(self.read(30, cats=0), {"cats": [*range(1, 11)]})
        self.assertEqual(self.read(30, cats=15), {"cats": [*range(16, 21)]})
        self.assertEqual(len(self.log.reads), 2)

    def test_several_logs(self) -> None:
        """Only the logs that are not cached are read, in one call."""
        self.read(5, cats=0)
        self.assertEqual(self.read(5, cats=0, dogs=0), {"cats": [1, 2, 3, 4, 5], "dogs": [1, 2, 3, 4, 5]})
        self.assertEqual(self.log.reads[1:], [({"dogs": EventID(0, 0)}, 5)])

    def test_end(self) -> None:
        """At the end of a log there is no entry, and a later read asks again."""
        self.assertEqual(self.read(5, dogs=10), {"dogs": []})
        self.log.logs["dogs"].append((event(11), b"{}"))
        self.assertEqual(self.read(5, dogs=10), {"dogs": [11]})

    def test_shared(self) -> None:
        """Those who need the same events at the same time share one read; others do not wait for it."""
        self.log.gate = gate = Deferred()
        first, second = self.start(10, cats=0), self.start(5, cats=0)
        self.assertEqual(self.read(5, cats=20), {"cats": [21, 22, 23, 24, 25]})
        self.assertNoResult(second)
        gate.callback(None)
        self.assertEqual([len(self.successResultOf(each)["cats"]) for each in (first, second)], [10, 5])
        self.assertEqual(len(self.log.reads), 2)

    def test_other_log_of_a_shared_read(self) -> None:
        """From another's read only what starts at the same place is taken."""
        self.log.gate = gate = Deferred()
        first, second = self.start(2, cats=0, dogs=0), self.start(2, cats=0, dogs=5)
        gate.callback(None)
        self.successResultOf(first)
        read = self.successResultOf(second)
        self.assertEqual({topic: entries[0][1].n for topic, entries in read.items()}, {"cats": 1, "dogs": 6})

    def test_cancelled(self) -> None:
        """A courier that is stopped while it reads does not end the read for others."""
        self.log.gate = gate = Deferred()
        first, second = self.start(10, cats=0), self.start(10, cats=0)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        gate.callback(None)
        self.assertEqual(len(self.successResultOf(second)["cats"]), 10)

    def test_unavailable(self) -> None:
        """A failed read fails for all who share it, each with an exception of its own, and is not kept."""
        self.log.gate = gate = Deferred()
        first, second = self.start(10, cats=0), self.start(10, cats=0)
        gate.errback(StoreUnavailable("the store is unavailable"))
        errors = [self.failureResultOf(each, StoreUnavailable).value for each in (first, second)]
        self.assertIsNot(*errors)
        self.assertEqual(self.read(1, cats=0), {"cats": [1]})

    def test_two_reads_fail(self) -> None:
        """A courier that waits for the reads of two others handles the failures of both."""
        gates: list[Deferred[None]] = [Deferred(), Deferred()]
        others = []
        for topic, gate in zip(("cats", "dogs"), gates, strict=True):
            self.log.gate = gate
            others.append(self.start(5, **{topic: 0}))
        both = self.start(5, cats=0, dogs=0)
        for gate in gates:
            gate.errback(StoreUnavailable("the store is unavailable"))
        for each in (*others, both):
            self.failureResultOf(each, StoreUnavailable)
        del each, both, others, gates
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_gap(self) -> None:
        """Events behind missing ones are returned, and not kept: the missing ones may come back."""
        del self.log.logs["dogs"][2:4]
        self.assertEqual(self.read(10, dogs=0), {"dogs": [1, 2, 5, 6, 7, 8, 9, 10]})
        self.read(10, dogs=0)
        self.assertEqual(len(self.log.reads), 2)

    def test_other_event_of_the_same_number(self) -> None:
        """A place that was given to another event after lost writes is read from the store."""
        self.read(10, cats=0)
        start = {"cats": EventID(9999, 5)}
        self.successResultOf(Deferred.fromCoroutine(self.cache.read(start, 10)))
        self.assertEqual(len(self.log.reads), 2)
        self.read(10, cats=0)
        self.assertEqual(len(self.log.reads), 3)

    def test_forget(self) -> None:
        """A log that is forgotten is read again, another is not."""
        self.read(5, cats=0, dogs=0)
        self.cache.forget("dogs")
        self.read(5, cats=0, dogs=0)
        self.assertEqual(self.log.reads[1:], [({"dogs": EventID(0, 0)}, 5)])
        self.cache.clear()
        self.read(5, cats=0, dogs=0)
        self.assertEqual(len(self.log.reads[2][0]), 2)

    def test_bounded(self) -> None:
        """The cache holds no more bytes than allowed; what was used least recently goes first."""
        self.patch(log_cache, "CACHE_BYTES", 600 * (log_cache.ENTRY_BYTES + 20))
        self.read(256, cats=0)
        self.read(10, dogs=0)
        self.read(256, cats=256)
        self.read(10, dogs=0)
        self.read(256, cats=512)
        before = len(self.log.reads)
        self.read(10, dogs=0)
        self.read(10, cats=600)
        self.assertEqual(len(self.log.reads), before)
        self.read(10, cats=0)
        self.assertEqual(len(self.log.reads), before + 1)
        self.assertLessEqual(self.cache._size, log_cache.CACHE_BYTES)

    def test_traced(self) -> None:
        """An event with a trace context keeps it, and counts with what that takes in memory."""
        self.log.logs["cats"] = [(at, Traced.of(fragment, b"context")) for at, fragment in self.log.logs["cats"]]
        self.read(10, cats=0)
        plain, self.cache = self.cache._size, LogCache(self.log, traced_with_id)  # type: ignore[arg-type]
        self.read(10, cats=0)
        found = self.successResultOf(self.start(10, cats=0))
        self.assertEqual([trace_of(event) for _, _, event in found["cats"]], [b"context"] * 10)
        self.assertEqual(self.cache._size - plain, 10 * log_cache.TRACED_BYTES)
