"""The values: what is published, what is received, and what the bus says about itself.

The answers that describe the bus's state are the JSON objects themselves, typed; README.rst of the bus has the
meaning of every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypedDict

EventType = Literal["create", "update", "delete", "noop"]
EVENT_TYPES = frozenset({"create", "update", "delete", "noop"})
Time = int | datetime  #: milliseconds since the epoch, or a datetime with a time zone


@dataclass(frozen=True)
class NewEvent:
    """An event to publish: what happened to the resource at `url`.

    `timestamp`: when it happened; None: when the bus receives it. `data`: any JSON; better omitted.
    """

    type: EventType
    url: str
    timestamp: Time | None = None
    data: Any = None


@dataclass(frozen=True)
class Event:
    """An event received. Topic and `id` together identify it; `id` is empty from a bus that gives none."""

    topic: str
    type: str
    url: str
    t: int           #: milliseconds since the epoch
    data: Any = None
    id: str = ""

    @property
    def time(self) -> datetime:
        """When it happened, in UTC."""
        return datetime.fromtimestamp(self.t / 1000, timezone.utc)

    @property
    def number(self) -> int:
        """The event's number in its topic, which grows by one with each; 0 without ID."""
        return int(self.id.rpartition("-")[2] or 0)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Event:
        """From its JSON; KeyError, TypeError or ValueError if it is none. Unknown fields are ignored."""
        topic, type, url, t = value["topic"], value["type"], value["url"], value["t"]
        id = value.get("id") or ""
        if not all(isinstance(each, str) for each in (topic, type, url, id)) or not isinstance(t, int):
            raise TypeError("a field of the event has the wrong type")
        if id and not id.replace("-", "", 1).isdecimal():
            raise ValueError("the event's id is not a time and a number")
        return cls(topic, type, url, t, value.get("data"), id)


@dataclass(frozen=True)
class EventIDs:
    """The IDs of the events of a bulk: the first and the last."""

    first: str
    last: str


@dataclass(frozen=True)
class Pulled:
    """What one pull returned: events, the cursor that acknowledges them, and how many wait, these included."""

    events: Sequence[Event]
    cursor: str
    queued: int

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)


class Topic(TypedDict):
    """One of `topics()`."""

    name: str
    publisher: str
    events: int


class TopicDetails(Topic, total=False):
    """`topic()`."""

    history: int
    history_events: int | None
    max_data: int | None
    first: str | None
    last: str | None
    subscribers: list[dict[str, Any]]


class EventCounts(TypedDict, total=False):
    """Of a subscription; all but sent, queued and oldest only from `subscription()`."""

    sent: int
    queued: int
    oldest: float | None
    added: int
    expired: int
    skipped: int
    parked: int
    dropped: int


class Health(TypedDict):
    """How deliveries to a subscriber go; times are seconds since the epoch."""

    state: str
    failures: int
    last_attempt: float | None
    last_success: float | None
    last_error: str | None
    next_attempt: float | None


class Subscription(TypedDict, total=False):
    """One of `subscriptions()`; `subscription()` has all of it."""

    subscriber: str
    callback: str | None
    uuid: str | None
    max_events: int
    timeout: int
    topics: list[str]
    awaited: list[str]
    events: EventCounts
    health: Health
    max_bytes: int | None
    retention: int | None
    max_queued: int | None
    rate: int | None
    start: str | int
    missing_topics: str
    park_after: int | None


class EventsPage(TypedDict):
    """Events as JSON objects, and the `after` of the following page, None at the end."""

    events: list[dict[str, Any]]
    next: str | None


class Whereabouts(TypedDict):
    """`where()`: the event, None if it is not kept, and what became of it for each subscriber."""

    id: str
    topic: str
    event: dict[str, Any] | None
    subscribers: list[dict[str, Any]]


class Attempts(TypedDict):
    """`attempts()`: the last failed attempts, and the last that succeeded."""

    failed: list[dict[str, Any]]
    success: dict[str, Any] | None


class Trial(TypedDict):
    """`send_test()`: what came of one event posted to the callback."""

    acknowledged: bool
    address: str | None
    tls: str | None
    status: int | None
    reason: str | None
    duration: float
    answer: str


class _TokenHash(TypedDict, total=False):
    hash: str


class Token(_TokenHash):
    """One of `tokens()`; of a token that the bus keeps as a hash, that instead."""

    name: str
    token: str | None
