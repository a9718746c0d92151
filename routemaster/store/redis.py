"""The store on Redis: store once, read from cursors.

Every step that must be atomic is one script that touches the keys of one
topic or of one subscriber (`lua/`, `keys`). What spans several, subscribing
say, is made of such steps in an order in which each prefix is harmless:

- a subscription's own keys say what it wants (*stays*), a topic's cursors say
  what is so; `repair` makes the second follow the first, may be run by
  anybody at any time, and is idempotent;
- every step carries the version of the subscription that it speaks for, so a
  step that comes late changes nothing;
- the indexes of names are written before what they name, and again after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, DeferredList

from routemaster.errors import NotSubscribed, NotYourTopic, RoutemasterError, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Ack, Grant, Held, Place, Reading, Stay
from routemaster.model import (
    ApiToken,
    Cursor,
    Dropped,
    EventID,
    Health,
    Published,
    StoreFigures,
    Subscription,
    SubscriptionFacts,
    TopicFacts,
    chunks,
)
from routemaster.store.connection import Connection, ScriptRefusal
from routemaster.store.keys import Keys
from routemaster.store.scripts import SCRIPTS

BUNDLE = 256  #: subscribers or topics in one call, so that no script holds Redis up for long
HEADS = 8     #: topics in one call that walks their first events


class RedisStore:
    """`interfaces.Store` on one Redis."""

    def __init__(self, connection: Connection, namespace: str, lease_ttl: float) -> None:
        """`lease_ttl` in seconds."""
        self._connection = connection
        self._keys = Keys(namespace)
        self._lease_ms = b"%d" % round(lease_ttl * 1000)
        self._indexed: set[str] = set()

    def _run(self, name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
        return self._connection.script(SCRIPTS[name], keys, arguments)

    def _hint(self, message: str) -> Deferred[Any]:
        return self._connection.command(b"PUBLISH", self._keys.wakeups, message.encode())

    async def ping(self) -> None:
        await self._connection.command(b"PING")

    # -- topics

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        keys, arguments = self._keys.topic(topic), (publisher.encode(), self._keys.wakeups, topic.encode())
        if topic not in self._indexed:
            await self._connection.command(b"SADD", self._keys.topics, topic.encode())
        try:
            first, last, created = await self._run("publish", keys, *arguments, *fragments)
        except ScriptRefusal as refusal:
            _refuse(refusal, topic)
        except StoreUnavailable:
            self._indexed.discard(topic)  # it may have been made anew, after a janitor took its name away
            raise
        if created or topic not in self._indexed:
            self._indexed.add(topic)
            # again: a janitor may have taken the name for a stale one in between
            named = self._connection.command(b"SADD", self._keys.topics, topic.encode())
            named.addErrback(lambda _failure: self._indexed.discard(topic))
        return Published(EventID.parse(first), EventID.parse(last))

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        try:
            await self._run("delete_topic", self._keys.topic(topic), (publisher or "").encode())
        except ScriptRefusal as refusal:
            _refuse(refusal, topic)
        await self._tidy_topic(topic)

    async def topics(self) -> list[TopicFacts]:
        names = await self._names(self._keys.topics)
        replies = await all_of(
            self._connection.command(b"HMGET", self._keys.topic(name)[0], b"publisher", b"tail", b"base")
            for name in names
        )
        return [
            TopicFacts(name, publisher.decode(), EventID.parse(tail).n - int(base))
            for name, (publisher, tail, base) in zip(names, replies, strict=True)
            if publisher
        ]

    # -- subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        subscriber, topics = subscription.subscriber, subscription.topics
        owners = await all_of(
            self._connection.command(b"HEXISTS", self._keys.topic(topic)[0], b"publisher") for topic in topics
        )
        for topic, exists in zip(topics, owners, strict=True):
            if not exists:
                raise UnknownTopic(f"no topic {topic} exists: it will once its publisher has sent an event")
        index = (b"SADD", self._keys.subscribers, subscriber.encode())
        _, (_version, stays) = await all_of([
            self._connection.command(*index),
            self._run(
                "configure",
                self._keys.subscriber(subscriber),
                subscription.callback.encode(),
                (subscription.uuid or "").encode(),
                b"%d" % subscription.timeout,
                b"%d" % subscription.max,
                *(topic.encode() for topic in topics),
            ),
        ])
        await self._follow(subscriber, _stays(stays))
        await all_of([self._connection.command(*index), self._hint(f"s {subscriber}")])

    async def unsubscribe(self, subscriber: str) -> None:
        try:
            _version, stays = await self._run("dissolve", self._keys.subscriber(subscriber))
        except ScriptRefusal as refusal:
            _refuse(refusal)
        await self._follow(subscriber, _stays(stays))
        await self._hint(f"s {subscriber}")

    async def leave(self, subscriber: str, topic: str) -> None:
        keys = self._keys.topic(topic)
        if not await self._connection.command(b"HEXISTS", keys[0], b"publisher"):
            raise UnknownTopic(f"no topic {topic} exists")
        try:
            version, membership, wanted = await self._run(
                "quit", self._keys.subscriber(subscriber), topic.encode()
            )
        except ScriptRefusal as refusal:
            _refuse(refusal, topic)
        was_subscribed = await self._run("leave", keys, subscriber.encode(), membership, version, wanted)
        await self._retire(subscriber, {topic: Stay(int(membership), "left", int(version))})
        await self._hint(f"s {subscriber}")
        if not was_subscribed:
            raise NotSubscribed(f"this client is not subscribed to {topic}")

    async def subscriptions(self) -> list[SubscriptionFacts]:
        subscribers, topics = await self._names(self._keys.subscribers), await self._names(self._keys.topics)
        metas, backlogs = await all_of([
            all_of(self._meta(subscriber) for subscriber in subscribers),
            all_of(self._run("backlog", self._keys.topic(topic)) for topic in topics),
        ])
        ledgers: dict[bytes, _Ledger] = {}
        for subscriber, (meta, stays) in zip(subscribers, metas, strict=True):
            known = _fields(meta)
            if b"callback" in known:
                ledgers[subscriber.encode()] = _Ledger(subscriber, known, _stays(stays))
        for topic, (publisher, tail, _base, owed) in zip(topics, backlogs, strict=True):
            for name, cursor, oldest in zip(owed[::3], owed[1::3], owed[2::3], strict=True):
                if name in ledgers:
                    end = EventID.parse(tail)
                    ledgers[name].add(topic, bool(publisher), end, Cursor.parse(cursor), oldest)
        return [ledger.facts() for ledger in ledgers.values()]

    # -- tokens

    async def tokens(self) -> list[ApiToken]:
        fields = _fields(await self._connection.command(b"HGETALL", self._keys.tokens))
        made = [ApiToken(name.decode(), token.decode()) for token, name in fields.items()]
        return sorted(made, key=lambda token: (token.name, token.token))

    async def add_token(self, token: ApiToken) -> None:
        await self._change_tokens(b"HSET", self._keys.tokens, token.token.encode(), token.name.encode())

    async def remove_token(self, token: str) -> None:
        await self._change_tokens(b"HDEL", self._keys.tokens, token.encode())

    async def tokens_version(self) -> int:
        return int(await self._connection.command(b"GET", self._keys.tokens_version) or 0)

    async def _change_tokens(self, *command: bytes) -> None:
        count = (b"INCR", self._keys.tokens_version)
        await self._connection.command(*count)  # a full Redis refuses this, and then nothing is changed
        await all_of([*(self._connection.command(*step) for step in (command, count)), self._hint("k")])

    # -- metrics

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        await self._run("count", (self._keys.counters,), *_pairs(counts))

    async def counts(self) -> dict[str, int]:
        return _numbers(await self._connection.command(b"HGETALL", self._keys.counters))

    async def reported(self) -> dict[str, int]:
        return _numbers(await self._connection.command(b"HGETALL", self._keys.reported))

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        await self._run("report", (self._keys.reported,), *_pairs(counts))

    async def elect(self, office: str, process: str, seconds: float) -> bool:
        life = b"%d" % round(seconds * 1000)
        return bool(await self._run("elect", (self._keys.office(office),), process.encode(), life))

    # -- the way out

    async def subscribers(self) -> set[str]:
        return set(await self._names(self._keys.subscribers))

    async def acquire(self, subscriber: str, worker: str) -> Grant | Held | None:
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber))
        now, epoch, *rest = await self._run("acquire", keys, worker.encode(), self._lease_ms)
        if epoch == -1:
            return None
        if epoch == 0:
            return Held(max(0, rest[0]) / 1000)
        meta, stays = _fields(rest[0]), _stays(rest[1])
        return Grant(
            epoch=int(epoch),
            now=int(now),
            version=int(meta[b"version"]),
            subscription=_subscription(subscriber, meta, stays) if b"callback" in meta else None,
            stays=stays,
            failures=int(meta.get(b"failures", 0)),
            retry_at=int(meta.get(b"retry_at", 0)),
        )

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        calls = []
        for bundle in chunks(list(epochs), BUNDLE) or [[]]:
            keys = [
                key
                for subscriber in bundle
                for key in (self._keys.lease(subscriber), self._keys.subscriber(subscriber)[0])
            ]
            held = [b"%d" % epochs[subscriber] for subscriber in bundle]
            calls.append(self._run("renew", keys, worker.encode(), self._lease_ms, *held))
        replies = await all_of(calls)
        versions = [int(version) for reply in replies for version in reply[1:]]
        return int(replies[-1][0]), {
            subscriber: None if version < 0 else version
            for subscriber, version in zip(epochs, versions, strict=True)
        }

    async def release(self, subscriber: str, worker: str, epoch: int) -> None:
        await self._run(
            "release",
            (self._keys.lease(subscriber),),
            worker.encode(),
            b"%d" % epoch,
            self._keys.wakeups,
            subscriber.encode(),
        )

    async def tails(self, topics: Sequence[str]) -> dict[str, EventID]:
        replies = await all_of(
            self._run("tails", [self._keys.topic(topic)[0] for topic in bundle])
            for bundle in chunks(topics, BUNDLE)
        )
        tails = [tail for reply in replies for tail in reply]
        return {topic: EventID.parse(tail) for topic, tail in zip(topics, tails, strict=True) if tail}

    async def read(
        self, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
    ) -> Reading:
        topics = list(after)
        keys = [key for topic in topics for key in self._keys.topic(topic)]
        starts = [bytes(start) if start else b"" for start in after.values()]
        *places, picked = await self._run(
            "read", keys, subscriber.encode(), b"%d" % most, b"%d" % most_bytes, *starts
        )
        parse = EventID.parse
        entries = [
            (topics[place], parse(entry_id), fragment)
            for place, entry_id, fragment in zip(picked[::3], picked[1::3], picked[2::3], strict=True)
        ]
        return Reading(
            entries,
            {
                topic: Place(Cursor.parse(cursor) if cursor else None, parse(tail) if tail else None)
                for topic, (cursor, tail) in zip(topics, places, strict=True)
            },
        )

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack]
    ) -> dict[str, Place]:
        name = subscriber.encode()
        moves = [
            self._run("acknowledge", self._keys.topic(ack.topic), name, b"%d" % ack.membership, bytes(ack.last))
            for ack in acks
        ]
        *replies, _ = await all_of([*moves, self._settle(subscriber, worker, epoch, b"", "")])
        return {
            ack.topic: Place(Cursor.parse(cursor) if cursor else None, EventID.parse(tail) if tail else None)
            for ack, (_passed, cursor, tail) in zip(acks, replies, strict=True)
        }

    async def fail(self, subscriber: str, worker: str, epoch: int, pause: float, error: str) -> int | None:
        failures: int = await self._settle(subscriber, worker, epoch, b"%d" % round(pause * 1e6), error)
        return None if failures < 0 else failures

    def _settle(self, subscriber: str, worker: str, epoch: int, pause: bytes, error: str) -> Deferred[Any]:
        keys = (self._keys.lease(subscriber), self._keys.subscriber(subscriber)[0])
        return self._run("settle", keys, worker.encode(), b"%d" % epoch, pause, error.encode())

    # -- upkeep

    async def repair(self, subscriber: str) -> None:
        meta, stays = await self._meta(subscriber)
        if meta:
            await self._follow(subscriber, _stays(stays))

    async def figures(self) -> StoreFigures:
        text = b"".join(
            await all_of(
                self._connection.command(b"INFO", section) for section in (b"memory", b"cpu")
            )
        )
        lines = (line.partition(b":") for line in text.splitlines())
        told = {name: value for name, colon, value in lines if colon}
        return StoreFigures(
            bytes_used=int(told[b"used_memory"]),
            max_memory=int(told[b"maxmemory"]),
            cpu_user_ms=float(told[b"used_cpu_user"]) * 1000,
            cpu_sys_ms=float(told[b"used_cpu_sys"]) * 1000,
        )

    async def drop_oldest(self, most: int) -> Dropped:
        topics = await self._names(self._keys.topics)
        replies = await all_of(
            self._run("heads", [self._keys.topic(topic)[1] for topic in bundle], b"%d" % most)
            for bundle in chunks(topics, HEADS)
        )
        ends = {
            topic: ends
            for topic, ends in zip(topics, (ends for reply in replies for ends in reply), strict=True)
            if ends
        }
        if not ends:
            return Dropped(0, {})
        # up to this moment no log holds more than `most` events
        moment = min(EventID.parse(last).us for _first, last in ends.values())
        events, lost = 0, Counter[str]()
        for topic in ends:
            gone, losses = await self._run("drop", self._keys.topic(topic), b"%d" % moment, b"%d" % most)
            events += gone
            for subscriber, count in zip(losses[::2], losses[1::2], strict=True):
                lost[subscriber.decode()] += count
        return Dropped(events, lost)

    async def tidy(self) -> None:
        for topic in await self._names(self._keys.topics):
            await self._tidy_topic(topic)
        for subscriber in await self._names(self._keys.subscribers):
            if not await self._connection.command(b"EXISTS", self._keys.subscriber(subscriber)[0]):
                await self._drop_name(self._keys.subscribers, subscriber)

    async def _tidy_topic(self, topic: str) -> None:
        exists, *pairs = await self._run("trim", self._keys.topic(topic))
        if not exists:
            self._indexed.discard(topic)
            await self._drop_name(self._keys.topics, topic)
        for name, text in zip(pairs[::2], pairs[1::2], strict=True):
            cursor, subscriber = Cursor.parse(text), name.decode()
            stay = await self._connection.command(
                b"HGET", self._keys.subscriber(subscriber)[1], topic.encode()
            )
            if stay is None:
                await self._forget(subscriber, topic, cursor.membership, cursor.version, b"all")
            elif not cursor.open:
                await self.repair(subscriber)
                await self._hint(f"s {subscriber}")

    async def _follow(self, subscriber: str, stays: Mapping[str, Stay]) -> None:
        """Make the topics' cursors follow the subscription.

        Each learns the version with which the client last spoke of the topic,
        so that an older step that is still on its way changes nothing, and so
        that a stay which the topic's deletion has ended since is not begun again.
        """
        steps: list[Deferred[Any]] = []
        for topic, cursor in (await self._cursors(subscriber, stays)).items():
            stay = stays[topic]
            if stay.state == "gone":
                steps.append(self._forget(subscriber, topic, stay.membership, stay.version, b"all"))
            elif cursor is None or cursor.version < stay.version:
                script = "join" if stay.state == "on" else "leave"
                identity = (subscriber.encode(), b"%d" % stay.membership, b"%d" % stay.version)
                steps.append(self._run(script, self._keys.topic(topic), *identity))
        for outcome in await outcomes(steps):
            # a topic deleted in between: the subscription came first, and ended with it
            if isinstance(outcome, Exception) and not isinstance(outcome, ScriptRefusal):
                raise outcome
        await self._retire(subscriber, stays)

    async def _cursors(self, subscriber: str, topics: Iterable[str]) -> dict[str, Cursor | None]:
        names = list(topics)
        texts = await all_of(
            self._connection.command(b"HGET", self._keys.topic(topic)[2], subscriber.encode()) for topic in names
        )
        return {
            topic: Cursor.parse(text) if text else None for topic, text in zip(names, texts, strict=True)
        }

    async def _retire(self, subscriber: str, stays: Mapping[str, Stay]) -> None:
        """End the stays in which nothing is owed any more; then the subscriber, if none is left."""
        arguments = []
        for topic, cursor in (await self._cursors(subscriber, stays)).items():
            stay = stays[topic]
            if cursor is None or not cursor.spans or stay.state == "gone":
                seen = f"{stay.membership} {stay.version} {stay.state}"
                sent, dropped = (cursor.sent, cursor.dropped) if cursor else (0, 0)
                arguments += [topic.encode(), seen.encode(), b"%d" % sent, b"%d" % dropped]
        keys = (self._keys.lease(subscriber), *self._keys.subscriber(subscriber))
        gone, *ended = await self._run("fold", keys, *arguments)
        if gone:
            await self._drop_name(self._keys.subscribers, subscriber)
        await all_of(
            self._forget(subscriber, topic, stays[topic].membership, stays[topic].version, b"settled")
            for topic in (name.decode() for name in ended)
        )

    def _forget(self, subscriber: str, topic: str, membership: int, version: int, how: bytes) -> Deferred[Any]:
        return self._run(
            "forget", self._keys.topic(topic), subscriber.encode(), b"%d" % membership, b"%d" % version, how
        )

    async def _drop_name(self, index: bytes, name: str) -> None:
        """Take a name out of an index, unless it has come to mean something again."""
        await self._connection.command(b"SREM", index, name.encode())
        is_topic = index == self._keys.topics
        meta = self._keys.topic(name)[0] if is_topic else self._keys.subscriber(name)[0]
        if await self._connection.command(b"EXISTS", meta):
            await self._connection.command(b"SADD", index, name.encode())

    async def _names(self, index: bytes) -> list[str]:
        return sorted(name.decode() for name in await self._connection.command(b"SMEMBERS", index))

    def _meta(self, subscriber: str) -> Deferred[Any]:
        """[fields of meta, stays], as Redis answers."""
        return all_of(
            self._connection.command(b"HGETALL", key) for key in self._keys.subscriber(subscriber)
        )


class _Ledger:
    """Adds up what the topics know of one subscriber."""

    def __init__(self, subscriber: str, meta: Mapping[bytes, bytes], stays: Mapping[str, Stay]) -> None:
        self._subscriber, self._meta, self._stays = subscriber, meta, stays
        self._subscribed: dict[str, Stay] = {}
        self._sent, self._dropped = int(meta.get(b"sent", 0)), int(meta.get(b"dropped", 0))
        self._queued = 0
        self._oldest: int | None = None

    def add(self, topic: str, exists: bool, tail: EventID, cursor: Cursor, oldest: bytes) -> None:
        """`exists` is false for a topic that was deleted while it owed events."""
        stay = self._stays.get(topic)
        if stay is None or stay.membership != cursor.membership:
            return  # a stay that is over and about to be forgotten
        if exists and cursor.open:
            self._subscribed[topic] = stay
        self._sent += cursor.sent
        self._dropped += cursor.dropped
        self._queued += cursor.backlog(tail)
        if oldest:
            us = EventID.parse(oldest).us
            self._oldest = us if self._oldest is None else min(self._oldest, us)

    def facts(self) -> SubscriptionFacts:
        meta = self._meta
        return SubscriptionFacts(
            subscription=_subscription(self._subscriber, meta, self._subscribed),
            sent=self._sent,
            queued=self._queued,
            oldest=None if self._oldest is None else self._oldest / 1e6,
            health=Health(
                failures=int(meta.get(b"failures", 0)),
                last_attempt=_seconds(meta.get(b"last_attempt")),
                last_success=_seconds(meta.get(b"last_success")),
                last_error=meta[b"last_error"].decode() if b"last_error" in meta else None,
                retry_at=_seconds(meta.get(b"retry_at")),
            ),
            dropped=self._dropped,
        )


def _subscription(subscriber: str, meta: Mapping[bytes, bytes], stays: Mapping[str, Stay]) -> Subscription:
    return Subscription(
        subscriber=subscriber,
        topics=tuple(sorted(topic for topic, stay in stays.items() if stay.state == "on")),
        callback=meta[b"callback"].decode(),
        uuid=meta[b"uuid"].decode() or None,
        timeout=int(meta[b"timeout"]),
        max=int(meta[b"max"]),
    )


def _seconds(us: bytes | None) -> float | None:
    return None if us is None else int(us) / 1e6


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _pairs(counts: Mapping[str, int]) -> list[bytes]:
    return [part for name, count in counts.items() for part in (name.encode(), b"%d" % count)]


def _numbers(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in _fields(flat).items()}


def _stays(flat: Sequence[bytes]) -> dict[str, Stay]:
    stays = {}
    for topic, stay in _fields(flat).items():
        membership, version, state = stay.split()
        stays[topic.decode()] = Stay(int(membership), state.decode(), int(version))
    return stays


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


async def outcomes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """The results of steps that were started together; an exception stands for itself."""
    pairs = await DeferredList(list(steps), consumeErrors=True)
    return [value if ok else value.value for ok, value in pairs]


def all_of(steps: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """The results of steps that were started together; the first error, after all have ended."""

    def unpack(pairs: list[tuple[bool, Any]]) -> Any:
        for ok, value in pairs:
            if not ok:
                return value
        return [value for _ok, value in pairs]

    return DeferredList(list(steps), consumeErrors=True).addCallback(unpack)

