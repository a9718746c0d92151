"""The interfaces between the parts: store, sender, metrics, clock.

Each has more than one implementation (Redis and memory; treq and scripted
outcomes), and the same tests run on all of them. Longer than 350 lines: most of
it is the interface of the store, with what each call promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from attrs import frozen

from routemaster.administration import Ack as Ack
from routemaster.administration import Administration
from routemaster.administration import Membership as Membership
from routemaster.model import (
    ApiToken,
    Cursor,
    EventID,
    Published,
    Signing,
    StoreStats,
    Subscription,
    SubscriptionInfo,
    TokenChange,
    Tokens,
    TopicInfo,
)


class Timer(Protocol):
    """A delayed call."""

    def active(self) -> bool:
        """Whether the call is still pending."""

    def cancel(self) -> None:
        """Cancel the call."""


class Clock(Protocol):
    """Time as an argument: a reactor, or `twisted.internet.task.Clock`."""

    def seconds(self) -> float:
        """The time."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Timer:
        """Call after `delay` seconds."""


class Verdict(Enum):
    """What one attempt means for the subscriber."""

    ACKNOWLEDGED = "acknowledged"  #: 200 or 204, and the answer is complete
    FAILED = "failed"              #: anything else that the subscriber or the network did
    LOCAL = "local"                #: a fault of this machine (no descriptors, no memory)


@frozen
class Outcome:
    """The result of one attempt to deliver a batch."""

    verdict: Verdict
    status: int | None = None         #: HTTP status, if a complete head arrived
    error: str = ""                   #: one line for logs and `health`, empty when acknowledged; no secret
    retry_after: float | None = None  #: seconds asked for by 429 or 503
    reused: bool = False              #: the connection had carried a request before
    received: int = 0                 #: bytes of the answer's body that were read
    reason: str = ""                  #: `error` without what the answer says, if that differs
    cut: bool = False                 #: the connection was closed while the request was still being sent
    answer: str = ""                  #: the beginning of the answer's body as text; no secret


@frozen
class Trial:
    """What came of one POST that was made to try a callback."""

    outcome: Outcome
    duration: float  #: seconds
    address: str     #: IP address and port that were connected to; empty: none
    tls: str         #: version of TLS; empty: the server gave no answer


class LastAttempt(Enum):
    """How a subscriber's last attempt ended; those with another answer than `SUCCEEDED` share places."""

    SUCCEEDED = "succeeded"
    NONE = "none"  #: nothing was ever delivered to it
    FAILED = "failed"


