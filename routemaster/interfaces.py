"""What the running parts may expect of the store and the sender, whoever plays them.

Each contract has more than one player (Redis and memory; treq and a script of
outcomes), and the tests hold them to the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from attrs import frozen

from routemaster.model import (
    ApiToken,
    Cursor,
    Dropped,
    EventID,
    Published,
    StoreStats,
    Subscription,
    SubscriptionInfo,
    TopicInfo,
)


class Timer(Protocol):
    """A call to come."""

    def active(self) -> bool:
        """Whether it is still to come."""

    def cancel(self) -> None:
        """Call it off."""


class Clock(Protocol):
    """Time as an argument: a reactor, or `twisted.internet.task.Clock`."""

    def seconds(self) -> float:
        """Now."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Timer:
        """Call after `delay` seconds."""


class Verdict(Enum):
    """What one attempt says about the subscriber."""

    ACKNOWLEDGED = "acknowledged"  #: 200 or 204, answer complete: the batch is done
    FAILED = "failed"              #: anything else that the subscriber or the way to it did
    LOCAL = "local"                #: this machine's own fault (no descriptors, no memory): says nothing


@frozen
class Outcome:
    """The end of one attempt to deliver a batch."""

    verdict: Verdict
    status: int | None = None         #: HTTP status, if a whole head arrived
    error: str = ""                   #: one line for logs and `health`, empty when acknowledged; no secret
    retry_after: float | None = None  #: seconds asked for by 429 or 503
    reused: bool = False              #: the connection had carried a request before
    received: int = 0                 #: bytes of the answer's body that were read


class Turn(Protocol):
    """A place among the attempts under way, held inside `async with`."""

    async def __aenter__(self) -> Turn:
        """Wait for the place; cancelling the wait gives it up."""

    async def __aexit__(self, *error: object) -> None:
        """Free the place."""

    async def post(self, body: bytes) -> Outcome:
        """Make the one attempt of this turn: POST `body`; returns an Outcome whatever the subscriber does.

        Cancelling (`CancelledError`) aborts the connection.
        """


class Sender(Protocol):
    """Makes attempts to deliver."""

    def turn(self, callback: str, uuid: str | None) -> Turn:
        """A turn for one POST to `callback`, authenticated with `uuid`; turns are given fairly."""

    async def close(self) -> None:
        """Abort the attempts under way and close every connection."""


@frozen
class Membership:
    """A subscriber's stay in a topic, as its subscription wants it."""

    id: int           #: grows with each new membership; the topic's cursor carries the same
    state: str       #: `on`; `left`: deliver what is owed, then end it; `gone`: end it at once
    version: int = 0  #: of the subscription when it came to want that


@frozen
class LeaseGrant:
    """A lease, and all that is known of its subscriber."""

    epoch: int
    now: int                           #: microseconds since the epoch, by the store's clock
    version: int                       #: of the subscription; grows with every change
    subscription: Subscription | None  #: None: it was dissolved, and `repair` has to finish that
    memberships: Mapping[str, Membership]  #: by topic
    failures: int                      #: in a row
    retry_at: int                      #: not before this, microseconds since the epoch; 0: now


@frozen
class LeaseHeld:
    """Another worker has the lease."""

    remaining: float  #: seconds until it ends, if it is not renewed


@frozen
class Position:
    """Where a subscriber stands in one topic."""

    cursor: Cursor | None  #: None: the topic does not know it
    tail: EventID | None   #: the log's last ID; None: the topic does not exist

    def owes(self, event: EventID) -> bool:
        """Whether the event, or one before it, still waits."""
        return self.cursor is not None and bool(self.cursor.spans) and self.cursor.spans[0].after.n < event.n


@frozen
class ReadResult:
    """The oldest events that a subscriber is owed, as one snapshot."""

    entries: Sequence[tuple[str, EventID, bytes]]  #: topic, ID, fragment, in order of acceptance
    positions: Mapping[str, Position]                    #: for each topic that was asked for


@frozen
class Ack:
    """All events of a topic up to one are delivered."""

    topic: str
    membership: int
    last: EventID


class Meter(Protocol):
    """Counts, at the cost of a look-up; what it has counted is told elsewhere (`routemaster.metrics`)."""

    def count(self, name: str, by: int = 1, **tags: str) -> None:
        """Add to a counter; tag values are for everybody's eyes (`model.public_name`)."""

    def observe(self, name: str, milliseconds: float) -> None:
        """Add an observation to a histogram."""


@frozen
class Sample:
    """One measured value."""

    name: str                 #: without the prefix `routemaster.`
    value: float
    tags: Mapping[str, str]


@frozen
class Snapshot:
    """All that was measured, at one time; counters are totals, or what they grew by."""

    gauges: Sequence[Sample]
    counters: Sequence[Sample]


