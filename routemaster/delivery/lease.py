"""One subscriber's lease, as its courier sees it."""

from __future__ import annotations

from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.leases import Leases
from routemaster.interfaces import Clock, LeaseGrant, LeaseHeld, Store


class Lease:
    """Acquires the lease on one subscriber, and notes in the worker's table how long it lasts."""

    def __init__(
        self, subscriber: str, worker: str, store: Store, leases: Leases, clock: Clock, offset: ClockOffset
    ) -> None:
        self.subscriber, self.worker = subscriber, worker
        self.epoch = 0  #: of the last grant
        self._store, self._leases, self._clock, self._offset = store, leases, clock, offset

    async def acquire(self) -> LeaseGrant | LeaseHeld | None:
        """Acquire or keep the lease, and read the subscription; None: there is no such subscriber.

        Raises StoreUnavailable.
        """
        sent = self._clock.seconds()
        answer = await self._store.acquire(self.subscriber, self.worker)
        now = self._clock.seconds()
        if isinstance(answer, LeaseGrant):
            self.epoch = answer.epoch
            self._offset.observe(sent, now, answer.now)
            self._leases.granted(self.subscriber, sent)
        elif isinstance(answer, LeaseHeld):
            self._leases.held_by_another(self.subscriber, now + answer.remaining)
        return answer

    def holds(self) -> bool:
        """Whether an attempt may start: the lease lasts long enough to settle it."""
        return self._leases.holds(self.subscriber, self._clock.seconds())

    async def release(self) -> None:
        """Give the lease back, so that another worker need not wait until it expires."""
        await self._store.release(self.subscriber, self.worker, self.epoch)
