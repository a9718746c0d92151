"""What subscribers, publishers and root decide about events: the part of the store's interface for that.

`interfaces.Store` is the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import frozen

from routemaster.model import (
    EventID,
    ParkedEvent,
    Subscription,
    SubscriptionInfo,
    TopicDetails,
    TopicSettings,
    Whereabouts,
)


@frozen
class Membership:
    """A subscriber's membership in a topic, as its subscription demands it."""

    id: int           #: grows with each new membership; the topic's cursor carries the same
    state: str       #: `on`; `left`: deliver the backlog, then end it; `gone`: end it at once
    version: int = 0  #: of the subscription that demanded it first


@frozen
class SubscriberState:
    """What is stored about a subscriber whose events are pulled."""

    subscription: Subscription
    memberships: Mapping[str, Membership]  #: by topic
    version: int  #: of the subscription; grows with every change
    created: int  #: of the subscription when the client had none before; tells it from one that was removed
    paused: bool


@frozen
class Attempts:
    """The last failed attempts, newest first, and the last success (None: there was none): JSON objects."""

    failed: Sequence[bytes]
    success: bytes | None


class Administration(Protocol):
    """Calls by which clients and root look at events, and decide what is delivered.

    All can raise StoreUnavailable. Those for a subscriber raise NotSubscribed if it has no subscription.
    """

    # subscriptions

    async def subscription(self, subscriber: str) -> SubscriptionInfo:
        """One subscription, as in `subscriptions`."""

    async def state(self, subscriber: str) -> SubscriberState:
        """What is stored about the subscription; positions are not in it."""

    async def pause(self, subscriber: str) -> None:
        """Deliver nothing until `resume`; subscribing again changes nothing about that."""

    async def resume(self, subscriber: str) -> None:
        """Deliver again, at once: the pause after failures ends, too."""

    async def retry(self, subscriber: str) -> None:
        """End the pause after failures."""

    async def attempts(self, subscriber: str) -> Attempts:
        """What was recorded with `fail` and `acknowledge`."""

    # positions

    async def acknowledge_pulled(self, subscriber: str, acks: Sequence[Ack]) -> None:
        """Move cursors over events that the subscriber has pulled; an ack that is outdated changes nothing."""

    async def rewind(self, subscriber: str, to: int, topics: Sequence[str] | None = None) -> int:
        """Move cursors back, as far as the topics' history reaches; how many events come again.

        `to`: microseconds since the epoch, of the first of them; `topics`: None for all. Raises NotSubscribed
        if one of the topics is not subscribed to.
        """

    async def skip(self, subscriber: str, to: int | None, topics: Sequence[str] | None = None) -> int:
        """Pass what was accepted before a time (microseconds since the epoch; None: now); how many events."""

    async def expire(self, subscriber: str) -> int:
        """Pass what is beyond the subscription's `retention` and `max_queued`; how many events.

        To be called while no attempt to deliver to the subscriber is under way. Does nothing if the
        subscription has neither, or does not exist.
        """

    # parked events

    async def park(
        self, subscriber: str, worker: str, epoch: int, membership: int, event: ParkedEvent
    ) -> bool:
        """Put an event aside, and pass it; false: the lease is lost, or the parked events are too many.

        At most `MAX_PARKED` events, or `MAX_PARKED_BYTES` of fragments and reasons, are kept. Parking an event
        again changes nothing.
        """

    async def parked(self, subscriber: str, after: str, most: int) -> tuple[Sequence[ParkedEvent], str]:
        """Parked events, in the order of acceptance, and the mark after them for the next call; empty: no more.

        The mark is the topic and the ID of the last of them, `TOPIC ID`.
        """

    async def retry_parked(self, subscriber: str, ids: Sequence[EventID] | None) -> int:
        """Have parked events delivered next, each alone; None: all; how many."""

    async def drop_parked(self, subscriber: str) -> int:
        """Remove all parked events that are not to be retried; how many."""

    async def next_retried(self, subscriber: str) -> ParkedEvent | None:
        """The oldest parked event that is to be delivered again; None: there is none."""

    async def settle_retried(
        self, subscriber: str, worker: str, epoch: int, event: ParkedEvent, refused: str = ""
    ) -> None:
        """A parked event was delivered, or parked again because it was `refused` for that reason.

        Changes nothing without the lease. Repeating it changes nothing.
        """

    # topics

    async def configure_topic(self, topic: str, publisher: str | None, settings: TopicSettings) -> None:
        """Set what a topic keeps; a client that puts a free name claims it.

        `publisher` None stands for root. Raises NotYourTopic, TooManyTopics, and UnknownTopic for root.
        """

    async def topic(self, name: str, backlogs: bool = False) -> TopicDetails:
        """One topic, with its subscribers' `backlogs` on request. Raises UnknownTopic."""

    async def topic_settings(self, name: str) -> TopicSettings | None:
        """The settings of one topic; None: it does not exist."""

    async def large_topics(self) -> set[str]:
        """The topics whose settings have a `max_data`; those deleted since may be among them."""

    async def whereabouts(self, topic: str, event: EventID) -> Sequence[Whereabouts]:
        """Where an event is for each subscriber that the topic has, or had until its backlog was delivered."""


@frozen
class Ack:
    """All events of a topic up to `last` are delivered."""

    topic: str
    membership: int
    last: EventID
    first: EventID | None = None  #: of the batch; missing events before it are counted as dropped
    rewinds: int = 0              #: of the cursor behind which the events were read


MAX_PARKED = 10_000
MAX_PARKED_BYTES = 10 * 1024 * 1024
MOST_REPORTS = 50      #: failed attempts that are kept for each subscriber
PULLED_RECHECK = 60.0  #: seconds until a worker asks again for a lease that a subscriber who pulls does not need
