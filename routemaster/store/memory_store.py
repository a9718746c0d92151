"""The store in memory, with the behaviour of the Redis store, for tests and trials.

Its data ends with the process. `tests/store` runs one suite of
tests on both stores. Longer than 350 lines: it implements the whole `Store`
protocol in one file, so that it can be compared with the scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from attrs import define, evolve, field

from routemaster.hints import (
    EventsDropped,
    SubscriptionChanged,
    TokensChanged,
    TopicGrew,
    WorkerJoined,
    WorkerLeft,
)
from routemaster.interfaces import Ack, Clock, LeaseGrant, LeaseHeld, LogEntry, Membership, Position, Positions
from routemaster.model import (
    ApiToken,
    Cursor,
    EventID,
    Health,
    Published,
    Span,
    StoreStats,
    Subscription,
    SubscriptionInfo,
    TokenChange,
    Tokens,
    TopicInfo,
)
from routemaster.store import refusals
from routemaster.store.losses import log_losses
from routemaster.util.chunks import chunks


@define
class _Topic:
    tail: EventID
    publisher: str | None = None
    base: int = 0
    log: list[tuple[EventID, bytes]] = field(factory=list)
    cursors: dict[str, Cursor] = field(factory=dict)
    awaited: set[str] = field(factory=set)  #: subscribers that stay when the topic is deleted


@define
class _Subscriber:
    version: int
    subscription: Subscription | None = None
    topics: dict[str, Membership] = field(factory=dict)
    sent: int = 0
    dropped: int = 0
    epoch: int = 0
    health: Health = field(factory=Health)


class MemoryStore:
    """`interfaces.Store` without Redis."""

    def __init__(
        self, clock: Clock, lease_ttl: float, on_hint: Callable[[bytes], None] | None = None,
        max_topics: int = 10_000,
    ) -> None:  # fmt: skip
        """`lease_ttl` in seconds; `on_hint` receives each message of the wake-up channel.

        `max_topics`: the most topics of one client.
        """
        self._clock, self._lease_ttl, self._max_topics = clock, lease_ttl, max_topics
        self._hint = on_hint or (lambda message: None)
        self._topics: dict[str, _Topic] = {}
        self._subscribers: dict[str, _Subscriber] = {}
        self._leases: dict[str, tuple[str, int, float]] = {}
        self._tokens: dict[str, str] = {}
        self._token_clients: dict[str, str] = {}
        self._token_log: list[TokenChange] = []
        self._counts: Counter[str] = Counter()
        self._reported: dict[str, int] = {}
        self._leader_locks: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, float] = {}
        self._us = self._calls = 0

    def _now(self) -> int:
        """Microseconds since the epoch, as if each call took one."""
        us = round(self._clock.seconds() * 1e6)
        self._us, self._calls = us, self._calls + 1 if us == self._us else 0
        return us + self._calls

    async def ping(self) -> None:
        return None

    # -- topics

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        known = self._topics.get(topic)
        if known is not None and known.publisher not in (None, publisher):
            raise refusals.not_yours(topic)
        if known is None or known.publisher is None:
            owned = sum(each.publisher == publisher for each in self._topics.values())
            if owned >= self._max_topics:
                raise refusals.too_many_topics(self._max_topics)
        us = self._now()
        if known is None:
            known = self._topics[topic] = _Topic(EventID(us, 0))
        us = max(us, known.tail.us)  # the clock may have been set back
        if known.publisher is None:
            known.publisher, known.base = publisher, known.tail.n
        first = EventID(us, known.tail.n + 1)
        for fragment in fragments:
            known.tail = EventID(us, known.tail.n + 1)
            if known.cursors:
                known.log.append((known.tail, fragment))
        if known.cursors:
            self._hint(TopicGrew(topic, first, known.tail).encode())
        return Published(first, known.tail)

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        known = self._existing(topic)
        if publisher is not None and known.publisher != publisher:
            raise refusals.not_yours(topic)
        known.publisher = None
        for subscriber, cursor in list(known.cursors.items()):
            if subscriber in known.awaited and cursor.open:
                continue
            known.cursors[subscriber] = _closed(cursor, known.tail)
            self._end_memberships(subscriber)
            self._hint(SubscriptionChanged(subscriber).encode())
        self._tidy(topic)

    async def topics(self) -> list[TopicInfo]:
        return [
            TopicInfo(name, topic.publisher, topic.tail.n - topic.base)
            for name, topic in sorted(self._topics.items())
            if topic.publisher is not None
        ]

    async def each_topic(self) -> AsyncIterator[Sequence[TopicInfo]]:
        for some in chunks(await self.topics(), 100):
            yield some

    def _existing(self, topic: str) -> _Topic:
        known = self._topics.get(topic)
        if known is None or known.publisher is None:
            raise refusals.no_topic(topic)
        return known

    def _trim(self, topic: str) -> None:
        known = self._topics.get(topic)
        if known is None:
            return
        firsts = [cursor.spans[0].after.n for cursor in known.cursors.values() if cursor.spans]
        lowest = min(firsts, default=known.tail.n)
        known.log = [entry for entry in known.log if entry[0].n > lowest]
        if known.publisher is None and not known.cursors:
            del self._topics[topic]

    # -- subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        for topic in () if subscription.awaits else subscription.topics:
            self._existing(topic)
        name, version = subscription.subscriber, self._now()
        known = self._subscribers.setdefault(name, _Subscriber(version))
        version = max(version, known.version + 1)
        old, known.subscription, known.version = known.subscription, subscription, version
        if old is not None and (old.callback, old.uuid) != (subscription.callback, subscription.uuid):
            known.health = evolve(known.health, failures=0)
        known.health = evolve(known.health, retry_at=None)
        for topic in known.topics.keys() - set(subscription.topics):
            known.topics[topic] = evolve(known.topics[topic], state="left")
            self._topics[topic].cursors[name] = _closed(
                self._topics[topic].cursors[name], self._topics[topic].tail
            )
        for topic in subscription.topics:
            log = self._topics.setdefault(topic, _Topic(EventID(version, 0)))
            (log.awaited.add if subscription.awaits else log.awaited.discard)(name)
            membership = known.topics.setdefault(topic, Membership(version, "on"))
            known.topics[topic] = evolve(membership, state="on")
            cursor = log.cursors.get(name) or Cursor(membership.id, version, 0, ())
            log.cursors[name] = _opened(cursor, log.tail)
        self._end_memberships(name)
        self._hint(SubscriptionChanged(name).encode())

    async def unsubscribe(self, subscriber: str) -> None:
        known = self._subscribed(subscriber)
        for topic in known.topics:
            self._topics[topic].cursors.pop(subscriber, None)
            self._trim(topic)
        del self._subscribers[subscriber]
        self._leases.pop(subscriber, None)
        self._hint(SubscriptionChanged(subscriber).encode())

    async def leave(self, subscriber: str, topic: str) -> None:
        log = self._topics.get(topic)
        cursor = log.cursors.get(subscriber) if log else None
        if cursor is None or not cursor.open:
            log = self._existing(topic)
        known = self._subscribers.get(subscriber)
        if log is None or known is None or cursor is None or not cursor.open:
            raise refusals.not_subscribed(topic)
        known.version = max(self._now(), known.version + 1)
        known.topics[topic] = evolve(known.topics[topic], state="left")
        log.cursors[subscriber] = _closed(cursor, log.tail)
        self._end_memberships(subscriber)
        self._hint(SubscriptionChanged(subscriber).encode())

    def _subscribed(self, subscriber: str) -> _Subscriber:
        known = self._subscribers.get(subscriber)
        if known is None:
            raise refusals.not_subscribed()
        return known

    def _end_memberships(self, subscriber: str) -> None:
        """End the memberships without backlog."""
        known = self._subscribers[subscriber]
        for topic in list(known.topics):
            cursor = self._topics[topic].cursors[subscriber]
            if not cursor.spans:
                known.sent += cursor.sent
                known.dropped += cursor.dropped
                del known.topics[topic], self._topics[topic].cursors[subscriber]
                self._trim(topic)

    async def subscriptions(self) -> list[SubscriptionInfo]:
        facts = []
        for name, known in sorted(self._subscribers.items()):
            logs = {topic: self._topics[topic] for topic in known.topics}
            cursors = {topic: log.cursors[name] for topic, log in logs.items()}
            ages = [
                entry_id.us
                for topic, log in logs.items()
                for entry_id, _ in log.log
                if _owes(cursors[topic], entry_id)
            ]
            if known.subscription is None:
                continue
            current = sorted(topic for topic, cursor in cursors.items() if cursor.open)
            awaited = tuple(topic for topic in current if logs[topic].publisher is None)
            facts.append(
                SubscriptionInfo(
                    subscription=evolve(
                        known.subscription, topics=tuple(topic for topic in current if topic not in awaited)
                    ),
                    awaited=awaited,
                    sent=known.sent + sum(cursor.sent for cursor in cursors.values()),
                    queued=sum(cursor.backlog(logs[topic].tail) for topic, cursor in cursors.items()),
                    oldest=min(ages) / 1e6 if ages else None,
                    health=known.health,
                    dropped=known.dropped + sum(cursor.dropped for cursor in cursors.values()),
                )
            )
        return facts

    async def each_subscription(self) -> AsyncIterator[Sequence[SubscriptionInfo]]:
        for some in chunks(await self.subscriptions(), 100):
            yield some

    # -- tokens

    async def tokens(self) -> Tokens:
        return Tokens(dict(self._tokens), dict(self._token_clients), b"%d" % len(self._token_log))

    async def token_changes(self, mark: bytes) -> tuple[Sequence[TokenChange], bytes] | None:
        changes = self._token_log[int(mark) : int(mark) + 100]
        return changes, b"%d" % (int(mark) + len(changes))

    async def add_token(self, token: ApiToken, client: str | None = None) -> None:
        kept = self._token_clients.get(token.token)
        wanted = client or token.replaces
        if wanted is not None:
            if client is None and wanted not in self._tokens:
                raise refusals.no_token()
            wanted = self._token_clients.get(wanted, wanted)
            if wanted != (kept or token.token) and (kept or token.token in self._tokens):
                raise refusals.token_taken()
        self._tokens[token.token] = token.name
        self._log_token(token.token, wanted)

    async def assign_client(self, token: str, client: str) -> None:
        self._log_token(token, self._token_clients.get(client, client))

    async def remove_token(self, token: str) -> None:
        if self._tokens.pop(token, None) is not None:
            self._log_token(token, None)

    def _log_token(self, token: str, client: str | None) -> None:
        if client is not None and client != self._token_clients.get(token, token):
            self._token_clients[token] = client
        self._token_log.append(TokenChange(token, self._tokens.get(token), self._token_clients.get(token)))
        self._hint(TokensChanged(logged=True).encode())

    # -- metrics

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)

    async def counts(self) -> dict[str, int]:
        return dict(self._counts)

    async def reported(self) -> dict[str, int]:
        return dict(self._reported)

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        self._reported.update(counts)

    async def elect_leader(self, task: str, process: str, seconds: float) -> bool:
        now = self._clock.seconds()
        holder, until = self._leader_locks.get(task, (process, 0.0))
        if holder != process and until > now:
            self._leader_locks[task] = holder, min(until, now + seconds)
            return False
        self._leader_locks[task] = process, now + seconds
        return True

    # -- workers and leases

    async def subscribers(self) -> set[str]:
        return set(self._subscribers)

    async def announce(self, worker: str, seconds: float) -> dict[str, float]:
        now = self._clock.seconds()
        self._workers = {name: until for name, until in self._workers.items() if until > now}
        new = worker not in self._workers
        self._workers[worker] = now + seconds
        self._workers = {name: min(until, now + seconds) for name, until in self._workers.items()}
        if new:
            self._hint(WorkerJoined(worker).encode())
        return {name: until - now for name, until in self._workers.items()}

    async def withdraw(self, worker: str) -> None:
        if self._workers.pop(worker, None) is not None:
            self._hint(WorkerLeft(worker).encode())

    def _lease(self, subscriber: str) -> tuple[str, int, float] | None:
        lease = self._leases.get(subscriber)
        return lease if lease is not None and lease[2] > self._clock.seconds() else None

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        known, lease, now = self._subscribers.get(subscriber), self._lease(subscriber), self._clock.seconds()
        if known is None:
            return None
        if lease is not None and lease[0] != worker:
            # no longer than its time to live, even if the clock was set back
            self._leases[subscriber] = (*lease[:2], min(lease[2], now + self._lease_ttl))
            return LeaseHeld(self._leases[subscriber][2] - now)
        if lease is None:
            known.epoch = max(self._now(), known.epoch + 1)
        self._leases[subscriber] = (worker, known.epoch, now + self._lease_ttl)
        return LeaseGrant(
            epoch=known.epoch,
            now=self._now(),
            version=known.version,
            subscription=known.subscription,
            memberships=dict(known.topics),
            failures=known.health.failures,
            retry_at=round((known.health.retry_at or 0) * 1e6),
            succeeded=known.health.last_success is not None,
            batch_limit=known.health.batch_limit,
        )

    def _holds(self, subscriber: str, worker: str, epoch: int) -> bool:
        lease = self._lease(subscriber)
        return lease is not None and lease[:2] == (worker, epoch)

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        versions: dict[str, int | None] = {}
        for subscriber, epoch in epochs.items():
            versions[subscriber] = None
            if self._holds(subscriber, worker, epoch):
                self._leases[subscriber] = (worker, epoch, self._clock.seconds() + self._lease_ttl)
                known = self._subscribers.get(subscriber)
                versions[subscriber] = known.version if known else 0
        return self._now(), versions

    async def release(self, subscriber: str, worker: str, epoch: int) -> None:
        if self._holds(subscriber, worker, epoch):
            del self._leases[subscriber]
            self._hint(SubscriptionChanged(subscriber).encode())

    async def tails(self, topics: Sequence[str]) -> dict[str, EventID]:
        return {topic: self._topics[topic].tail for topic in topics if topic in self._topics}

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        return Positions({topic: self._position(topic, subscriber) for topic in topics}, self._now())

    async def read(self, starts: Mapping[str, EventID], most: int) -> Mapping[str, Sequence[LogEntry]]:
        found = {}
        for topic, start in starts.items():
            log = self._topics[topic].log if topic in self._topics else []
            found[topic] = [entry for entry in log if entry[0] > start][:most]
        return found

    def _position(self, topic: str, subscriber: str) -> Position:
        log = self._topics.get(topic)
        return Position(None, None) if log is None else Position(log.cursors.get(subscriber), log.tail)

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack], batch_limit: int = 0
    ) -> dict[str, Position]:
        for ack in acks:
            log = self._topics.get(ack.topic)
            cursor = log.cursors.get(subscriber) if log else None
            if log is None or cursor is None or cursor.membership != ack.membership:
                continue
            gone = _last_gone(log)
            if any(entry == ack.last for entry, _ in log.log) or (ack.last <= gone and ack.last.n <= gone.n):
                if ack.first is not None:
                    before = EventID(ack.first.us, ack.first.n - 1)
                    self._count_dropped(subscriber, ack.topic, min(before, gone, key=lambda each: each.n))
                cursor = log.cursors[subscriber]
                passed, spans = _passed(cursor, ack.last)
                log.cursors[subscriber] = evolve(cursor, sent=cursor.sent + passed, spans=spans)
                self._trim(ack.topic)
        known = self._subscribers.get(subscriber)
        if known is not None and self._holds(subscriber, worker, epoch):
            now = self._now() / 1e6
            known.health = evolve(
                known.health, failures=0, last_attempt=now, last_success=now, retry_at=None,
                batch_limit=batch_limit,
            )  # fmt: skip
        return {ack.topic: self._position(ack.topic, subscriber) for ack in acks}

    async def fail(
        self, subscriber: str, worker: str, epoch: int, pause: float, error: str,
        failures: int = 1, batch_limit: int = 0, tried: tuple[str, str | None] = ("", None),
    ) -> bool:  # fmt: skip
        known = self._subscribers.get(subscriber)
        if known is None or not self._holds(subscriber, worker, epoch):
            return False
        found = known.subscription
        if tried[0] and (found is None or tried != (found.callback, found.uuid)):
            return False
        now = self._now() / 1e6
        known.health = evolve(
            known.health, failures=failures, last_attempt=now, last_error=error, retry_at=now + pause,
            batch_limit=batch_limit,
        )  # fmt: skip
        return True

    # -- upkeep

    async def repair(self, subscriber: str) -> None:
        if subscriber in self._subscribers:
            for topic in self._subscribers[subscriber].topics:
                self._count_dropped(subscriber, topic, _last_gone(self._topics[topic]))
            self._end_memberships(subscriber)

    async def stats(self) -> list[StoreStats]:
        return [StoreStats(await self.log_bytes(), 0, 0.0, 0.0)]

    async def log_bytes(self, node: str = "") -> int:
        return sum(len(fragment) for topic in self._topics.values() for _, fragment in topic.log)

    async def drop_oldest(self, most: int, node: str = "") -> int:
        logs = [topic for topic in self._topics.values() if topic.log]
        time = min((topic.log[:most][-1][0].us for topic in logs), default=0)
        before = sum(len(topic.log) for topic in logs)
        for topic in logs:
            topic.log = [entry for entry in topic.log[:most] if entry[0].us > time] + topic.log[most:]
        return before - sum(len(topic.log) for topic in logs)

    async def clean_up(self) -> None:
        for topic in list(self._topics):
            self._tidy(topic)

    def _tidy(self, name: str) -> None:
        """Trim a log, and count dropped events for the subscribers without an attempt."""
        topic = self._topics.get(name)
        if topic is None:
            return
        gone = _last_gone(topic)
        for subscriber, cursor in list(topic.cursors.items()):
            if not cursor.spans or cursor.spans[0].after.n >= gone.n:
                continue
            if self._is_idle(subscriber):
                self._count_dropped(subscriber, name, gone)
            else:
                self._hint(EventsDropped(subscriber).encode())
        self._trim(name)

    def _is_idle(self, subscriber: str) -> bool:
        """Whether no attempt to deliver may be under way."""
        health = self._subscribers[subscriber].health
        in_pause = (health.last_attempt or 0) <= self._now() / 1e6 < (health.retry_at or 0) - 1
        return in_pause or self._lease(subscriber) is None

    def _count_dropped(self, subscriber: str, topic: str, limit: EventID) -> None:
        cursor = self._topics[topic].cursors[subscriber]
        passed, spans = _passed(cursor, limit)
        self._topics[topic].cursors[subscriber] = evolve(cursor, dropped=cursor.dropped + passed, spans=spans)
        log_losses({subscriber: passed})


def _last_gone(topic: _Topic) -> EventID:
    """The ID up to which the log holds no event any more."""
    return EventID(topic.log[0][0].us, topic.log[0][0].n - 1) if topic.log else topic.tail


def _owes(cursor: Cursor, entry_id: EventID) -> bool:
    return any(
        span.after.n < entry_id.n and (span.until is None or entry_id.n <= span.until.n)
        for span in cursor.spans
    )


def _opened(cursor: Cursor, tail: EventID) -> Cursor:
    if cursor.open:
        return cursor
    if cursor.spans and cursor.spans[-1].until == tail:
        return evolve(cursor, spans=(*cursor.spans[:-1], Span(cursor.spans[-1].after)))
    return evolve(cursor, spans=(*cursor.spans, Span(tail)))


def _closed(cursor: Cursor, tail: EventID) -> Cursor:
    if not cursor.open:
        return cursor
    *before, last = cursor.spans
    return evolve(cursor, spans=(*before, *([Span(last.after, tail)] if last.after.n < tail.n else [])))


def _passed(cursor: Cursor, last: EventID) -> tuple[int, tuple[Span, ...]]:
    """How many events of the cursor's spans lie up to `last`, and the spans that are left."""
    passed, left = 0, []
    for span in cursor.spans:
        if span.until is not None and span.until.n <= last.n:
            passed += span.until.n - span.after.n
        elif span.after.n < last.n:
            passed += last.n - span.after.n
            left.append(Span(last, span.until))
        else:
            left.append(span)
    return passed, tuple(left)
