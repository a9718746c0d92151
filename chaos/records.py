"""The records of publishers, receivers and the churner as values, and the events that are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf
from typing import Any

from attrs import field, frozen

Mark = tuple[str, int, int]  #: topic, lane, number of the event in the lane, from 1


class Outcome(Enum):
    """The outcome of a request, as the publisher knows it."""

    OK = "ok"            #: accepted
    REFUSED = "refused"  #: definitely not stored
    UNKNOWN = "unknown"  #: stored or not


@frozen
class Sent:
    """One publication: the events `first` to `last` of a lane; times in seconds."""

    topic: str
    lane: int
    first: int
    last: int
    outcome: Outcome
    began: float
    ended: float

    def marks(self) -> list[Mark]:
        """Its events."""
        return [(self.topic, self.lane, number) for number in range(self.first, self.last + 1)]


@frozen
class Arrival:
    """One delivery, as the receiver recorded it."""

    subscriber: str
    marks: tuple[Mark, ...]
    began: float             #: when the request was received in full
    ended: float = inf       #: when it was answered, or the connection was lost
    status: int | None = None  #: the status that was sent in full
    strange: tuple[str, ...] = ()  #: events that no publisher sent in this form

    @property
    def acknowledged(self) -> bool:
        """Whether the receiver acknowledged it."""
        return self.status in (200, 204)


@frozen
class Window:
    """A period of subscription to a topic: requested, granted; unsubscribing, unsubscribed."""

    subscriber: str
    topic: str
    asked: float
    granted: float
    leaving: float = inf
    left: float = inf
    dissolved: bool = False  #: its backlog was dropped with it


@frozen
class Allowed:
    """How many repeats and overlaps the faults of a run allow for each subscriber."""

    repeats: int = 0   #: deliveries of events that were acknowledged before
    overlaps: int = 0  #: deliveries that are under way still when the next begins


@frozen
class Rollback:
    """Redis has lost its last writes: events, and acknowledgements of so many events by subscriber and topic."""

    moment: float
    dropped: frozenset[Mark] = frozenset()
    acknowledged: Mapping[tuple[str, str], int] = field(factory=dict)


@frozen
class Evidence:
    """All records of a run."""

    sent: Sequence[Sent] = field(repr=False)
    arrivals: Sequence[Arrival] = field(repr=False)  #: each subscriber's in the order in which they came
    windows: Sequence[Window] = field(repr=False)
    queued: Mapping[str, int] = field(factory=dict)  #: by subscriber, as the bus reports at the end
    stored: Mapping[str, int] = field(factory=dict)  #: events by topic, likewise
    rollbacks: Sequence[Rollback] = ()  #: in order


def poisonous(mark: Mark) -> bool:
    """Whether it is one of the events that some receivers refuse for themselves."""
    return mark[2] % 29 == 7


def event(mark: Mark) -> dict[str, Any]:
    """The event of that mark as it is published; no two are alike."""
    topic, lane, number = mark
    made = {
        "type": ("create", "update", "delete", "noop")[number % 4],
        "url": f"https://example.com/{topic}/{lane}/{number}",
        "data": [lane, number, "x" * (number * 37 % 200)],
    }
    return made | {"timestamp": number} if number % 2 else made


def mark_of(delivered: Any) -> Mark | None:
    """The mark of a delivered event; None if it is not what was published."""
    try:
        topic, (lane, number, _), moment = delivered["topic"], delivered["data"], delivered["t"]
        mark = (topic, lane, number)
        expected = event(mark)
    except (TypeError, KeyError, ValueError):
        return None
    expected["t"] = expected.pop("timestamp", moment)
    published = {name: value for name, value in delivered.items() if name != "id"}
    return mark if published == expected | {"topic": topic} else None
