"""The events waiting for one subscriber, by the store's last replies and the hints since then.

The oldest of them may be in memory already: read ahead of an attempt, or read
for the age of the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.wakeup_index import Waiter, WakeupIndex
from routemaster.interfaces import Ack, Clock, Membership, Position, ReadResult, Store
from routemaster.model import EventID

Entry = tuple[str, EventID, bytes]


@frozen
class Batch:
    """The events of one attempt. Compact, because thousands of batches may be in memory."""

    body: bytes
    events: int
    first: EventID
    last: EventID
    ends: Mapping[str, EventID]  #: the last event of each topic

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Batch:
        """One JSON array of the entries, of which there is at least one.

        Each event gets its ID as the last member: topic and ID together tell a
        receiver that it has the event already.
        """
        body = b"[%s]" % b",".join([b'%s,"id":"%d-%d"}' % (fragment[:-1], *at) for _, at, fragment in entries])
        ends = {topic: entry_id for topic, entry_id, _ in entries}
        return cls(body, len(entries), entries[0][1], entries[-1][1], ends)


class Backlog:
    """The waiting events of one subscriber: how many, since when, and the oldest of them."""

    def __init__(
        self, subscriber: str, store: Store, index: WakeupIndex, clock: Clock, offset: ClockOffset, max_bytes: int
    ) -> None:
        """`max_bytes`: the most bytes of fragments in one batch; the first event may be larger."""
        self._subscriber, self._store, self._index = subscriber, store, index
        self._clock, self._offset, self._max_bytes = clock, offset, max_bytes
        self._waiter: Waiter | None = None
        self._memberships: Mapping[str, Membership] = {}
        self._positions: dict[str, Position] = {}
        self._wake_at: dict[str, int] = {}  #: by topic, the number at which the index wakes the waiter
        self._counted: int | None = None  #: events that waited at the last read from the cursors
        self._cut_by_size = False         #: whether `_ahead` ends early because of `max_bytes`
        self._up_to_date = False          #: whether no time has passed since `_ahead` was read
        self._ahead: Sequence[Entry] = ()
        self.oldest: float | None = None  #: when the oldest was accepted, by the clock here; None: not known
        #: a waiting event, and when it was accepted at the latest, by the clock here
        self._waits_since: tuple[str, EventID, float] | None = None

    # -- which topics

    def follow(self, memberships: Mapping[str, Membership], waiter: Waiter) -> None:
        """Follow these topics and no others; a read has to find the positions in them."""
        for topic in self._positions.keys() - memberships.keys():
            self._index.unfollow(topic, waiter)
        self._waiter, self._memberships = waiter, memberships
        self._positions = {topic: Position(None, None) for topic in sorted(memberships)}
        self._wake_at = {}
        for topic in self._positions:
            self._index.follow(topic, waiter)  # before the read, so that no hint is missed between the two
        self.discard()

    def unfollow(self) -> None:
        """Follow no topic any more."""
        if self._waiter is not None:
            self.follow({}, self._waiter)

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
        waiting = 0
        for topic, position in self._positions.items():
            if position.tail is not None:
                known = self._index.tail(topic)
                if known is not None and known > position.tail:
                    position = self._positions[topic] = Position(position.cursor, known)
                waiting += self._owed(topic, position)
        return waiting

    def _owed(self, topic: str, position: Position) -> int:
        """Events waiting in one topic; none if the cursor belongs to another membership.

        0 as well where a log was created again and ends before the cursor: the
        next reload finds the new one.
        """
        cursor, tail = position.cursor, position.tail
        if cursor is None or tail is None or cursor.membership != self._memberships[topic].id:
            return 0
        return max(0, cursor.backlog(tail))

    def owes_any(self, ends: Mapping[str, EventID]) -> bool:
        """Whether one of these events, given by topic, still waits."""
        positions = ((self._positions.get(topic), event) for topic, event in ends.items())
        return any(position is not None and position.owes(event) for position, event in positions)

    def wake_when(self, missing: int) -> None:
        """Have the waiter woken when `missing` more events may have been accepted.

        If all topics together grow by `missing`, at least one of them grows by
        its equal share: so a wake-up at each share is enough.
        """
        growing = {
            topic: position.tail
            for topic, position in self._positions.items()
            if position.cursor and position.cursor.open and position.tail is not None
        }
        for topic, tail in growing.items():
            n = tail.n + max(1, missing // len(growing))
            if self._waiter is not None and self._wake_at.get(topic, n + 1) > n:
                self._wake_at[topic] = n
                self._index.wake_at(topic, n, self._waiter)

    def grown(self, topic: str, first: EventID | None, was_empty: bool) -> None:
        """The index has woken the waiter: `topic` has grown, its first new event is `first` if that is known.

        If nothing waited before, `first` is the oldest event now, unless a hint before it was lost.
        """
        self._wake_at.pop(topic, None)
        position = self._positions.get(topic)
        if was_empty and first is not None and position is not None and position.tail is not None:
            if first.n == position.tail.n + 1:
                self.oldest = self._accepted_at(topic, first)

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
            if since <= at and position is not None and position.owes(seen):
                return since
        self._waits_since = topic, event, at
        return at

    # -- reading

    async def read(self, most: int) -> bool:
        """Read the oldest events, at most `most`, and the positions; whether there were any.

        Raises StoreUnavailable.
        """
        after: dict[str, EventID | None] = dict.fromkeys(self._positions)
        known = {topic: self._index.tail(topic) for topic in after}
        result = ReadResult((), {})
        if after:
            result = await self._store.read(self._subscriber, after, most, self._max_bytes)
        for topic, position in result.positions.items():
            if topic in self._positions:
                self._positions[topic] = position
                self._index.step_back(topic, known.get(topic), position.tail)
        self._counted = sum(self._owed(topic, position) for topic, position in self._positions.items())
        self._keep(result.entries, min(most, self._counted))
        self._up_to_date = True
        return bool(result.entries)

    async def read_behind(self, batch: Batch, most: int) -> ReadResult | None:
        """Read what follows a batch that is under way; None if that failed: a later read reports the failure.

        All topics are read, for only then is the order across them right.
        """
        try:
            after = {topic: batch.ends.get(topic) for topic in self._positions}
            return await self._store.read(self._subscriber, after, most, self._max_bytes)
        except Exception:
            return None

    def keep_behind(self, result: ReadResult, most: int) -> None:
        """Keep what `read_behind` found, now that the batch before it is acknowledged."""
        waiting = sum(
            self._owed(topic, Position(self._positions[topic].cursor, position.tail))
            for topic, position in result.positions.items()
            if topic in self._positions
        )
        self._keep(result.entries, min(most, waiting))

    def _keep(self, entries: Sequence[Entry], wanted: int) -> None:
        self.discard(entries)
        self._cut_by_size = 0 < len(entries) < wanted

    def discard(self, entries: Sequence[Entry] = ()) -> None:
        """Drop what was read, or hold these `entries` in its place."""
        self._ahead, self._cut_by_size, self._up_to_date = entries, False, False
        self.oldest = self._accepted_at(*entries[0][:2]) if entries else None

    def outdate(self) -> None:
        """Mark the last read as old: more events may wait now."""
        self._up_to_date = False

    @property
    def in_memory(self) -> int:
        """Events that are held here."""
        return len(self._ahead)

    def is_ready(self, most: int) -> bool:
        """Whether another read would add no events to the batch in memory."""
        return bool(self._ahead) and (
            self._up_to_date or self._cut_by_size or len(self._ahead) >= min(most, self.count())
        )

    def is_missing_events(self) -> bool:
        """Whether the last read found no event although by the cursors some wait."""
        found_none = self._up_to_date and not self._ahead
        return found_none and bool(self._counted) and self._counted == self.count()

    # -- an attempt

    def take(self) -> Batch:
        """What is in memory, as one batch; it is not held here any more."""
        batch = Batch.of(self._ahead)
        self.discard()
        return batch

    def acks(self, batch: Batch) -> list[Ack]:
        """What to acknowledge once `batch` is delivered."""
        return [Ack(topic, self._memberships[topic].id, last) for topic, last in batch.ends.items()]

    def acknowledged(self, positions: Mapping[str, Position]) -> bool:
        """The cursors have moved over a batch, to these positions; whether every membership is still current."""
        self._positions.update(positions)
        self.discard()
        return all(
            position.cursor is not None
            and position.cursor.membership == self._memberships[topic].id
            and bool(position.cursor.spans)
            for topic, position in positions.items()
        )