class MetricsService(Protocol):
    """Tells a metrics service."""

    async def send(self, snapshot: Snapshot) -> None:
        """Tell what is measured now, and what counters have grown by since it was last told.

        Raises an exception if that did not arrive; the counts are then told again.
        """

    async def close(self) -> None:
        """Close what was opened."""


class Store(Protocol):
    """Keeps topics, subscriptions, tokens and leases.

    Every call either does the whole of what it promises or raises;
    `StoreUnavailable` tells whether the outcome is known. Hints about changes
    go out on the wake-up channel: `t TOPIC FIRST LAST` (events accepted),
    `s SUBSCRIBER` (look again), `w WORKER on|off` (a worker came or went), `k` (tokens changed).
    """

    async def ping(self) -> None:
        """Return if the store answers, else raise StoreUnavailable."""

    # topics

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        """Append all fragments, in order and at once; raises NotYourTopic."""

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        """Free the name and end all subscriptions to it; what is owed stays owed.

        `publisher` None stands for root. Raises UnknownTopic, NotYourTopic.
        """

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""

    # subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        """Create or replace the client's one subscription; raises UnknownTopic, with nothing changed."""

    async def unsubscribe(self, subscriber: str) -> None:
        """Remove the subscription and what it was owed; raises NotSubscribed."""

    async def leave(self, subscriber: str, topic: str) -> None:
        """End the subscription to one topic; what is owed stays owed. Raises UnknownTopic, NotSubscribed."""

    async def subscriptions(self) -> list[SubscriptionInfo]:
        """All subscriptions, by subscriber, exact, without reading events."""

    def each_subscription(self) -> AsyncIterator[Sequence[SubscriptionInfo]]:
        """The same, some at a time (or none), in no order: whoever asks may rest in between."""

    # tokens

    async def tokens(self) -> list[ApiToken]:
        """All tokens that root has made, by name."""

    async def tokens_version(self) -> int:
        """A number that every change of the tokens changes."""

    async def add_token(self, token: ApiToken) -> None:
        """Let a client in, or rename it."""

    async def remove_token(self, token: str) -> None:
        """Shut a client out; nothing happens if it is not in."""

    # metrics

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to the totals of all processes, in one step."""

    async def counts(self) -> dict[str, int]:
        """The totals of all processes since the beginning."""

    async def reported(self) -> dict[str, int]:
        """The totals as they were last told to the metrics service."""

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        """Remember that these were told."""

    async def elect_leader(self, office: str, process: str, seconds: float) -> bool:
        """Whether this process holds an office, now and for so long, that only one can hold."""

    # upkeep

    async def stats(self) -> list[StoreStats]:
        """What each node of the store says of itself: one, or as many as can be reached of a cluster."""

    async def drop_oldest(self, most: int, node: str = "") -> Dropped:
        """Drop the oldest events over all topics, owed or not: at least one, at most `most` of each topic.

        With the name of a `node` only its topics count.

        Afterwards nothing is left that is older than anything that was dropped.
        """

    # the way out

    async def subscribers(self) -> set[str]:
        """Who may have something to be delivered."""

    async def announce(self, worker: str, seconds: float) -> dict[str, float]:
        """A worker lives for so many seconds more; each that does, with the seconds that are left to it."""

    async def withdraw(self, worker: str) -> None:
        """A worker lives no more."""

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        """Take the lease, or keep it if it is ours; None: there is no such subscriber."""

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        """Keep leases alive: the store's time in microseconds, and for each subscriber
        the version of its subscription, or None if the lease is lost; nothing
        for those that could not be asked about."""

    async def release(self, subscriber: str, worker: str, epoch: int) -> None:
        """Give a lease back, if it is ours."""

    async def tails(self, topics: Sequence[str]) -> dict[str, EventID]:
        """Where logs end now, of topics that exist and could be asked about."""

    async def read(
        self, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
    ) -> ReadResult:
        """The oldest events owed from the topics that are the keys of `after`.

        An ID there skips what is not behind it. At most `most` events and,
        after the first, `most_bytes` of fragments.
        """

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack]
    ) -> dict[str, Position]:
        """Move cursors forward over what was delivered, and record the success.

        Moving needs no lease, for it can harm nothing; recording does. An event that the log does not hold
        moves nothing: a store that lost its last writes has given its number to another.
        """

    async def fail(self, subscriber: str, worker: str, epoch: int, pause: float, error: str) -> int | None:
        """Record a failed attempt and the seconds to wait; failures in a row, None if the lease is lost."""

    async def repair(self, subscriber: str) -> None:
        """Finish what an interrupted call left half done, and end stays that are over."""

    async def clean_up(self) -> None:
        """Trim logs, drop names that no longer mean anything, repair: cost is per topic and subscriber."""
