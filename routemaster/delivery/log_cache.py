"""The newest part of each log in use, in memory: events that many couriers need are read from the store once.

A log never changes but at its ends, so what is cached is never out of date. It
may be gone from the store: trimmed, because all have it, or lost with the
store's last writes. Then other events have the same numbers but other IDs, and
`forget` drops the log; an ID that is not at its number's place drops it, too.

The cache holds runs of events without a gap. The runs used least recently are
dropped when all together exceed `CACHE_BYTES`. Couriers that need the same
events at the same time wait for one read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from operator import attrgetter

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from routemaster.interfaces import LogEntry, Store
from routemaster.model import EventID, with_id
from routemaster.util.gather import gather

CACHE_BYTES = 16 * 1024 * 1024  #: over all topics
RUN_EVENTS = 256     #: events in one run, which is dropped as a whole
ENTRY_BYTES = 250    #: what an event takes in memory beside its bytes
TRACED_BYTES = 300   #: what one with a trace context takes besides

Entry = tuple[str, EventID, bytes]  #: topic, ID, JSON object as it is delivered


@define(eq=False)
class _Run:
    """Events of one log, with consecutive numbers."""

    topic: str
    after: EventID                              #: the ID before the first
    number: int = field(init=False)             #: of that ID
    entries: list[Entry] = field(factory=list)
    size: int = 0                               #: bytes in memory

    def __attrs_post_init__(self) -> None:
        self.number = self.after.n

    def place_after(self, event: EventID) -> int | None:
        """The index of the event that follows an ID; None if the ID is not at its place here."""
        place = event.n - self.after.n
        known = self.entries[place - 1][1] if place else self.after
        return place if known == event else None


_NUMBER = attrgetter("number")


class _Read:
    """A read of the store that is under way, for all couriers that need it."""

    def __init__(self, starts: Mapping[str, EventID]) -> None:
        self.starts = starts
        self._waiters: list[Deferred[Mapping[str, Sequence[Entry]]]] = []

    def wait(self) -> Deferred[Mapping[str, Sequence[Entry]]]:
        """Fires with the entries by topic, or fails with StoreUnavailable; cancelling it does not end the read."""
        waiting: Deferred[Mapping[str, Sequence[Entry]]] = Deferred()
        self._waiters.append(waiting)
        return waiting

    def end(self, result: Mapping[str, Sequence[Entry]] | Failure) -> None:
        """Fire all that wait."""
        for waiting in self._waiters:
            if not waiting.called:
                # an exception of its own: one that many raise collects the tracebacks of all
                waiting.callback(Failure(copy(result.value)) if isinstance(result, Failure) else result)


class LogCache:
    """Reads events from the store, or from what was read before."""

    def __init__(self, store: Store, render: Callable[[bytes, EventID], bytes] = with_id) -> None:
        """`render` makes the JSON object of a fragment."""
        self._store, self._render = store, render
        self._entry_bytes = ENTRY_BYTES if render is with_id else ENTRY_BYTES + TRACED_BYTES
        self._runs: dict[str, list[_Run]] = {}  #: by topic, in the order of their numbers
        self._recent: OrderedDict[_Run, None] = OrderedDict()  #: used least recently first
        self._size = 0
        self._reads: dict[str, _Read] = {}  #: by topic, the latest read under way

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[Entry]]:
        """What follows these IDs, at most `most` events of each log, perhaps fewer.

        A topic without an entry has none in its log; a topic may be left out,
        then ask again. Raises StoreUnavailable.
        """
        found: dict[str, Sequence[Entry]] = {}
        missing: dict[str, EventID] = {}
        waits: dict[_Read, Deferred[Mapping[str, Sequence[Entry]]]] = {}
        for topic, after in starts.items():
            read = self._reads.get(topic)
            if entries := self._cached(topic, after, most):
                found[topic] = entries
            elif read is None or read.starts[topic] != after:
                missing[topic] = after
            elif read not in waits:
                waits[read] = read.wait()
        if missing:
            read = _Read(missing)
            waits[read] = read.wait()
            self._reads.update(dict.fromkeys(missing, read))
            reading = Deferred.fromCoroutine(self._read(read, most))
            reading.addBoth(read.end)
        if not waits:
            return found
        for read, logs in zip(waits, await gather(list(waits.values())), strict=True):
            for topic, entries in logs.items():
                if topic not in found and starts.get(topic) == read.starts[topic]:
                    found[topic] = entries[:most]
        return found

    async def _read(self, read: _Read, most: int) -> Mapping[str, Sequence[Entry]]:
        try:
            logs = await self._store.read(read.starts, most)
            return {topic: self._add(topic, read.starts[topic], log) for topic, log in logs.items()}
        finally:
            for topic in read.starts:
                if self._reads.get(topic) is read:
                    del self._reads[topic]

    def forget(self, topic: str) -> None:
        """Drop a log: the store may hold other events under the same numbers."""
        for run in self._runs.pop(topic, ()):
            self._size -= run.size
            del self._recent[run]

    def clear(self) -> None:
        """Drop everything."""
        for topic in list(self._runs):
            self.forget(topic)

    # -- the runs

    def _cached(self, topic: str, after: EventID, most: int) -> Sequence[Entry]:
        runs = self._runs.get(topic)
        if runs is None:
            return ()
        index = bisect_right(runs, after.n, key=_NUMBER) - 1
        if index < 0 or after.n - runs[index].after.n >= len(runs[index].entries):
            return ()
        run = runs[index]
        place = run.place_after(after)
        if place is None:
            self.forget(topic)
            return ()
        self._recent.move_to_end(run)
        return run.entries[place : place + most]

    def _add(self, topic: str, after: EventID, log: Sequence[LogEntry]) -> Sequence[Entry]:
        """Keep what was read, unless events are missing in it; returns it in the form for couriers."""
        render = self._render
        entries = [(topic, at, render(fragment, at)) for at, fragment in log]
        if entries and entries[-1][1].n - after.n == len(entries):
            self._keep(topic, after, entries)
        return entries

    def _keep(self, topic: str, after: EventID, entries: Sequence[Entry]) -> None:
        runs = self._runs.setdefault(topic, [])
        index = bisect_right(runs, after.n, key=_NUMBER)
        last = entries[-1][1].n
        if index < len(runs) and runs[index].after.n < last:
            entries = entries[: runs[index].after.n - after.n]  # the rest is in the next run
        if index and (run := runs[index - 1]).after.n + len(run.entries) > after.n:
            return  # another read was faster
        if not entries:
            return
        if not (index and self._continues(run := runs[index - 1], after)):
            run = _Run(topic, after)
            runs.insert(index, run)
            self._recent[run] = None
        size = sum([len(entry[2]) for entry in entries]) + self._entry_bytes * len(entries)
        run.entries.extend(entries)
        run.size += size
        self._size += size
        self._recent.move_to_end(run)
        while self._size > CACHE_BYTES and len(self._recent) > 1:
            self._drop(next(iter(self._recent)))

    def _continues(self, run: _Run, after: EventID) -> bool:
        return len(run.entries) < RUN_EVENTS and bool(run.entries) and run.entries[-1][1] == after

    def _drop(self, run: _Run) -> None:
        del self._recent[run]
        self._size -= run.size
        self._runs[run.topic].remove(run)
        if not self._runs[run.topic]:
            del self._runs[run.topic]

