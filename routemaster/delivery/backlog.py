"""What one subscriber is owed, as far as its courier knows.

Where the subscriber stands in each topic comes from the store's answers; how
far the logs have grown since then, from the watch. The oldest events may have
been read already: ahead of an attempt, or to learn how long the oldest waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from routemaster.delivery.wakeup_index import Sleeper, WakeupIndex
from routemaster.interfaces import Clock, Membership, Position, ReadResult
from routemaster.model import EventID

Entry = tuple[str, EventID, bytes]


@frozen
class Batch:
    """What one attempt carries, in few objects: thousands may wait for their turn to be sent."""

    body: bytes
    events: int
    first: EventID
    last: EventID
    ends: Mapping[str, EventID]  #: the last event of each topic

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Batch:
        """One JSON list of the entries, of which there is one at least."""
        body = b"[%s]" % b",".join([fragment for _, _, fragment in entries])
        ends = {topic: entry_id for topic, entry_id, _ in entries}
        return cls(body, len(entries), entries[0][1], entries[-1][1], ends)


class Backlog:
    """The events that wait: how many, since when, and the first of them."""

    def __init__(self, watch: WakeupIndex, sleeper: Sleeper, clock: Clock, local: Callable[[int], float]) -> None:
        """`local` turns the store's microseconds into seconds by `clock`."""
        self._watch, self._sleeper, self._clock, self._local = watch, sleeper, clock, local
        self._stays: Mapping[str, Membership] = {}
        self._places: dict[str, Position] = {}
        self._asked: dict[str, int] = {}
        self._seen: int | None = None  #: events that waited by the last reading from the cursors
        self._short = False            #: whether `ahead` ends before `most` although more is there to be read
        self._fresh = False            #: whether `ahead` has just been read
        self.ahead: Sequence[Entry] = ()
        self.oldest: float | None = None  #: when the oldest was accepted, by the clock here; None: not known

    # -- which topics

    def follow(self, stays: Mapping[str, Membership]) -> None:
        """Attend to these topics and to no others; where they stand is to be read."""
        for topic in self._places.keys() - stays.keys():
            self._watch.leave(topic, self._sleeper)
        self._stays = stays
        self._places = {topic: Position(None, None) for topic in sorted(stays)}
        self._asked = {}
        for topic in self._places:
            self._watch.attend(topic, self._sleeper)  # before reading, so that no hint falls in between
        self.discard()

    def leave(self) -> None:
        """Attend to nothing any more."""
        self.follow({})

    def membership(self, topic: str) -> int:
        """The stay in a topic that the subscription means."""
        return self._stays[topic].id

    def amiss(self) -> bool:
        """Whether a stay and its cursor disagree, or a stay is over."""
        for topic, stay in self._stays.items():
            cursor = self._places[topic].cursor
            if cursor is None or cursor.membership != stay.id or not cursor.spans:
                return True
            if cursor.open and stay.state != "on":
                return True
        return False

    # -- how much, and since when

    def count(self) -> int:
        """Events waiting, by all that is known here."""
        waiting = 0
        for topic, place in self._places.items():
            if place.tail is not None:
                known = self._watch.tail(topic)
                if known is not None and known > place.tail:
                    place = self._places[topic] = Position(place.cursor, known)
                waiting += self._owed(topic, place)
        return waiting

    def _owed(self, topic: str, place: Position) -> int:
        """Events waiting in one topic; none in a stay that the subscription does not mean.

        A log that was begun again ends before the cursor: the subscriber's
        next look will tell.
        """
        if place.cursor is None or place.tail is None:
            return 0
        if place.cursor.membership != self.membership(topic):
            return 0
        return max(0, place.cursor.backlog(place.tail))

    def accepted(self, topic: str, first: EventID) -> None:
        """Nothing waited until `first` was accepted in `topic`; so it is the oldest, if none is missed."""
        place = self._places.get(topic)
        if place is not None and place.tail is not None and first.n == place.tail.n + 1:
            self.oldest = self._moment(first)

    def _moment(self, event: EventID) -> float:
        # nothing was accepted in the future, whatever the store's clock does
        return min(self._local(event.us), self._clock.seconds())

    def ask(self, missing: int) -> None:
        """Have the sleeper woken when `missing` more events may wait.

        The topics together have grown by so many only when one of them at
        least has grown by its share.
        """
        places = {topic: place for topic, place in self._places.items() if place.cursor and place.cursor.open}
        for topic, place in places.items():
            if place.tail is not None:
                n = place.tail.n + max(1, missing // len(places))
                if self._asked.get(topic, n + 1) > n:
                    self._asked[topic] = n
                    self._watch.wake_at(topic, n, self._sleeper)

    def answered(self, topic: str) -> None:
        """What was asked of the watch for `topic` has come."""
        self._asked.pop(topic, None)

    # -- the first of them

    def after(self, sent: Mapping[str, EventID]) -> dict[str, EventID | None]:
        """Where to read on behind what was `sent`: in all topics, for only then is the order across them right."""
        return {topic: sent.get(topic) for topic in self._places}

    def told(self) -> dict[str, EventID | None]:
        """How far the logs go by what was told until now: what a reading to come must find."""
        return {topic: self._watch.tail(topic) for topic in self._places}

    def take_in(self, reading: ReadResult, most: int, told: Mapping[str, EventID | None]) -> None:
        """Keep what was read from the cursors on; `most` were asked for when so much was `told`."""
        for topic, place in reading.positions.items():
            if topic in self._places:
                self._places[topic] = place
                self._watch.correct(topic, told[topic], place.tail)
        self._seen = sum(self._owed(topic, place) for topic, place in self._places.items())
        self._keep(reading.entries, min(most, self._seen))
        self._fresh = True

    def take_behind(self, reading: ReadResult, most: int) -> None:
        """Keep what was read behind a batch that has been acknowledged since."""
        waiting = sum(
            self._owed(topic, Position(self._places[topic].cursor, place.tail))
            for topic, place in reading.positions.items()
            if topic in self._places
        )
        self._keep(reading.entries, min(most, waiting))

    def _keep(self, entries: Sequence[Entry], wanted: int) -> None:
        self.discard(entries)
        self._short = 0 < len(entries) < wanted

    def discard(self, entries: Sequence[Entry] = ()) -> None:
        """Forget what was read, or hold these `entries` in its place."""
        self.ahead, self._short, self._fresh = entries, False, False
        self.oldest = self._moment(entries[0][1]) if entries else None

    def aged(self) -> None:
        """Time has passed: more than was read may wait."""
        self._fresh = False

    def is_ready(self, most: int) -> bool:
        """Whether `ahead` is as good a batch as reading once more would give."""
        return bool(self.ahead) and (
            self._fresh or self._short or len(self.ahead) >= min(most, self.count())
        )

    def is_hollow(self) -> bool:
        """Whether reading found nothing although by the cursors something waits."""
        return self._fresh and not self.ahead and bool(self._seen) and self._seen == self.count()

    # -- an attempt

    def take(self) -> Batch:
        """The events read ahead as one batch; they are not held here any more."""
        batch = Batch.of(self.ahead)
        self.discard()
        return batch

    def acknowledged(self, places: Mapping[str, Position]) -> bool:
        """The batch is done; whether every stay it touched goes on."""
        self._places.update(places)
        self.discard()
        for topic, place in places.items():
            cursor = place.cursor
            if cursor is None or cursor.membership != self.membership(topic) or not cursor.spans:
                return False
        return True
