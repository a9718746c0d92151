"""Which subscribers this worker delivers to: the lease of each, as a table. Pure; time is an argument.

==============  =========================================  ===============================================
state           meaning                                    next
==============  =========================================  ===============================================
`REQUESTED`     the store is asked for the lease           GRANTED, HELD_BY_PEER, or UNASSIGNED if there
                                                           is no such subscriber
`GRANTED`       a courier delivers under it                renewed; LOST if that fails for too long; given
                                                           back when a peer is preferred
`LOST`          its courier still stops                    UNASSIGNED
`HELD_BY_PEER`  another worker has it                      when that lease ends: requested if this worker
                                                           is preferred, else UNASSIGNED
`UNASSIGNED`    no lease here, and none is known           requested when this worker is preferred, or when
                                                           the preferred one neglects it for too long
==============  =========================================  ===============================================

A subscriber whose deliveries ended with an internal error is not requested
before its pause is over, whatever its state.

A lease lasts for its time to live, counted from when its renewal was *sent*. An
attempt starts only while at least half of that is left: if the store cannot be
reached, and so could not take the acknowledgement, deliveries stop before they
cause duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from math import inf

from attrs import define, frozen

from routemaster.delivery.live_workers import LiveWorkers
from routemaster.util.backoff import backoff

MARGIN = 0.1   #: share of a lease's life before its end in which it counts as lost
NEGLECT = 3    #: lives of a lease after which a subscriber that no worker took is neglected


class State(Enum):
    """Who has a subscriber's lease."""

    REQUESTED = "requested"
    GRANTED = "granted"
    LOST = "lost"
    HELD_BY_PEER = "held by another worker"
    UNASSIGNED = "unassigned"


@define
class _Entry:
    state: State
    until: float = inf        #: when the state ends by itself; see the table. UNASSIGNED: set by `reconcile`
    hinted: bool = False      #: a hint about the subscriber came while its lease was requested
    neglected: bool = False   #: requested although a peer is preferred
    returning: bool = False   #: to be given back when its courier has stopped
    errors: int = 0           #: internal errors in a row
    retry_at: float = 0.0     #: not requested before this


@frozen
class Actions:
    """What to do now, by subscriber."""

    request: list[str]  #: ask the store for these leases; they are REQUESTED from now on
    give_back: list[str]  #: stop these couriers, then release their leases
    abort: list[str]    #: abort these couriers: their leases are as good as expired


