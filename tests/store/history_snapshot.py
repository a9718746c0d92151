"""The content of all keys, read without the store's own code, and how it differs from `history_model`."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from routemaster.model import Cursor, EventID
from tests.store.history_model import KINDS, TOPICS, Model, Parked


@frozen
class TopicSnapshot:
    """A topic's keys."""

    publisher: str | None
    tail: EventID | None
    base: int
    log: list[tuple[EventID, bytes]]
    cursors: dict[str, Cursor]

    def lowest(self) -> int:
        """The number up to which no cursor waits for an event."""
        tail = self.tail.n if self.tail else 0
        return min((cursor.spans[0].after.n for cursor in self.cursors.values() if cursor.spans), default=tail)


@frozen
class SubscriberSnapshot:
    """A subscriber's keys; `options` None: unsubscribed, but some keys are left."""

    version: int
    options: tuple[str, str | None, int, int] | None
    counts: dict[str, int]  #: of ended memberships, by kind
    failures: int
    error: str | None
    paused: bool
    parked: dict[Parked, bytes]  #: fragments
    retried: set[Parked]         #: of them
    memberships: dict[str, int]
    lease: tuple[str, int] | None


@frozen
class Snapshot:
    """All keys at one time."""

    topics: dict[str, TopicSnapshot]
    subscribers: dict[str, SubscriberSnapshot]
    named: tuple[set[str], set[str]]  #: topics and subscribers in the indexes

    def heads(self) -> dict[str, int]:
        """For each topic the number of its first event, or None if its log is empty."""
        return {name: topic.log[0][0].n for name, topic in self.topics.items() if topic.log}

    def on(self, subscriber: str) -> set[str]:
        """The topics that the subscriber is subscribed to."""
        memberships = self.subscribers[subscriber].memberships
        return {
            topic
            for topic, snapshot in self.topics.items()
            if snapshot.publisher and (cursor := self.cursor(subscriber, topic, memberships)) and cursor.open
        }

    def cursor(self, subscriber: str, topic: str, memberships: Mapping[str, int]) -> Cursor | None:
        cursor = self.topics[topic].cursors.get(subscriber)
        return cursor if cursor and cursor.membership == memberships.get(topic) else None

    def backlog(self, subscriber: str, topic: str) -> list[tuple[EventID, bytes]]:
        cursor = self.cursor(subscriber, topic, self.subscribers[subscriber].memberships)
        return [
            entry
            for entry in (self.topics[topic].log if cursor else [])
            if any(s.after.n < entry[0].n and (s.until is None or entry[0].n <= s.until.n) for s in cursor.spans)
        ]


def difference(model: Model, snapshot: Snapshot) -> str:
    """The first difference between model and keys, or ''."""
    for name, topic in model.topics.items():
        real = snapshot.topics[name]
        if real.publisher != topic.publisher:
            return f"{name} belongs to {real.publisher}, not {topic.publisher}"
        if topic.publisher and (real.tail != topic.tail or real.tail.n - real.base != topic.events):
            return f"{name} runs from {real.base} to {real.tail}, not over {topic.events} events to {topic.tail}"
        if topic.publisher and name not in snapshot.named[0]:
            return f"{name} is not in the index"
    for name in snapshot.subscribers:
        if name not in model.subscribers:
            return f"{name} has keys and no subscription"
    for name, sub in model.subscribers.items():
        found = snapshot.subscribers.get(name)
        if found is None or found.options is None:
            return f"{name} has lost its subscription"
        if name not in snapshot.named[1]:
            return f"{name} is not in the index"
        if snapshot.on(name) != sub.on:
            return f"{name} is subscribed to {snapshot.on(name)}, not to {sub.on}"
        if found_difference := _difference_of(name, model, found, snapshot):
            return found_difference
        if found.lease != model.leases.get(name):
            return f"the lease of {name} is {found.lease}, not {model.leases.get(name)}"
    return ""


def _difference_of(name: str, model: Model, found: SubscriberSnapshot, snapshot: Snapshot) -> str:
    sub = model.subscribers[name]
    options = sub.options
    if found.options != (options.callback, options.uuid, options.timeout, options.max):
        return f"{name} has options {found.options}, not {options}"
    cursors = {topic: snapshot.cursor(name, topic, found.memberships) for topic in TOPICS}
    for topic, cursor in cursors.items():
        backlog = [(event.id, event.fragment) for event in model.stored(sub.backlog[topic])]
        if snapshot.backlog(name, topic) != backlog:
            return f"{name} has the backlog {snapshot.backlog(name, topic)} of {topic}, not {backlog}"
        counted = cursor.backlog(snapshot.topics[topic].tail) if cursor else 0
        if counted != len(sub.backlog[topic]):
            return f"{name} counts {counted} events of {topic}, not {len(sub.backlog[topic])}"
    counts = {
        kind: found.counts[kind] + sum(getattr(cursor, kind) for cursor in cursors.values() if cursor)
        for kind in KINDS
    }
    if counts != sub.counts:
        return f"{name} counts {counts}, not {sub.counts}"
    queued = sum(len(events) for events in sub.backlog.values()) + len(found.retried)
    if sum(counts.values()) + queued != sub.added:
        return f"{name} has {counts} and {queued} in the queue of {sub.added} events that were added"
    if (found.parked, found.retried) != ({key: event.fragment for key, event in sub.parked.items()}, sub.retried):
        return f"{name} has parked {found.parked}, {found.retried} to be retried, not {sub.parked}, {sub.retried}"
    if found.paused != sub.paused:
        return f"{name} is paused: {found.paused}, not {sub.paused}"
    if (found.failures, found.error) != (sub.failures, sub.error):
        return f"{name} counts {found.failures} failures ({found.error}), not {sub.failures} ({sub.error})"
    return ""
