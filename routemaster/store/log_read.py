"""Reads logs and a subscriber's positions, in calls that are small: none blocks Redis for long.

A call carries at most `CALL_EVENTS` events, `CALL_BYTES` bytes and
`CALL_TOPICS` topics, whatever a subscriber asked for; a longer read takes
several calls, between which Redis serves others. On a cluster a call reads
topics of one slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.interfaces import LogEntry, Positions
from routemaster.model import EventID
from routemaster.store import codec
from routemaster.store.commands import Commands
from routemaster.util.gather import gather

CALL_EVENTS = 256
CALL_BYTES = 256 * 1024  #: of fragments; the event that reaches it is the last
CALL_TOPICS = 256


class LogReader:
    """`interfaces.Store.positions` and `interfaces.Store.read`."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        """See `interfaces.Store.positions`."""
        bundles = self._redis.bundles(topics, self._log, CALL_TOPICS)
        replies = await gather(
            self._redis.run(
                "positions",
                [key for topic in bundle for key in self._keys.topic(topic)[::2]],
                subscriber.encode(),
            )
            for bundle in bundles
        )
        found = {
            topic: codec.position(cursor, tail)
            for bundle, (_now, *pairs) in zip(bundles, replies, strict=True)
            for topic, cursor, tail in zip(bundle, pairs[::2], pairs[1::2], strict=True)
        }
        return Positions(found, min((int(now) for now, *_ in replies), default=0))

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[LogEntry]]:
        """See `interfaces.Store.read`."""
        most = min(most, CALL_EVENTS)
        bundles = self._redis.bundles(starts, self._log, max(1, CALL_EVENTS // most))
        replies = await gather(
            self._redis.run(
                "read", [self._log(topic) for topic in bundle], b"%d" % most, b"%d" % CALL_BYTES,
                *(bytes(starts[topic]) for topic in bundle),
            )
            for bundle in bundles
        )  # fmt: skip
        return {
            topic: list(zip(map(EventID.parse, flat[::2]), flat[1::2], strict=True))
            for bundle, reply in zip(bundles, replies, strict=True)
            for topic, flat in zip(bundle, reply, strict=False)
        }

    def _log(self, topic: str) -> bytes:
        return self._keys.topic(topic)[1]
