"""The store as plain dicts and lists, and what of it can be seen in the data.

`Model` says what the contract says and nothing of how it is kept: a subscriber
is a set of topics and, for each topic, the list of events that it is owed.
`Seen` is all that the keys say, read without the store's own code;
`difference` holds the one against the other.
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
    """`publisher` None: nobody owns the name."""

    publisher: str | None = None
    events: int = 0
    tail: EventID | None = None  #: the last ID given under this name, in this life or an earlier one


@define
class Subscriber:
    """A subscription and what has become of it."""

    options: Subscription  #: its `topics` mean nothing here, `on` does
    on: set[str]
    owed: dict[str, list[Event]] = field(factory=lambda: {topic: [] for topic in TOPICS})
    sent: int = 0
    dropped: int = 0
    failures: int = 0
    error: str | None = None

    def waiting(self) -> list[Event]:
        """All that is owed, by acceptance."""
        return sorted(event for events in self.owed.values() for event in events)


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
        """Another with the same content, to try what might have happened."""
        return evolve(
            self,
            topics={name: evolve(topic) for name, topic in self.topics.items()},
            subscribers={
                name: evolve(sub, on=set(sub.on), owed={topic: list(events) for topic, events in sub.owed.items()})
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
        """Take the events in, under the IDs that the store gave, if these are as promised."""
        self.may_publish(topic, publisher)
        known, (first, last) = self.topics[topic], (published.first, published.last)
        require(first.us == last.us and last.n - first.n == len(fragments) - 1, "IDs are dense", published)
        require(first.us >= self.last_us, "IDs do not go back in time", published, self.last_us)
        if known.tail is not None and first.n != known.tail.n + 1:
            forgotten = known.publisher is None and not any(sub.owed[topic] for sub in self.subscribers.values())
            require(forgotten and first.n == 1, "numbers go on where they ended", published, known)
        elif known.tail is None:
            require(first.n == 1, "numbers begin with one", published)
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
                sub.owed[topic] += events
        return events

    def delete_topic(self, topic: str, publisher: str | None) -> None:
        known = self._known(topic)
        if publisher is not None and publisher != known.publisher:
            raise NotYourTopic
        known.publisher = None
        for sub in self.subscribers.values():
            sub.on.discard(topic)

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
            passed = [event for event in sub.owed[last.topic] if event.seq <= last.seq]
            lost = sum(event.seq < first.seq and self.is_gone(event) for event in passed)
            sub.dropped += lost
            sub.sent += len(passed) - lost
            del sub.owed[last.topic][: len(passed)]

    def is_gone(self, event: Event) -> bool:
        return (event.topic, event.id) in self.gone

    def stored(self, events: Iterable[Event]) -> list[Event]:
        """Those of the events that were not dropped."""
        return [event for event in events if not self.is_gone(event)]

    def count_dropped(self, subscriber: str | None = None) -> None:
        """Count what a subscriber has lost, or each one to which no attempt can be under way."""
        for name, sub in self.subscribers.items():
            if name == subscriber or (subscriber is None and name not in self.leases):
                for topic, events in sub.owed.items():
                    sub.owed[topic] = self.stored(events)
                    sub.dropped += len(events) - len(sub.owed[topic])

    def reading(
        self, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
    ) -> list[tuple[str, EventID, bytes]]:
        """What `Store.read` must answer."""
        sub, places = self.subscribers.get(subscriber), list(after)
        owed = [event for topic in places for event in sub.owed[topic]] if sub else []
        owed = [event for event in owed if (start := after[event.topic]) is None or event.id > start]
        owed = self.stored(owed)
        owed.sort(key=lambda event: (event.id.us, places.index(event.topic), event.id.n))
        batch: list[tuple[str, EventID, bytes]] = []
        for event in owed[:most]:
            most_bytes -= len(event.fragment) + 1
            if batch and most_bytes < 0:
                break
            batch.append((event.topic, event.id, event.fragment))
        return batch


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error of the bus that it raises."""
    try:
        return call()
    except (NotSubscribed, NotYourTopic, UnknownTopic, StoreUnavailable) as error:
        return error


def require(so: bool, promise: str, *evidence: object) -> None:
    """Fail with a promise that was not kept; unlike `assert` it names it."""
    if not so:
        raise AssertionError(f"{promise}: " + "; ".join(repr(part) for part in evidence))


# -- what is so


