"""The store on one Redis or a Redis Cluster: what publishers, subscribers and workers call.

Events are stored once, in a log for each topic; a cursor for each subscriber
marks what it has received. Each atomic step is one script (`lua/`) on the keys
of one topic or of one subscriber (`keys`); a script that takes several gets
such as lie in one slot. A change that spans several (subscribing) consists of
steps in an order in which each prefix is harmless. A step that must come first
is awaited, because on a cluster the next may go to another node:

- cursors follow subscriptions (`membership_sync`);
- the index of names is written before the keys that it names, and once more after.

`upkeep` has the rest: clean-up, dropping, counters, leader locks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from routemaster.administration import MOST_REPORTS, PULLED_RECHECK
from routemaster.hints import SubscriptionChanged
from routemaster.interfaces import Ack, LeaseGrant, LeaseHeld, LogEntry, Membership, Position, Positions
from routemaster.model import (
    MAX_OLD_SECRETS,
    OLD_SECRET_LIFE,
    Cursor,
    EventID,
    Subscription,
    SubscriptionInfo,
)
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.redis.errors import ScriptRefusal
from routemaster.redis.wait_replicas import Replication
from routemaster.store import codec, refusals, subscription_stats
from routemaster.store.acknowledgements import Acknowledgements, Success
from routemaster.store.commands import BUNDLE, Commands
from routemaster.store.log_read import LogReader
from routemaster.store.losses import log_losses
from routemaster.store.parking import Parking
from routemaster.store.token_store import TokenStore
from routemaster.store.topic_store import TopicStore
from routemaster.util.gather import gather, gather_available


class RedisStore(TopicStore, Parking, TokenStore):
    """`interfaces.Store` on one Redis or one cluster."""

    def __init__(
        self, connection: Connection | Cluster, namespace: str, lease_ttl: float,
        replication: Replication | None = None, max_topics: int = 10_000, traces: bool = False,
    ) -> None:  # fmt: skip
        """`lease_ttl` in seconds; `replication`: the replicas that must hold published events.

        `max_topics`: the most topics of one client. `traces`: the trace contexts of `Traced` fragments are
        kept and read; else they are left out.
        """
        redis = Commands(connection, namespace)
        out = redis if replication is None else Commands(replication.connection, namespace)
        super().__init__(redis, out, replication, max_topics, traces)
        self._logs, self._acknowledgements = LogReader(self._redis, traces), Acknowledgements(self._redis)
        self._lease_ms = b"%d" % round(lease_ttl * 1000)

    def distrust(self) -> None:
        """Forget which names are indexed: Redis may have lost its last writes."""
        self._indexed.clear()

    async def ping(self) -> None:
        await gather(node.command(b"PING") for node in self._redis.nodes.values())

    @property
    def reachable(self) -> bool:
        return self._out.connected

    # -- subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        subscriber, topics = subscription.subscriber, subscription.topics
        settings, start = codec.settings(subscription), subscription.start
        owners = await gather(
            self._redis.command(b"HEXISTS", self._keys.topic(topic)[0], b"publisher") for topic in topics
        )
        missing = [topic for topic, exists in zip(topics, owners, strict=True) if not exists]
        if missing and not subscription.awaits:
            raise refusals.no_topic(missing[0])
        indexes: list[tuple[bytes, ...]] = [(b"SADD", self._keys.subscribers, subscriber.encode())]
        if missing:
            indexes.append((b"SADD", self._keys.topics, *(topic.encode() for topic in missing)))
        await gather(self._redis.command(*each) for each in indexes)
        _version, memberships = await self._redis.run(
            "configure",
            self._keys.subscriber(subscriber),
            (subscription.callback or "").encode(),
            (subscription.uuid or "").encode(),
            (subscription.secret or "").encode(),
            b"%d" % (OLD_SECRET_LIFE * 1_000_000),
            b"%d" % MAX_OLD_SECRETS,
            b"%d" % (len(settings) // 2),
            *settings,
            *(topic.encode() for topic in topics),
        )
        with refusals.after_a_write():
            wanted, begin = codec.memberships(memberships), b"" if start is None else b"%d" % start
            await self._memberships.follow(subscriber, wanted, subscription.awaits, begin)
            named = (self._redis.command(*each) for each in indexes)
            await gather([*named, self._redis.hint(SubscriptionChanged(subscriber))])

    async def unsubscribe(self, subscriber: str) -> None:
        try:
            keys = (*self._keys.subscriber(subscriber), *self._keys.others(subscriber))
            _version, memberships = await self._redis.run("unsubscribe", keys)
        except ScriptRefusal as refusal:
            await self._memberships.repair(subscriber)  # see `leave`
            raise refusals.named(refusal.code) from None
        with refusals.after_a_write():
            await self._memberships.follow(subscriber, codec.memberships(memberships))
            await self._redis.hint(SubscriptionChanged(subscriber))

    async def leave(self, subscriber: str, topic: str) -> None:
        keys = self._keys.topic(topic)
        if not await self._redis.command(b"HEXISTS", keys[0], b"publisher"):
            cursor = await self._redis.command(b"HGET", keys[2], subscriber.encode())
            if not (cursor and Cursor.parse(cursor).open):  # else it awaits the topic
                raise refusals.no_topic(topic)
        try:
            version, membership, wanted = await self._redis.run(
                "remove_topic", self._keys.subscriber(subscriber), topic.encode()
            )
        except ScriptRefusal as refusal:
            # an earlier call may have ended half way; after this answer the topic must send no new event
            await self._memberships.repair(subscriber)
            raise refusals.named(refusal.code, topic) from None
        with refusals.after_a_write():
            was_subscribed = await self._redis.run(
                "leave", keys, subscriber.encode(), membership, version, wanted
            )
            await self._memberships.retire(
                subscriber, {topic: Membership(int(membership), "left", int(version))}
            )
            await self._redis.hint(SubscriptionChanged(subscriber))
        if not was_subscribed:
            raise refusals.not_subscribed(topic)

    async def subscriptions(self) -> list[SubscriptionInfo]:
        return [info async for some in self.each_subscription() for info in some]

    def each_subscription(self) -> AsyncIterator[Sequence[SubscriptionInfo]]:
        return subscription_stats.subscriptions(self._redis)

    # -- workers and leases

    async def subscribers(self) -> set[str]:
        return set(await self._redis.names(self._keys.subscribers))

    async def announce(self, worker: str, seconds: float) -> dict[str, float]:
        life = b"%d" % round(seconds * 1000)
        answered = await self._redis.run(
            "announce", (self._keys.workers,), worker.encode(), life, self._keys.wakeups
        )
        return {name.decode(): left / 1000 for name, left in zip(answered[::2], answered[1::2], strict=True)}

    async def withdraw(self, worker: str) -> None:
        await self._redis.run("withdraw", (self._keys.workers,), worker.encode(), self._keys.wakeups)

    async def count_workers(self) -> int:
        return int(await self._redis.run("count_workers", (self._keys.workers,)))

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber))
        now, epoch, *rest = await self._redis.run("acquire", keys, worker.encode(), self._lease_ms)
        if epoch == -1:
            return None
        if epoch == -2:
            return LeaseHeld(PULLED_RECHECK)
        if epoch == 0:
            return LeaseHeld(max(0, rest[0]) / 1000)
        meta, memberships = codec.fields(rest[0]), codec.memberships(rest[1])
        return LeaseGrant(
            epoch=int(epoch),
            now=int(now),
            version=int(meta[b"version"]),
            subscription=codec.subscription(subscriber, meta, memberships) if b"callback" in meta else None,
            memberships=memberships,
            failures=int(meta.get(b"failures", 0)),
            retry_at=int(meta.get(b"retry_at", 0)),
            succeeded=b"last_success" in meta,
            batch_limit=int(meta.get(b"batch_limit", 0)),
            paused=bool(meta.get(b"paused")),
            refusals=int(meta.get(b"refusals", 0)),
            retried=int(meta.get(b"retried", 0)),
        )

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        life = (worker.encode(), self._lease_ms)
        answered = await self._redis.run_bundles(
            "renew",
            self._redis.bundles(epochs, self._keys.lease, BUNDLE),
            lambda name: (self._keys.lease(name), self._keys.subscriber(name)[0]),
            *life,
            each=lambda name: b"%d" % epochs[name],
            gather=gather_available,
        )
        # a script needs a key; without leases it returns the time only
        answered = answered or [((), await self._redis.run("renew", (self._keys.workers,), *life))]
        return int(answered[-1][1][0]), {
            subscriber: None if int(version) < 0 else int(version)
            for bundle, (_now, *versions) in answered
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
        replies = await self._redis.run_bundles(
            "topics", bundles, lambda topic: (self._meta(topic),), b"tail", gather=gather_available
        )
        return {
            topic: EventID.parse(tail)
            for bundle, tails in replies
            for topic, tail in zip(bundle, tails, strict=True)
            if tail
        }

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        return await self._logs.positions(subscriber, topics)

    async def read(self, starts: Mapping[str, EventID], most: int) -> Mapping[str, Sequence[LogEntry]]:
        return await self._logs.read(starts, most)

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack], batch_limit: int = 0,
        report: bytes = b"",
    ) -> dict[str, Position]:  # fmt: skip
        moves = [self._acknowledgements.move(subscriber, ack) for ack in acks]
        success = self._acknowledgements.record(Success(subscriber, worker, epoch, batch_limit, report))
        *replies, _ = await gather([*moves, success])
        log_losses({subscriber: sum(lost for *_, lost in replies)})
        return {
            ack.topic: codec.position(cursor, tail)
            for ack, (_passed, cursor, tail, _lost) in zip(acks, replies, strict=True)
        }

    async def fail(
        self, subscriber: str, worker: str, epoch: int, pause: float, error: str,
        failures: int = 1, batch_limit: int = 0, tried: tuple[str, str | None] = ("", None),
        refusals: int = 0, report: bytes = b"",
    ) -> bool:  # fmt: skip
        meta, attempts = self._keys.subscriber(subscriber)[0], self._keys.attempts(subscriber)
        keys = (self._keys.lease(subscriber), meta, attempts)
        numbers = (b"%d" % number for number in (epoch, failures, batch_limit, round(pause * 1e6)))
        target = (tried[0].encode(), (tried[1] or "").encode())
        more = b"%d" % refusals, report, b"%d" % MOST_REPORTS
        return bool(await self._redis.run("fail", keys, worker.encode(), *numbers, error.encode(), *target, *more))
