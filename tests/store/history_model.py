"""The store as dicts and lists.

`Model` has the rules without the keys: a subscriber is a set of topics and, for
each topic, the list of events in its backlog. What only the logs know, where
each of them begins, it is told (`heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from attrs import define, evolve, field

from routemaster.errors import NotSubscribed, NotYourTopic, StoreUnavailable, UnknownTopic
from routemaster.model import EventID, Published, Subscription, TopicSettings

TOPICS = ("cats", "dogs", "birds")
SUBSCRIBERS = ("sub_a", "sub_b", "sub_c")


KINDS = ("sent", "expired", "skipped", "parked", "dropped")  #: the ways past an event
Parked = tuple[int, str, int]  #: microseconds, topic, number


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
    settings: TopicSettings = field(factory=TopicSettings)
    accepted: list[Event] = field(factory=list)  #: all with numbers since these began at one
    kept: list[Event] = field(factory=list)      #: those that the history must have

    def history_start(self, now: int) -> int:
        """The number after which the history begins."""
        if not self.settings.history:
            return self.tail.n if self.tail else 0
        old = [event.id.n for event in self.accepted if event.id.us < now - self.settings.history * 1000]
        most = self.settings.history_events
        too_many = 0 if most is None or self.tail is None else self.tail.n - most
        return max([0, too_many, *old])

    def after(self, number: int) -> list[Event]:
        return [event for event in self.accepted if event.id.n > number]

    def place_before(self, us: int, head: int | None, now: int) -> int:
        """The number before a time in the history, as far as that and the log (which begins at `head`) reach."""
        assert self.tail is not None
        gone = self.tail.n if head is None else head - 1
        before = [event.id.n for event in self.accepted if event.id.us < us and event.id.n > gone]
        return max(gone, self.history_start(now), *before)


@define
class Subscriber:
    """A subscription, its backlog and its counts."""

    options: Subscription  #: its `topics` mean nothing here, `on` does
    on: set[str]
    backlog: dict[str, list[Event]] = field(factory=lambda: {topic: [] for topic in TOPICS})
    counts: dict[str, int] = field(factory=lambda: dict.fromkeys(KINDS, 0))
    added: int = 0  #: events that were to be delivered, each as often as it was
    failures: int = 0
    error: str | None = None
    paused: bool = False
    in_backoff: bool = False
    parked: dict[Parked, Event] = field(factory=dict)
    retried: set[Parked] = field(factory=set)
    moved: dict[str, int] = field(factory=dict)   #: by topic: the last time it moved back, an older batch is void
    joined: dict[str, int] = field(factory=dict)  #: by topic: the number after which the last membership began
    fates: dict[tuple[str, EventID], str] = field(factory=dict)  #: how events were passed

    def add(self, topic: str, events: Iterable[Event]) -> None:
        """Put events behind the backlog of a topic."""
        before = len(self.backlog[topic])
        self.backlog[topic] += events
        self.added += len(self.backlog[topic]) - before

    def pass_events(self, events: Iterable[Event], kind: str) -> int:
        """Take events from the backlog, and count them; how many."""
        passed = list(events)
        for event in passed:
            self.backlog[event.topic].remove(event)
            self.fates[event.topic, event.id] = kind
        self.counts[kind] += len(passed)
        return len(passed)

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
    moves: int = 0  #: of cursors, back

    def copy(self) -> Model:
        """A copy."""
        return evolve(
            self,
            topics={
                name: evolve(topic, accepted=[*topic.accepted], kept=[*topic.kept])
                for name, topic in self.topics.items()
            },
            subscribers={
                name: evolve(
                    sub, on=set(sub.on), backlog={topic: [*each] for topic, each in sub.backlog.items()},
                    counts=dict(sub.counts), parked=dict(sub.parked), retried=set(sub.retried),
                    moved=dict(sub.moved), joined=dict(sub.joined), fates=dict(sub.fates),
                )
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
        known.accepted = [*(known.accepted if first.n > 1 else ()), *events]
        if known.settings.history:
            known.kept += events
        for sub in self.subscribers.values():
            if topic in sub.on:
                sub.add(topic, events)
        return events

    def delete_topic(self, topic: str, publisher: str | None) -> None:
        known = self._known(topic)
        if publisher is not None and publisher != known.publisher:
            raise NotYourTopic
        known.publisher, known.settings, known.kept = None, TopicSettings(), []
        for sub in self.subscribers.values():
            sub.on.discard(topic)
        self.count_dropped(topics=[topic])

    def subscribe(self, subscription: Subscription, heads: Mapping[str, int] | None = None, now: int = 0) -> None:
        """`heads` and `now` are needed with a `start` only."""
        for topic in subscription.topics:
            self._known(topic)
        sub = self.subscribers.get(subscription.subscriber)
        if sub is None:
            sub = self.subscribers[subscription.subscriber] = Subscriber(subscription, set())
            sub.moved = {topic: self.next_move() for topic in TOPICS}
        if (sub.options.callback, sub.options.uuid) != (subscription.callback, subscription.uuid):
            sub.failures = 0
        sub.in_backoff = False
        for topic in set(subscription.topics) - sub.on:
            self._join(sub, topic, subscription.start, heads or {}, now)
        sub.options, sub.on = subscription, set(subscription.topics)

    def _join(self, sub: Subscriber, topic: str, start: int | None, heads: Mapping[str, int], now: int) -> None:
        known, backlog = self.topics[topic], sub.backlog[topic]
        assert known.tail is not None
        place = known.tail.n if start is None else known.place_before(start, heads.get(topic), now)
        if backlog and backlog[-1].id.n >= place:
            place = backlog[-1].id.n
        else:
            sub.joined[topic] = place
        if not backlog and start is not None:
            sub.moved[topic] = self.next_move()
        sub.add(topic, known.after(place))

    def next_move(self) -> int:
        self.moves += 1
        return self.moves

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
            lost = [event for event in passed if event.seq < first.seq and self.is_gone(event)]
            sub.pass_events(lost, "dropped")
            sub.pass_events([event for event in passed if event not in lost], "sent")

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
                    sub.pass_events(list(filter(self.is_gone, sub.backlog[topic])), "dropped")

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


    # what subscribers and root decide

    def _subscribed(self, subscriber: str) -> Subscriber:
        if subscriber not in self.subscribers:
            raise NotSubscribed
        return self.subscribers[subscriber]

    def configure(self, topic: str, publisher: str | None, settings: TopicSettings, tail: EventID | None) -> None:
        """`tail`: where the log of a topic ends that was claimed."""
        known = self.topics[topic]
        if publisher is None:
            self._known(topic)
        else:
            self.may_publish(topic, publisher)
        if known.publisher is None:
            require(tail is not None, "a claimed topic has a tail", topic)
            unused = not any(sub.backlog[topic] for sub in self.subscribers.values())
            require(tail == known.tail or (tail.n == 0 and unused), "numbers continue", tail, known)  # type: ignore[union-attr]
            if tail != known.tail:
                known.accepted = []
            known.publisher, known.events, known.tail = publisher, 0, tail
        known.settings = settings

    def rewind(
        self, subscriber: str, us: int, topics: Sequence[str] | None, heads: Mapping[str, int], now: int
    ) -> int:
        """How many events come again."""
        sub, events = self._subscribed(subscriber), 0
        for topic in sub.on if topics is None else topics:
            known, backlog = self.topics[topic], sub.backlog[topic]
            assert known.tail is not None
            place = known.place_before(us, heads.get(topic), now)
            if place < (backlog[0].id.n - 1 if backlog else known.tail.n):
                again = known.after(place)
                events += len(again) - len(backlog)
                sub.backlog[topic], sub.moved[topic] = again, self.next_move()
                sub.joined[topic] = min(place, sub.joined.get(topic, 0))
        sub.added += events
        return events

    def skip(self, subscriber: str, us: int | None, topics: Sequence[str] | None) -> int:
        """How many events are passed."""
        sub, passed = self._subscribed(subscriber), 0
        for topic in TOPICS if topics is None else topics:
            self.count_dropped(subscriber, [topic])
            events = [event for event in sub.backlog[topic] if us is None or event.id.us < us]
            passed += sub.pass_events(events, "skipped")
        return passed

    def expire(self, subscriber: str, now: int) -> int:
        """How many events are passed."""
        sub, expired = self.subscribers.get(subscriber), 0
        if sub is None:
            return 0
        if sub.options.retention is not None:
            self.count_dropped(subscriber)
            old = now - sub.options.retention * 1000
            expired += sub.pass_events([event for event in sub.waiting() if event.id.us < old], "expired")
        if sub.options.max_queued is not None:
            excess = len(sub.waiting()) - sub.options.max_queued
            if excess > 0:
                gone = sum(map(self.is_gone, sub.waiting()))
                self.count_dropped(subscriber)
                order = sorted(sub.waiting(), key=lambda event: (event.id.us, event.topic, event.id.n))
                expired += sub.pass_events(order[: max(0, excess - gone)], "expired")
        return expired

    def expire_idle(self, now: int) -> None:
        """What the clean-up does for those without a lease."""
        for name in self.subscribers.keys() - self.leases.keys():
            self.expire(name, now)

    def park(self, subscriber: str, event: Event) -> None:
        """The event is kept aside; it is passed if it is the next."""
        sub = self.subscribers[subscriber]
        sub.parked.setdefault(_key(event), event)
        self.count_dropped(subscriber, [event.topic])
        sub.pass_events([each for each in sub.backlog[event.topic][:1] if each == event], "parked")

    def retry_parked(self, subscriber: str, ids: Iterable[EventID] | None) -> int:
        """How many events are to be retried."""
        sub = self._subscribed(subscriber)
        chosen = {key for key, event in sub.parked.items() if ids is None or event.id in ids} - sub.retried
        sub.retried |= chosen
        sub.added += len(chosen)
        return len(chosen)

    def drop_parked(self, subscriber: str) -> int:
        """How many events are removed."""
        sub = self._subscribed(subscriber)
        gone = sub.parked.keys() - sub.retried
        for key in gone:
            del sub.parked[key]
        return len(gone)

    def settle(self, subscriber: str, key: Parked, refused: bool) -> None:
        """A retried event was delivered or refused."""
        sub = self.subscribers[subscriber]
        if key in sub.retried:
            sub.retried.remove(key)
            sub.counts["parked" if refused else "sent"] += 1
            if not refused:
                event = sub.parked.pop(key)
                sub.fates[event.topic, event.id] = "sent"

    def forget_history(self, now: int) -> None:
        """Forget what no history has to have any more."""
        for topic in self.topics.values():
            start = topic.history_start(now)
            topic.kept = [event for event in topic.kept if event.id.n > start and not self.is_gone(event)]

    def places(self, subscriber: str, event: Event) -> set[tuple[str, int]]:
        """The possible answers to where an event is, with the number of those before it in the backlog."""
        sub = self.subscribers[subscriber]
        if event in sub.backlog[event.topic]:
            return {("queued", sub.backlog[event.topic].index(event))}
        fate = sub.fates.get((event.topic, event.id), "not subscribed").replace("sent", "acknowledged")
        if fate == "parked" and _key(event) in sub.retried:
            return {("queued", 0)}
        if fate == "parked" and _key(event) not in sub.parked:
            fate = "unknown"
        earlier = {"not subscribed"} if event.id.n <= sub.joined.get(event.topic, 0) else set()
        return {(state, 0) for state in {fate, "unknown"} | earlier}


def _key(event: Event) -> Parked:
    return event.id.us, event.topic, event.id.n


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
