"""The hints on the wake-up channel: each message as a value, and its text.

A hint says that something changed; the store is the truth. So a hint may be
lost, repeated or late, and whoever receives one reads the store before it
acts. These classes are the only code that builds or splits the text, with one
exception: the scripts that change what a hint is about build the text themselves.
"""

from __future__ import annotations

from attrs import frozen

from routemaster.model import EventID


@frozen
class TopicGrew:
    """Events were appended to a topic's log: `t TOPIC FIRST LAST`."""

    topic: str
    first: EventID  #: of the events that were appended
    last: EventID   #: where the log ends now

    def encode(self) -> bytes:
        """The message."""
        return b"t %b %b %b" % (self.topic.encode(), bytes(self.first), bytes(self.last))


@frozen
class SubscriptionChanged:
    """A subscription was created, changed or removed: `s SUBSCRIBER`."""

    subscriber: str

    def encode(self) -> bytes:
        """The message."""
        return b"s " + self.subscriber.encode()


@frozen
class EventsDropped:
    """Events of a subscriber's backlog were dropped, and its courier has to have them counted: `d SUBSCRIBER`."""

    subscriber: str

    def encode(self) -> bytes:
        """The message."""
        return b"d " + self.subscriber.encode()


@frozen
class TopicConfigured:
    """A topic's settings have changed: `c TOPIC`."""

    topic: str

    def encode(self) -> bytes:
        """The message."""
        return b"c " + self.topic.encode()


@frozen
class Acknowledged:
    """A subscriber has acknowledged events that it pulled: `a SUBSCRIBER`."""

    subscriber: str

    def encode(self) -> bytes:
        """The message."""
        return b"a " + self.subscriber.encode()


@frozen
class WorkerJoined:
    """A worker started, and takes its share of the subscribers: `w WORKER on`."""

    worker: str

    def encode(self) -> bytes:
        """The message."""
        return b"w %b on" % self.worker.encode()


@frozen
class WorkerLeft:
    """A worker stops, and gives its leases back: `w WORKER off`."""

    worker: str

    def encode(self) -> bytes:
        """The message."""
        return b"w %b off" % self.worker.encode()


@frozen
class TokensChanged:
    """A token was added or removed: `k log`; by a version of the bus that does not log changes: `k`."""

    logged: bool

    def encode(self) -> bytes:
        """The message."""
        return b"k log" if self.logged else b"k"


Hint = (
    TopicGrew | TopicConfigured | SubscriptionChanged | EventsDropped | Acknowledged | WorkerJoined | WorkerLeft
    | TokensChanged
)


def decode(message: bytes) -> Hint | None:
    """The hint that a message carries; None for anything else (a newer version may send more kinds)."""
    try:
        match message.decode("ascii").split(" "):
            case ["t", topic, first, last]:
                return TopicGrew(topic, EventID.parse(first.encode()), EventID.parse(last.encode()))
            case ["s", subscriber]:
                return SubscriptionChanged(subscriber)
            case ["d", subscriber]:
                return EventsDropped(subscriber)
            case ["c", topic]:
                return TopicConfigured(topic)
            case ["a", subscriber]:
                return Acknowledged(subscriber)
            case ["w", worker, "on"]:
                return WorkerJoined(worker)
            case ["w", worker, "off"]:
                return WorkerLeft(worker)
            case ["k"]:
                return TokensChanged(logged=False)
            case ["k", "log"]:
                return TokensChanged(logged=True)
    except ValueError:
        pass
    return None
