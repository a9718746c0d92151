"""Reads logs and a subscriber's positions, in calls that are small: none blocks Redis for long.

A call carries at most `CALL_EVENTS` events, `CALL_BYTES` bytes and
`CALL_TOPICS` topics, whatever a subscriber asked for; a longer read takes
several calls, between which Redis serves others. On a cluster a call reads
topics of one slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.interfaces import LogEntry, Position, Positions
from routemaster.model import EventID
from routemaster.store import codec
from routemaster.store.commands import AT_ONCE, Commands
from routemaster.util.chunks import chunks

CALL_EVENTS = 256
CALL_BYTES = 256 * 1024  #: of fragments; the event that reaches it is the last
CALL_TOPICS = 256


class LogReader:
    """`interfaces.Store.positions` and `interfaces.Store.read`."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        """See `interfaces.Store.positions`."""
        found: dict[str, Position] = {}
        as_of: list[int] = []
        for bundles in chunks(self._redis.bundles(topics, self._log, CALL_TOPICS), AT_ONCE):
            replies = await self._redis.run_bundles(
                "positions", bundles, lambda topic: self._keys.topic(topic)[::2], subscriber.encode()
            )
            for bundle, (now, *pairs) in replies:
                as_of.append(int(now))
                for topic, cursor, tail in zip(bundle, pairs[::2], pairs[1::2], strict=True):
                    found[topic] = codec.position(cursor, tail)
        return Positions(found, min(as_of, default=0))

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[LogEntry]]:
        """See `interfaces.Store.read`."""
        most = min(most, CALL_EVENTS)
        bundles = self._redis.bundles(starts, self._log, max(1, CALL_EVENTS // most))
        read: dict[str, Sequence[LogEntry]] = {}
        for some in chunks(bundles, AT_ONCE):
            replies = await self._redis.run_bundles(
                "read", some, lambda topic: (self._log(topic),), b"%d" % most, b"%d" % CALL_BYTES,
                each=lambda topic: bytes(starts[topic]),
            )  # fmt: skip
            if broken := {topic for bundle in some for topic in bundle}.difference(*(b for b, _ in replies)):
                read |= dict.fromkeys(broken, ())  # as if empty: who reads again and again would never end
            for bundle, reply in replies:
                for topic, flat in zip(bundle, reply, strict=False):
                    read[topic] = list(zip(map(EventID.parse, flat[::2]), flat[1::2], strict=True))
        return read

    def _log(self, topic: str) -> bytes:
        return self._keys.topic(topic)[1]
