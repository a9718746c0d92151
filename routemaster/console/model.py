"""What the console knows of the buses at one time: immutable values.

Times are seconds since the epoch, by the bus's clock where the bus measured them.
Rates are events per second since the reading before; None: there is none yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

from attrs import field, frozen

FAILING, LATE, PAUSED = "failing", "late", "paused"
_WORST_FIRST = {FAILING: 0, LATE: 1, PAUSED: 2}


@frozen
class Topic:
    """A topic in the list of a bus."""

    name: str
    publisher: str  #: public name
    events: int  #: ever published
    rate: float | None = None


@frozen
class Subscriber:
    """A subscription in the list of a bus."""

    name: str  #: public name
    callback: str | None  #: None: its events are pulled
    max_events: int  #: in one batch
    timeout: int  #: ms that an event may wait for the batch to fill
    topics: tuple[str, ...]
    awaited: tuple[str, ...]
    sent: int  #: events acknowledged, ever
    queued: int  #: events waiting
    oldest: float | None  #: when the oldest of them was received
    state: str  #: idle, waiting, delivering, backoff, paused
    failures: int  #: in a row
    last_attempt: float | None
    last_success: float | None
    last_error: str | None
    next_attempt: float | None
    rate_in: float | None = None
    rate_out: float | None = None
    shared: bool = False  #: another one has the same public name; the bus answers 409 to questions about it
    trouble: str = ""  #: "failing", "late": the oldest event waits too long; "paused"; or nothing


@frozen
class RedisNode:
    """The memory of one Redis, in bytes."""

    node: str  #: empty unless the bus uses a Redis Cluster
    used: float
    max: float
    low: float
    high: float
    nearness: float  #: to autodrop: 0 at the low mark, 1 at the high mark


@frozen
class Measured:
    """What the console takes from a bus's metrics."""

    redis_up: bool
    version: str = ""
    redis: tuple[RedisNode, ...] = ()
    certificate_expires_in: float | None = None  #: seconds
    lost: Mapping[str, Mapping[str, int]] = field(factory=dict)
    """Events ever, by `autodropped`, `expired` or `parked`, and by subscriber; those without any are left out."""
    started: Mapping[str, int] = field(factory=dict)
    """Processes that ever became ready, by `web` or `worker`; one of both roles counts as both."""
    stopped: Mapping[str, int] = field(factory=dict)
    """Processes that were ever shut down cleanly, counted in the same way."""


@frozen
class Bus:
    """One bus as it was read last."""

    name: str
    url: str
    at: float | None = None  #: when everything below was read; None: never
    error: str = ""  #: why the last reading failed; empty if it did not
    unreachable_since: float | None = None
    redis_up: bool | None = None
    topics: tuple[Topic, ...] = ()
    subscribers: tuple[Subscriber, ...] = ()
    measured: Measured | None = None
    certificate_expires: float | None = None
    received: float | None = None  #: events published per second
    sent: float | None = None  #: events acknowledged per second
    control: bool = False  #: whether the console may change its subscriptions

    @property
    def reachable(self) -> bool:
        """Whether the last reading has succeeded."""
        return self.at is not None and self.unreachable_since is None

    @property
    def version(self) -> str:
        """The bus's version; empty if it is not known."""
        return self.measured.version if self.measured else ""

    @property
    def redis(self) -> tuple[RedisNode, ...]:
        """Redis's memory; several on a cluster."""
        return self.measured.redis if self.measured else ()

    def lost(self, kind: str) -> int:
        """Events ever `autodropped`, `expired` or `parked`."""
        return sum(self.measured.lost.get(kind, {}).values()) if self.measured else 0

    @property
    def autodropped(self) -> int:
        """Events that autodrop ever took from queues."""
        return self.lost("autodropped")

    @property
    def expired(self) -> int:
        """Events that `retention` or `max_queued` ever passed over."""
        return self.lost("expired")

    @property
    def parked(self) -> int:
        """Events that were ever put aside."""
        return self.lost("parked")

    @cached_property
    def queued(self) -> int:
        """Events waiting, over all subscribers."""
        return sum(each.queued for each in self.subscribers)

    @cached_property
    def oldest(self) -> float | None:
        """When the oldest waiting event was received."""
        return min((each.oldest for each in self.subscribers if each.oldest is not None), default=None)

    @cached_property
    def states(self) -> Mapping[str, int]:
        """How many subscribers are in each state."""
        return Counter(each.state for each in self.subscribers)

    @cached_property
    def in_trouble(self) -> tuple[Subscriber, ...]:
        """Subscribers in trouble, the worst first."""
        troubled = [each for each in self.subscribers if each.trouble]
        return tuple(sorted(troubled, key=lambda each: (_WORST_FIRST[each.trouble], -each.queued, each.name)))

    @cached_property
    def _topics_by_name(self) -> Mapping[str, Topic]:
        return {each.name: each for each in self.topics}

    @cached_property
    def _subscribers_by_name(self) -> Mapping[str, Subscriber]:
        return {each.name: each for each in reversed(self.subscribers)}

    def topic(self, name: str) -> Topic | None:
        """The topic of that name."""
        return self._topics_by_name.get(name)

    def subscriber(self, name: str) -> Subscriber | None:
        """The first subscriber of that public name."""
        return self._subscribers_by_name.get(name)


@frozen
class Snapshot:
    """All buses at one time."""

    version: int  #: grows with each change
    at: float
    buses: tuple[Bus, ...]

    def bus(self, name: str) -> Bus | None:
        """The bus of that name."""
        return next((each for each in self.buses if each.name == name), None)


INFO, GOOD, WARNING, ERROR = "info", "good", "warning", "error"


@frozen
class Change:
    """Something that happened."""

    at: float
    bus: str
    kind: str  #: one of `changes.KINDS`
    severity: str  #: info, good, warning, error
    text: str  #: one sentence
    subscriber: str = ""
    topic: str = ""
    user: str = ""  #: who did it, if it was done through the console
    id: int = 0  #: in the history; 0 before it is stored


@frozen
class Bucket:
    """One bucket of a histogram."""

    limit: float  #: upper bound in seconds; inf for the last one
    count: int  #: observations in this bucket alone
