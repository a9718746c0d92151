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

CALL_EVENTS = 256
CALL_BYTES = 256 * 1024  #: of fragments; the event that reaches it is the last
CALL_TOPICS = 256


class LogReader:
    """`interfaces.Store.positions` and `interfaces.Store.read`."""

    def __init__(self, redis: Commands, traces: bool = False) -> None:
        """`traces`: as for `RedisStore`."""
        self._redis, self._keys = redis, redis.keys
        self._how, self._entries = (b"traced", codec.traced_entries) if traces else (b"", codec.entries)

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        """See `interfaces.Store.positions`."""
        bundles = self._redis.bundles(topics, self._log, CALL_TOPICS)
        replies = await self._redis.run_bundles(
            "positions", bundles, lambda topic: self._keys.topic(topic)[::2], subscriber.encode()
        )
        found = {
            topic: codec.position(cursor, tail)
            for bundle, (_now, *pairs) in replies
            for topic, cursor, tail in zip(bundle, pairs[::2], pairs[1::2], strict=True)
        }
        return Positions(found, min((int(now) for _, (now, *_rest) in replies), default=0))

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[LogEntry]]:
        """See `interfaces.Store.read`."""
        most = min(most, CALL_EVENTS)
        bundles = self._redis.bundles(starts, self._log, max(1, CALL_EVENTS // most))
        replies = await self._redis.run_bundles(
            "read", bundles, lambda topic: (self._log(topic),), b"%d" % most, b"%d" % CALL_BYTES,
            self._how, each=lambda topic: bytes(starts[topic]),
        )  # fmt: skip
        # as if empty, if the key is of the wrong type: who reads again and again would never end
        broken = starts.keys() - {topic for bundle, _ in replies for topic in bundle}
        read: dict[str, Sequence[LogEntry]] = dict.fromkeys(broken, ())
        for bundle, reply in replies:
            for topic, flat in zip(bundle, reply, strict=False):
                read[topic] = self._entries(flat)
        return read

    def _log(self, topic: str) -> bytes:
        return self._keys.topic(topic)[1]
