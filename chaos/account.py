"""What publishers, receivers and the churner saw, as values, and the events that are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf
from typing import Any

from attrs import field, frozen

Mark = tuple[str, int, int]  #: topic, lane, number of the event in the lane, from 1


class Outcome(Enum):
    """What a publisher knows about its request."""

    OK = "ok"            #: accepted
    REFUSED = "refused"  #: definitely not stored
    UNKNOWN = "unknown"  #: nobody knows


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
    """One delivery, as the receiver saw it."""

    subscriber: str
    marks: tuple[Mark, ...]
    began: float             #: when the request had come whole
    ended: float = inf       #: when it was answered, or the connection was gone
    said: int | None = None  #: the status that was said in full
    strange: tuple[str, ...] = ()  #: events that nobody publishes, or not like that

    @property
    def acknowledged(self) -> bool:
        """Whether the receiver took it."""
        return self.said in (200, 204)


@frozen
class Window:
    """A time of being subscribed to a topic: asked for, granted; given up, gone."""

    subscriber: str
    topic: str
    asked: float
    granted: float
    leaving: float = inf
    left: float = inf
    dissolved: bool = False  #: with it went what was owed


@frozen
class Allowed:
    """What the faults of a run excuse, for each subscriber."""

    repeats: int = 0   #: deliveries of what was acknowledged already
    overlaps: int = 0  #: deliveries that are under way still when the next begins


@frozen
class Evidence:
    """All accounts of a run."""

    sent: Sequence[Sent] = field(repr=False)
    arrivals: Sequence[Arrival] = field(repr=False)  #: each subscriber's in the order in which they came
    windows: Sequence[Window] = field(repr=False)
    queued: Mapping[str, int] = field(factory=dict)  #: by subscriber, as the bus says in the end
    stored: Mapping[str, int] = field(factory=dict)  #: events by topic, likewise


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
    return mark if delivered == expected | {"topic": topic} else None
