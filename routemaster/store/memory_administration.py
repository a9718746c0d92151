"""What subscribers and root decide about events, in memory: `administration.Administration` but for topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve
from twisted.logger import Logger

from routemaster.administration import (
    MAX_PARKED,
    MAX_PARKED_BYTES,
    Ack,
    Attempts,
    SubscriberState,
)
from routemaster.hints import Acknowledged, EventsDropped, SubscriptionChanged
from routemaster.model import EventID, ParkedEvent, Span, SubscriptionInfo, public_name
from routemaster.store import refusals
from routemaster.store.memory_data import COUNTED, MemoryData, Parked, Subscriber, owes
from routemaster.store.parking import content

_log = Logger()


class MemoryAdministration(MemoryData):
    """The calls of `administration.Administration` for subscribers."""

    async def subscription(self, subscriber: str) -> SubscriptionInfo:
        return self._info(subscriber, self._subscribed(subscriber))

    def _info(self, name: str, known: Subscriber) -> SubscriptionInfo:
        logs = {topic: self._topics[topic] for topic in known.topics}
        cursors = {topic: log.cursors[name] for topic, log in logs.items()}
        ages = [
            entry_id.us for topic, log in logs.items() for entry_id, _ in log.log if owes(cursors[topic], entry_id)
        ]
        ages += [us for us, _topic, _n in known.retried]
        current = sorted(topic for topic, cursor in cursors.items() if cursor.open)
        awaited = tuple(topic for topic in current if logs[topic].publisher is None)
        counts = {
            kind: known.counts[kind] + sum(getattr(cursor, kind) for cursor in cursors.values())
            for kind in COUNTED
        }
        return SubscriptionInfo(
            subscription=evolve(
                known.subscription, topics=tuple(topic for topic in current if topic not in awaited)
            ),
            awaited=awaited,
            queued=sum(cursor.backlog(logs[topic].tail) for topic, cursor in cursors.items()) + len(known.retried),
            oldest=min(ages) / 1e6 if ages else None,
            health=known.health,
            paused=known.paused,
            **counts,
        )

    async def state(self, subscriber: str) -> SubscriberState:
        known = self._subscribed(subscriber)
        topics = tuple(sorted(topic for topic, membership in known.topics.items() if membership.state == "on"))
        subscription = evolve(known.subscription, topics=topics)
        return SubscriberState(subscription, dict(known.topics), known.version, known.created, known.paused)

    async def pause(self, subscriber: str) -> None:
        self._subscribed(subscriber).paused = True
        self._changed(subscriber)

    async def resume(self, subscriber: str) -> None:
        self._subscribed(subscriber).paused = False
        await self.retry(subscriber)

    async def retry(self, subscriber: str) -> None:
        known = self._subscribed(subscriber)
        known.health = evolve(known.health, retry_at=None)
        self._changed(subscriber)

    def _changed(self, subscriber: str) -> None:
        """Have the worker with the lease read everything again."""
        known = self._subscribed(subscriber)
        known.version = max(self._now(), known.version + 1)
        self._hint(SubscriptionChanged(subscriber).encode())

    async def attempts(self, subscriber: str) -> Attempts:
        known = self._subscribed(subscriber)
        return Attempts(list(known.failed), known.success or None)

    # -- positions

    async def acknowledge_pulled(self, subscriber: str, acks: Sequence[Ack]) -> None:
        known = self._subscribed(subscriber)
        self._acknowledge(subscriber, acks)
        if known.subscription.callback is None:
            now = self._now() / 1e6
            known.health = evolve(known.health, last_attempt=now, last_success=now)
            self._hint(Acknowledged(subscriber).encode())

    async def rewind(self, subscriber: str, to: int, topics: Sequence[str] | None = None) -> int:
        events = sum(self._rewind(subscriber, to, topic) for topic in self._chosen(subscriber, topics, ("on",)))
        self._changed(subscriber)
        return events

    def _rewind(self, subscriber: str, to: int, topic: str) -> int:
        known = self._topics[topic]
        cursor = known.cursors[subscriber]
        start = known.place_before(to, self._now())
        if not cursor.open or start.n >= cursor.spans[0].after.n:
            return 0
        known.cursors[subscriber] = evolve(cursor, spans=(Span(start),), rewinds=cursor.rewinds + 1)
        known.forget_cuts(subscriber, start.n)
        return known.tail.n - start.n - cursor.backlog(known.tail)

    async def skip(self, subscriber: str, to: int | None, topics: Sequence[str] | None = None) -> int:
        passed = 0
        for topic in self._chosen(subscriber, topics, ("on", "left")):
            known = self._topics[topic]
            limit = known.tail if to is None else known.last_before(to)
            passed += self._cut(subscriber, topic, "skipped", limit)
        self._changed(subscriber)
        return passed

    def _chosen(self, subscriber: str, topics: Sequence[str] | None, states: Sequence[str]) -> list[str]:
        """The topics named, or all whose memberships have one of these states. Raises NotSubscribed."""
        memberships = self._subscribed(subscriber).topics
        for topic in topics or ():
            if topic not in memberships or memberships[topic].state != "on":
                raise refusals.not_subscribed(topic)
        every = [topic for topic, membership in memberships.items() if membership.state in states]
        return every if topics is None else list(topics)

    def _cut(self, subscriber: str, topic: str, kind: str, limit: EventID | None) -> int:
        """Pass events that are not to be delivered, but count what is gone as dropped; how many of them."""
        self._count_dropped(subscriber, topic)
        return self._pass(topic, subscriber, limit, kind)

    # -- retention

    async def expire(self, subscriber: str) -> int:
        known, expired = self._subscribers.get(subscriber), 0
        if known is None:
            return 0
        if known.subscription.retention is not None:
            time = self._now() - known.subscription.retention * 1000
            for topic in known.topics:
                expired += self._cut(subscriber, topic, "expired", self._topics[topic].last_before(time))
        if known.subscription.max_queued is not None:
            expired += self._expire_oldest(subscriber, known.topics, known.subscription.max_queued)
        if expired:
            _log.warn("{events} events for '{name}' expired", events=expired, name=public_name(subscriber))
        return expired

    def _expire_oldest(self, subscriber: str, topics: Iterable[str], most: int) -> int:
        """Pass the oldest events until at most so many wait; of one time, those of the first topics by name."""
        logs = {topic: self._topics[topic] for topic in topics}
        excess = sum(log.cursors[subscriber].backlog(log.tail) for log in logs.values()) - most
        if excess <= 0:
            return 0
        excess -= sum(self._count_dropped(subscriber, topic) for topic in logs)
        waiting = sorted(
            (entry.us, topic, entry)
            for topic, log in logs.items()
            for entry, _ in log.log
            if owes(log.cursors[subscriber], entry)
        )
        lasts = {topic: entry for _, topic, entry in waiting[: max(0, excess)]}
        return sum(self._pass(topic, subscriber, last, "expired") for topic, last in lasts.items())

    async def clean_up(self) -> None:
        for topic in list(self._topics):
            self._tidy(topic)
        for name, known in self._subscribers.items():
            if known.subscription.retention is None and known.subscription.max_queued is None:
                continue
            if self._is_idle(name):
                await self.expire(name)
            else:
                self._hint(EventsDropped(name).encode())

    # -- parked events

    async def park(
        self, subscriber: str, worker: str, epoch: int, membership: int, event: ParkedEvent
    ) -> bool:
        if not self._holds(subscriber, worker, epoch):
            return False
        known, key = self._subscribers[subscriber], _key(event)
        if key not in known.parked:
            size = sum(len(content(each)) for each in known.parked.values()) + len(content(event))
            if len(known.parked) >= MAX_PARKED or size > MAX_PARKED_BYTES:
                return False
            known.parked[key] = event
        topic = self._topics.get(event.topic)
        cursor = topic.cursors.get(subscriber) if topic else None
        if topic and cursor and cursor.membership == membership:
            self._count_dropped(subscriber, event.topic)
            spans = topic.cursors[subscriber].spans
            is_next = bool(spans) and spans[0].after.n == event.id.n - 1
            if is_next and any(entry == event.id for entry, _ in topic.log):
                self._pass(event.topic, subscriber, event.id, "parked")
        return True

    async def parked(self, subscriber: str, after: str, most: int) -> tuple[Sequence[ParkedEvent], str]:
        known, last = self._subscribed(subscriber), (0, "", 0)
        if after:
            topic, _, text = after.partition(" ")
            event = EventID.parse(text.encode())
            last = event.us, topic, event.n
        keys = sorted(key for key in known.parked if key not in known.retried and key > last)[:most]
        found = [known.parked[key] for key in keys]
        return found, f"{found[-1].topic} {found[-1].id}" if found else ""

    async def retry_parked(self, subscriber: str, ids: Sequence[EventID] | None) -> int:
        known = self._subscribed(subscriber)
        wanted = {
            key for key, event in known.parked.items()
            if key not in known.retried and (ids is None or event.id in ids)
        }  # fmt: skip
        known.retried |= wanted
        self._changed(subscriber)
        return len(wanted)

    async def drop_parked(self, subscriber: str) -> int:
        known = self._subscribed(subscriber)
        before = len(known.parked)
        known.parked = {key: event for key, event in known.parked.items() if key in known.retried}
        return before - len(known.parked)

    async def next_retried(self, subscriber: str) -> ParkedEvent | None:
        known = self._subscribers.get(subscriber)
        return known.parked[min(known.retried)] if known and known.retried else None

    async def settle_retried(
        self, subscriber: str, worker: str, epoch: int, event: ParkedEvent, refused: str = ""
    ) -> None:
        known, key = self._subscribers.get(subscriber), _key(event)
        if known is not None and key in known.retried and self._holds(subscriber, worker, epoch):
            known.retried.remove(key)
            known.counts.update(parked=1) if refused else known.counts.update(sent=1)
            if refused:
                known.parked[key] = evolve(event, reason=refused)
            else:
                del known.parked[key]
                topic = self._topics.get(event.topic)
                if topic and subscriber in topic.cursors:
                    topic.note(subscriber, "a", event.id.n, event.id.n)
        self._hint(SubscriptionChanged(subscriber).encode())


def _key(event: ParkedEvent) -> Parked:
    return event.id.us, event.topic, event.id.n
