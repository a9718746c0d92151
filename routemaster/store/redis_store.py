"""The store on Redis or a Redis Cluster: store once, read from cursors.

Every step that must be atomic is one script that touches the keys of one
topic or of one subscriber (`lua/`, `keys`); those that ask for several at
once are given such as lie together, on one Redis all. What spans several,
subscribing say, is made of such steps in an order in which each prefix is
harmless; a step that has to come first is awaited, for on a cluster the next
goes to another node:

- cursors follow subscriptions as `stays` tells;
- the indexes of names are written before what they name, and again after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NoReturn

from twisted.internet.defer import Deferred

from routemaster.errors import NotSubscribed, NotYourTopic, RoutemasterError, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Ack, LeaseGrant, LeaseHeld, Membership, Position, ReadResult
from routemaster.model import (
    ApiToken,
    Cursor,
    Dropped,
    EventID,
    Published,
    StoreStats,
    Subscription,
    SubscriptionInfo,
    TopicInfo,
)
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection, ScriptRefusal
from routemaster.redis.wait_replicas import Replication
from routemaster.store import codec, subscription_stats
from routemaster.store.batch_read import Readings
from routemaster.store.commands import AT_ONCE, Commands
from routemaster.store.membership_sync import MembershipSync
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather, gather_available

BUNDLE = 256  #: subscribers or topics in one call, so that no script holds Redis up for long
HEADS = 8     #: topics in one call that walks their first events


class RedisStore:
    """`interfaces.Store` on one Redis or one cluster."""

    def __init__(
        self, connection: Connection | Cluster, namespace: str, lease_ttl: float,
        replication: Replication | None = None,
    ) -> None:  # fmt: skip
        """`lease_ttl` in seconds; `replication`: what else publishing demands."""
        self._redis = Commands(connection, namespace)
        self._replication = replication
        self._out = self._redis if replication is None else Commands(replication.connection, namespace)
        self._keys = self._redis.keys
        self._stays, self._readings = MembershipSync(self._redis), Readings(self._redis)
        self._lease_ms = b"%d" % round(lease_ttl * 1000)
        self._indexed: set[str] = set()

    def distrust(self) -> None:
        """Redis may have lost its last writes: take nothing for written that was."""
        self._indexed.clear()

    async def ping(self) -> None:
        await gather(node.command(b"PING") for node in self._redis.nodes.values())

    # -- topics

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        keys, arguments = self._keys.topic(topic), (publisher.encode(), self._keys.wakeups, topic.encode())
        if topic not in self._indexed:
            await self._out.command(b"SADD", self._keys.topics, topic.encode())
        try:
            first, last, created = await self._out.run("publish", keys, *arguments, *fragments)
        except ScriptRefusal as refusal:
            _refuse(refusal, topic)
        except StoreUnavailable:
            self._indexed.discard(topic)  # it may have been made anew, after a janitor took its name away
            raise
        if created or topic not in self._indexed:
            self._indexed.add(topic)
            # again: a janitor may have taken the name for a stale one in between
            named = self._out.command(b"SADD", self._keys.topics, topic.encode())
            named.addErrback(lambda _failure: self._indexed.discard(topic))
        if self._replication is not None:
            await self._replication.reached()
        return Published(EventID.parse(first), EventID.parse(last))

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        try:
            await self._redis.run("delete_topic", self._keys.topic(topic), (publisher or "").encode())
        except ScriptRefusal as refusal:
            _refuse(refusal, topic)
        await self._tidy_topic(topic)

    async def topics(self) -> list[TopicInfo]:
        names = await self._redis.names(self._keys.topics)
        replies = await gather(
            self._redis.command(b"HMGET", self._keys.topic(name)[0], b"publisher", b"tail", b"base")
            for name in names
        )
        return [
            TopicInfo(name, publisher.decode(), EventID.parse(tail).n - int(base))
            for name, (publisher, tail, base) in zip(names, replies, strict=True)
            if publisher
        ]

    # -- subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        subscriber, topics = subscription.subscriber, subscription.topics
        owners = await gather(
            self._redis.command(b"HEXISTS", self._keys.topic(topic)[0], b"publisher") for topic in topics
        )
        for topic, exists in zip(topics, owners, strict=True):
            if not exists:
                raise UnknownTopic(f"no topic {topic} exists: it will once its publisher has sent an event")
        index = (b"SADD", self._keys.subscribers, subscriber.encode())
        await self._redis.command(*index)
        _version, stays = await self._redis.run(
            "configure",
            self._keys.subscriber(subscriber),
            subscription.callback.encode(),
            (subscription.uuid or "").encode(),
            b"%d" % subscription.timeout,
            b"%d" % subscription.max,
            *(topic.encode() for topic in topics),
        )
        await self._stays.follow(subscriber, codec.stays(stays))
        await gather([self._redis.command(*index), self._redis.hint(f"s {subscriber}")])

    async def unsubscribe(self, subscriber: str) -> None:
        try:
            _version, stays = await self._redis.run("dissolve", self._keys.subscriber(subscriber))
        except ScriptRefusal as refusal:
            await self._stays.repair(subscriber)  # see `leave`
            _refuse(refusal)
        await self._stays.follow(subscriber, codec.stays(stays))
        await self._redis.hint(f"s {subscriber}")

    async def leave(self, subscriber: str, topic: str) -> None:
        keys = self._keys.topic(topic)
        if not await self._redis.command(b"HEXISTS", keys[0], b"publisher"):
            raise UnknownTopic(f"no topic {topic} exists")
        try:
            version, membership, wanted = await self._redis.run(
                "quit", self._keys.subscriber(subscriber), topic.encode()
            )
        except ScriptRefusal as refusal:
            # an earlier try may have ended half way; who hears that it has left is to get no event from now on
            await self._stays.repair(subscriber)
            _refuse(refusal, topic)
        was_subscribed = await self._redis.run("leave", keys, subscriber.encode(), membership, version, wanted)
        await self._stays.retire(subscriber, {topic: Membership(int(membership), "left", int(version))})
        await self._redis.hint(f"s {subscriber}")
        if not was_subscribed:
            raise NotSubscribed(f"this client is not subscribed to {topic}")

    async def subscriptions(self) -> list[SubscriptionInfo]:
        facts = [fact async for some in self.each_subscription() for fact in some]
        return sorted(facts, key=lambda fact: fact.subscription.subscriber)

    def each_subscription(self) -> AsyncIterator[Sequence[SubscriptionInfo]]:
        return subscription_stats.subscriptions(self._redis)

    # -- tokens

    async def tokens(self) -> list[ApiToken]:
        fields = codec.fields(await self._redis.command(b"HGETALL", self._keys.tokens))
        made = [ApiToken(name.decode(), token.decode()) for token, name in fields.items()]
        return sorted(made, key=lambda token: (token.name, token.token))

    async def add_token(self, token: ApiToken) -> None:
        await self._change_tokens(b"HSET", self._keys.tokens, token.token.encode(), token.name.encode())

    async def remove_token(self, token: str) -> None:
        await self._change_tokens(b"HDEL", self._keys.tokens, token.encode())

    async def tokens_version(self) -> int:
        return int(await self._redis.command(b"GET", self._keys.tokens_version) or 0)

    async def _change_tokens(self, *command: bytes) -> None:
        count = (b"INCR", self._keys.tokens_version)
        await self._redis.command(*count)  # a full Redis refuses this, and then nothing is changed
        await self._redis.command(*command)
        await self._redis.command(*count)  # whoever sees this number reads the change
        await self._redis.hint("k")

    # -- metrics

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        await self._redis.run("count", (self._keys.counters,), *codec.pairs(counts))

    async def counts(self) -> dict[str, int]:
        return codec.numbers(await self._redis.command(b"HGETALL", self._keys.counters))

    async def reported(self) -> dict[str, int]:
        return codec.numbers(await self._redis.command(b"HGETALL", self._keys.reported))

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        await self._redis.run("report", (self._keys.reported,), *codec.pairs(counts))

    async def elect_leader(self, office: str, process: str, seconds: float) -> bool:
        life = b"%d" % round(seconds * 1000)
        return bool(await self._redis.run("elect", (self._keys.office(office),), process.encode(), life))

    # -- the way out

    async def subscribers(self) -> set[str]:
        return set(await self._redis.names(self._keys.subscribers))

    async def announce(self, worker: str, seconds: float) -> dict[str, float]:
        life = b"%d" % round(seconds * 1000)
        told = await self._redis.run(
            "announce", (self._keys.workers,), worker.encode(), life, self._keys.wakeups
        )
        return {name.decode(): left / 1000 for name, left in zip(told[::2], told[1::2], strict=True)}

    async def withdraw(self, worker: str) -> None:
        await self._redis.run("withdraw", (self._keys.workers,), worker.encode(), self._keys.wakeups)

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber))
        now, epoch, *rest = await self._redis.run("acquire", keys, worker.encode(), self._lease_ms)
        if epoch == -1:
            return None
        if epoch == 0:
            return LeaseHeld(max(0, rest[0]) / 1000)
        meta, stays = codec.fields(rest[0]), codec.stays(rest[1])
        return LeaseGrant(
            epoch=int(epoch),
            now=int(now),
            version=int(meta[b"version"]),
            subscription=codec.subscription(subscriber, meta, stays) if b"callback" in meta else None,
            memberships=stays,
            failures=int(meta.get(b"failures", 0)),
            retry_at=int(meta.get(b"retry_at", 0)),
        )

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        bundles = self._redis.bundles(epochs, self._keys.lease, BUNDLE) or [[]]
        replies = await gather_available(
            self._redis.run(
                "renew",
                [key for name in bundle for key in (self._keys.lease(name), self._keys.subscriber(name)[0])]
                or [self._keys.workers],  # it tells the time all the same
                worker.encode(),
                self._lease_ms,
                *(b"%d" % epochs[name] for name in bundle),
            )
            for bundle in bundles
        )
        told = [(bundle, reply) for bundle, reply in zip(bundles, replies, strict=True) if reply]
        return int(told[-1][1][0]), {
            subscriber: None if int(version) < 0 else int(version)
            for bundle, (_now, *versions) in told
            for subscriber, version in zip(bundle, versions, strict=True)
        }

    async def release(self, subscriber: str, worker: str, epoch: int) -> None:
        await self._redis.run(
            "release",
            (self._keys.lease(subscriber),),
            worker.encode(),
            b"%d" % epoch,
            self._keys.wakeups,
            subscriber.encode(),
        )

    async def tails(self, topics: Sequence[str]) -> dict[str, EventID]:
        bundles = self._redis.bundles(topics, self._meta, BUNDLE)
        replies = await gather_available(
            self._redis.run("tails", [self._meta(topic) for topic in bundle]) for bundle in bundles
        )
        return {
            topic: EventID.parse(tail)
            for bundle, tails in zip(bundles, replies, strict=True)
            for topic, tail in zip(bundle, tails or (), strict=False)
            if tail
        }

    def _meta(self, topic: str) -> bytes:
        return self._keys.topic(topic)[0]

    async def read(
        self, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
    ) -> ReadResult:
        return await self._readings.read(subscriber, after, most, most_bytes)

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack]
    ) -> dict[str, Position]:
        name = subscriber.encode()
        moves = [
            self._redis.run(
                "acknowledge", self._keys.topic(ack.topic), name, b"%d" % ack.membership, bytes(ack.last)
            )
            for ack in acks
        ]
        *replies, _ = await gather([*moves, self._settle(subscriber, worker, epoch, b"", "")])
        return {
            ack.topic: Position(Cursor.parse(cursor) if cursor else None, EventID.parse(tail) if tail else None)
            for ack, (_passed, cursor, tail) in zip(acks, replies, strict=True)
        }

    async def fail(self, subscriber: str, worker: str, epoch: int, pause: float, error: str) -> int | None:
        failures: int = await self._settle(subscriber, worker, epoch, b"%d" % round(pause * 1e6), error)
        return None if failures < 0 else failures

    def _settle(self, subscriber: str, worker: str, epoch: int, pause: bytes, error: str) -> Deferred[Any]:
        keys = (self._keys.lease(subscriber), self._keys.subscriber(subscriber)[0])
        return self._redis.run("settle", keys, worker.encode(), b"%d" % epoch, pause, error.encode())

    # -- upkeep

    async def repair(self, subscriber: str) -> None:
        await self._stays.repair(subscriber)

    async def stats(self) -> list[StoreStats]:
        nodes = self._redis.nodes
        replies = await gather_available(
            gather(node.command(b"INFO", section) for section in (b"memory", b"cpu")) for node in nodes.values()
        )
        return [
            codec.figures(b"".join(reply), node) for node, reply in zip(nodes, replies, strict=True) if reply
        ]

    async def drop_oldest(self, most: int, node: str = "") -> Dropped:
        topics = await self._redis.names(self._keys.topics)
        if node:
            topics = [topic for topic in topics if self._redis.place(self._meta(topic)) == node]
        bundles = self._redis.bundles(topics, self._meta, HEADS)
        replies = await gather(
            self._redis.run("heads", [self._keys.topic(topic)[1] for topic in bundle], b"%d" % most)
            for bundle in bundles
        )
        ends = {
            topic: ends
            for bundle, reply in zip(bundles, replies, strict=True)
            for topic, ends in zip(bundle, reply, strict=True)
            if ends
        }
        if not ends:
            return Dropped(0, {})
        # up to this moment no log holds more than `most` events
        moment = min(EventID.parse(last).us for _first, last in ends.values())
        events, lost = 0, Counter[str]()
        for topic in ends:
            gone, losses = await self._redis.run("drop", self._keys.topic(topic), b"%d" % moment, b"%d" % most)
            events += gone
            for subscriber, count in zip(losses[::2], losses[1::2], strict=True):
                lost[subscriber.decode()] += count
        return Dropped(events, lost)

    async def clean_up(self) -> None:
        for topic in await self._redis.names(self._keys.topics):
            with self._others_go_on():
                await self._tidy_topic(topic)
        for some in chunks(await self._redis.names(self._keys.subscribers), AT_ONCE):
            with self._others_go_on():
                known = await gather_available(
                    self._redis.command(b"EXISTS", self._keys.subscriber(subscriber)[0]) for subscriber in some
                )
                for subscriber, exists in zip(some, known, strict=True):
                    if exists == 0:
                        await self._stays.drop_name(self._keys.subscribers, subscriber)

    def _others_go_on(self) -> AbstractContextManager[None]:
        """On a cluster what lies on a node that is away waits; on one Redis there are no others."""
        return suppress(*((StoreUnavailable,) if len(self._redis.nodes) > 1 else ()))

    async def _tidy_topic(self, topic: str) -> None:
        if not await self._stays.tidy_topic(topic):
            self._indexed.discard(topic)


def _refuse(refusal: ScriptRefusal, topic: str = "") -> NoReturn:
    """The named error behind a script's code."""
    errors: dict[str, RoutemasterError] = {
        "NOTYOURS": NotYourTopic(f"another client publishes topic {topic}; only it may"),
        "NOTOPIC": UnknownTopic(f"no topic {topic} exists"),
        "NOTSUBSCRIBED": NotSubscribed(
            f"this client is not subscribed to {topic}" if topic else "this client has no subscription"
        ),
    }
    raise errors[refusal.code] from None
