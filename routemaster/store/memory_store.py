"""The store in memory, with the behaviour of the Redis store, for tests and trials.

Its data ends with the process. `tests/store` runs one suite of tests on both
stores. `memory_data` has the tables and moves cursors; `memory_topics` and
`memory_administration` have the calls for topics, and what subscribers and root
decide; this file has the rest: subscriptions, tokens, metrics, leases, deliveries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from routemaster.administration import MOST_REPORTS, PULLED_RECHECK
from routemaster.hints import SubscriptionChanged, TokensChanged, WorkerJoined, WorkerLeft
from routemaster.interfaces import (
    Ack,
    Clock,
    LeaseGrant,
    LeaseHeld,
    LogEntry,
    Membership,
    Position,
    Positions,
    Store,
)
from routemaster.model import (
    MAX_OLD_SECRETS,
    OLD_SECRET_LIFE,
    ApiToken,
    Cursor,
    EventID,
    OldSecret,
    Span,
    Subscription,
    SubscriptionInfo,
    TokenChange,
    Tokens,
)
from routemaster.store import refusals
from routemaster.store.memory_administration import MemoryAdministration
from routemaster.store.memory_data import Subscriber, Topic, closed
from routemaster.store.memory_topics import MemoryTopics
from routemaster.util.chunks import chunks


class MemoryStore(MemoryTopics, MemoryAdministration):
    """`interfaces.Store` without Redis."""

    def __init__(
        self, clock: Clock, lease_ttl: float, on_hint: Callable[[bytes], None] | None = None,
        max_topics: int = 10_000,
    ) -> None:  # fmt: skip
        """See `MemoryData`."""
        super().__init__(clock, lease_ttl, on_hint, max_topics)
        self._tokens: dict[str, str] = {}
        self._token_clients: dict[str, str] = {}
        self._token_log: list[TokenChange] = []
        self._counts: Counter[str] = Counter()
        self._reported: dict[str, int] = {}
        self._leader_locks: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, float] = {}

    async def ping(self) -> None:
        return None

    @property
    def reachable(self) -> bool:
        return True

    # -- subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        for topic in () if subscription.awaits else subscription.topics:
            self._existing(topic)
        name, version = subscription.subscriber, self._now()
        known = self._subscribers.setdefault(name, Subscriber(version, version, subscription))
        version = max(version, known.version + 1)
        old, known.version = known.subscription, version
        known.subscription = evolve(subscription, old_secrets=_old_secrets(subscription.secret, old, version))
        if (old.callback, old.uuid) != (subscription.callback, subscription.uuid):
            known.health = evolve(known.health, failures=0)
        known.health = evolve(known.health, retry_at=None)
        for topic in known.topics.keys() - set(subscription.topics):
            known.topics[topic] = evolve(known.topics[topic], state="left", version=version)
            log = self._topics[topic]
            log.cursors[name] = closed(log.cursors[name], log.tail)
        for topic in subscription.topics:
            log = self._topics.setdefault(topic, Topic(EventID(version, 0)))
            (log.awaited.add if subscription.awaits else log.awaited.discard)(name)
            membership = known.topics.setdefault(topic, Membership(version, "on"))
            known.topics[topic] = evolve(membership, state="on", version=version)
            self._join(log, name, membership, subscription.start)
        self._end_memberships(name)
        self._hint(SubscriptionChanged(name).encode())

    def _join(self, log: Topic, subscriber: str, membership: Membership, start: int | None) -> None:
        """See `join.lua`."""
        known = log.cursors.get(subscriber)
        cursor = known or Cursor(membership.id, membership.version, 0, ())
        if cursor.open:
            return
        place = log.tail if start is None else log.place_before(start, self._now())
        last = cursor.spans[-1] if cursor.spans else None
        if last and last.until and last.until.n >= place.n:
            spans = (*cursor.spans[:-1], Span(last.after))
        else:
            spans = (*cursor.spans, Span(place))
            first = last.until.n + 1 if last and last.until else 1
            if place.n >= first:
                log.forget_cuts(subscriber, place.n)
                log.note(subscriber, "n" if last or not known else "u", first, place.n)
        log.cursors[subscriber] = evolve(cursor, spans=spans)

    async def unsubscribe(self, subscriber: str) -> None:
        for topic in self._subscribed(subscriber).topics:
            self._forget(topic, subscriber)
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
        known.topics[topic] = evolve(known.topics[topic], state="left", version=known.version)
        log.cursors[subscriber] = closed(cursor, log.tail)
        self._end_memberships(subscriber)
        self._hint(SubscriptionChanged(subscriber).encode())

    async def subscriptions(self) -> list[SubscriptionInfo]:
        return [self._info(name, known) for name, known in sorted(self._subscribers.items())]

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

    async def count_workers(self) -> int:
        return sum(until > self._clock.seconds() for until in self._workers.values())

    async def withdraw(self, worker: str) -> None:
        if self._workers.pop(worker, None) is not None:
            self._hint(WorkerLeft(worker).encode())

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        known, lease, now = self._subscribers.get(subscriber), self._lease(subscriber), self._clock.seconds()
        if known is None:
            return None
        if known.subscription.callback is None:
            return LeaseHeld(PULLED_RECHECK)
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
            paused=known.paused,
            refusals=known.refusals,
            retried=len(known.retried),
        )

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
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack], batch_limit: int = 0,
        report: bytes = b"",
    ) -> dict[str, Position]:  # fmt: skip
        self._acknowledge(subscriber, acks)
        known = self._subscribers.get(subscriber)
        if known is not None and self._holds(subscriber, worker, epoch):
            now = self._now() / 1e6
            known.health = evolve(
                known.health, failures=0, last_attempt=now, last_success=now, retry_at=None,
                batch_limit=batch_limit,
            )  # fmt: skip
            known.refusals, known.success = 0, report or known.success
        return {ack.topic: self._position(ack.topic, subscriber) for ack in acks}

    async def fail(
        self, subscriber: str, worker: str, epoch: int, pause: float, error: str,
        failures: int = 1, batch_limit: int = 0, tried: tuple[str, str | None] = ("", None),
        refusals: int = 0, report: bytes = b"",
    ) -> bool:  # fmt: skip
        known = self._subscribers.get(subscriber)
        if known is None or not self._holds(subscriber, worker, epoch):
            return False
        if tried[0] and tried != (known.subscription.callback, known.subscription.uuid):
            return False
        now = self._now() / 1e6
        known.health = evolve(
            known.health, failures=failures, last_attempt=now, last_error=error, retry_at=now + pause,
            batch_limit=batch_limit,
        )  # fmt: skip
        known.refusals = refusals
        if report and known.failed[:1] != [report]:
            known.failed = [report, *known.failed][:MOST_REPORTS]
        return True

    async def repair(self, subscriber: str) -> None:
        if subscriber in self._subscribers:
            for topic in self._subscribers[subscriber].topics:
                self._count_dropped(subscriber, topic)
            self._end_memberships(subscriber)


def _old_secrets(secret: str | None, old: Subscription, now: int) -> tuple[OldSecret, ...]:
    """See `configure.lua`."""
    if secret is None:
        return ()
    replaced = [OldSecret(old.secret, now + OLD_SECRET_LIFE * 1_000_000)] if old.secret else []
    found = [each for each in (*replaced, *old.old_secrets) if each.secret != secret and each.until > now]
    return tuple(found[:MAX_OLD_SECRETS])


if TYPE_CHECKING:

    def _implements(store: MemoryStore) -> Store:
        return store
