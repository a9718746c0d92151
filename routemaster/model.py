"""The values of the bus.

A value that exists is valid: `validation` checks what clients send before it makes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from attrs import frozen

DEFAULT_TIMEOUT: Final = 500  #: milliseconds; 0 for a pulled subscription
DEFAULT_MAX: Final = 100
OLD_SECRET_LIFE: Final = 86_400  #: seconds for which a secret that was replaced signs, too
MAX_OLD_SECRETS: Final = 4       #: each costs a hash over every batch


def public_name(token: str) -> str:
    """The part of a token that logs and metrics may show: what stands before `--`.

    A token without that mark is shown whole (`demo`).
    """
    return token.partition("--")[0] or "unnamed"


class EventID(tuple[int, int]):
    """An event's place in its topic's log: (microseconds of acceptance, running number).

    The first part is Redis's clock and orders events across topics; the
    second is dense within a topic, so that the difference of two IDs counts
    the events between them.
    """

    __slots__ = ()

    def __new__(cls, us: int, n: int) -> EventID:
        return tuple.__new__(cls, (us, n))

    @property
    def us(self) -> int:
        """Microseconds since the epoch, by Redis's clock, never going back within a topic."""
        return self[0]

    @property
    def n(self) -> int:
        """The running number within the topic's log."""
        return self[1]

    @classmethod
    def parse(cls, text: bytes) -> EventID:
        """From the form that Redis streams use: `<us>-<n>`."""
        us, _, n = text.partition(b"-")
        return cls(int(us), int(n))

    @classmethod
    def parse_all(cls, texts: Sequence[bytes]) -> Iterator[EventID]:
        """As `parse` for each, in less time."""
        numbers = map(int, b"-".join(texts).split(b"-")) if texts else iter(())
        return map(partial(tuple.__new__, cls), zip(numbers, numbers, strict=True))

    def __bytes__(self) -> bytes:
        return b"%d-%d" % self

    def __str__(self) -> str:
        return f"{self[0]}-{self[1]}"

    __repr__ = __str__


def with_id(fragment: bytes, event: EventID) -> bytes:
    """The JSON object that is delivered: an event's fragment, and its ID."""
    return fragment[:-1] + b',"id":"%d-%d"}' % event


@frozen(repr=False)
class OldSecret:
    """A secret of a subscription that was replaced."""

    secret: str
    until: int  #: it signs until then, microseconds since the epoch


@frozen(repr=False)
class Signing:
    """How one delivery is signed."""

    subscriber: str           #: its public name, as a part of the message's ID
    secrets: tuple[str, ...]  #: the present one first
    at: int                   #: seconds since the epoch


@frozen
class Subscription:
    """What a client sends when it subscribes."""

    subscriber: str           #: the client's token
    topics: tuple[str, ...]   #: each once, in the order given
    callback: str | None      #: where batches are POSTed; None: the subscriber pulls its events
    uuid: str | None = None   #: the credential presented to the callback; a secret
    timeout: int = DEFAULT_TIMEOUT  #: milliseconds that an event may wait for the batch to fill
    max: int = DEFAULT_MAX    #: the most events in one batch
    awaits: bool = False      #: topics that do not exist are joined when they come into being
    max_bytes: int | None = None   #: the most bytes in a batch of several events
    retention: int | None = None   #: milliseconds after which an event is not delivered any more
    max_queued: int | None = None  #: the most events that wait; the oldest expire
    rate: int | None = None        #: the most events delivered in a second
    park_after: int | None = None  #: refusals of a single event after which it is parked
    start: int | None = None       #: where new topics begin, microseconds since the epoch; None: the next event
    secret: str | None = None      #: signs deliveries, `whsec_` and Base64
    old_secrets: tuple[OldSecret, ...] = ()  #: sign too; the store keeps them, whoever subscribes gives none

    def signing(self, now: float) -> Signing | None:
        """How a delivery is signed at a time, in seconds since the epoch; None: it is not."""
        if self.secret is None:
            return None
        old = (each.secret for each in self.old_secrets if each.until > now * 1e6)
        return Signing(public_name(self.subscriber), (self.secret, *old), int(now))

    def __repr__(self) -> str:
        return f"<Subscription {public_name(self.subscriber)} to {len(self.topics)} topics>"


OLDEST: Final = 0  #: a time before all events: as far back as a topic's history reaches


@frozen(repr=False)
class ApiToken:
    """A client's token created by root, with a name for people."""

    name: str
    token: str
    replaces: str | None = None  #: an existing token, whose client this one is to speak for


@frozen(repr=False)
class TokenChange:
    """A token as it is after a change."""

    token: str
    name: str | None    #: None: it is not there (if it is configured, it need not be)
    client: str | None  #: for which it speaks; None: a client of its own


@frozen(repr=False)
class Tokens:
    """The tokens created by root, and the clients of tokens that replaced another; `mark`: when."""

    names: Mapping[str, str]    #: token -> name
    clients: Mapping[str, str]  #: token -> client; it stays when the token is removed
    mark: bytes                 #: for `Store.token_changes`


@frozen
class Span:
    """A part of a log that a subscriber is to get: after one ID, up to and including another (None: no end)."""

    after: EventID
    until: EventID | None = None


