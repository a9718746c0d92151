"""The store as dicts and lists, and a snapshot of the keys.

`Model` has the rules without the keys: a subscriber is a set of topics and, for
each topic, the list of events in its backlog. `Snapshot` has the content of all
keys, read without the store's own code; `difference` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from attrs import define, evolve, field, frozen

from routemaster.errors import NotSubscribed, NotYourTopic, StoreUnavailable, UnknownTopic
from routemaster.model import Cursor, EventID, Published, Subscription

TOPICS = ("cats", "dogs", "birds")
SUBSCRIBERS = ("sub_a", "sub_b", "sub_c")


class Event(NamedTuple):
    """An accepted event; `seq` counts over all topics."""

    seq: int
    topic: str
    id: EventID
    fragment: bytes


# -- what must be so


@define
class Topic:
    """`publisher` None: the topic does not exist."""

    publisher: str | None = None
    events: int = 0
    tail: EventID | None = None  #: the last ID given under this name, in this life or an earlier one


@define
class Subscriber:
    """A subscription, its backlog and its counts."""

    options: Subscription  #: its `topics` mean nothing here, `on` does
    on: set[str]
    backlog: dict[str, list[Event]] = field(factory=lambda: {topic: [] for topic in TOPICS})
    sent: int = 0
    dropped: int = 0
    failures: int = 0
    error: str | None = None

    def waiting(self) -> list[Event]:
        """The whole backlog, in the order of acceptance."""
        return sorted(event for events in self.backlog.values() for event in events)


@define
class Model:
    """The whole store."""

    topics: dict[str, Topic] = field(factory=lambda: {name: Topic() for name in TOPICS})
    subscribers: dict[str, Subscriber] = field(factory=dict)
    tokens: dict[str, str] = field(factory=dict)
    leases: dict[str, tuple[str, int]] = field(factory=dict)
    gone: set[tuple[str, EventID]] = field(factory=set)  #: dropped from the logs
    seq: int = 0
    last_us: int = 0

    def copy(self) -> Model:
        """A copy."""
        return evolve(
            self,
            topics={name: evolve(topic) for name, topic in self.topics.items()},
            subscribers={
                name: evolve(sub, on=set(sub.on), backlog={topic: [*each] for topic, each in sub.backlog.items()})
                for name, sub in self.subscribers.items()
            },
            tokens=dict(self.tokens),
            leases=dict(self.leases),
            gone=set(self.gone),
        )

    def existing(self) -> set[str]:
        return {name for name, topic in self.topics.items() if topic.publisher is not None}

    def _known(self, topic: str) -> Topic:
        if self.topics[topic].publisher is None:
            raise UnknownTopic
        return self.topics[topic]

    def may_publish(self, topic: str, publisher: str) -> None:
        if self.topics[topic].publisher not in (None, publisher):
            raise NotYourTopic

    def publish(self, topic: str, publisher: str, fragments: Sequence[bytes], published: Published) -> list[Event]:
        """Add the events with the IDs of the store, which are checked."""
        self.may_publish(topic, publisher)
        known, (first, last) = self.topics[topic], (published.first, published.last)
        require(first.us == last.us and last.n - first.n == len(fragments) - 1, "IDs are dense", published)
        require(first.us >= self.last_us, "IDs do not go back in time", published, self.last_us)
        if known.tail is not None and first.n != known.tail.n + 1:
            unused = not any(sub.backlog[topic] for sub in self.subscribers.values())
            require(known.publisher is None and unused and first.n == 1, "numbers continue", published, known)
        elif known.tail is None:
            require(first.n == 1, "numbers start at one", published)
        events = []
        for index, fragment in enumerate(fragments):
            self.seq += 1
            events.append(Event(self.seq, topic, EventID(first.us, first.n + index), fragment))
        if known.publisher is None:
            known.publisher, known.events = publisher, 0
        known.events += len(events)
        known.tail, self.last_us = last, last.us
        for sub in self.subscribers.values():
            if topic in sub.on:
                sub.backlog[topic] += events
        return events

    def delete_topic(self, topic: str, publisher: str | None) -> None:
        known = self._known(topic)
        if publisher is not None and publisher != known.publisher:
            raise NotYourTopic
        known.publisher = None
        for sub in self.subscribers.values():
            sub.on.discard(topic)
        self.count_dropped(topics=[topic])

    def subscribe(self, subscription: Subscription) -> None:
        for topic in subscription.topics:
            self._known(topic)
        sub = self.subscribers.get(subscription.subscriber)
        if sub is None:
            sub = self.subscribers[subscription.subscriber] = Subscriber(subscription, set())
        if (sub.options.callback, sub.options.uuid) != (subscription.callback, subscription.uuid):
            sub.failures = 0
        sub.options, sub.on = subscription, set(subscription.topics)

    def unsubscribe(self, subscriber: str) -> None:
        if self.subscribers.pop(subscriber, None) is None:
            raise NotSubscribed
        self.leases.pop(subscriber, None)

    def leave(self, subscriber: str, topic: str) -> None:
        self._known(topic)
        sub = self.subscribers.get(subscriber)
        if sub is None or topic not in sub.on:
            raise NotSubscribed
        sub.on.remove(topic)

    def acknowledge(self, subscriber: str, first: Event, last: Event) -> None:
        """A topic's events from `first` to `last` are delivered; dropped ones before `first` are lost."""
        sub = self.subscribers.get(subscriber)
        if sub is not None:
            passed = [event for event in sub.backlog[last.topic] if event.seq <= last.seq]
            lost = sum(event.seq < first.seq and self.is_gone(event) for event in passed)
            sub.dropped += lost
            sub.sent += len(passed) - lost
            del sub.backlog[last.topic][: len(passed)]

    def is_gone(self, event: Event) -> bool:
        return (event.topic, event.id) in self.gone

    def stored(self, events: Iterable[Event]) -> list[Event]:
        """The events that were not dropped."""
        return [event for event in events if not self.is_gone(event)]

    def count_dropped(self, subscriber: str | None = None, topics: Iterable[str] = TOPICS) -> None:
        """Count the lost events of a subscriber, or of each one without a lease."""
        for name, sub in self.subscribers.items():
            if name == subscriber or (subscriber is None and name not in self.leases):
                for topic in topics:
                    events = sub.backlog[topic]
                    sub.backlog[topic] = self.stored(events)
                    sub.dropped += len(events) - len(sub.backlog[topic])

    def reading(
        self, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
    ) -> list[tuple[str, EventID, bytes]]:
        """The expected result of a read."""
        sub, positions = self.subscribers.get(subscriber), list(after)
        backlog = [event for topic in positions for event in sub.backlog[topic]] if sub else []
        backlog = [event for event in backlog if (start := after[event.topic]) is None or event.id > start]
        backlog = self.stored(backlog)
        backlog.sort(key=lambda event: (event.id.us, positions.index(event.topic), event.id.n))
        batch: list[tuple[str, EventID, bytes]] = []
        for event in backlog[:most]:
            most_bytes -= len(event.fragment) + 1
            if batch and most_bytes < 0:
                break
            batch.append((event.topic, event.id, event.fragment))
        return batch


