"""How the cursors in the topics are made to follow what subscriptions want.

A subscription's own keys say what it wants: its *stays* in topics. A topic's
cursors say what is so. The two lie in different keys, so no step changes both
at once; instead each prefix of the steps is harmless, each step carries the
version of the subscription for which it speaks, so that it changes nothing
when it comes late, and whoever finds a difference may finish the work, at any
time and any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.interfaces import Membership
from routemaster.model import Cursor
from routemaster.redis.connection import ScriptRefusal
from routemaster.store import codec
from routemaster.store.commands import AT_ONCE, Commands
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather, gather_outcomes


class MembershipSync:
    """Begins, ends and repairs stays, and drops names that mean nothing any more."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys

    async def follow(self, subscriber: str, stays: Mapping[str, Membership]) -> None:
        """Make the topics' cursors follow the subscription.

        Each learns the version with which the client last spoke of the topic,
        so that an older step that is still on its way changes nothing, and so
        that a stay which the topic's deletion has ended since is not begun again.
        """
        steps: list[Deferred[Any]] = []
        for topic, cursor in (await self._cursors(subscriber, stays)).items():
            stay = stays[topic]
            if stay.state == "gone":
                steps.append(self._forget(subscriber, topic, stay.id, stay.version, b"all"))
            elif cursor is None or cursor.version < stay.version:
                script = "join" if stay.state == "on" else "leave"
                identity = (subscriber.encode(), b"%d" % stay.id, b"%d" % stay.version)
                steps.append(self._redis.run(script, self._keys.topic(topic), *identity))
        for outcome in await gather_outcomes(steps):
            # a topic deleted in between: the subscription came first, and ended with it
            if isinstance(outcome, Exception) and not isinstance(outcome, ScriptRefusal):
                raise outcome
        await self.retire(subscriber, stays)

    async def _cursors(self, subscriber: str, topics: Iterable[str]) -> dict[str, Cursor | None]:
        names = list(topics)
        texts = await gather(
            self._redis.command(b"HGET", self._keys.topic(topic)[2], subscriber.encode()) for topic in names
        )
        return {
            topic: Cursor.parse(text) if text else None for topic, text in zip(names, texts, strict=True)
        }

    async def retire(self, subscriber: str, stays: Mapping[str, Membership]) -> None:
        """End the stays in which nothing is owed any more; then the subscriber, if none is left."""
        arguments = []
        for topic, cursor in (await self._cursors(subscriber, stays)).items():
            stay = stays[topic]
            if cursor is None or not cursor.spans or stay.state == "gone":
                seen = f"{stay.id} {stay.version} {stay.state}"
                sent, dropped = (cursor.sent, cursor.dropped) if cursor else (0, 0)
                arguments += [topic.encode(), seen.encode(), b"%d" % sent, b"%d" % dropped]
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber))
        gone, *ended = await self._redis.run("fold", keys, *arguments)
        if gone:
            await self.drop_name(self._keys.subscribers, subscriber)
        await gather(
            self._forget(subscriber, topic, stays[topic].id, stays[topic].version, b"settled")
            for topic in (name.decode() for name in ended)
        )

    def _forget(self, subscriber: str, topic: str, membership: int, version: int, how: bytes) -> Deferred[Any]:
        return self._redis.run(
            "forget", self._keys.topic(topic), subscriber.encode(), b"%d" % membership, b"%d" % version, how
        )

    async def drop_name(self, index: bytes, name: str) -> None:
        """Take a name out of an index, unless it has come to mean something again."""
        await self._redis.command(b"SREM", index, name.encode())
        is_topic = index == self._keys.topics
        meta = self._keys.topic(name)[0] if is_topic else self._keys.subscriber(name)[0]
        if await self._redis.command(b"EXISTS", meta):
            await self._redis.command(b"SADD", index, name.encode())

    async def tidy_topic(self, topic: str) -> bool:
        """Trim a log, end what is over in the topic, and forget what nobody knows of; whether it still exists."""
        exists, *pairs = await self._redis.run("trim", self._keys.topic(topic))
        if not exists:
            await self.drop_name(self._keys.topics, topic)
        for some in chunks(list(zip(pairs[::2], pairs[1::2], strict=True)), AT_ONCE):
            names = [name.decode() for name, _ in some]
            stays = await gather(
                self._redis.command(b"HGET", self._keys.subscriber(name)[1], topic.encode()) for name in names
            )
            for subscriber, (_, text), stay in zip(names, some, stays, strict=True):
                cursor = Cursor.parse(text)
                if stay is None:
                    await self._forget(subscriber, topic, cursor.membership, cursor.version, b"all")
                elif not cursor.open:
                    await self.repair(subscriber)
                    await self._redis.hint(f"s {subscriber}")
        return bool(exists)

    async def repair(self, subscriber: str) -> None:
        """`interfaces.Store.repair`."""
        meta, wanted = await self._redis.run("subscribers", self._keys.subscriber(subscriber))
        if meta:
            await self.follow(subscriber, codec.stays(wanted))
