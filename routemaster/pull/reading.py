"""One pulled subscription as this process knows it: what waits, what is on its way, and the next events.

What is known comes from the store's replies and the hints since then, as for a courier
(`delivery.backlog`). Hints only mark it as outdated; `look` reads what is marked. Events that a stream
has sent are passed over though they are not acknowledged, and come again with another request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import evolve, field, frozen

from routemaster.administration import SubscriberState
from routemaster.delivery.backlog import Backlog
from routemaster.delivery.batch import Batches
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.decision import Facts, State, Step, decide
from routemaster.delivery.log_cache import Entry, LogCache
from routemaster.delivery.wakeup_index import Waiter, WakeupIndex
from routemaster.errors import HasCallback
from routemaster.interfaces import Clock, Position, Store
from routemaster.model import Cursor, EventID, Span
from routemaster.pull.cursor_token import MOST_TOPICS, CursorTokens, Place
from routemaster.util.byte_budget import ByteBudget
from routemaster.util.read_turns import ReadTurns

ANSWERS = 32 * 1024 * 1024  #: bytes of the answers to polls that are under way
MISSING_PAUSE = 5.0  #: seconds between reads of events that are missing in the store


@frozen
class Shared:
    """What all pulled subscriptions of a process share."""

    store: Store
    clock: Clock
    index: WakeupIndex
    cache: LogCache
    max_bytes: int  #: of one answer's events, if the subscription does not say it
    turns: ReadTurns
    budget: ByteBudget = field(factory=lambda: ByteBudget(ANSWERS, corrected=True))
    held: Counter[str] = field(factory=Counter)  #: by subscriber, bytes of that budget for answers not sent yet
    offset: ClockOffset = field(factory=ClockOffset)
    batches: Batches = field(factory=Batches)


def check_pulled(state: SubscriberState) -> SubscriberState:
    """The same; raises HasCallback for a subscription that is not pulled."""
    if state.subscription.callback is not None:
        raise HasCallback("this subscription has a callback: its events are delivered there")
    return state


class ReadAhead(Backlog):
    """A backlog without the events that are on their way to the client."""

    def __init__(self, subscriber: str, shared: Shared) -> None:
        super().__init__(
            subscriber, shared.store, shared.cache, shared.index, shared.clock, shared.offset, shared.batches
        )
        self.places: dict[str, Place] = {}  #: by topic, what was sent and is not acknowledged
        self.unacknowledged = 0             #: how many events that are

    async def refresh(self) -> None:
        """Read the positions in all topics, and pass over what is on its way. Raises StoreUnavailable."""
        sent, before = self._clock.seconds(), self.as_of
        await super().refresh()
        if self.as_of != before:
            self._offset.observe(sent, self._clock.seconds(), int(self.as_of))
        self.unacknowledged = 0
        for place in list(self.places.values()):
            self._pass_over(place)

    def _pass_over(self, place: Place) -> None:
        position = self._positions.get(place.topic, Position(None, None))
        cursor, tail = position.cursor, position.tail
        ours = cursor is not None and (cursor.membership, cursor.rewinds) == (place.membership, place.rewinds)
        if cursor is None or tail is None or not ours or not position.is_before(place.last):
            del self.places[place.topic]  # acknowledged, or to be sent again
            return
        ahead = behind(cursor, place.last)
        self.unacknowledged += cursor.backlog(tail) - ahead.backlog(tail)
        self.acknowledged({place.topic: Position(ahead, tail)})

    def place(self, topic: str, event: EventID) -> Place:
        """A place that begins with this event."""
        cursor = self._positions[topic].cursor
        return Place(topic, self._memberships[topic].id, 0 if cursor is None else cursor.rewinds, event)

    def sent(self, entries: Sequence[Entry]) -> None:
        """These events are on their way: `places` has them already."""
        self.unacknowledged += len(entries)
        for topic in {entry[0] for entry in entries}:
            position = self._positions[topic]
            if position.cursor is not None:
                ahead = behind(position.cursor, self.places[topic].last)
                self.acknowledged({topic: Position(ahead, position.tail)})


def behind(cursor: Cursor, last: EventID) -> Cursor:
    """The cursor without the events up to `last`."""
    left = [
        Span(max(span.after, last, key=lambda event: event.n), span.until)
        for span in cursor.spans
        if span.until is None or span.until.n > last.n
    ]
    return evolve(cursor, spans=tuple(left))


class Reading:
    """See above; the owner is woken by the index when enough events were accepted."""

    __slots__ = (
        "_followed", "_missing_until", "_moved", "_outdated", "_repaired", "_shared", "_waiter", "backlog",
        "state", "subscriber",
    )  # fmt: skip

    def __init__(self, state: SubscriberState, shared: Shared, waiter: Waiter) -> None:
        """`state`: as just read."""
        self.subscriber = state.subscription.subscriber
        self.state, self._shared, self._waiter = state, shared, waiter
        self.backlog = ReadAhead(self.subscriber, shared)
        self._followed: SubscriberState | None = None
        self._outdated, self._moved = False, True  #: whether the state, or the positions, are to be read again
        self._repaired = -1     #: version of the subscription that was repaired last
        self._missing_until = 0.0

    @property
    def is_current(self) -> bool:
        """Whether nothing changed since the last `look`, as far as hints say."""
        return not (self._outdated or self._moved)

    @property
    def tokens(self) -> CursorTokens:
        """For the cursors of this subscription."""
        return CursorTokens(self.subscriber, self.state.created)

    @property
    def most_bytes(self) -> int:
        """The most bytes of the events in one answer."""
        return self.state.subscription.max_bytes or self._shared.max_bytes

    def changed(self) -> None:
        """The subscription may have changed."""
        self._outdated = True

    def moved(self) -> None:
        """The positions may have changed."""
        self._moved = True

    def take(self, state: SubscriberState) -> None:
        """Another request has just read the state."""
        if state.version >= self.state.version or state.created != self.state.created:
            self.state = state
        self._moved = True

    def close(self) -> None:
        """Follow no topic any more; nothing may be read after it."""
        self.backlog.unfollow()
        del self._waiter  # which refers to this: without the cycle both are free at once

    # -- reading

    async def look(self) -> None:
        """Read what is outdated. Raises StoreUnavailable, NotSubscribed, HasCallback."""
        outdated, moved = self._outdated, self._moved
        self._outdated = self._moved = False  # first: a change from now on needs another look
        try:
            if outdated:
                self.state = check_pulled(await self._shared.store.state(self.subscriber))
            if self.state is not self._followed:
                self._followed, moved = self.state, True
                self.backlog.follow(self.state.memberships, self._waiter)
            if moved or outdated:
                await self._refresh()
                await self._check()
        except Exception:
            self._outdated = True
            raise

    async def _refresh(self) -> None:
        await self.backlog.refresh()
        self.backlog.forget_oldest()
        self._missing_until = 0.0

    async def _check(self) -> None:
        """Repair what is inconsistent; pass what is more than `max_queued`."""
        state, store = self.state, self._shared.store
        if self._repaired != state.version and self.backlog.is_inconsistent():
            await store.repair(self.subscriber)
            self._repaired, self._outdated = state.version, True
        most = state.subscription.max_queued
        if most is not None and self.backlog.count() + self.backlog.unacknowledged > most:
            await self._expire()

    async def _expire(self) -> None:
        """Have the store pass over what is beyond the subscription's limits."""
        await self._shared.store.expire(self.subscriber)
        await self._refresh()

    async def step(self, most: int) -> Step:
        """What to do for a client that takes at most so many events. Raises StoreUnavailable."""
        backlog, subscription = self.backlog, self.state.subscription
        waiting, now = backlog.count(), self._shared.clock.seconds()
        if self.state.paused or not waiting:
            return Step(State.IDLE)
        if backlog.is_missing_events() and now < self._missing_until:
            return Step(State.IDLE, self._missing_until)
        if subscription.timeout and (waiting < most or subscription.retention is not None):
            if backlog.oldest is None:
                await backlog.find_oldest()
            if backlog.oldest_event is not None and self._is_expired(backlog.oldest_event):
                await self._expire()  # first: an event that has expired makes no others due
                await backlog.find_oldest()
            if backlog.is_missing_events():
                return Step(State.DELIVERING)  # `next_events` has them counted
        oldest = now if backlog.oldest is None else backlog.oldest
        return decide(Facts(backlog.count(), oldest, most, subscription.timeout / 1000), now)

    def wake_when(self, wanted: int) -> None:
        """Have the owner woken when so many events may be waiting, or by the first if none is."""
        if not self.state.paused:
            waiting = self.backlog.count()
            self.backlog.wake_when(max(1, wanted - waiting) if waiting else 1)

    async def next_events(self, most: int, most_bytes: int) -> Sequence[Entry]:
        """The oldest events, up to these limits and of at most `MOST_TOPICS` topics; none if they are missing."""
        entries = await self.backlog.oldest_events(most, most_bytes)
        if entries and self._is_expired(entries[0][1]):
            await self._expire()
            entries = await self.backlog.oldest_events(most, most_bytes)
        elif not entries and self.backlog.is_missing_events():
            await self._shared.store.repair(self.subscriber)
            await self._refresh()
            entries = await self.backlog.oldest_events(most, most_bytes)
            self._missing_until = self._shared.clock.seconds() + MISSING_PAUSE
        return self._of_few_topics(entries)

    def _is_expired(self, event: EventID) -> bool:
        retention = self.state.subscription.retention
        if retention is None:
            return False
        return self._shared.offset.local(event.us) + retention / 1000 <= self._shared.clock.seconds()

    def _of_few_topics(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if len(self.state.memberships) <= MOST_TOPICS:
            return entries
        topics = set(self.backlog.places)
        for index, entry in enumerate(entries):
            topics.add(entry[0])
            if len(topics) > MOST_TOPICS:
                return entries[:index]
        return entries