def outcome(call: Callable[[], Any]) -> Any:
    """The result of a call, or the bus error that it raises."""
    try:
        return call()
    except (NotSubscribed, NotYourTopic, UnknownTopic, StoreUnavailable) as error:
        return error


def require(holds: bool, promise: str, *evidence: object) -> None:
    """Fail with the rule that is violated, and the evidence."""
    if not holds:
        raise AssertionError(f"{promise}: " + "; ".join(repr(part) for part in evidence))


# -- what is so


@frozen
class TopicSnapshot:
    """A topic's keys."""

    publisher: str | None
    tail: EventID | None
    base: int
    log: list[tuple[EventID, bytes]]
    cursors: dict[str, Cursor]


@frozen
class SubscriberSnapshot:
    """A subscriber's keys; `options` None: unsubscribed, but some keys are left."""

    version: int
    options: tuple[str, str | None, int, int] | None
    sent: int
    dropped: int
    failures: int
    error: str | None
    memberships: dict[str, int]
    lease: tuple[str, int] | None


@frozen
class Snapshot:
    """All keys at one time."""

    topics: dict[str, TopicSnapshot]
    subscribers: dict[str, SubscriberSnapshot]
    named: tuple[set[str], set[str]]  #: topics and subscribers in the indexes

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
    sent = found.sent + sum(cursor.sent for cursor in cursors.values() if cursor)
    dropped = found.dropped + sum(cursor.dropped for cursor in cursors.values() if cursor)
    if (sent, dropped) != (sub.sent, sub.dropped):
        return f"{name} counts {sent} sent and {dropped} dropped, not {sub.sent} and {sub.dropped}"
    if (found.failures, found.error) != (sub.failures, sub.error):
        return f"{name} counts {found.failures} failures ({found.error}), not {sub.failures} ({sub.error})"
    return ""
