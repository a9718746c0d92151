"""Stores what an attempt has led to: events that are delivered or parked, or a failure and its pause.

What is known here changes at once. The calls of the store are repeated until it
has them: each may be repeated without effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from math import inf

from routemaster.delivery.attempt_log import AttemptLog
from routemaster.delivery.attempt_report import report
from routemaster.delivery.backlog import Backlog
from routemaster.delivery.batch import Batch
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.courier_state import Attempt
from routemaster.delivery.lease import Lease
from routemaster.delivery.parking import FULL, NO_MEMORY, Refusals, parked_event
from routemaster.delivery.retries import REFUSED, Retries
from routemaster.errors import NotSubscribed, StoreFull
from routemaster.interfaces import Clock, Outcome, Position, Store, Verdict
from routemaster.model import ParkedEvent, Subscription

#: calls of the store, to be repeated until they succeed; whether the positions have to be read again
Write = Callable[[], Awaitable[bool]]


class Settlement:
    """Settles the attempts to deliver to one subscriber."""

    def __init__(
        self, lease: Lease, store: Store, backlog: Backlog, retries: Retries, refusals: Refusals,
        attempts: AttemptLog, clock: Clock, offset: ClockOffset,
    ) -> None:  # fmt: skip
        self._lease, self._subscriber, self._store = lease, lease.subscriber, store
        self._backlog, self._retries, self._refusals, self._attempts = backlog, retries, refusals, attempts
        self._clock, self._offset = clock, offset

    async def load(self) -> None:
        """Find out which event the stored refusals are for."""
        if self._refusals.is_unknown:
            with suppress(NotSubscribed):  # the hint about that is on its way
                self._refusals.identify((await self._store.attempts(self._subscriber)).failed)

    def of(self, attempt: Attempt, batch: Batch, outcome: Outcome, subscription: Subscription) -> Write:
        """Settle an attempt that was acknowledged or failed; what is to be stored."""
        now, retried = self._clock.seconds(), attempt.retried
        told = report(batch, outcome, self._offset.stored(attempt.began), now - attempt.began)
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            self._retries.succeeded(subscription.max)
            self._refusals.ended()
            if retried is not None:
                return lambda: self._settle_retried(attempt, retried, told)
            return lambda: self._acknowledge(attempt, batch, told)
        if retried is not None and outcome.status in REFUSED:
            return lambda: self._settle_retried(attempt, retried, told, outcome.error)
        self._retries.failed(outcome, batch.events, now)
        if retried is None:
            is_refused = self._refusals.failed(batch, outcome)
            if self._retries.batch_limit and not self._backlog.holds_any(self._refusals.ends):
                self._refusals.ends = batch.ends
            if is_refused and self._refusals.count >= (subscription.park_after or inf):
                event, times = parked_event(batch, outcome.error, self._offset.stored(now)), self._refusals.count
                return lambda: self._park(attempt, event, times, told)
        return lambda: self._fail(attempt, outcome.error, told)

    async def _acknowledge(self, attempt: Attempt, batch: Batch, told: bytes) -> bool:
        """Move the cursors over a delivered batch."""
        positions = await self._success(attempt, told)
        is_behind = any(positions[topic].is_before(last) for topic, last in batch.ends.items())
        if is_behind:  # the cursor was moved back, or the store lost its last writes
            self._backlog.forget_events(batch)
        if not self._backlog.acknowledged(positions):
            await self._store.repair(self._subscriber)
            return True
        return is_behind

    async def _success(self, attempt: Attempt, told: bytes) -> Mapping[str, Position]:
        return await self._store.acknowledge(
            self._subscriber, self._lease.worker, attempt.epoch, attempt.acks, self._retries.batch_limit, told
        )

    async def _fail(self, attempt: Attempt, error: str, told: bytes) -> bool:
        """Store the failure and the pause, unless it says nothing about the present callback."""
        retries = self._retries
        pause = max(0.0, retries.until - self._clock.seconds())
        return not await self._store.fail(
            self._subscriber, self._lease.worker, attempt.epoch, pause, error,
            retries.failures, retries.batch_limit, attempt.target, self._refusals.count, told,
        )  # fmt: skip

    async def _park(self, attempt: Attempt, event: ParkedEvent, times: int, told: bytes) -> bool:
        """Park the one event, so that those behind it go on; without room for it the failure is as any other."""
        membership, why_not = attempt.acks[0].membership, FULL
        try:
            is_parked = await self._store.park(
                self._subscriber, self._lease.worker, attempt.epoch, membership, event
            )
        except StoreFull:  # a failure takes no memory, and what the receiver accepts by then frees some
            is_parked, why_not = False, NO_MEMORY
        if not is_parked:
            return await self._fail(attempt, f"{why_not}; {event.reason}", told)
        self._retries.parked()
        self._refusals.ended()
        await self._fail(attempt, event.reason, told)
        self._attempts.parked(event, times)
        return True

    async def _settle_retried(
        self, attempt: Attempt, event: ParkedEvent, told: bytes, refused: str = ""
    ) -> bool:  # fmt: skip
        """Store what became of a parked event that was tried again."""
        await self._store.settle_retried(self._subscriber, self._lease.worker, attempt.epoch, event, refused)
        if refused:
            return await self._fail(attempt, refused, told)
        await self._success(attempt, told)
        return False
