"""One subscriber's deliveries: gather the facts, decide, act, and start again.

A courier exists while its worker holds the subscriber's lease. Its facts
(positions, failures, the pause) are corrected by each reply of the store; a wake-up
only makes it look again. What it does follows from `decision.decide`, so that the
next holder of the lease decides the same.

An attempt reads, unless the events are in the worker's cache, and then
acknowledges, or records the failure. The batch is put
together when the sender gives the turn, so that only attempts under way hold
one. The next starts only when the last is settled: a crash repeats one batch.

Each step of the loop waits for one thing at most, so that a stop, a changed
subscription or a lost lease takes effect before another attempt. If the store is
unavailable, the courier pauses and retries; any other exception ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.delivery.attempt_budget import AttemptBudget
from routemaster.delivery.attempt_log import AttemptLog
from routemaster.delivery.backlog import Backlog
from routemaster.delivery.batch import Batch
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.courier_state import Attempt, Reason, Run, Wait
from routemaster.delivery.decision import Facts, Rules, State, Step, decide
from routemaster.delivery.lease import Lease
from routemaster.delivery.retries import Retries
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, LeaseGrant, LeaseHeld, Outcome, Sender, Store, Verdict
from routemaster.model import EventID, public_name
from routemaster.util.backoff import backoff

STORE_RETRY = (0.2, 2.0)  #: seconds before a retry while the store is unavailable: the first, the longest
LEASE_POLL = 0.5      #: seconds between checks of a lease that is too old for an attempt
MISSING_PAUSE = 5.0   #: seconds between reads of events that are missing in the store


class Courier:
    """Delivers to one subscriber while the lease lasts."""

    _log = Logger()

    def __init__(
        self, lease: Lease, grant: LeaseGrant, store: Store, sender: Sender, backlog: Backlog,
        attempts: AttemptLog, budget: AttemptBudget, rules: Rules, clock: Clock, offset: ClockOffset,
        random: Callable[[], float],
    ) -> None:  # fmt: skip
        """`grant`: the lease as acquired, with a subscription; `random` returns a number in [0, 1)."""
        self.lease, self.subscriber = lease, lease.subscriber
        self.name = public_name(lease.subscriber)  #: for logs
        self._store, self._sender, self._backlog, self._attempts = store, sender, backlog, attempts
        self._clock, self._offset, self._random = clock, offset, random
        self._rules, self._retries, self._budget = rules, Retries(rules, random), budget
        self._run, self._wait = Run.RUNNING, Wait(clock)
        self.version = grant.version  #: of the subscription
        self._grant: LeaseGrant | None = grant  #: for the first reload
        self._outdated = True       #: whether the subscription and the positions have to be read again
        self._repaired = 0          #: version of the subscription that was repaired last
        self._refused: Mapping[str, EventID] = {}  #: the last events of a batch that comes again in smaller ones
        self._store_failures = 0    #: in a row
        self._dropped = False       #: whether dropped events have to be counted
        self._attempt: Deferred[Outcome | None] | None = None
        self._target_changed = False  #: whether the attempt under way is cancelled for that
        self._unchecked = self._checking = False  #: whether its target may have changed, is being read

    # -- called by the worker and by the wake-up index

    def wake(self, topic: str, first: EventID | None) -> None:
        """A log has grown; see `wakeup_index.Waiter`."""
        self._backlog.grown(topic, first, was_empty=self._wait.reason is Reason.EVENTS)
        self._wait.end()

    def reload(self) -> None:
        """The subscription or its positions may have changed: read them before the next step."""
        self._outdated = True
        if self._attempt is not None and self._run is Run.RUNNING:
            self._unchecked = True
            if not self._checking:
                Deferred.fromCoroutine(self._check_target())
        self._wait.end()

    def dropped(self) -> None:
        """Events of the backlog were dropped: have them counted when no attempt is under way."""
        self._dropped = True
        self._wait.end()

    def renewed(self) -> None:
        """The store is available and has renewed the lease: end a wait for that."""
        if self._wait.reason is Reason.STORE:
            self._wait.end()

    def stop(self) -> None:
        """Start no further attempt; the one under way goes on."""
        self._end()
        if self._attempt is not None and self._wait.reason is Reason.TURN:
            self._attempt.cancel()
        self._wait.end()

    def abort(self) -> None:
        """Stop at once: the attempt under way is cut, its events stay in the backlog."""
        self._run = Run.ABORTING
        if self._attempt is not None:
            self._attempt.cancel()
        self._wait.end()

    # -- the loop

    async def run(self) -> None:
        """Deliver until stopped, or until there is no subscription or no lease any more."""
        try:
            while self._run is Run.RUNNING:
                try:
                    await self._next_step()
                    self._store_failures = 0
                except StoreUnavailable as error:
                    self._log.debug("deliveries to '{name}' paused: {error}", name=self.name, error=error)
                    if self._run is Run.RUNNING:
                        await self._wait.wait(Reason.STORE, self._store_pause())
        finally:
            self._backlog.unfollow()

    async def _next_step(self) -> None:
        """Decide by what is known now, and do one thing."""
        now = self._clock.seconds()
        if self._outdated:
            await self._reload()
        elif self._dropped or self._backlog.is_missing_events():
            await self._count_dropped(now)
        elif (facts := self._facts(now)) is None:
            await self._backlog.find_oldest()
        elif (step := decide(facts, now)).state is not State.DELIVERING:
            await self._wait_for(step)
        elif not self.lease.holds():
            await self._wait.wait(Reason.STORE, LEASE_POLL)
        else:
            await self._deliver()

    def _facts(self, now: float) -> Facts | None:
        """The facts, or None if the oldest event's age matters and is not known."""
        waiting, retry_at = self._backlog.count(), self._retries.until
        # what was due before its batch was refused is due until it is delivered
        timeout = 0 if self._backlog.holds_any(self._refused) else self._subscription.timeout
        oldest = self._backlog.oldest
        if oldest is None:
            if 0 < waiting < self._most and timeout and now >= retry_at:
                return None
            oldest = now
        return Facts(waiting, oldest, self._most, timeout / 1000, retry_at)

    async def _reload(self) -> None:
        """Read the subscription and its positions; repair them if they are inconsistent."""
        self._outdated = False  # first: a change from now on needs another reload
        try:
            grant, self._grant = self._grant, None
            answer = grant or await self.lease.acquire()
            if not isinstance(answer, LeaseGrant):
                return self._finish()
            if answer.subscription is None:
                await self._store.repair(self.subscriber)
                return self._finish()
            self._subscription, self.version = answer.subscription, answer.version
            self._retries.load(answer, self._clock.seconds())
            self._backlog.follow(answer.memberships, self)
            await self._backlog.refresh()
            if self._repaired != answer.version and self._backlog.is_inconsistent():
                await self._store.repair(self.subscriber)
                self._repaired, self._outdated = answer.version, True
        except StoreUnavailable:
            self._outdated = True
            raise

    def _finish(self) -> None:
        """There is nothing to deliver, unless something changed during the reload."""
        if not self._outdated:
            self._end()

    def _end(self) -> None:
        if self._run is Run.RUNNING:
            self._run = Run.STOPPING

    async def _count_dropped(self, now: float) -> None:
        """Have the events that the logs do not hold any more counted as dropped."""
        self._dropped = False  # first: more may be dropped meanwhile; a failure is repeated by the next clean-up
        await self._store.repair(self.subscriber)
        await self._backlog.refresh()
        if self._backlog.is_missing_events():
            await self._wait_for(Step(State.IDLE, now + MISSING_PAUSE))
        self._backlog.forget_oldest()

    # -- one attempt

    async def _deliver(self) -> None:
        """Make one attempt, and settle it."""
        subscription = self._subscription
        attempt = Attempt(self.lease.epoch, (subscription.callback or "", subscription.uuid))
        self._wait.reason = Reason.TURN
        self._attempt = Deferred.fromCoroutine(self._send(attempt))
        try:
            outcome = await self._attempt
        except CancelledError:
            self._log.debug("an attempt to deliver to '{name}' was cancelled", name=self.name)
            if not self._target_changed:
                self._end()
            return
        finally:
            self._attempt, self._target_changed, self._wait.reason = None, False, Reason.NOTHING
        if outcome is None or attempt.batch is None:
            return
        ended, oldest = self._clock.seconds(), self._offset.local(attempt.batch.first.us)
        self._attempts.ended(attempt.batch, outcome, self._retries.failures + 1, oldest, attempt.began, ended)
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            await self._acknowledge(attempt, attempt.batch)
            return
        if outcome.verdict is Verdict.FAILED:
            await self._record_failure(attempt, attempt.batch, outcome)
        else:
            self._retries.failed_here(ended)

    async def _check_target(self) -> None:
        """Cancel the attempt under way if callback or uuid have changed, or if another worker has the lease."""
        self._checking = True
        try:
            while self._unchecked and (attempt := self._attempt) is not None:
                self._unchecked = False
                answer = await self.lease.acquire()
                if attempt is not self._attempt:
                    continue
                if isinstance(answer, LeaseHeld):
                    self.abort()  # renewals no longer cover this lease: another worker delivers now
                elif answer is not None and (found := answer.subscription) is not None:
                    self.version = answer.version
                    if (found.callback, found.uuid) != (self._subscription.callback, self._subscription.uuid):
                        self._target_changed = True
                        attempt.cancel()
        except Exception:
            return  # the reload after the attempt reports it
        finally:
            self._checking = False

    async def _send(self, attempt: Attempt) -> Outcome | None:
        """Wait for the turn, take the batch and post it; None if there is nothing to send any more."""
        async with self._sender.turn(*attempt.target, self._retries.last) as turn:
            held = await self._budget.reserve(self._rules.batch_bytes(min(self._backlog.count(), self._most)))
            self._wait.reason = Reason.ANSWER
            attempt.began = self._clock.seconds()
            try:
                batch = attempt.batch = await self._next_batch(attempt, held)
                if batch is None:
                    return None
                self._budget.release(held - len(batch.body))
                held = len(batch.body)
                return await turn.post(batch.body, self._retries.failures + 1)
            finally:
                self._budget.release(held)

    async def _next_batch(self, attempt: Attempt, most_bytes: int) -> Batch | None:
        """The batch to send; None if there is no reason for an attempt any more, because the turn came late."""
        backlog, retries = self._backlog, self._retries
        if not (self._may_send() and self._is_due()):
            return None
        if retries.failures:
            await backlog.refresh()  # autodrop may have dropped some of the events that come again
        batch = await backlog.next_batch(self._most, most_bytes)
        attempt.began = self._clock.seconds()
        if batch is None or not self._may_send():
            return None
        if not retries.failures and not retries.batch_limit and backlog.count() > batch.events:
            # after a failure it is unlikely that the next batch is needed soon, or how large it is
            Deferred.fromCoroutine(backlog.prefetch(batch, self._most))
        return batch

    @property
    def _most(self) -> int:
        """The most events in the next batch."""
        return self._retries.most(self._subscription.max)

    def _may_send(self) -> bool:
        return self._run is Run.RUNNING and not self._outdated and self.lease.holds()

    def _is_due(self) -> bool:
        now = self._clock.seconds()
        facts = None if self._backlog.is_missing_events() else self._facts(now)
        return facts is not None and decide(facts, now).state is State.DELIVERING

    async def _acknowledge(self, attempt: Attempt, batch: Batch) -> None:
        """Move the cursors over a delivered batch."""
        self._retries.succeeded(self._subscription.max)

        async def acknowledge() -> None:
            positions = await self._store.acknowledge(
                self.subscriber, self.lease.worker, attempt.epoch, self._backlog.acks(batch),
                self._retries.batch_limit,
            )  # fmt: skip
            if any(positions[topic].is_before(last) for topic, last in batch.ends.items()):
                self._outdated = True  # the store lost its last writes
                self._backlog.forget_events(batch)
            if not self._backlog.acknowledged(positions):
                self._outdated = True
                await self._store.repair(self.subscriber)

        await self._until_stored(acknowledge)

    async def _record_failure(self, attempt: Attempt, batch: Batch, outcome: Outcome) -> None:
        """Store the failure and the pause, unless it says nothing about the present callback."""
        retries = self._retries
        retries.failed(outcome, batch.events, self._clock.seconds())
        if retries.batch_limit and not self._backlog.holds_any(self._refused):
            self._refused = batch.ends

        async def record() -> None:
            left = max(0.0, retries.until - self._clock.seconds())
            if not await self._store.fail(
                self.subscriber, self.lease.worker, attempt.epoch, left, outcome.error,
                retries.failures, retries.batch_limit, attempt.target,
            ):  # fmt: skip
                self._outdated = True

        await self._until_stored(record)

    async def _until_stored(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat an idempotent write until the store has it or the courier is aborted."""
        while True:
            try:
                return await write()
            except StoreUnavailable:
                if self._run is Run.ABORTING:
                    raise
            await self._wait.wait(Reason.STORE, self._store_pause())

    async def _wait_for(self, step: Step) -> None:
        """Wait until the step's time, as many more events as it needs, or a call that ends the wait."""
        if self._run is not Run.RUNNING or self._outdated:
            return
        idle = step.state is State.IDLE
        if idle:
            self._backlog.wake_when(1)
        elif step.state is State.WAITING:
            self._backlog.wake_when(self._most - self._backlog.count())
        seconds = None if step.until is None else step.until - self._clock.seconds()
        await self._wait.wait(Reason.EVENTS if idle else Reason.TIME, seconds)

    def _store_pause(self) -> float:
        self._store_failures += 1
        return backoff(self._store_failures, *STORE_RETRY, self._random())
