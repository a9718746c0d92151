"""Group commit: events that arrive while a call to the store is under way for their topic share the next call.

An idle topic has no delay; a busy one makes fewer and larger calls. Waiting
events are not yet sent to the store: when a call fails with StoreUnavailable,
the publications that wait behind it fail at once, with nothing stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, Meter, Store
from routemaster.model import EventID, Published, public_name

GROUP_EVENTS = 1000            #: events in one call, unless one publication alone has more
GROUP_BYTES = 1024 * 1024      #: bytes of fragments in one call, likewise
HELD_BYTES = 16 * 1024 * 1024  #: bytes of memory for fragments in this process, waiting or in a call
OVERHEAD = 64                  #: bytes of memory for one fragment besides its own
AT_ONCE = 20                   #: publications whose Deferreds fire in one iteration of the reactor


@frozen(eq=False)
class _Publication:
    fragments: Sequence[bytes]
    size: int  #: bytes
    done: Deferred[Published] = field(factory=Deferred)

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.size + OVERHEAD * len(self.fragments)

    def stored(self, call: Published, offset: int) -> None:
        """Fire `done` with the IDs of its events, unless it was cancelled: `offset` of the call come before."""
        if not self.done.called:
            (us, n), count = call.first, len(self.fragments)
            if call.last.n - n + 1 > count:
                call = Published(EventID(us, n + offset), EventID(us, n + offset + count - 1))
            self.done.callback(call)

    def failed(self, error: Exception) -> None:
        """Fire `done` with the error, unless it was cancelled."""
        if not self.done.called:
            # an exception of its own: one that many raise collects the tracebacks of all
            self.done.errback(copy(error) if isinstance(error, StoreUnavailable) else error)


@define(eq=False)
class _Lane:
    """The publications of one client to one topic."""

    waiting: list[_Publication] = field(factory=list)

    def take(self) -> list[_Publication]:
        """Remove the oldest publications that fit into one call: at least one, if any waits."""
        events = size = 0
        for count, publication in enumerate(self.waiting):
            events += len(publication.fragments)
            size += publication.size
            if count and (events > GROUP_EVENTS or size > GROUP_BYTES):
                break
        else:
            count = len(self.waiting)
        group, self.waiting = self.waiting[:count], self.waiting[count:]
        return group


class GroupCommit:
    """Publishes through the store, one call at a time for each topic and publisher."""

    _log = Logger()

    def __init__(self, store: Store, meter: Meter, clock: Clock) -> None:
        self._store, self._meter, self._clock = store, meter, clock
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._held = 0

    def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Deferred[Published]:
        """Fires with their IDs when the fragments are stored; fails as the store's call does.

        Cancelling it does not withdraw the fragments: they are stored all the same.
        """
        publication = _Publication(fragments, sum(map(len, fragments)))
        if self._held + publication.memory > HELD_BYTES:
            return fail(StoreUnavailable("too many events wait for the store; nothing was stored"))
        self._held += publication.memory
        lane = self._lanes.get((topic, publisher))
        if lane is None:
            lane = self._lanes[topic, publisher] = _Lane([publication])
            Deferred.fromCoroutine(self._commit(topic, publisher, lane))
        else:
            lane.waiting.append(publication)
        return publication.done

    async def _commit(self, topic: str, publisher: str, lane: _Lane) -> None:
        """Empty a lane, call by call. The next call starts before the Deferreds of the last fire."""
        done: list[_Publication] = []
        refused: list[_Publication] = []
        result: Published | Exception = StoreUnavailable("")  # of `done`, which is empty at first
        while group := lane.take():
            fragments = _fragments(group)
            call = Deferred.fromCoroutine(self._store.publish(topic, publisher, fragments))
            self._finish(done, result)
            done = group
            try:
                result = await call
                self._record(topic, publisher, group, result)
            except Exception as raised:
                result = raised
                if isinstance(raised, StoreUnavailable):
                    refused, lane.waiting = lane.waiting, []
        del self._lanes[topic, publisher]
        self._finish(done, result)
        self._finish(refused, StoreUnavailable("the store failed while this waited its turn; nothing was stored"))

    def _record(self, topic: str, publisher: str, group: list[_Publication], stored: Published) -> None:
        events = sum(len(publication.fragments) for publication in group)
        size = sum(publication.size for publication in group)
        self._meter.count("events.published", events, topic=topic)
        self._meter.count("events.bytes", size, topic=topic)
        self._log.debug(
            "stored {events} events of '{name}' in '{topic}'",
            name=public_name(publisher), topic=topic, events=events, first=str(stored.first),
            last=str(stored.last), bytes=size, publications=len(group),
        )  # fmt: skip

    def _finish(
        self, publications: list[_Publication], result: Published | Exception, begin: int = 0, offset: int = 0
    ) -> None:
        """Fire the Deferreds of one call from `begin` on, some at a time: a thousand answers take 100 ms.

        The events of the call have one time and running numbers; `offset` of them come before.
        """
        end = begin + AT_ONCE
        for publication in publications[begin:end]:
            self._held -= publication.memory
            if isinstance(result, Exception):
                publication.failed(result)
            else:
                publication.stored(result, offset)
            offset += len(publication.fragments)
        if end < len(publications):
            self._clock.callLater(0, self._finish, publications, result, end, offset)


def _fragments(group: list[_Publication]) -> Sequence[bytes]:
    if len(group) == 1:
        return group[0].fragments
    return [fragment for publication in group for fragment in publication.fragments]
