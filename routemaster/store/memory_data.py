"""What the memory store keeps, and how cursors move over it: `_cursor.lua` in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from attrs import define, evolve, field

from routemaster.hints import EventsDropped
from routemaster.interfaces import Ack, Clock, LogEntry, Membership
from routemaster.model import Cursor, EventID, Health, ParkedEvent, Span, Subscription, TopicSettings
from routemaster.store import refusals
from routemaster.store.losses import log_losses

Cut = tuple[str, int, int]  #: a kind, and the first and last number of the events that went that way
Parked = tuple[int, str, int]  #: a parked event: microseconds, topic, number


@define
class Topic:
    """A topic; `publisher` None: only its backlogs are left, or it is awaited."""

    tail: EventID
    publisher: str | None = None
    base: int = 0
    settings: TopicSettings = field(factory=TopicSettings)
    log: list[LogEntry] = field(factory=list)
    cursors: dict[str, Cursor] = field(factory=dict)
    cuts: dict[str, list[Cut]] = field(factory=dict)  #: by subscriber, see `_cursor.lua`
    awaited: set[str] = field(factory=set)  #: subscribers that stay when the topic is deleted

    def last_gone(self) -> EventID:
        """The ID up to which the log holds no event any more."""
        return EventID(self.log[0][0].us, self.log[0][0].n - 1) if self.log else self.tail

    def last_before(self, us: int) -> EventID | None:
        """The last entry that was accepted before a time."""
        return next((entry for entry, _ in reversed(self.log) if entry.us < us), None)

    def history_start(self, now: int) -> EventID | None:
        """The ID after which the history begins; None if the topic keeps none."""
        if not self.settings.history:
            return None
        start = self.last_before(now - self.settings.history * 1000)
        if self.settings.history_events is not None:
            last_passed = self.tail.n - self.settings.history_events
            if last_passed > (start.n if start else 0):
                ids = (self.tail, *(entry for entry, _ in self.log))
                start = next((each for each in ids if each.n == last_passed), start)
        return start or self.last_gone()

    def place_before(self, us: int, now: int) -> EventID:
        """The place before a time in the history, as far as that reaches."""
        first = max(self.last_gone(), self.history_start(now) or self.tail, key=_number)
        return max(first, self.last_before(us) or first, key=_number)

    def note(self, subscriber: str, kind: str, first: int, last: int) -> None:
        """Add to a subscriber's cuts."""
        cuts = self.cuts.setdefault(subscriber, [])
        if cuts and cuts[-1][0] == kind and cuts[-1][2] + 1 == first:
            first = cuts.pop()[1]
        cuts.append((kind, first, last))
        while len(cuts) > MOST_CUTS:
            given_up = cuts.pop(0)
            cuts[0] = ("u", 1, max(given_up[2], cuts[0][2]))

    def forget_cuts(self, subscriber: str, after: int) -> None:
        """Forget the cuts after a number: the events from there on come again."""
        cuts = self.cuts.get(subscriber, [])
        self.cuts[subscriber] = [(kind, first, min(last, after)) for kind, first, last in cuts if first <= after]


MOST_CUTS = 32


@define
class Subscriber:
    """A subscriber; without `subscription` only backlogs are left."""

    version: int
    created: int
    subscription: Subscription
    topics: dict[str, Membership] = field(factory=dict)
    counts: Counter[str] = field(factory=Counter)  #: of ended memberships, by the names in `Cursor`
    epoch: int = 0
    health: Health = field(factory=Health)
    paused: bool = False
    refusals: int = 0
    failed: list[bytes] = field(factory=list)  #: reports, newest first
    success: bytes = b""
    parked: dict[Parked, ParkedEvent] = field(factory=dict)
    retried: set[Parked] = field(factory=set)  #: of them


