"""A list for many clients, each of which sees its own entries in full.

The entries are encoded once; an answer picks, part by part while it is written,
the form of each entry that its client may see. Answers share everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from attrs import define, field, frozen

from routemaster import strict_json
from routemaster.delivery.decision import State
from routemaster.delivery.forecast import step_of
from routemaster.interfaces import Clock, Store
from routemaster.model import SubscriptionInfo, TopicInfo, public_name
from routemaster.util.chunks import paced
from routemaster.web.http_server.body_writer import PART

Entry = tuple[str, object, object]  #: owner; value for the owner and for root; value for others

PAUSE = 0.002  #: seconds between two pieces that are read from the store
_ENTRY_BYTES = 200  #: memory of an entry besides its texts


@define
class _Part:
    entries: list[tuple[str, bytes, bytes]] = field(factory=list)  #: as `Entry`, in JSON
    owners: set[str] = field(factory=set)
    last: tuple[str | None, bytes] = ("", b"")  #: what was last seen, and by whom

    def seen_by(self, owner: str | None) -> bytes:
        owner = owner if owner is None or owner in self.owners else "others"
        if self.last[0] != owner:
            texts = [own if owner in (None, each) else public for each, own, public in self.entries]
            self.last = owner, b",".join(texts)
        return self.last[1]


class Listing:
    """A JSON array under construction, then unchanged; `body_writer.Source`."""

    def __init__(self) -> None:
        self.size = 0  #: bytes of memory
        self._parts: list[_Part] = []
        self._room = 0  # bytes left in the last part
        self._public = 0  # bytes of all entries with their commas, as clients without entries see them
        self._added = Counter[str]()  # bytes added for each owner

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries."""
        for owner, *values in entries:
            own = strict_json.encode(values[0])
            public = own if values[1] == values[0] else strict_json.encode(values[1])
            if self._room <= 0:
                self._parts.append(_Part())
                self._room = PART
            self._parts[-1].entries.append((owner, own, public))
            self._parts[-1].owners.add(owner)
            self._room -= len(own) + 1
            self._public += len(public) + 1
            self._added[owner] += len(own) - len(public)
            self.size += len(own) + len(public) + _ENTRY_BYTES

    def seen_by(self, owner: str | None) -> ListingBody:
        """The array as `owner` sees it; None sees all entries in full."""
        added = self._added.total() if owner is None else self._added.get(owner, 0)
        return ListingBody(self, owner, max(2, self._public + added + 1))

    def parts(self, owner: str | None) -> Iterator[bytes]:
        """The text of `seen_by`."""
        before = b"["
        for part in self._parts:
            yield before + part.seen_by(owner)
            before = b","
        yield b"]" if self._parts else b"[]"


@frozen
class ListingBody:
    """A `body_writer.Body`."""

    source: Listing
    owner: str | None
    length: int

    def __iter__(self) -> Iterator[bytes]:
        return self.source.parts(self.owner)


async def list_topics(store: Store, clock: Clock) -> Listing:
    """All topics, with the token of each publisher for itself, its public name for others."""
    listing = Listing()
    async for infos in paced(store.each_topic(), clock, PAUSE):
        listing.add((info.publisher, *_topic_json(info)) for info in infos)
    return listing


async def list_subscriptions(store: Store, clock: Clock, now: float) -> Listing:
    """All subscriptions at the time of day `now`, with token and uuid for each subscriber itself."""
    listing = Listing()
    async for infos in paced(store.each_subscription(), clock, PAUSE):
        listing.add((info.subscription.subscriber, *subscription_json(info, now)) for info in infos)
    return listing


def _topic_json(info: TopicInfo) -> tuple[dict[str, object], dict[str, object]]:
    own: dict[str, object] = {"name": info.name, "publisher": info.publisher, "events": info.events}
    return own, own | {"publisher": public_name(info.publisher)}


def subscription_json(info: SubscriptionInfo, now: float) -> tuple[dict[str, object], dict[str, object]]:
    """A subscription at a time of day, as its client and root see it, and as others do."""
    subscription, health = info.subscription, info.health
    step = step_of(info, now)
    own: dict[str, object] = {
        "subscriber": subscription.subscriber,
        "callback": subscription.callback,
        "uuid": subscription.uuid,
        "max_events": subscription.max,
        "timeout": subscription.timeout,
        "topics": subscription.topics,
        "awaited": info.awaited,
        "events": {"sent": info.sent, "queued": info.queued, "oldest": info.oldest},
        "health": {
            "state": step.state.value,
            "failures": health.failures,
            "last_attempt": health.last_attempt,
            "last_success": health.last_success,
            "last_error": health.last_error,
            "next_attempt": now if step.state is State.DELIVERING else step.until,
        },
    }
    return own, own | {"subscriber": public_name(subscription.subscriber), "uuid": None}