class Leases:
    """The table of one worker; times in seconds by one clock."""

    def __init__(self, live_workers: LiveWorkers, ttl: float, longest_pause: float) -> None:
        """`ttl`: a lease's time to live; `longest_pause`: after internal errors."""
        self._live_workers, self._ttl, self._longest = live_workers, ttl, max(ttl, longest_pause)
        self._entries: dict[str, _Entry] = {}
        self._rebalance = False  #: whether the preferences may have changed since the last `actions`

    # -- what to do

    def actions(self, now: float) -> Actions:
        """What to request, to give back and to abort at `now`; to be called about 20 times in a lease's life."""
        if self._live_workers.expire(now):
            self._rebalance = True
        actions = Actions([], [], [])
        for subscriber, entry in self._entries.items():
            if entry.state is State.GRANTED:
                if entry.until - MARGIN * self._ttl <= now:
                    actions.abort.append(subscriber)
                elif self._rebalance and not self._live_workers.is_preferred(subscriber):
                    entry.returning = True
                    actions.give_back.append(subscriber)
            elif self._is_free(subscriber, entry, now) and now >= entry.retry_at:
                if entry.state is State.HELD_BY_PEER and not self._live_workers.is_preferred(subscriber):
                    entry.state, entry.until = State.UNASSIGNED, now + NEGLECT * self._ttl
                else:
                    actions.request.append(subscriber)
        self._rebalance = False
        actions.request.sort()
        for subscriber in actions.request:
            self._request(subscriber, self._entries[subscriber])
        return actions

    def _is_free(self, subscriber: str, entry: _Entry, now: float) -> bool:
        if entry.state is State.HELD_BY_PEER:
            return entry.until <= now
        if entry.state is State.UNASSIGNED:
            return entry.until <= now or (self._rebalance and self._live_workers.is_preferred(subscriber))
        return False

    def _request(self, subscriber: str, entry: _Entry) -> None:
        entry.neglected = entry.state is State.UNASSIGNED and not self._live_workers.is_preferred(subscriber)
        entry.state = State.REQUESTED

    # -- facts

    def peers_changed(self) -> None:
        """The live workers are others than before."""
        self._rebalance = True

    def reconcile(self, subscribers: set[str] | None, now: float) -> None:
        """These subscribers exist, and no others; None: the store could not be asked."""
        if subscribers is not None:
            for subscriber in subscribers - self._entries.keys():
                self._entries[subscriber] = _Entry(State.UNASSIGNED)
            for subscriber in self._entries.keys() - subscribers:
                if self._entries[subscriber].state in (State.HELD_BY_PEER, State.UNASSIGNED):
                    del self._entries[subscriber]
            self._live_workers.retain(subscribers)
        for entry in self._entries.values():
            if entry.state is State.UNASSIGNED and entry.until == inf:
                entry.until = now + NEGLECT * self._ttl
        self._rebalance = True

    def hinted(self, subscriber: str, now: float) -> bool:
        """A hint came about a subscriber without a courier; whether its lease is to be requested at once."""
        entry = self._entries.setdefault(subscriber, _Entry(State.UNASSIGNED, now + NEGLECT * self._ttl))
        if entry.state is State.REQUESTED:
            entry.hinted = True
            return False
        if not self._live_workers.is_preferred(subscriber) or now < entry.retry_at:
            return False
        self._request(subscriber, entry)
        return True

    def granted(self, subscriber: str, sent: float) -> None:
        """The store granted or renewed the lease; the call was sent at `sent`."""
        entry = self._entries.setdefault(subscriber, _Entry(State.REQUESTED))
        entry.until = max(entry.until, sent + self._ttl) if entry.state is State.GRANTED else sent + self._ttl
        if entry.neglected:
            self._live_workers.adopt(subscriber)
            entry.neglected = False
        if entry.state is not State.LOST:
            entry.state = State.GRANTED

    def held_by_another(self, subscriber: str, until: float) -> None:
        """Another worker has the lease, until then if it is not renewed."""
        entry = self._entries.setdefault(subscriber, _Entry(State.REQUESTED))
        entry.state, entry.until = State.HELD_BY_PEER, until

    def lost(self, subscriber: str) -> None:
        """The lease is another's, or expired; its courier stops."""
        entry = self._entries.get(subscriber)
        if entry is not None and entry.state is State.GRANTED:
            entry.state = State.LOST

    def ended(self, subscriber: str) -> bool:
        """The request was in vain, or the courier has stopped; whether to handle it like a hint at once.

        That is so if a hint came during the request, or if the peers changed
        again while a lease was being given back.
        """
        entry = self._entries.get(subscriber)
        if entry is None:
            return False
        again = entry.hinted or (entry.returning and self._live_workers.is_preferred(subscriber))
        entry.hinted = False
        if entry.state is not State.HELD_BY_PEER:
            entry.state, entry.until = State.UNASSIGNED, inf
            entry.returning = entry.neglected = False
        return again

    def take_hint(self, subscriber: str) -> bool:
        """Whether a hint came while the lease was requested that is granted now."""
        entry = self._entries[subscriber]
        hinted, entry.hinted = entry.hinted, False
        return hinted

    def failed(self, subscriber: str, now: float, jitter: float) -> tuple[int, float]:
        """An internal error ended the deliveries: how many in a row, and seconds until the next request."""
        entry = self._entries.setdefault(subscriber, _Entry(State.REQUESTED))
        entry.errors = 1 if now - entry.retry_at > self._longest else entry.errors + 1
        pause = backoff(entry.errors, self._ttl, self._longest, jitter)
        entry.retry_at = now + pause
        return entry.errors, pause

    # -- questions

    def to_renew(self) -> Iterator[str]:
        """The subscribers whose leases are to be renewed."""
        return (subscriber for subscriber, entry in self._entries.items() if entry.state is State.GRANTED)

    def holds(self, subscriber: str, now: float) -> bool:
        """Whether an attempt may start under the lease."""
        entry = self._entries.get(subscriber)
        return entry is not None and entry.state is State.GRANTED and entry.until - now > self._ttl / 2

    def is_to_be_released(self, subscriber: str, stopping: bool) -> bool:
        """Whether the lease, whose courier has stopped, is to be given back at once, and not left to expire."""
        entry = self._entries.get(subscriber)
        if entry is None or entry.state is not State.GRANTED:
            return False
        return stopping or not self._live_workers.is_preferred(subscriber)