@frozen
class SeenTopic:
    """A topic's keys."""

    publisher: str | None
    tail: EventID | None
    base: int
    log: list[tuple[EventID, bytes]]
    cursors: dict[str, Cursor]


@frozen
class SeenSubscriber:
    """A subscriber's keys; `options` None: dissolved, and not all cleared away."""

    version: int
    options: tuple[str, str | None, int, int] | None
    sent: int
    dropped: int
    failures: int
    error: str | None
    stays: dict[str, int]
    lease: tuple[str, int] | None


@frozen
class Seen:
    """All keys, at one time."""

    topics: dict[str, SeenTopic]
    subscribers: dict[str, SeenSubscriber]
    named: tuple[set[str], set[str]]  #: topics and subscribers in the indexes

    def on(self, subscriber: str) -> set[str]:
        """The topics from which a subscriber gets what is accepted from now on."""
        stays = self.subscribers[subscriber].stays
        return {
            topic
            for topic, seen in self.topics.items()
            if seen.publisher and (cursor := self.cursor(subscriber, topic, stays)) and cursor.open
        }

    def cursor(self, subscriber: str, topic: str, stays: Mapping[str, int]) -> Cursor | None:
        cursor = self.topics[topic].cursors.get(subscriber)
        return cursor if cursor and cursor.membership == stays.get(topic) else None

    def owed(self, subscriber: str, topic: str) -> list[tuple[EventID, bytes]]:
        cursor = self.cursor(subscriber, topic, self.subscribers[subscriber].stays)
        return [
            entry
            for entry in (self.topics[topic].log if cursor else [])
            if any(s.after.n < entry[0].n and (s.until is None or entry[0].n <= s.until.n) for s in cursor.spans)
        ]


def difference(model: Model, seen: Seen) -> str:
    """The first thing that is not as it must be, or ''."""
    for name, topic in model.topics.items():
        real = seen.topics[name]
        if real.publisher != topic.publisher:
            return f"{name} belongs to {real.publisher}, not {topic.publisher}"
        if topic.publisher and (real.tail != topic.tail or real.tail.n - real.base != topic.events):
            return f"{name} runs from {real.base} to {real.tail}, not over {topic.events} events to {topic.tail}"
        if topic.publisher and name not in seen.named[0]:
            return f"{name} is not in the index"
    for name in seen.subscribers:
        if name not in model.subscribers:
            return f"{name} has keys and no subscription"
    for name, sub in model.subscribers.items():
        found = seen.subscribers.get(name)
        if found is None or found.options is None:
            return f"{name} has lost its subscription"
        if name not in seen.named[1]:
            return f"{name} is not in the index"
        if seen.on(name) != sub.on:
            return f"{name} is subscribed to {seen.on(name)}, not to {sub.on}"
        if trouble := _difference_of(name, model, found, seen):
            return trouble
        if found.lease != model.leases.get(name):
            return f"the lease of {name} is {found.lease}, not {model.leases.get(name)}"
    return ""


def _difference_of(name: str, model: Model, found: SeenSubscriber, seen: Seen) -> str:
    sub = model.subscribers[name]
    options = sub.options
    if found.options != (options.callback, options.uuid, options.timeout, options.max):
        return f"{name} has options {found.options}, not {options}"
    cursors = {topic: seen.cursor(name, topic, found.stays) for topic in TOPICS}
    for topic, cursor in cursors.items():
        owed = [(event.id, event.fragment) for event in model.stored(sub.owed[topic])]
        if seen.owed(name, topic) != owed:
            return f"{name} is owed {seen.owed(name, topic)} of {topic}, not {owed}"
        backlog = cursor.backlog(seen.topics[topic].tail) if cursor else 0
        if backlog != len(sub.owed[topic]):
            return f"{name} counts {backlog} events of {topic}, not {len(sub.owed[topic])}"
    sent = found.sent + sum(cursor.sent for cursor in cursors.values() if cursor)
    dropped = found.dropped + sum(cursor.dropped for cursor in cursors.values() if cursor)
    if (sent, dropped) != (sub.sent, sub.dropped):
        return f"{name} counts {sent} sent and {dropped} dropped, not {sub.sent} and {sub.dropped}"
    if (found.failures, found.error) != (sub.failures, sub.error):
        return f"{name} counts {found.failures} failures ({found.error}), not {sub.failures} ({sub.error})"
    return ""