class MemoryData:
    """The data, and what several calls do with them."""

    def __init__(
        self, clock: Clock, lease_ttl: float, on_hint: Callable[[bytes], None] | None = None,
        max_topics: int = 10_000,
    ) -> None:  # fmt: skip
        """`lease_ttl` in seconds; `on_hint` receives each message of the wake-up channel.

        `max_topics`: the most topics of one client.
        """
        self._clock, self._lease_ttl, self._max_topics = clock, lease_ttl, max_topics
        self._hint = on_hint or (lambda message: None)
        self._topics: dict[str, Topic] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self._leases: dict[str, tuple[str, int, float]] = {}
        self._us = self._calls = 0

    def _now(self) -> int:
        """Microseconds since the epoch, as if each call took one."""
        us = round(self._clock.seconds() * 1e6)
        self._us, self._calls = us, self._calls + 1 if us == self._us else 0
        return us + self._calls

    def _existing(self, topic: str) -> Topic:
        known = self._topics.get(topic)
        if known is None or known.publisher is None:
            raise refusals.no_topic(topic)
        return known

    def _subscribed(self, subscriber: str) -> Subscriber:
        known = self._subscribers.get(subscriber)
        if known is None:
            raise refusals.not_subscribed()
        return known

    def _lease(self, subscriber: str) -> tuple[str, int, float] | None:
        lease = self._leases.get(subscriber)
        return lease if lease is not None and lease[2] > self._clock.seconds() else None

    def _holds(self, subscriber: str, worker: str, epoch: int) -> bool:
        lease = self._lease(subscriber)
        return lease is not None and lease[:2] == (worker, epoch)

    def _is_idle(self, subscriber: str) -> bool:
        """Whether no attempt to deliver may be under way."""
        health = self._subscribers[subscriber].health
        in_pause = (health.last_attempt or 0) <= self._now() / 1e6 < (health.retry_at or 0) - 1
        return in_pause or self._lease(subscriber) is None

    # -- cursors

    def _pass(self, topic: str, subscriber: str, limit: EventID | None, kind: str) -> int:
        """Move a cursor past an ID, never back, and count the events passed as `kind`; how many."""
        if limit is None:
            return 0
        known = self._topics[topic]
        cursor, passed, left = known.cursors[subscriber], 0, []
        for span in cursor.spans:
            last = limit if span.until is None or span.until.n > limit.n else span.until
            if last.n > span.after.n:
                passed += last.n - span.after.n
                if kind != "sent":
                    known.note(subscriber, kind[0], span.after.n + 1, last.n)
            if span.until is None or span.until.n > limit.n:
                left.append(Span(max(span.after, limit, key=_number), span.until))
        if passed:
            moved = {kind: getattr(cursor, kind) + passed}
            known.cursors[subscriber] = evolve(cursor, spans=tuple(left), **moved)
        return passed

    def _count_dropped(self, subscriber: str, topic: str) -> int:
        """Count the events that the log does not hold any more; how many."""
        lost = self._pass(topic, subscriber, self._topics[topic].last_gone(), "dropped")
        log_losses({subscriber: lost})
        return lost

    def _acknowledge(self, subscriber: str, acks: Sequence[Ack]) -> None:
        for ack in acks:
            log = self._topics.get(ack.topic)
            cursor = log.cursors.get(subscriber) if log else None
            if log is None or cursor is None or not cursor.spans:
                continue
            if (cursor.membership, cursor.rewinds) != (ack.membership, ack.rewinds):
                continue
            gone = log.last_gone()
            if any(entry == ack.last for entry, _ in log.log) or (ack.last <= gone and ack.last.n <= gone.n):
                if ack.first is not None:
                    before = min(EventID(ack.first.us, ack.first.n - 1), gone, key=_number)
                    log_losses({subscriber: self._pass(ack.topic, subscriber, before, "dropped")})
                self._pass(ack.topic, subscriber, ack.last, "sent")
                self._trim(ack.topic)

    def _end_memberships(self, subscriber: str) -> None:
        """End the memberships without backlog."""
        known = self._subscribers[subscriber]
        for topic in list(known.topics):
            cursor = self._topics[topic].cursors[subscriber]
            if not cursor.spans:
                known.counts.update({kind: getattr(cursor, kind) for kind in COUNTED})
                del known.topics[topic]
                self._forget(topic, subscriber)

    # -- logs

    def _trim(self, topic: str) -> None:
        """Remove the events that every cursor has passed and the history does not keep."""
        known = self._topics.get(topic)
        if known is None:
            return
        keep = [cursor.spans[0].after for cursor in known.cursors.values() if cursor.spans]
        if (start := known.history_start(self._now())) is not None:
            keep.append(start)
        lowest = min((each.n for each in keep), default=known.tail.n)
        known.log = [entry for entry in known.log if entry[0].n > lowest]
        if known.publisher is None and not known.cursors:
            del self._topics[topic]

    def _forget(self, topic: str, subscriber: str) -> None:
        """Remove a cursor."""
        known = self._topics[topic]
        known.cursors.pop(subscriber, None)
        known.cuts.pop(subscriber, None)
        self._trim(topic)

    def _tidy(self, name: str) -> None:
        """Trim a log, and count dropped events for the subscribers without an attempt."""
        topic = self._topics.get(name)
        if topic is None:
            return
        gone = topic.last_gone()
        for subscriber, cursor in list(topic.cursors.items()):
            if not cursor.spans or cursor.spans[0].after.n >= gone.n:
                continue
            if self._is_idle(subscriber):
                self._count_dropped(subscriber, name)
            else:
                self._hint(EventsDropped(subscriber).encode())
        self._trim(name)


COUNTED = ("sent", "dropped", "expired", "skipped", "parked")  #: the ways past an event


def closed(cursor: Cursor, tail: EventID) -> Cursor:
    """A cursor that receives no event accepted from now on."""
    if not cursor.open:
        return cursor
    *before, last = cursor.spans
    return evolve(cursor, spans=(*before, *([Span(last.after, tail)] if last.after.n < tail.n else [])))


def owes(cursor: Cursor, entry_id: EventID) -> bool:
    """Whether an event waits behind a cursor."""
    return any(
        span.after.n < entry_id.n and (span.until is None or entry_id.n <= span.until.n)
        for span in cursor.spans
    )


def _number(event: EventID) -> int:
    return event.n
