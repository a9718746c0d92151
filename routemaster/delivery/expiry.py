"""When waiting events are beyond the subscription's `retention` or `max_queued`. Pure; time is an argument.

The store passes over them (`Store.expire`), and decides by its own clock. A
courier asks for that before a batch that would hold such an event, and while it
waits, when the oldest event expires. What expires within a moment after such a
call is delivered: else an overloaded subscriber, of whose events one expires all
the time, would get none.
"""

from __future__ import annotations

from math import inf

from routemaster.delivery.clock_offset import ClockOffset
from routemaster.model import EventID, Subscription

#: seconds after a call in which nothing is too old for a batch, and after an event's end in which the store's
#: clock passes it, too
MOMENT = 0.05
PERIOD = 1.0   #: seconds between two calls while nothing is delivered


class Expiry:
    """One subscriber's limits; times in seconds by the clock here."""

    def __init__(self, offset: ClockOffset) -> None:
        self._offset = offset
        self._retention: float | None = None  #: seconds
        self._max_queued: int | None = None
        self._asked = -inf  #: when the store last passed over events

    def limit(self, subscription: Subscription) -> None:
        """Take the limits of the subscription."""
        before = self._retention, self._max_queued
        retention = subscription.retention
        self._retention = None if retention is None else retention / 1000
        self._max_queued = subscription.max_queued
        if before != (self._retention, self._max_queued):
            self._asked = -inf

    @property
    def limited(self) -> bool:
        """Whether events can expire at all."""
        return self._retention is not None or self._max_queued is not None

    @property
    def by_age(self) -> bool:
        """Whether events expire by their age."""
        return self._retention is not None

    def asked(self, now: float) -> None:
        """The store has passed over what was beyond the limits at that time."""
        self._asked = now

    def too_many(self, waiting: int, now: float) -> bool:
        """Whether a batch has to wait until the store has passed over some of so many events."""
        return self._max_queued is not None and waiting > self._max_queued and now >= self._asked + MOMENT

    def too_old(self, oldest: EventID, now: float) -> bool:
        """Whether a batch that begins with this event has to wait until the store has passed over it."""
        return self._ends(oldest) <= now and now >= self._asked + MOMENT

    def next_call(self, oldest: EventID | None) -> float:
        """When to ask the store, if nothing is delivered until then; `oldest` if it is known."""
        return inf if oldest is None else max(self._ends(oldest) + MOMENT, self._asked + PERIOD)

    def _ends(self, event: EventID) -> float:
        return inf if self._retention is None else self._offset.local(event.us) + self._retention
