"""The store's upkeep: counters, leader locks, statistics, dropping events, clean-up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from routemaster.errors import RoutemasterError, StoreUnavailable, WrongType
from routemaster.model import EventID, StoreStats
from routemaster.redis.errors import NotPermitted
from routemaster.store import codec
from routemaster.store.commands import AT_ONCE, BUNDLE, Commands
from routemaster.store.membership_sync import MembershipSync
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather, gather_available

HEADS = 8  #: topics in one call that walks their first events


class Upkeep:
    """The calls of `interfaces.Store` that no publisher, subscriber or worker depends on to make progress."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys
        self._memberships = MembershipSync(redis)
        self._indexed: set[str] = set()  #: topics whose names this process has written to the index

    def _meta(self, topic: str) -> bytes:
        return self._keys.topic(topic)[0]

    def _log_key(self, topic: str) -> tuple[bytes, ...]:
        return (self._keys.topic(topic)[1],)

    async def refuse_part_of_a_move(self) -> None:
        """Raise RoutemasterError if `move-redis` has begun to move keys to this Redis, and is not done."""
        source = None
        with suppress(StoreUnavailable, WrongType):
            source = await self._redis.command(b"HGET", self._keys.move, b"from")
        if source is not None:
            raise RoutemasterError(
                f"Redis has only a part of what is moved from {source.decode('utf-8', 'replace')}: complete that "
                "with routemaster-admin move-redis"
            )

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        await self._redis.run("count", (self._keys.counters,), *codec.pairs(counts))

    async def counts(self) -> dict[str, int]:
        return codec.numbers(await self._redis.fields(self._keys.counters))

    async def reported(self) -> dict[str, int]:
        return codec.numbers(await self._redis.fields(self._keys.reported))

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        await self._redis.run("report", (self._keys.reported,), *codec.pairs(counts))

    async def elect_leader(self, task: str, process: str, seconds: float) -> bool:
        life = b"%d" % round(seconds * 1000)
        return bool(await self._redis.run("elect", (self._keys.leader_lock(task),), process.encode(), life))

    async def repair(self, subscriber: str) -> None:
        await self._memberships.repair(subscriber, count_dropped=True)
        self._memberships.log_losses()

    async def stats(self) -> list[StoreStats]:
        nodes = self._redis.nodes
        replies = await gather_available(
            gather(node.command(*words) for words in ((b"INFO", b"memory"), (b"INFO", b"cpu"), (b"TIME",)))
            .addErrback(lambda failure: failure.trap(NotPermitted) and None)  # an optional right
            for node in nodes.values()
        )  # fmt: skip
        return [
            codec.figures(reply[0] + reply[1], reply[2], node)
            for node, reply in zip(nodes, replies, strict=True)
            if reply
        ]

    async def _topics_on(self, node: str) -> list[str]:
        topics = await self._redis.names(self._keys.topics)
        return [topic for topic in topics if not node or self._redis.node_of(self._meta(topic)) == node]

    async def log_bytes(self, node: str = "") -> int:
        bundles = self._redis.bundles(await self._topics_on(node), self._meta, AT_ONCE)
        replies = await self._redis.run_bundles("sizes", bundles, self._log_key)
        return sum(sum(sizes) for _topics, sizes in replies)

    async def drop_oldest(self, most: int, node: str = "") -> int:
        bundles = self._redis.bundles(await self._topics_on(node), self._meta, HEADS)
        # first what is kept though no subscriber waits for it
        return await self._drop_history(bundles, most) or await self._drop_owed(bundles, most)

    async def _drop_history(self, bundles: Sequence[Sequence[str]], most: int) -> int:
        replies = await self._redis.run_bundles("topics", bundles, lambda topic: (self._meta(topic),), b"history")
        kept = [topic for bundle, values in replies for topic, value in zip(bundle, values, strict=True) if value]
        found = await self._redis.run_bundles(
            "free", self._redis.bundles(kept, self._meta, HEADS), self._keys.topic, b"%d" % most
        )
        lasts = {
            topic: EventID.parse(last)
            for bundle, reply in found
            for topic, last in zip(bundle, reply, strict=True)
            if last
        }
        time = min((last.us for last in lasts.values()), default=0)
        # of several events of this time, a subscriber may wait for those behind the last
        limits = {topic: bytes(last) if last.us == time else b"%d" % time for topic, last in lasts.items()}
        return await self._drop(limits, most)

    async def _drop_owed(self, bundles: Sequence[Sequence[str]], most: int) -> int:
        replies = await self._redis.run_bundles("heads", bundles, self._log_key, b"%d" % most)
        ends = {
            topic: ends for bundle, reply in replies for topic, ends in zip(bundle, reply, strict=True) if ends
        }
        # up to this time no log holds more than `most` events
        time = min((EventID.parse(last).us for _first, last in ends.values()), default=0)
        return await self._drop(dict.fromkeys(ends, b"%d" % time), most)

    async def _drop(self, limits: Mapping[str, bytes], most: int) -> int:
        dropped = 0
        for topic, limit in limits.items():
            dropped += await self._redis.run("drop", self._log_key(topic), limit, b"%d" % most)
        return dropped

    async def clean_up(self) -> None:
        owned: defaultdict[str, set[str]] = defaultdict(set)
        try:
            for topic in await self._redis.names(self._keys.topics):
                with self._skip_unavailable(), suppress(WrongType):
                    if publisher := await self._tidy_topic(topic):
                        owned[publisher].add(topic)
        finally:
            self._memberships.log_losses()
        for publisher, topics in owned.items():
            with self._skip_unavailable(), suppress(WrongType):  # it is logged
                await self._correct_owned(publisher, topics)
        with self._skip_unavailable():
            await self._correct_large_topics()
        for some in chunks(await self._redis.names(self._keys.subscribers), AT_ONCE):
            with self._skip_unavailable():
                known = await gather_available(
                    self._redis.command(b"EXISTS", self._keys.subscriber(subscriber)[0]) for subscriber in some
                )
                for subscriber, exists in zip(some, known, strict=True):
                    if exists == 0:
                        await self._memberships.drop_name(self._keys.subscribers, subscriber)

    def _skip_unavailable(self) -> AbstractContextManager[None]:
        """On a cluster the nodes that answer are cleaned up; on a single Redis the error is raised."""
        return suppress(*((StoreUnavailable,) if len(self._redis.nodes) > 1 else ()))

    async def _tidy_topic(self, topic: str) -> str | None:
        publisher = await self._memberships.tidy_topic(topic)
        if publisher is None:
            self._indexed.discard(topic)
        return publisher

    async def _correct_large_topics(self) -> None:
        """Remove the names of topics that have no `max_data`: deleted ones."""
        large = await self._redis.names(self._keys.large_topics)
        if stale := await self._without_limit(large):
            await self._redis.command(b"SREM", self._keys.large_topics, *(topic.encode() for topic in stale))
            # a topic may have been set since it was read
            if again := set(stale) - set(await self._without_limit(stale)):
                await self._redis.command(b"SADD", self._keys.large_topics, *(topic.encode() for topic in again))

    async def _without_limit(self, topics: Iterable[str]) -> list[str]:
        bundles = self._redis.bundles(topics, self._meta, AT_ONCE)
        replies = await self._redis.run_bundles("topics", bundles, lambda topic: (self._meta(topic),), b"max_data")
        return [topic for some, limits in replies for topic, limit in zip(some, limits, strict=True) if not limit]

    async def _correct_owned(self, publisher: str, topics: set[str]) -> None:
        """Count a client's topics anew: another version may have made some, or a call may have ended half way."""
        key = self._keys.owned(publisher)
        counted = set(await self._redis.names(key))
        for some in chunks(topics - counted, BUNDLE):
            await self._redis.command(b"SADD", key, *(topic.encode() for topic in some))
        # those added as well: a topic may have been deleted since it was read
        bundles = self._redis.bundles(counted ^ topics, self._meta, AT_ONCE)
        for names, owners in await self._redis.run_bundles(
            "topics", bundles, lambda topic: (self._meta(topic),), b"publisher"
        ):
            owned = (owner == publisher.encode() for owner in owners)
            stale = [topic.encode() for topic, is_owned in zip(names, owned, strict=True) if not is_owned]
            if stale:
                await self._redis.command(b"SREM", key, *stale)
