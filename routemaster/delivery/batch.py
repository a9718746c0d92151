"""Puts a batch together: the oldest events of several logs, in order of acceptance, from small reads.

Each log is read piece by piece, from where the subscriber stands to where the
log ended when the batch was begun. So a batch is a snapshot, though other calls
run between its reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import accumulate
from math import inf
from operator import itemgetter
from weakref import WeakValueDictionary

from attrs import frozen

from routemaster.delivery.log_cache import Entry, LogCache
from routemaster.model import EventID, Span
from routemaster.traces import Traced, is_sampled

PIECE = 256  #: events that are asked for at once
LARGE = 64    #: events from which on it is worth it to look for a batch with the same ones
MOST_TRACES = 128  #: of one batch: as many links as OpenTelemetry's default limit of a span


@frozen
class Limits:
    """What a batch may hold: the first event may be larger than `bytes`, which the whole body counts."""

    events: int
    bytes: int
    horizon: float = inf  #: microseconds by the store's clock; later events wait: earlier ones may be unknown


@frozen
class Batch:
    """The events of one attempt. Compact, because thousands of batches may be in memory."""

    body: bytes
    events: int
    first: EventID
    last: EventID
    starts: Mapping[str, EventID]  #: the first event of each topic
    ends: Mapping[str, EventID]    #: the last event of each topic

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Batch:
        """One JSON array of the entries, of which there is at least one."""
        first, last = entries[0], entries[-1]
        if _are_of_one_log(entries):
            starts, ends = {first[0]: first[1]}, {last[0]: last[1]}
        else:
            starts = {topic: entry_id for topic, entry_id, _ in reversed(entries)}
            ends = {topic: entry_id for topic, entry_id, _ in entries}
        body = b"[%b]" % b",".join([entry[2] for entry in entries])
        return cls(body, len(entries), first[1], last[1], starts, ends)


@frozen
class TracedBatch(Batch):
    """A batch with the trace contexts of its events' publications."""

    #: of those that are sampled, each once, at most `MOST_TRACES`, oldest first; if none is, of one of them
    traces: Sequence[bytes] = ()

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> TracedBatch:
        """See `Batch.of`."""
        batch, found, other = super().of(entries), dict[bytes, None](), tuple[bytes, ...]()
        for _, _, event in entries:
            if isinstance(event, Traced):
                if not is_sampled(event.trace):
                    other = (event.trace,)
                    continue
                found[event.trace] = None
                if len(found) == MOST_TRACES:
                    break
        traces = tuple(found) or other
        return cls(batch.body, batch.events, batch.first, batch.last, batch.starts, batch.ends, traces)


class Batches:
    """Makes batches, and those that hold the same events once, as long as one of them is in use."""

    def __init__(self, kind: type[Batch] = Batch) -> None:
        self._kind = kind
        self._large: WeakValueDictionary[tuple[str, EventID, EventID], Batch] = WeakValueDictionary()

    def of(self, entries: Sequence[Entry]) -> Batch:
        """See `Batch.of`."""
        (topic, first, _), (_, last, _), count = entries[0], entries[-1], len(entries)
        # as many events of one log as lie between two IDs are always the same ones
        if count < LARGE or last.n - first.n + 1 != count or not _are_of_one_log(entries):
            return self._kind.of(entries)
        batch = self._large.get((topic, first, last))
        if batch is None:
            batch = self._large[topic, first, last] = self._kind.of(entries)
        return batch


def _are_of_one_log(entries: Sequence[Entry]) -> bool:
    return len(set(map(itemgetter(0), entries))) == 1


