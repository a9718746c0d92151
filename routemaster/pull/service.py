"""What one process does for pulled subscriptions; any process answers for any subscriber.

It has one index of wake-ups and one cache for all, beside those of a worker in the same process, and a
poller for each client that waits here, and a stream for each that has one. A hint may be lost: `sweep`
reads what it would have announced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred

from routemaster.administration import Ack, SubscriberState
from routemaster.delivery.batch import Batch, Batches, TracedBatch
from routemaster.delivery.log_cache import LogCache
from routemaster.delivery.wakeup_index import WakeupIndex
from routemaster.hints import Acknowledged, Hint, SubscriptionChanged, TopicGrew
from routemaster.interfaces import Clock, Store
from routemaster.model import with_id
from routemaster.pull.cursor_token import CursorTokens
from routemaster.pull.poller import Answer, Poller
from routemaster.pull.reading import Shared, check_pulled
from routemaster.pull.stream import Stream
from routemaster.traces import traced_with_id
from routemaster.util.read_turns import ReadTurns

TOGETHER = 2  #: polls and streams that read at the same time; each then writes, and takes its next request


class PullService:
    """See above."""

    def __init__(
        self, store: Store, clock: Clock, max_bytes: int = 8 * 1024 * 1024, ordered_hints: bool = True,
        traces: bool = False,
    ) -> None:  # fmt: skip
        """`max_bytes`: of one answer's events; `ordered_hints`: as for `WakeupIndex`.

        `traces`: answers have the trace contexts of their events.
        """
        self._store, self._clock = store, clock
        self._index = WakeupIndex(ordered_hints)
        self._cache = LogCache(store, traced_with_id if traces else with_id)
        batches = Batches(TracedBatch if traces else Batch)
        self._shared = Shared(
            store, clock, self._index, self._cache, max_bytes, ReadTurns(clock, TOGETHER), batches=batches
        )
        # turns of their own: what waits for these is the whole request, and takes more than a poll
        self._states = ReadTurns(clock, TOGETHER)
        self._pollers: dict[str, Poller] = {}
        self._streams: dict[str, dict[str, Stream]] = {}  #: by subscriber and reader
        self._swept = 0  #: up to which of the times at which hints may have been missed all have looked again
        self._stopping = False

    @property
    def waiting(self) -> int:
        """The number of polls without an answer."""
        return sum(poller.waiting for poller in self._pollers.values())

    @property
    def streams(self) -> int:
        """The number of streams."""
        return sum(map(len, self._streams.values()))

    @property
    def subscribers(self) -> int:
        """The number of clients that wait here."""
        return len(self._pollers.keys() | self._streams.keys())

    # -- requests

    async def state(self, subscriber: str, waits: bool = True) -> SubscriberState:
        """What is stored about a pulled subscription. Raises StoreUnavailable, NotSubscribed, HasCallback.

        `waits`: for a turn; acknowledgements, which make room, do not.
        """
        if not waits:
            return check_pulled(await self._store.state(subscriber))
        async with self._states:
            return check_pulled(await self._store.state(subscriber))

    async def acknowledge(self, state: SubscriberState, cursor: str) -> None:
        """Acknowledge what a cursor says; an older one changes nothing. Raises Invalid, StoreUnavailable."""
        subscriber = state.subscription.subscriber
        acks: Sequence[Ack] = CursorTokens(subscriber, state.created).decode(cursor)
        if acks:
            await self._store.acknowledge_pulled(subscriber, acks)
            for stream in self._streams.get(subscriber, {}).values():
                stream.reading.moved()  # the hint wakes it; what it is about to send again may be acknowledged now

    def poll(self, state: SubscriberState, most: int | None, wait: float) -> Deferred[Answer]:
        """See `Poller.poll`; `state`: as just read; `most` None: as many events as the subscription says."""
        subscription = state.subscription
        poller = self._pollers.get(subscription.subscriber)
        if poller is None:
            poller = self._pollers[subscription.subscriber] = Poller(state, self._shared, self._ended)
        else:
            poller.reading.take(state)
        limit = subscription.max if most is None else min(most, subscription.max)
        return poller.poll(limit, 0 if self._stopping else wait)

    def _ended(self, poller: Poller) -> None:
        del self._pollers[poller.reading.subscriber]

    def stream(
        self, state: SubscriberState, sent: bool, allowed: Callable[[], bool], reader: str = ""
    ) -> Stream:
        """A stream, see `Stream`; when it begins, it ends one of the same subscriber and `reader` here."""
        began, over = partial(self._began, reader), partial(self._over, reader)
        return Stream(state, self._shared, began, over, sent, allowed)

    def _began(self, reader: str, stream: Stream) -> None:
        streams = self._streams.setdefault(stream.reading.subscriber, {})
        before, streams[reader] = streams.get(reader), stream
        if before is not None:
            before.end("another stream of this client has begun")
        if self._stopping:
            stream.end("the bus stops")

    def _over(self, reader: str, stream: Stream) -> None:
        subscriber = stream.reading.subscriber
        streams = self._streams.get(subscriber, {})  # none: one that ended this one is over already
        if streams.get(reader) is stream:
            del streams[reader]
            if not streams:
                del self._streams[subscriber]

    def _here(self, subscriber: str) -> list[Poller | Stream]:
        """What waits here for a client."""
        poller = self._pollers.get(subscriber)
        return [*([poller] if poller else []), *self._streams.get(subscriber, {}).values()]

    def _all_streams(self) -> list[Stream]:
        return [stream for streams in self._streams.values() for stream in streams.values()]

    # -- hints

    def on_hint(self, hint: Hint) -> None:
        """Take a hint from the wake-up channel."""
        match hint:
            case TopicGrew(topic, first, last):
                self._index.advance(topic, first, last)
            case SubscriptionChanged(subscriber):
                for each in self._here(subscriber):
                    each.changed()
            case Acknowledged(subscriber):
                for each in self._here(subscriber):
                    each.acknowledged()

    def hints_missed(self) -> None:
        """Hints may have been missed: the next `sweep` has everybody look again."""
        self._index.missed()

    def reload_all(self) -> None:
        """The store may have lost its last writes: read events and positions again."""
        self._cache.clear()
        self._index.missed()
        for stream in self._all_streams():
            self._shared.turns.add(stream.restart)

    async def sweep(self) -> None:
        """Read what hints may have missed, for all together; nothing if nobody waits. Raises StoreUnavailable."""
        missed = self._index.times_missed
        known = {topic: self._index.tail(topic) for topic in self._index.topics()}
        if known:
            for topic, tail in (await self._store.tails(list(known))).items():
                self._index.step_back(topic, known[topic], tail)
                self._index.advance(topic, None, tail)
        self._index.caught_up(missed)
        if self._swept != missed:
            self._swept = missed
            here: list[Poller | Stream] = [*self._pollers.values(), *self._all_streams()]
            for each in here:
                self._shared.turns.add(each.changed)

    async def stop(self) -> None:
        """Answer all waiting polls with an empty list, later ones without a wait; end all streams."""
        self._stopping = True
        for stream in self._all_streams():
            stream.end("the bus stops")
        for poller in list(self._pollers.values()):
            poller.stop()
