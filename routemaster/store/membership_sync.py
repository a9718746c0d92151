"""Makes the cursors in the topics follow the memberships that subscriptions want.

A subscriber's own keys hold the memberships it wants; each topic holds a
cursor for each subscriber. These are different keys, so no script changes
both at once. Instead every prefix of the steps is harmless, and every step
carries the version of the subscription that it stands for, so that a late
step changes nothing. Any process may finish the work, at any time and any
number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.errors import WrongType
from routemaster.hints import EventsDropped, SubscriptionChanged
from routemaster.interfaces import Membership
from routemaster.model import Cursor, EventID
from routemaster.redis.errors import ScriptRefusal
from routemaster.store import codec
from routemaster.store.commands import AT_ONCE, Commands
from routemaster.store.losses import log_losses
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather, gather_outcomes


class MembershipSync:
    """Starts, ends and repairs memberships, and removes stale names from the indexes."""

    def __init__(self, redis: Commands) -> None:
        self._redis, self._keys = redis, redis.keys
        self._losses: Counter[str] = Counter()  #: events counted as dropped and not logged yet

    async def follow(
        self, subscriber: str, memberships: Mapping[str, Membership], awaits: bool = False, start: bytes = b""
    ) -> None:
        """Bring the topics' cursors in line with the subscription, which may await topics that do not exist.

        Each cursor stores the version of the client's last change of the
        topic, so that a late, older step changes nothing, and a membership
        that the topic's deletion ended does not start again. `start`: where
        new memberships begin, see `join.lua`. Raises WrongType
        if a topic has a key of the wrong type, after the work on the others.
        """
        cursors = await self._cursors(subscriber, memberships)

        def steps() -> Iterator[Deferred[Any]]:
            for topic, cursor in cursors.items():
                membership = memberships[topic]
                if membership.state == "gone":
                    yield self._forget(subscriber, topic, membership.id, membership.version, b"all")
                elif cursor is None or cursor.version < membership.version:
                    identity = (subscriber.encode(), b"%d" % membership.id, b"%d" % membership.version)
                    keys, how = self._keys.topic(topic), b"await" if awaits else b""
                    yield (
                        self._redis.run("join", keys, *identity, how, start) if membership.state == "on"
                        else self._redis.run("leave", keys, *identity)
                    )

        for outcome in await gather_outcomes(steps()):
            # refused: the topic was deleted meanwhile, which ended the membership
            if isinstance(outcome, Exception) and not isinstance(outcome, ScriptRefusal):
                raise outcome
        await self.retire(subscriber, memberships)
        if broken := memberships.keys() - cursors.keys():
            raise WrongType(f"topics with a key of the wrong type: {', '.join(sorted(broken))}")

    async def _cursors(self, subscriber: str, topics: Iterable[str]) -> dict[str, Cursor | None]:
        """The subscriber's cursors; topics with a key of the wrong type are left out."""

        def cursor(topic: Sequence[str]) -> Deferred[Any]:
            return self._redis.command(b"HGET", self._keys.topic(topic[0])[2], subscriber.encode())

        replies = await gather(Deferred.fromCoroutine(self._redis.tolerant([each], cursor)) for each in topics)
        return {topic: Cursor.parse(text) if text else None for reply in replies for (topic,), text in reply}

    async def retire(self, subscriber: str, memberships: Mapping[str, Membership]) -> None:
        """End the memberships without backlog; remove a deleted subscriber with its last membership."""
        arguments = []
        for topic, cursor in (await self._cursors(subscriber, memberships)).items():
            membership = memberships[topic]
            if cursor is None or not cursor.spans or membership.state == "gone":
                seen = f"{membership.id} {membership.version} {membership.state}"
                counts = (cursor.sent, *cursor.counts[:4]) if cursor else (0,) * 5
                arguments += [topic.encode(), seen.encode(), *(b"%d" % count for count in counts)]
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber), *self._keys.others(subscriber))
        gone, *ended = await self._redis.run("prune", keys, *arguments)
        if gone:
            await self.drop_name(self._keys.subscribers, subscriber)
        await gather(
            self._forget(subscriber, topic, memberships[topic].id, memberships[topic].version, b"settled")
            for topic in (name.decode() for name in ended)
        )

    def _forget(self, subscriber: str, topic: str, membership: int, version: int, how: bytes) -> Deferred[Any]:
        return self._redis.run(
            "forget", self._keys.topic(topic), subscriber.encode(), b"%d" % membership, b"%d" % version, how
        )

    async def drop_name(self, index: bytes, name: str) -> None:
        """Remove a name from an index, unless its key exists again."""
        await self._redis.command(b"SREM", index, name.encode())
        is_topic = index == self._keys.topics
        meta = self._keys.topic(name)[0] if is_topic else self._keys.subscriber(name)[0]
        if await self._redis.command(b"EXISTS", meta):
            await self._redis.command(b"SADD", index, name.encode())

    async def tidy_topic(self, topic: str) -> str | None:
        """Trim a log, end finished memberships, remove cursors without a subscriber.

        Returns the topic's publisher, an empty text if there is none, None if nothing is left of the topic.
        """
        tail, pairs, gone, publisher = await self._redis.run("trim", self._keys.topic(topic))
        if not tail:
            await self.drop_name(self._keys.topics, topic)

        def membership(names: Sequence[str]) -> Deferred[Any]:
            return self._redis.command(b"HGET", self._keys.subscriber(names[0])[1], topic.encode())

        behind, cursors = [], {name.decode(): Cursor.parse(text) for name, text in codec.fields(pairs).items()}
        for some in chunks(list(cursors), AT_ONCE):
            found = await gather(Deferred.fromCoroutine(self._redis.tolerant([each], membership)) for each in some)
            for (subscriber,), wanted in (pair for pairs in found for pair in pairs):
                cursor = cursors[subscriber]
                if wanted is None:
                    await self._forget(subscriber, topic, cursor.membership, cursor.version, b"all")
                elif not cursor.open:
                    await self._redis.tolerant([subscriber], lambda names: self.repair(names[0]))
                    await self._redis.hint(SubscriptionChanged(subscriber))
                if gone and cursor.spans and cursor.spans[0].after.n < EventID.parse(gone).n:
                    behind.append(subscriber)
        for few in chunks(behind, AT_ONCE):
            await self._count_dropped_if_idle(topic, gone, few)
        return publisher.decode() if tail else None

    async def _count_dropped_if_idle(self, topic: str, gone: bytes, subscribers: Sequence[str]) -> None:
        """Count the events up to `gone` as dropped, or ask the courier that may have them in flight to do so.

        An attempt that begins after the log was trimmed cannot have them.
        """
        idle = await self.idle(subscribers)
        await self._count_dropped(topic, gone, [name for name, is_idle in idle.items() if is_idle])
        for name, is_idle in idle.items():
            if not is_idle:
                await self._redis.hint(EventsDropped(name))

    async def idle(self, subscribers: Sequence[str]) -> dict[str, bool]:
        """For each whether no attempt to deliver to it is under way."""
        replies = await self._redis.run_bundles(
            "idle",
            [[name] for name in subscribers],
            lambda name: (self._keys.lease(name), self._keys.subscriber(name)[0]),
        )
        return {name: bool(idle) for (name,), idle in replies}

    async def _count_dropped(self, topic: str, limit: bytes, subscribers: Sequence[str]) -> None:
        names = [name.encode() for name in subscribers]
        keys = self._keys.topic
        for _, losses in await self._redis.run_bundles("count_drops", [[topic]], keys, limit, *names):
            self._losses.update({name.decode(): count for name, count in codec.fields(losses).items()})

    def log_losses(self) -> None:
        """Log the events counted as dropped since the last call."""
        losses, self._losses = self._losses, Counter()
        log_losses(losses)

    async def repair(self, subscriber: str, count_dropped: bool = False) -> None:
        """`interfaces.Store.repair`, but dropped events are counted only if asked for."""
        meta, wanted = await self._redis.run("subscribers", self._keys.subscriber(subscriber))
        memberships = codec.memberships(wanted)
        if count_dropped:
            counting = (self._count_dropped(topic, b"", [subscriber]) for topic in memberships)
            await gather(map(Deferred.fromCoroutine, counting))
        if meta:
            known = codec.fields(meta)
            with suppress(WrongType):  # of a topic; it is logged
                await self.follow(
                    subscriber, memberships, bool(known.get(b"awaits")), known.get(b"start") or b""
                )
