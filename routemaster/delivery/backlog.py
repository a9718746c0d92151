"""The events waiting for one subscriber, by the store's last replies and the hints since then.

The events themselves are read when a batch is put together (`batch`). What is
kept here costs as much as the topics in which something waits or has changed:
topics without news take no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import inf

from routemaster.delivery.batch import PIECE, Batch, Batches, Limits, oldest_entries
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.filling import Filling
from routemaster.delivery.log_cache import Entry, LogCache
from routemaster.delivery.wakeup_index import Waiter, WakeupIndex
from routemaster.interfaces import Ack, Clock, Membership, Position, Store
from routemaster.model import EventID

#: topics of one subscriber whose ends are read for each batch where hints come in no order: on a cluster
ENDS_READ = 64
MANY = 16  #: topics of one subscriber beyond which wake-ups are moved seldom


class Backlog:
    """The waiting events of one subscriber: how many, since when, and the oldest of them."""

    def __init__(
        self, subscriber: str, store: Store, cache: LogCache, index: WakeupIndex, clock: Clock,
        offset: ClockOffset, batches: Batches,
    ) -> None:  # fmt: skip
        self._batches = batches
        self._subscriber, self._store, self._cache, self._index = subscriber, store, cache, index
        self._clock, self._offset = clock, offset
        self._waiter: Waiter | None = None
        self._memberships: Mapping[str, Membership] = {}
        self._positions: dict[str, Position] = {}
        self._as_of: float = 0             #: microseconds by the store's clock: when the positions were read
        self._waiting: dict[str, int] = {}  #: by topic, the events that wait; only topics in which some do
        self._total = 0                    #: their sum
        self._seen = 0                     #: serial number of the index's last change that is in the positions
        self._share = 0                    #: by how many events a topic may grow before the index wakes the waiter
        self._unset: set[str] = set()      #: topics without a wake-up
        self._missing: int | None = None   #: how many events waited when none of them was found
        self.oldest: float | None = None   #: when the oldest was accepted, by the clock here; None: not known
        self.oldest_event: EventID | None = None  #: its ID; None: not known
        self.filling = Filling()
        #: a waiting event, and when it was accepted at the latest, by the clock here
        self._waits_since: tuple[str, EventID, float] | None = None

    # -- which topics

    def follow(self, memberships: Mapping[str, Membership], waiter: Waiter) -> None:
        """Follow these topics and no others; `refresh` has to find the positions in them."""
        for topic in self._positions.keys() - memberships.keys():
            self._index.unfollow(topic, waiter)
        self._waiter, self._memberships = waiter, memberships
        self._positions = {topic: Position(None, None) for topic in sorted(memberships)}
        self._waiting, self._total, self._share, self._unset = {}, 0, 0, set(memberships)
        for topic in self._positions:
            self._index.follow(topic, waiter)  # before the read, so that no hint is missed between the two
        self.forget_oldest()

    def unfollow(self) -> None:
        """Follow no topic any more, and forget the waiter, which refers to this."""
        if self._waiter is not None:
            self.follow({}, self._waiter)
            self._waiter = None

    async def refresh(self) -> None:
        """Read the positions in all topics. Raises StoreUnavailable."""
        topics = list(self._positions)
        if not topics:
            return
        known = {topic: self._index.tail(topic) for topic in topics}
        found = await self._store.positions(self._subscriber, topics)
        for topic, position in found.by_topic.items():
            if topic in self._positions:
                self._set(topic, position)
                self._index.step_back(topic, known[topic], position.tail)
        self._as_of = found.as_of

    @property
    def as_of(self) -> float:
        """When the positions were read, in microseconds by the store's clock."""
        return self._as_of

    def position(self, topic: str) -> Position:
        """The position in a topic that is followed, by the last reply."""
        return self._positions[topic]

    def is_inconsistent(self) -> bool:
        """Whether a membership and its cursor differ, or a membership is over."""
        for topic, membership in self._memberships.items():
            cursor = self._positions[topic].cursor
            if cursor is None or cursor.membership != membership.id or not cursor.spans:
                return True
            if cursor.open and membership.state != "on":
                return True
        return False

    # -- how many, and since when

    def count(self) -> int:
        """Events waiting, by the last positions and the hints since then."""
        changed, self._seen = self._index.changes(self._positions, self._seen)
        for topic in changed:
            position, known = self._positions[topic], self._index.tail(topic)
            if known is not None and (position.tail is None or known > position.tail):
                self._set(topic, Position(position.cursor, known))
        return self._total

    def _set(self, topic: str, position: Position) -> None:
        self._positions[topic] = position
        waiting = self._waiting_in(topic, position)
        self._total += waiting - self._waiting.pop(topic, 0)
        if waiting:
            self._waiting[topic] = waiting

    def _waiting_in(self, topic: str, position: Position) -> int:
        """Events waiting in one topic; none if the cursor belongs to another membership.

        0 as well where a log was created again and ends before the cursor: the
        next reload finds the new one.
        """
        cursor, tail = position.cursor, position.tail
        if cursor is None or tail is None or cursor.membership != self._memberships[topic].id:
            return 0
        return max(0, cursor.backlog(tail))

    def holds_any(self, ends: Mapping[str, EventID]) -> bool:
        """Whether one of these events, given by topic, still waits."""
        positions = ((self._positions.get(topic), event) for topic, event in ends.items())
        return any(position is not None and position.is_before(event) for position, event in positions)

    def wake_when(self, missing: int) -> None:
        """Have the waiter woken when `missing` more events may have been accepted; call it right after `count`.

        If all topics together grow by `missing`, at least one of them grows by
        its equal share: so a wake-up at each share is enough. With many topics
        shares are powers of two, so that few changes of `missing` move the
        wake-ups of all topics.
        """
        if self._waiter is None or not self._positions:
            return
        share = max(1, missing // len(self._positions))
        if len(self._positions) > MANY:
            share = 1 << (share.bit_length() - 1)
        topics = self._positions if share < self._share else self._unset
        self._share = share if topics is self._positions else max(share, self._share)
        for topic in topics:
            position = self._positions[topic]
            if position.cursor is not None and position.cursor.open:
                tail = 0 if position.tail is None else position.tail.n
                self._index.wake_at(topic, tail + share, self._waiter)
        self._unset = set()

    def grown(self, topic: str, first: EventID | None, was_empty: bool) -> None:
        """The index has woken the waiter: `topic` has grown, its first new event is `first` if that is known.

        If nothing waited before, `first` is the oldest event now, unless a hint before it was lost.
        """
        self._unset.add(topic)
        position = self._positions.get(topic)
        if was_empty and first is not None and position is not None and position.tail is not None:
            if first.n == position.tail.n + 1:
                self._found_oldest(topic, first)

    def _found_oldest(self, topic: str, event: EventID) -> None:
        self.oldest, self.oldest_event = self._accepted_at(topic, event), event

    def _accepted_at(self, topic: str, event: EventID) -> float:
        """When the oldest event was accepted, by the clock here.

        After the store's clock was set back, new IDs are in the future, for as
        long as an hour. Then the wait counts from when an event that still
        waits was first seen, and no later look makes it start anew.
        """
        at = min(self._offset.local(event.us), self._clock.seconds())
        if self._waits_since is not None:
            seen_topic, seen, since = self._waits_since
            position = self._positions.get(seen_topic)
            if since <= at and position is not None and position.is_before(seen):
                return since
        self._waits_since = topic, event, at
        return at

    def forget_oldest(self) -> None:
        """The oldest event may be another one now, or may have been missing and be there again."""
        self.oldest = self.oldest_event = self._missing = None
        self.filling.taken()

    # -- reading

    async def find_oldest(self) -> None:
        """Find when the oldest event was accepted. Raises StoreUnavailable."""
        self.forget_oldest()
        if entries := await self.oldest_events(1, 1):
            self._found_oldest(*entries[0][:2])

    async def oldest_events(self, most: int, most_bytes: int) -> list[Entry]:
        """The events of `next_batch`, none if there is no batch. Raises StoreUnavailable."""
        entries, _ = await self._read(most, most_bytes)
        return entries

    async def next_batch(self, most: int, most_bytes: int) -> Batch | None:
        """The oldest events: at most `most` and, after the first, `most_bytes`. Raises StoreUnavailable."""
        entries = await self.oldest_events(most, most_bytes)
        return self._batches.of(entries) if entries else None

    async def fill(self, most: int) -> None:
        """Find out whether `max_bytes` makes a full batch of what waits. Raises StoreUnavailable."""
        entries, is_full = await self._read(most, self.filling.max_bytes or 0)
        size = sum([len(entry[2]) + 1 for entry in entries])
        self.filling.read(self._total, len(entries), size, is_full)

    async def _read(self, most: int, most_bytes: int) -> tuple[list[Entry], bool]:
        """The oldest events, and whether `most_bytes` ended them.

        If there is none although some wait, `is_missing_events` is true from then on.
        """
        horizon = self._horizon()
        if horizon is None:
            await self.refresh()
            horizon = self._as_of
        self.count()
        found = await self._oldest(most, most_bytes, horizon)
        if not found[0] and self.count():
            await self.refresh()  # autodrop may have dropped them, or all are later than the horizon
            found = await self._oldest(most, most_bytes, self._as_of)
            if not found[0]:
                # all may be later by another node's clock
                # (hints since the refresh do not count, one may be missing)
                found = await self._oldest(most, most_bytes, inf)
        self._missing = None if found[0] else self.count() or None
        return found

    def _horizon(self) -> float | None:
        """Later events may follow others that are not known here; None: `refresh` before the next read."""
        topics, known = len(self._positions), self._index.horizon
        if topics <= 1 or (topics > ENDS_READ and not self._index.ordered):
            return inf
        return None if known == -inf else max(self._as_of, known)

    async def _oldest(self, most: int, most_bytes: int, horizon: float) -> tuple[list[Entry], bool]:
        logs = []
        for topic in sorted(self._waiting):
            cursor, tail = self._positions[topic].cursor, self._positions[topic].tail
            if cursor is not None and tail is not None:
                logs.append((topic, cursor.spans, tail))
        return await oldest_entries(self._cache, logs, Limits(most, most_bytes, horizon))

    async def prefetch(self, batch: Batch, most: int) -> None:
        """Read into the cache what follows a batch that is under way; a later read reports what fails here."""
        starts = {}
        for topic in self._waiting:
            cursor = self._positions[topic].cursor
            if cursor is not None and cursor.spans:
                starts[topic] = batch.ends.get(topic, cursor.spans[0].after)
        if 0 < len(starts) <= PIECE:
            with suppress(Exception):
                await self._cache.read(starts, min(most, PIECE // len(starts)))

    def is_missing_events(self) -> bool:
        """Whether the last read found no event although by the cursors some wait."""
        return self._missing is not None and self._missing == self.count()

    def forget_events(self, batch: Batch) -> None:
        """Read the logs of these events from the store again, which does not hold them any more."""
        for topic in batch.ends:
            self._cache.forget(topic)

    # -- an attempt

    def acks(self, batch: Batch) -> list[Ack]:
        """What to acknowledge once `batch`, which was just read, is delivered."""
        acks = []
        for topic, last in batch.ends.items():
            cursor = self._positions[topic].cursor
            rewinds = 0 if cursor is None else cursor.rewinds
            acks.append(Ack(topic, self._memberships[topic].id, last, batch.starts[topic], rewinds))
        return acks

    def acknowledged(self, positions: Mapping[str, Position]) -> bool:
        """The cursors have moved over a batch, to these positions; whether every membership is still current.

        A log's end in a reply may be ahead of the hints for other topics: with
        several topics only hints and `refresh` move it on.
        """
        for topic, position in positions.items():
            known = self._positions[topic].tail
            if len(self._positions) > 1 and known is not None and position.tail is not None:
                position = Position(position.cursor, min(known, position.tail))
            self._set(topic, position)
        self.forget_oldest()
        return all(
            position.cursor is not None
            and position.cursor.membership == self._memberships[topic].id
            and bool(position.cursor.spans)
            for topic, position in positions.items()
        )
