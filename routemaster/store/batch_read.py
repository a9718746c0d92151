"""How the events that a subscriber is owed are read: in one call, or put together from several.

Topics that lie together, on a single Redis all, are read by one script as one
snapshot. For those that do not, `merging` says what may be taken from each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred

from routemaster.interfaces import Position, ReadResult
from routemaster.model import Cursor, EventID
from routemaster.store.batch_merge import Entry, Part, merged, share
from routemaster.store.commands import Commands
from routemaster.util.gather import gather

Start = Mapping[str, EventID | None]


class Readings:
    """Reads, for `interfaces.Store.read`."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys

    async def read(self, subscriber: str, after: Start, most: int, most_bytes: int) -> ReadResult:
        """The oldest events that are owed from these topics."""
        bundles = self._redis.bundles(after, lambda topic: self._keys.topic(topic)[0])
        if not bundles:
            return ReadResult((), {})
        if len(bundles) == 1:
            part, places = await self._part(subscriber, bundles[0], after, most, most_bytes)
            return ReadResult(part.entries, places)
        count = len(bundles)
        reading, good = await self._together(
            subscriber, bundles, after, (share(most, count), share(most_bytes, count)), (most, most_bytes)
        )
        if not good:
            limits = most, most_bytes
            reading, _ = await self._together(subscriber, bundles, after, limits, limits, final=True)
        return reading

    async def _together(
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
        return ReadResult(entries, {topic: place for _, places in read for topic, place in places.items()}), good

    async def _part(
        self, subscriber: str, topics: Sequence[str], after: Start, most: int, most_bytes: int
    ) -> tuple[Part, dict[str, Position]]:
        """What one script reads."""
        keys = [key for topic in topics for key in self._keys.topic(topic)]
        starts = [bytes(start) if (start := after[topic]) else b"" for topic in topics]
        *places, picked, cut, now = await self._redis.run(
            "read", keys, subscriber.encode(), b"%d" % most, b"%d" % most_bytes, *starts
        )
        parse = EventID.parse
        entries: list[Entry] = [
            (topics[place], parse(entry_id), fragment)
            for place, entry_id, fragment in zip(picked[::3], picked[1::3], picked[2::3], strict=True)
        ]
        return Part(entries, bool(cut), int(now)), {
            topic: Position(Cursor.parse(cursor) if cursor else None, parse(tail) if tail else None)
            for topic, (cursor, tail) in zip(topics, places, strict=True)
        }
