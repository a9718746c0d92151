"""Group commit: events that come while a publication of their topic is under way go together in the next.

An idle topic pays no delay, a busy one gets fewer and larger calls, by
itself. What waits here has not been sent to the store: when a call fails,
those behind it are refused at once, with nothing stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Store
from routemaster.model import Published

GROUP_EVENTS = 1000            #: events in one call, unless one publication alone has more
GROUP_BYTES = 1024 * 1024      #: bytes of fragments in one call, likewise
WAITING_BYTES = 64 * 1024 * 1024  #: bytes of fragments that may wait in this process


@frozen(eq=False)
class _Waiting:
    fragments: Sequence[bytes]
    size: int
    done: Deferred[None] = field(factory=Deferred)


@define(eq=False)
class _Lane:
    """The publications of one client to one topic."""

    waiting: list[_Waiting] = field(factory=list)


class GroupCommit:
    """Publishes through the store, one call at a time for each topic and publisher."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._waiting_bytes = 0

    def publish(self, topic: str, publisher: str, fragments: Sequence[bytes]) -> Deferred[None]:
        """Fires when the fragments are stored; fails with NotYourTopic or StoreUnavailable.

        Cancelling it only stops the waiting: what was handed over is stored all the same.
        """
        size = sum(map(len, fragments))
        if self._waiting_bytes + size > WAITING_BYTES:
            return fail(StoreUnavailable("too many events wait for the store; nothing was stored"))
        publication = _Waiting(fragments, size)
        lane = self._lanes.get((topic, publisher))
        if lane is None:
            lane = self._lanes[topic, publisher] = _Lane()
            self._commit(topic, publisher, lane, [publication])
        else:
            lane.waiting.append(publication)
            self._waiting_bytes += size
        return publication.done

    def _commit(self, topic: str, publisher: str, lane: _Lane, group: list[_Waiting]) -> None:
        fragments = (
            group[0].fragments
            if len(group) == 1
            else [fragment for publication in group for fragment in publication.fragments]
        )
        call: Deferred[Published] = Deferred.fromCoroutine(self._store.publish(topic, publisher, fragments))
        call.addBoth(self._committed, topic, publisher, lane, group)

    def _committed(
        self, result: Published | Failure, topic: str, publisher: str, lane: _Lane, group: list[_Waiting]
    ) -> None:
        refused: list[_Waiting] = []
        if isinstance(result, Failure) and result.check(StoreUnavailable):
            refused, lane.waiting = lane.waiting, []
            self._waiting_bytes -= sum(publication.size for publication in refused)
        following = self._next_group(lane)
        if following:
            self._commit(topic, publisher, lane, following)
        else:
            del self._lanes[topic, publisher]
        for publication in group:
            _end(publication.done, result)
        for publication in refused:
            _end(publication.done, Failure(StoreUnavailable(f"{result.value}; nothing was stored")))  # type: ignore[union-attr]

    def _next_group(self, lane: _Lane) -> list[_Waiting]:
        events = size = 0
        for count, publication in enumerate(lane.waiting):
            events += len(publication.fragments)
            size += publication.size
            if count and (events > GROUP_EVENTS or size > GROUP_BYTES):
                size -= publication.size
                break
        else:
            count = len(lane.waiting)
        group, lane.waiting = lane.waiting[:count], lane.waiting[count:]
        self._waiting_bytes -= size
        return group


def _end(done: Deferred[None], result: Published | Failure) -> None:
    if done.called:
        return  # cancelled: nobody waits any more
    if isinstance(result, Failure):
        done.errback(result)
    else:
        done.callback(None)


