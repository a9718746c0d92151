"""Topics on Redis: publishing, settings, lists, and where an event is.

A topic belongs to the first client that publishes to it or sets what it keeps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from routemaster.errors import StoreUnavailable
from routemaster.hints import TopicConfigured
from routemaster.model import (
    Cursor,
    EventID,
    Published,
    TopicBacklog,
    TopicDetails,
    TopicInfo,
    TopicSettings,
    Whereabouts,
)
from routemaster.redis.errors import ScriptRefusal
from routemaster.redis.wait_replicas import Replication
from routemaster.store import codec, refusals
from routemaster.store.codec import parked_member
from routemaster.store.commands import BUNDLE, Commands
from routemaster.store.upkeep import Upkeep
from routemaster.store.whereabouts import whereabouts
from routemaster.util.chunks import chunks


class TopicStore(Upkeep):
    """The calls of `interfaces.Store` for topics."""

    def __init__(
        self, redis: Commands, out: Commands, replication: Replication | None, max_topics: int, traces: bool
    ) -> None:
        """`out`: for what must reach the replicas; see `RedisStore`."""
        super().__init__(redis)
        self._out, self._replication, self._max_topics, self._traces = out, replication, max_topics, traces

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        arguments = publisher.encode(), self._keys.wakeups, topic.encode()
        append = partial(self._out.run, "publish", self._keys.topic(topic), *arguments)
        traced = b" traced" if self._traces else b""
        values = codec.traced(fragments) if traced else fragments
        first, last = await self._write(topic, publisher, lambda how: append(how + traced, *values))
        if self._replication is not None:
            await self._replication.reached()
        return Published(EventID.parse(first), EventID.parse(last))

    async def _write(self, topic: str, publisher: str | None, write: Callable[[bytes], Awaitable[Any]]) -> Any:
        """The reply of a script that writes to a client's topic, and creates it only if given `create`.

        A name that is free is claimed for the client; root (None) claims none.
        """
        try:
            try:
                reply = await write(b"")
            except ScriptRefusal as refusal:
                if refusal.code != "NOTOPIC" or publisher is None:
                    raise
                await self._claim(topic, publisher)
                self._indexed.discard(topic)
                try:
                    reply = await write(b"create")
                except ScriptRefusal:  # another client was faster
                    await self._out.command(b"SREM", self._keys.owned(publisher), topic.encode())
                    raise
        except ScriptRefusal as refusal:
            if refusal.code == "TOOMANY":
                raise refusals.too_many_topics(self._max_topics) from None
            raise refusals.named(refusal.code, topic) from None
        except StoreUnavailable:
            # the script may have created the topic again after `clean_up` removed its name
            self._indexed.discard(topic)
            raise
        if topic not in self._indexed:
            self._indexed.add(topic)
            # once more: `clean_up` may have removed the name as stale since `_claim` wrote it
            named = self._out.command(b"SADD", self._keys.topics, topic.encode())
            named.addErrback(lambda _failure: self._indexed.discard(topic))
        return reply

    async def _claim(self, topic: str, publisher: str) -> None:
        """Count a topic that is to be created among the client's, and name it in the index."""
        owned, most = self._keys.owned(publisher), b"%d" % self._max_topics
        await self._out.run("claim", (owned,), topic.encode(), most)
        await self._out.command(b"SADD", self._keys.topics, topic.encode())

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        try:
            owner = await self._redis.run("delete_topic", self._keys.topic(topic), (publisher or "").encode())
        except ScriptRefusal as refusal:
            raise refusals.named(refusal.code, topic) from None
        with refusals.after_a_write():
            await self._redis.command(b"SREM", self._keys.owned(owner.decode()), topic.encode())
            await self._tidy_topic(topic)

    async def topics(self) -> list[TopicInfo]:
        return [info async for some in self.each_topic() for info in some]

    async def each_topic(self) -> AsyncIterator[Sequence[TopicInfo]]:
        for names in chunks(await self._redis.names(self._keys.topics), BUNDLE):
            bundles = self._redis.bundles(names, self._meta)
            replies = await self._redis.run_bundles(
                "topics", bundles, lambda topic: (self._meta(topic),), b"publisher", b"tail", b"base"
            )
            infos = [
                TopicInfo(name, publisher.decode(), EventID.parse(tail).n - int(base))
                for bundle, reply in replies
                for name, publisher, tail, base in zip(
                    bundle, reply[::3], reply[1::3], reply[2::3], strict=True
                )
                if publisher
            ]
            yield sorted(infos, key=lambda info: info.name)

    async def configure_topic(self, topic: str, publisher: str | None, settings: TopicSettings) -> None:
        """See `Administration.configure_topic`."""
        values = (settings.history, settings.history_events, settings.max_data)
        numbers = [b"" if value is None else b"%d" % value for value in values]
        put = partial(self._out.run, "set_topic", self._keys.topic(topic), (publisher or "").encode())
        await self._write(topic, publisher, lambda how: put(how, *numbers))
        with refusals.after_a_write():
            how = b"SREM" if settings.max_data is None else b"SADD"
            await self._out.command(how, self._keys.large_topics, topic.encode())
            await self._redis.hint(TopicConfigured(topic))

    async def large_topics(self) -> set[str]:
        """See `Administration.large_topics`."""
        return set(await self._redis.names(self._keys.large_topics))

    async def topic_settings(self, name: str) -> TopicSettings | None:
        """See `Administration.topic_settings`."""
        fields = b"publisher", b"history", b"history_events", b"max_data"
        publisher, *values = await self._redis.command(b"HMGET", self._meta(name), *fields)
        return codec.topic_settings(*values) if publisher else None

    async def topic(self, name: str, backlogs: bool = False) -> TopicDetails:
        """See `Administration.topic`."""
        meta, log, cursors = self._keys.topic(name)
        fields = b"publisher", b"tail", b"base", b"history", b"history_events", b"max_data"
        publisher, tail, base, *values = await self._redis.command(b"HMGET", meta, *fields)
        if not publisher:
            raise refusals.no_topic(name)
        head = await self._redis.command(b"XRANGE", log, b"-", b"+", b"COUNT", b"1")
        last = EventID.parse(tail)
        return TopicDetails(
            info=TopicInfo(name, publisher.decode(), last.n - int(base)),
            settings=codec.topic_settings(*values),
            first=EventID.parse(head[0][0]) if head else None,
            last=last if last.n > int(base) else None,
            backlogs=await self._backlogs(name, cursors) if backlogs else (),
        )

    async def _backlogs(self, name: str, cursors: bytes) -> list[TopicBacklog]:
        found = []
        for some in chunks(sorted(await self._redis.command(b"HKEYS", cursors)), BUNDLE):
            _publisher, tail, flat = await self._redis.run("backlog", self._keys.topic(name), *some)
            for subscriber, text, oldest in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
                at = EventID.parse(oldest).us / 1e6 if oldest else None
                queued = Cursor.parse(text).backlog(EventID.parse(tail))
                found.append(TopicBacklog(subscriber.decode(), queued, at))
        return found

    async def whereabouts(self, topic: str, event: EventID) -> list[Whereabouts]:
        """See `Administration.whereabouts`."""
        meta, _log, cursors = self._keys.topic(topic)
        tail = await self._redis.command(b"HGET", meta, b"tail")
        found: list[Whereabouts] = []
        if tail is None or event.n > EventID.parse(tail).n:
            return found
        # the cursors before the cuts: an event that is passed meanwhile is queued in the answer
        known = sorted((await self._redis.fields(cursors)).items())
        for some in chunks(known, BUNDLE):
            cuts: list[Any] = await self._redis.command(b"HMGET", meta, *(b"cuts:" + name for name, _ in some))
            for (name, text), cut in zip(some, cuts, strict=True):
                place = whereabouts(name.decode(), Cursor.parse(text), (cut or b"").decode(), event)
                found.append(await self._parked_place(topic, event, place) if place.state == "parked" else place)
        return found

    async def _parked_place(self, topic: str, event: EventID, place: Whereabouts) -> Whereabouts:
        """Where an event is that was parked: it may be tried again, or gone."""
        member = parked_member(topic, event)
        _hashed, order, retried = self._keys.parked(place.subscriber)
        if await self._redis.command(b"ZSCORE", retried, member):
            return Whereabouts(place.subscriber, "queued")
        is_parked = await self._redis.command(b"ZSCORE", order, member)
        return place if is_parked else Whereabouts(place.subscriber, "unknown")