class _Source:
    """The events of one log that wait for the subscriber, as far as they are read."""

    def __init__(self, topic: str, spans: Sequence[Span], tail: EventID) -> None:
        self.topic = topic
        self.entries: Sequence[Entry] = ()
        self.place = 0                     #: of the next entry
        self.start: EventID | None = None  #: where to read on; None: all is read
        self._until = tail
        self._spans = [(span.after, span.until or tail) for span in reversed(spans)]
        self._next_span()

    def _next_span(self) -> None:
        self.start = None
        while self._spans and self.start is None:
            after, self._until = self._spans.pop()
            if after.n < self._until.n:
                self.start = after

    def feed(self, entries: Sequence[Entry]) -> None:
        """Take what was read after `start`; nothing: the log holds no more events."""
        self.place = 0
        if entries and entries[-1][1].n < self._until.n:
            self.entries, self.start = entries, entries[-1][1]
        else:
            self.entries = [entry for entry in entries if entry[1].n <= self._until.n]
            self._next_span()

    def run(self, limits: Limits, taken: int, room: int) -> tuple[Sequence[Entry], int]:
        """The next entries as far as they may follow so many and have room, and their bytes."""
        end = min(len(self.entries), self.place + limits.events - taken)
        if self.entries[end - 1][1].us > limits.horizon:
            end = bisect_right(self.entries, limits.horizon, self.place, end, key=_accepted)
        run = self.entries[self.place : end]
        size = sum(map(len, map(itemgetter(2), run))) + len(run)
        if size > room:
            sizes = list(accumulate(len(entry[2]) + 1 for entry in run))
            count = bisect_right(sizes, room)
            run, size = run[:count], sizes[count - 1] if count else 0
        return run, size


def _accepted(entry: Entry) -> float:
    return entry[1].us


async def oldest_entries(
    cache: LogCache, logs: Sequence[tuple[str, Sequence[Span], EventID]], limits: Limits
) -> tuple[list[Entry], bool]:
    """The oldest events of the logs, each given with its spans and its end, and whether `Limits.bytes` ended them.

    The time of acceptance decides; at equal times, the order of the logs here.
    Raises StoreUnavailable.
    """
    sources = [_Source(*log) for log in logs]
    taken: list[Entry] = []
    heap: list[tuple[int, int]] = []  #: the time of a source's next entry, and its index
    room = limits.bytes - 1  # each event has a comma; the brackets take one byte more than the last of these
    dry = [index for index, source in enumerate(sources) if source.start is not None]
    while dry and len(taken) < limits.events:
        await _fill(cache, [sources[index] for index in dry], limits.events - len(taken))
        for index in dry:
            if sources[index].entries:
                heappush(heap, (sources[index].entries[0][1].us, index))
        dry = []
        while heap and not dry:
            us, index = heap[0]
            source = sources[index]
            run, size = source.run(limits, len(taken), room) if len(heap) == 1 else ((), 0)
            if run:
                taken += run
                room -= size
                source.place += len(run)
                if len(taken) == limits.events:
                    return taken, False
                if source.place < len(source.entries):
                    continue
                heappop(heap)
                dry = [] if source.start is None else [index]
                continue
            entry = source.entries[source.place]
            room -= len(entry[2]) + 1
            if us > limits.horizon:
                return taken, False
            if taken and room < 0:
                return taken, True
            taken.append(entry)
            if len(taken) == limits.events:
                return taken, False
            source.place += 1
            if source.place < len(source.entries):
                heapreplace(heap, (source.entries[source.place][1].us, index))
            else:
                heappop(heap)
                if source.start is not None:
                    dry = [index]
    return taken, False


async def _fill(cache: LogCache, sources: Sequence[_Source], wanted: int) -> None:
    """Read on in sources that have no entry left, so that each has one, or has come to its end."""
    piece = min(wanted, PIECE) if len(sources) == 1 else min(2 * wanted // len(sources) + 8, PIECE)
    for source in sources:
        source.entries = ()
    left = {source.topic: source for source in sources}
    while starts := {topic: source.start for topic, source in left.items() if source.start is not None}:
        for topic, entries in (await cache.read(starts, piece)).items():
            left[topic].feed(entries)
            if left[topic].entries:
                del left[topic]
