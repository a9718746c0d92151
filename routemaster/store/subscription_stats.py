"""Adds up each subscriber's counts and backlog, from its own keys and from the cursors in the topics.

No call reads both as one snapshot, so the order of reading makes them fit:
topics first. When a membership ends, its counts move from the cursor to the
subscriber's own. A subscriber that is read afterwards has the counts and no
membership, and the cursor is skipped. So nothing is counted twice or missed,
and a sum never shrinks from one reading to the next.

Thousands of subscribers are read in rounds of `AT_ONCE`, so that neither Redis
nor this process is busy for long.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TypeVar

from twisted.internet.defer import Deferred

from routemaster.interfaces import Membership
from routemaster.model import Cursor, EventID, Health, SubscriptionInfo
from routemaster.store import codec
from routemaster.store.commands import AT_ONCE, Commands
from routemaster.util.chunks import chunks
from routemaster.util.gather import gather

_Part = TypeVar("_Part")

KINDS = ("dropped", "expired", "skipped", "parked")  #: in the order of `Cursor.counts`


_Entry = tuple[str, bool, bytes, bytes, bytes]
"""A subscriber's data in one topic: the topic's name, whether it exists (a deleted topic may still have a
backlog), its tail, the cursor, and the ID of the oldest event of the backlog, or nothing."""


async def subscriptions(redis: Commands) -> AsyncIterator[list[SubscriptionInfo]]:
    """`interfaces.Store.each_subscription`."""
    owed: defaultdict[bytes, list[_Entry]] = defaultdict(list)
    async for entries in _owed(redis):
        for subscriber, entry in entries:
            owed[subscriber].append(entry)
        yield []
    for names in chunks(await redis.names(redis.keys.subscribers), AT_ONCE):
        bundles = redis.bundles(names, redis.keys.lease)
        found = []
        for bundle, reply in await redis.run_bundles("subscribers", bundles, redis.keys.subscriber):
            for name, fields, memberships in zip(bundle, reply[::2], reply[1::2], strict=True):
                meta = codec.fields(fields)
                if b"callback" in meta:
                    found.append(_info(name, meta, codec.memberships(memberships), owed.get(name.encode(), ())))
        yield sorted(found, key=lambda info: info.subscription.subscriber)


async def subscription(redis: Commands, subscriber: str) -> SubscriptionInfo | None:
    """One subscription, from calls to its own topics only; None: there is none."""
    _meta, flat = await redis.run("subscribers", redis.keys.subscriber(subscriber))
    topics = ([topic] for topic in codec.memberships(flat))
    replies = await redis.run_bundles("backlog", topics, redis.keys.topic, subscriber.encode())
    entries = [
        (topic, bool(publisher), tail, found[1], found[2])
        for (topic,), (publisher, tail, found) in replies
        if found
    ]
    fields, flat = await redis.run("subscribers", redis.keys.subscriber(subscriber))
    meta = codec.fields(fields)
    return _info(subscriber, meta, codec.memberships(flat), entries) if b"callback" in meta else None


async def _owed(redis: Commands) -> AsyncIterator[list[tuple[bytes, _Entry]]]:
    """The entries of all topics, by subscriber."""
    for topics in chunks(await redis.names(redis.keys.topics), AT_ONCE):
        known = await gather(
            Deferred.fromCoroutine(
                redis.tolerant([topic], lambda topic: redis.command(b"HKEYS", redis.keys.topic(topic[0])[2]))
            )
            for topic in topics
        )
        parts = [
            (topic, part) for found in known for (topic,), names in found for part in chunks(names, AT_ONCE)
        ]
        for wave in _waves((part, len(part[1])) for part in parts):
            replies = await gather(
                Deferred.fromCoroutine(redis.run_bundles("backlog", [[topic]], redis.keys.topic, *part))
                for topic, part in wave
            )
            yield [
                (name, (topic, bool(publisher), tail, cursor, oldest))
                for reply in replies
                for (topic,), (publisher, tail, flat) in reply
                for name, cursor, oldest in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
            ]


def _waves(parts: Iterable[tuple[_Part, int]]) -> Iterator[list[_Part]]:
    """The parts in lists, whose sizes add up to `AT_ONCE` or a little more."""
    wave, size = [], 0
    for part, more in parts:
        wave.append(part)
        size += more
        if size >= AT_ONCE:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def _info(
    subscriber: str, meta: Mapping[bytes, bytes], memberships: Mapping[str, Membership], entries: Iterable[_Entry]
) -> SubscriptionInfo:
    """The sum of the subscriber's own keys and its entries in the topics."""
    counts = Counter({kind: int(meta.get(kind.encode(), 0)) for kind in ("sent", *KINDS)})
    queued = int(meta.get(b"retried", 0))
    oldest = [int(meta[b"retried_oldest"])] if meta.get(b"retried_oldest") else []
    subscribed, awaited = {}, []
    for topic, exists, tail, text, first in entries:
        membership, cursor = memberships.get(topic), Cursor.parse(text)
        if membership is None or membership.id != cursor.membership:
            continue  # an ended membership, counted in `meta` already
        if cursor.open and exists:
            subscribed[topic] = membership
        elif cursor.open:
            awaited.append(topic)
        counts["sent"] += cursor.sent
        counts.update(dict(zip(KINDS, cursor.counts, strict=False)))
        queued += cursor.backlog(EventID.parse(tail))
        if first:
            oldest.append(EventID.parse(first).us)
    return SubscriptionInfo(
        subscription=codec.subscription(subscriber, meta, subscribed),
        sent=counts["sent"],
        queued=queued,
        oldest=min(oldest) / 1e6 if oldest else None,
        health=Health(
            failures=int(meta.get(b"failures", 0)),
            last_attempt=codec.seconds(meta.get(b"last_attempt")),
            last_success=codec.seconds(meta.get(b"last_success")),
            last_error=meta[b"last_error"].decode() if b"last_error" in meta else None,
            retry_at=codec.seconds(meta.get(b"retry_at")),
            batch_limit=int(meta.get(b"batch_limit", 0)),
        ),
        **{kind: counts[kind] for kind in KINDS},
        awaited=tuple(sorted(awaited)),
        paused=bool(meta.get(b"paused")),
    )