class Turn(Protocol):
    """A place among the attempts under way, held inside `async with`."""

    async def __aenter__(self) -> Turn:
        """Wait for the place; cancelling the wait gives it up."""

    async def __aexit__(self, *error: object) -> None:
        """Free the place."""

    def connected(self) -> bool:
        """Whether a kept connection can carry the request, which therefore costs little; ask once."""

    async def post(
        self, body: bytes, number: int = 1, signing: Signing | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Outcome:  # fmt: skip
        """Make the one attempt of this turn: POST `body`; returns an Outcome whatever the subscriber does.

        `number`: 1 for the first attempt at these events; the request carries it.
        `signing`: how the request is signed; None: it is not. `headers`: more headers, each once.

        Cancelling (`CancelledError`) aborts the connection.
        """


class Sender(Protocol):
    """Makes attempts to deliver."""

    def turn(self, callback: str, uuid: str | None, last: LastAttempt = LastAttempt.NONE) -> Turn:
        """A turn for one POST to `callback`, authenticated with `uuid`; turns are given fairly.

        Subscribers whose `last` attempt failed have a part of the places.
        """

    async def try_out(
        self, callback: str, uuid: str | None, body: bytes, signing: Signing | None = None
    ) -> Trial:
        """Make one POST at once, beside all turns, over a new connection, marked as a test."""

    async def refusal(self, callback: str | None) -> str:
        """Why the bus may not connect to where `callback` leads, with the rule that refuses it.

        Empty if it may, if there is no callback, and if its host name cannot be resolved now: every
        attempt checks again.
        """

    async def close(self) -> None:
        """Abort the attempts under way and close every connection."""


@frozen
class LeaseGrant:
    """A lease, and what is stored about its subscriber."""

    epoch: int
    now: int                           #: microseconds since the epoch, by the store's clock
    version: int                       #: of the subscription; grows with every change
    subscription: Subscription | None  #: None: it was removed, and `repair` has to finish that
    memberships: Mapping[str, Membership]  #: by topic
    failures: int                      #: in a row
    retry_at: int                      #: not before this, microseconds since the epoch; 0: now
    succeeded: bool = False            #: whether an attempt ever did
    batch_limit: int = 0               #: the most events in the next batch; 0: no limit but the subscription's
    paused: bool = False               #: no attempt until the subscriber resumes
    refusals: int = 0                  #: how often the oldest event, alone in its batch, was refused for itself
    retried: int = 0                   #: parked events that are to be delivered next


@frozen
class LeaseHeld:
    """Another worker has the lease."""

    remaining: float  #: seconds until it ends, if it is not renewed


@frozen
class Position:
    """A subscriber's position in one topic."""

    cursor: Cursor | None  #: None: the topic has none for it
    tail: EventID | None   #: the log's last ID; None: the topic does not exist

    def is_before(self, event: EventID) -> bool:
        """Whether the event, or one before it, still waits."""
        return self.cursor is not None and bool(self.cursor.spans) and self.cursor.spans[0].after.n < event.n


@frozen
class Positions:
    """A subscriber's positions in several topics."""

    by_topic: Mapping[str, Position]
    as_of: int  #: microseconds by the store's clock: events accepted until then are in them


LogEntry = tuple[EventID, bytes]  #: an event in a log: its ID and its fragment


class Meter(Protocol):
    """Counters and histograms in memory; `routemaster.metrics` exports them."""

    def count(self, name: str, by: int = 1, **tags: str) -> None:
        """Add to a counter; tag values are public (`model.public_name`)."""

    def histogram(self, name: str, **tags: str) -> Callable[[float], None]:
        """The function that adds an observation, in milliseconds, to the histogram with these tags."""


@frozen
class Sample:
    """One measured value."""

    name: str                 #: without the prefix `routemaster.`
    value: float
    tags: Mapping[str, str]


@frozen
class Snapshot:
    """All values at one time; counters are totals, or their growth since the last snapshot."""

    gauges: Sequence[Sample]
    counters: Sequence[Sample]


class MetricsService(Protocol):
    """A metrics service."""

    async def send(self, snapshot: Snapshot) -> None:
        """Send the gauges as they are now, and what the counters grew by since the last call that raised nothing.

        Raises an exception if that failed; the next snapshot then has this growth too.
        """

    async def close(self) -> None:
        """Close what was opened."""


class Store(Administration, Protocol):
    """Keeps topics, subscriptions, tokens and leases.

    Each call does all that it promises, or raises an error; `StoreUnavailable`
    says whether the outcome is known. Changes are announced by `hints` on the
    wake-up channel.
    """

    async def ping(self) -> None:
        """Return if the store answers, else raise StoreUnavailable."""

    @property
    def reachable(self) -> bool:
        """False: each publication would fail with StoreUnavailable now, without a call."""

    # topics

    async def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Published:
        """Append all fragments, in order and at once; raises NotYourTopic."""

    async def delete_topic(self, topic: str, publisher: str | None) -> None:
        """Free the name and end all subscriptions to it; the backlogs are still delivered.

        `publisher` None stands for root. Raises UnknownTopic, NotYourTopic.
        """

    async def topics(self) -> list[TopicInfo]:
        """All topics, by name."""

    def each_topic(self) -> AsyncIterator[Sequence[TopicInfo]]:
        """The same in chunks, each from a call to the store of bounded size; some may be empty."""

    # subscriptions

    async def subscribe(self, subscription: Subscription) -> None:
        """Create or replace the client's one subscription; raises UnknownTopic, with nothing changed."""

    async def unsubscribe(self, subscriber: str) -> None:
        """Remove the subscription and its backlog; raises NotSubscribed."""

    async def leave(self, subscriber: str, topic: str) -> None:
        """End the subscription to one topic; its backlog is still delivered.

        Raises UnknownTopic, NotSubscribed.
        """

    async def subscriptions(self) -> list[SubscriptionInfo]:
        """All subscriptions, by subscriber, exact, without reading events."""

    def each_subscription(self) -> AsyncIterator[Sequence[SubscriptionInfo]]:
        """The same in chunks (some may be empty); the caller may pause between them."""

    # tokens

    async def tokens(self) -> Tokens:
        """All tokens; those that change meanwhile may have either state, which `token_changes` repeats."""

    async def token_changes(self, mark: bytes) -> tuple[Sequence[TokenChange], bytes] | None:
        """Some of the changes after a mark, in order (none: there are no more), and the mark after them.

        None: they are not known any more, call `tokens`.
        """

    async def add_token(self, token: ApiToken, client: str | None = None) -> None:
        """Add a token, or rename it.

        It speaks for the given client, or the one of the token that it
        replaces. Raises UnknownToken if that does not exist, TokenTaken if
        the token to be added exists already for another client.
        """

    async def assign_client(self, token: str, client: str) -> None:
        """Have a token of the configuration speak for a client, or for the one that this replaced."""

    async def remove_token(self, token: str) -> None:
        """Remove a token, if it exists; its client keeps its topics and its subscription."""

    # metrics

    async def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to the totals of all processes, in one step."""

    async def counts(self) -> dict[str, int]:
        """The totals of all processes since the beginning."""

    async def reported(self) -> dict[str, int]:
        """The totals that were last sent to the metrics service."""

    async def set_reported(self, counts: Mapping[str, int]) -> None:
        """Note that these totals were sent."""

    async def elect_leader(self, task: str, process: str, seconds: float) -> bool:
        """Whether this process has the leader lock for a task, from now on for so many seconds."""

    # upkeep

    async def stats(self) -> list[StoreStats]:
        """Memory, processor time and clock of each node: one, or as many of a cluster as can be reached."""

    async def log_bytes(self, node: str = "") -> int:
        """The bytes that all logs take, or those on a `node`: an estimate, at a constant cost for each."""

    async def drop_oldest(self, most: int, node: str = "") -> int:
        """Drop the oldest events over all topics: at least one, at most `most` of each topic; how many.

        First those that only a topic's history keeps, as long as there are any.
        Then no event is left that is older than one that was dropped.
        With the name of a `node`, only its topics count. `clean_up` counts
        the events for each subscriber that waits for them, except if an
        attempt may be under way: then `acknowledge` or `repair` counts them,
        when it is known which of them were delivered.
        """

    # deliveries

    async def subscribers(self) -> set[str]:
        """All subscribers, those included that only have a backlog left."""

    async def announce(self, worker: str, seconds: float) -> dict[str, float]:
        """Announce a worker for so many seconds; returns all live workers with the seconds left to each."""

    async def withdraw(self, worker: str) -> None:
        """Remove a worker that stops."""

    async def count_workers(self) -> int:
        """How many workers are alive."""

    async def acquire(self, subscriber: str, worker: str) -> LeaseGrant | LeaseHeld | None:
        """Acquire the lease, or keep it if the worker has it; None: there is no such subscriber."""

    async def renew(self, worker: str, epochs: Mapping[str, int]) -> tuple[int, dict[str, int | None]]:
        """Renew leases, given with their epochs.

        Returns the store's time in microseconds, and for each subscriber the
        version of its subscription, or None if the lease is lost; subscribers
        on a node that is unavailable are left out.
        """

    async def release(self, subscriber: str, worker: str, epoch: int) -> None:
        """Release a lease, if the worker has it under this epoch."""

    async def tails(self, topics: Sequence[str]) -> dict[str, EventID]:
        """The last IDs of logs; topics that do not exist, or whose node is unavailable, are left out."""

    async def positions(self, subscriber: str, topics: Sequence[str]) -> Positions:
        """The subscriber's position in each of the topics."""

    async def read(self, starts: Mapping[str, EventID], most: int) -> Mapping[str, Sequence[LogEntry]]:
        """Read what follows the given IDs in the logs, in order, at most `most` events of each.

        The store bounds what one call carries: it may return fewer events, or
        leave a topic out. A topic that is in the result has no entry only if
        its log has none after the ID.
        """

    async def acknowledge(
        self, subscriber: str, worker: str, epoch: int, acks: Sequence[Ack], batch_limit: int = 0,
        report: bytes = b"",
    ) -> dict[str, Position]:  # fmt: skip
        """Move cursors over delivered events, and record the success; returns the new positions.

        `batch_limit`: as in `LeaseGrant`, to be stored; `report`: for `attempts`.

        Cursors move without a lease, because they only move over events that
        were delivered; recording needs the lease. An ID that the log does not
        hold moves nothing: a store that lost its last writes has given the
        number to another event.
        """

    async def fail(
        self, subscriber: str, worker: str, epoch: int, pause: float, error: str,
        failures: int = 1, batch_limit: int = 0, tried: tuple[str, str | None] = ("", None),
        refusals: int = 0, report: bytes = b"",
    ) -> bool:  # fmt: skip
        """Record a failed attempt, the seconds to the next, and how many failed in a row with this one.

        `refusals`: as in `LeaseGrant`; `report`: for `attempts`.

        `tried`: the callback and uuid of the attempt; an empty callback stands
        for whichever the subscription has. Returns whether it is recorded: not
        if the lease is lost, or if callback or uuid are others now. Recording
        it again changes nothing.
        """

    async def repair(self, subscriber: str) -> None:
        """Finish what an interrupted call left half done, end memberships that are over, count dropped events.

        To be called while no attempt to deliver to the subscriber is under way.
        """

    async def clean_up(self) -> None:
        """Trim logs, remove stale names, repair, count dropped events; some calls for each topic, subscriber."""