@frozen
class Cursor:
    """How far a subscriber has come in one topic.

    More than one span means that it left the topic and subscribed again with
    a backlog from before: the events between the spans are not for it.
    """

    membership: int           #: ID of the membership; grows with each new one
    version: int              #: of the subscription that last joined or left
    sent: int                 #: events delivered in this membership
    spans: tuple[Span, ...]   #: in order; empty: left, and no backlog
    dropped: int = 0          #: events of this membership that autodrop removed
    expired: int = 0          #: those that `retention` or `max_queued` passed over
    skipped: int = 0          #: those that the subscriber skipped
    parked: int = 0           #: those that were parked
    rewinds: int = 0          #: how often the cursor moved back: an older acknowledgement does not count

    @property
    def open(self) -> bool:
        """Whether the subscriber gets the events accepted from now on."""
        return bool(self.spans) and self.spans[-1].until is None

    @property
    def counts(self) -> tuple[int, ...]:
        """Dropped, expired, skipped, parked, rewinds."""
        return self.dropped, self.expired, self.skipped, self.parked, self.rewinds

    def backlog(self, tail: EventID) -> int:
        """How many events wait, in a log that ends with `tail`."""
        return sum((span.until or tail).n - span.after.n for span in self.spans)

    @classmethod
    def parse(cls, text: bytes) -> Cursor:
        """From the form kept in Redis: `membership version sent dropped after/until after/`.

        The fourth word is `dropped,expired,skipped,parked,rewinds` if one of the others is not 0.
        """
        membership, version, sent, counts, *spans = text.split()
        others = map(int, counts.split(b","))
        return cls(int(membership), int(version), int(sent), tuple(map(_parse_span, spans)), *others)


def _parse_span(text: bytes) -> Span:
    after, _, until = text.partition(b"/")
    return Span(EventID.parse(after), EventID.parse(until) if until else None)


@frozen
class Published:
    """The IDs of published events."""

    first: EventID
    last: EventID


@frozen
class TopicInfo:
    """A topic as `GET /topics` shows it."""

    name: str
    publisher: str
    events: int  #: ever published


@frozen
class TopicSettings:
    """What a topic's publisher or root decides about it."""

    history: int = 0                   #: milliseconds for which events are kept though every subscriber has them
    history_events: int | None = None  #: the most of them; None: no limit
    max_data: int | None = None        #: bytes of `data` in one event; None: the limit of the configuration


@frozen
class TopicDetails:
    """A topic as `GET /topics/:name` shows it."""

    info: TopicInfo
    settings: TopicSettings
    first: EventID | None  #: of the events kept; None: none is
    last: EventID | None   #: of all events ever accepted
    backlogs: Sequence[TopicBacklog] = ()


@frozen
class TopicBacklog:
    """What one subscriber has not yet received of a topic."""

    subscriber: str
    queued: int
    oldest: float | None  #: when the oldest of them was accepted, seconds since the epoch


#: why an event was passed without a delivery, by the letter that the store keeps
CUT_KINDS: Final = {
    "d": "dropped", "e": "expired", "s": "skipped", "p": "parked", "n": "not subscribed", "u": "unknown",
    "a": "acknowledged",
}  # fmt: skip


@frozen
class Whereabouts:
    """Where one event is, for one subscriber."""

    subscriber: str
    state: str      #: `queued`, or one of `CUT_KINDS`
    ahead: int = 0  #: of a queued event: how many wait before it in the same topic


@frozen
class ParkedEvent:
    """An event that a receiver refused for itself."""

    topic: str
    id: EventID
    fragment: bytes  #: as it is delivered, without its ID
    reason: str      #: the last refusal, in one line
    at: float        #: when it was parked, seconds since the epoch


@frozen
class Health:
    """The state of the deliveries to a subscriber; times in seconds since the epoch, by Redis's clock."""

    failures: int = 0
    last_attempt: float | None = None
    last_success: float | None = None
    last_error: str | None = None
    retry_at: float | None = None
    batch_limit: int = 0         #: the most events in the next batch; 0: no limit but the subscription's


@frozen
class SubscriptionInfo:
    """A subscription as `GET /subscriptions` shows it."""

    subscription: Subscription  #: `topics` are those subscribed to now
    sent: int
    queued: int
    oldest: float | None        #: when the oldest waiting event was accepted, seconds since the epoch
    health: Health
    dropped: int = 0            #: events that autodrop removed
    awaited: tuple[str, ...] = ()  #: topics that it joins when they come into being
    expired: int = 0            #: events that `retention` or `max_queued` passed over
    skipped: int = 0            #: events that the subscriber skipped
    parked: int = 0             #: events that were parked, those delivered later included
    paused: bool = False        #: nothing is delivered

    @property
    def added(self) -> int:
        """The events that were ever to be delivered; those that come again after a rewind count again."""
        return self.sent + self.queued + self.dropped + self.expired + self.skipped + self.parked


@frozen
class StoreStats:
    """Memory, processor time and clock of a node of the store."""

    bytes_used: int
    max_memory: int     #: bytes; 0: no limit of its own
    cpu_user_ms: float  #: since it started
    cpu_sys_ms: float   #: since it started
    node: str = ""      #: its name; empty if there is but one
    time: float | None = None  #: its clock when it answered, seconds since the epoch; None: not known
