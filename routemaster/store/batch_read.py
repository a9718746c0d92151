"""Reads the batch that a subscriber is to receive next: in one call, or merged from several.

`read.lua` reads topics that lie in one slot (on a single Redis: all topics)
as one snapshot. On a cluster each slot is read by a call of its own, while
new events arrive, so an event may be missing that is older than one that was
read: its node was read before it was accepted. To keep the order across
topics, each part carries the time of its reading by its node's clock. The
earliest of these times is the horizon: up to it no event is missing. Newer
events wait for the next reading.

This relies on the nodes' clocks: an event may come before an older one by no
more than the clocks differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge

from attrs import frozen
from twisted.internet.defer import Deferred

from routemaster.interfaces import Position, ReadResult
from routemaster.model import EventID
from routemaster.store import codec
from routemaster.store.commands import Commands
from routemaster.util.gather import gather

Start = Mapping[str, EventID | None]  #: by topic: skip the events up to this ID
Entry = tuple[str, EventID, bytes]  #: topic, ID, fragment


class BatchReader:
    """Reads batches: `interfaces.Store.read`."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys

    async def read(self, subscriber: str, after: Start, most: int, most_bytes: int) -> ReadResult:
        """See `interfaces.Store.read`."""
        bundles = self._redis.bundles(after, lambda topic: self._keys.topic(topic)[0])
        if not bundles:
            return ReadResult((), {})
        if len(bundles) == 1:
            part, positions = await self._part(subscriber, bundles[0], after, most, most_bytes)
            return ReadResult(part.entries, positions)
        count = len(bundles)
        result, good = await self._merge(
            subscriber, bundles, after, (share(most, count), share(most_bytes, count)), (most, most_bytes)
        )
        if not good:
            limits = most, most_bytes
            result, _ = await self._merge(subscriber, bundles, after, limits, limits, final=True)
        return result

    async def _merge(
        self,
        subscriber: str,
        bundles: Sequence[Sequence[str]],
        after: Start,
        of_each: tuple[int, int],
        limits: tuple[int, int],
        final: bool = False,
    ) -> tuple[ReadResult, bool]:
        read = await gather(
            Deferred.fromCoroutine(self._part(subscriber, bundle, after, *of_each)) for bundle in bundles
        )
        entries, good = merged([part for part, _ in read], *limits, final)
        positions = {topic: position for _, some in read for topic, position in some.items()}
        return ReadResult(entries, positions), good

    async def _part(
        self, subscriber: str, topics: Sequence[str], after: Start, most: int, most_bytes: int
    ) -> tuple[Part, dict[str, Position]]:
        """The events of topics in one slot, read by one script, and the positions there."""
        keys = [key for topic in topics for key in self._keys.topic(topic)]
        starts = [bytes(start) if (start := after[topic]) else b"" for topic in topics]
        *positions, picked, cut, now = await self._redis.run(
            "read", keys, subscriber.encode(), b"%d" % most, b"%d" % most_bytes, *starts
        )
        parse = EventID.parse
        entries: list[Entry] = [
            (topics[index], parse(entry_id), fragment)
            for index, entry_id, fragment in zip(picked[::3], picked[1::3], picked[2::3], strict=True)
        ]
        return Part(entries, bool(cut), int(now)), {
            topic: codec.position(cursor, tail) for topic, (cursor, tail) in zip(topics, positions, strict=True)
        }


@frozen
class Part:
    """The oldest events of topics in one slot, in order of acceptance."""

    entries: Sequence[Entry]
    cut: bool  #: the limits ended it: more events are stored
    now: int   #: when it was read: microseconds since the epoch, by the node's clock


def share(whole: int, parts: int) -> int:
    """The limit for each part of several: together enough, without reading all of them in full."""
    return min(whole, 2 * whole // parts + 8)


def merged(parts: Sequence[Part], most: int, most_bytes: int, final: bool) -> tuple[list[Entry], bool]:
    """The oldest events of all parts, and whether they are a usable batch.

    At most `most` events and, after the first, `most_bytes` of fragments.
    The batch is not usable if a part that was cut ran out of events, or if
    every event is newer than the horizon: then read again with full limits.
    With `final` every batch is usable.
    """
    horizon = min(part.now for part in parts)
    taken: list[Entry] = []
    for us, entry, is_end in merge(*map(_stamped, parts), key=lambda stamped: stamped[0]):
        if us > horizon and (taken or not final):
            return taken, bool(taken)
        most_bytes -= len(entry[2]) + 1
        if taken and most_bytes < 0:
            break
        taken.append(entry)
        if len(taken) == most:
            break
        if is_end:
            return taken, final
    return taken, True


def _stamped(part: Part) -> Iterator[tuple[int, Entry, bool]]:
    """Each event with its time, and whether it is the last event of a part that was cut."""
    last = len(part.entries) - 1
    for index, entry in enumerate(part.entries):
        yield entry[1].us, entry, part.cut and index == last
