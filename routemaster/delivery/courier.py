"""One subscriber's deliveries: gather the facts, decide, act, and start again.

A courier exists while its worker holds the subscriber's lease. Its facts
(positions, failures, the pause) are corrected by each reply of the store; a wake-up
only makes it look again. What it does follows from `decision.decide`, so that the
next holder of the lease decides the same.

An attempt reads, unless the events are in the worker's cache, and then
acknowledges, or records the failure (`settlement`). The batch is put
together when the sender gives the turn, so that only attempts under way hold
one. The next starts only when the last is settled: a crash repeats one batch.
What a subscription adds is in `pacing`, `filling`, `expiry` and `parking`.

Each step of the loop waits for one thing at most, so that a stop, a changed
subscription or a lost lease takes effect before another attempt. If the store is
unavailable, the courier pauses and retries; any other exception ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.delivery.attempt_budget import AttemptBudget
from routemaster.delivery.attempt_log import AttemptLog
from routemaster.delivery.backlog import Backlog
from routemaster.delivery.batch import Batch
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.courier_state import Attempt, Reason, Run, Wait
from routemaster.delivery.decision import Rules, State, Step, decide
from routemaster.delivery.due import Due
from routemaster.delivery.expiry import Expiry
from routemaster.delivery.lease import Lease
from routemaster.delivery.parking import Refusals, retried_batch
from routemaster.delivery.retries import Retries
from routemaster.delivery.settlement import Settlement, Write
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
        self.retries, self._budget = Retries(rules, random), budget
        self._refusals, self._expiry = Refusals(), Expiry(offset)
        self._due = Due(rules, backlog, self.retries, self._refusals, self._expiry)
        self._settlement = Settlement(lease, store, backlog, self.retries, self._refusals, attempts, clock,
                                      offset)  # fmt: skip
        self._run, self._wait = Run.RUNNING, Wait(clock)
        self.version = grant.version  #: of the subscription
        self._grant: LeaseGrant | None = grant  #: for the first reload
        self._outdated = True       #: whether the subscription and the positions have to be read again
        self._repaired = 0          #: version of the subscription that was repaired last
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
        elif (facts := self._due.facts(now)) is None:
            await self._backlog.find_oldest()
        elif (step := decide(facts, now)).state is not State.DELIVERING:
            await self._wait_for(step)
        elif not self.lease.holds():
            await self._wait.wait(Reason.STORE, LEASE_POLL)
        else:
            await self._deliver()

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
            self._due.load(answer, answer.subscription, self._clock.seconds())
            self.version = answer.version
            await self._settlement.load()
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
        if self._expiry.limited:
            await self._expire()
        await self._store.repair(self.subscriber)
        await self._backlog.refresh()
        if self._backlog.is_missing_events():
            await self._wait_for(Step(State.IDLE, now + MISSING_PAUSE))
        self._backlog.forget_oldest()

    async def _expire(self) -> None:
        """Have the store pass over what is beyond the subscription's limits."""
        began = self._clock.seconds()
        await self._store.expire(self.subscriber)
        self._expiry.asked(began)
        await self._backlog.refresh()
        await self._backlog.find_oldest()
        if self._backlog.is_inconsistent():
            self._outdated = True  # a topic that was left may have no backlog any more

    # -- one attempt

    async def _deliver(self) -> None:
        """Make one attempt, and settle it."""
        subscription = self._due.subscription
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
        ended, batch = self._clock.seconds(), attempt.batch
        oldest = attempt.began if attempt.retried else self._offset.local(batch.first.us)
        self._attempts.ended(batch, outcome, self.retries.failures + 1, oldest, attempt.began, ended)
        self._due.pace.ended(outcome.reused, ended)
        if outcome.verdict is Verdict.LOCAL:
            self.retries.failed_here(ended)
        else:
            await self._until_stored(self._settlement.of(attempt, batch, outcome, subscription))

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
                    target = self._due.subscription.callback, self._due.subscription.uuid
                    if (found.callback, found.uuid) != target:
                        self._target_changed = True
                        attempt.cancel()
        except Exception:
            return  # the reload after the attempt reports it
        finally:
            self._checking = False

    async def _send(self, attempt: Attempt) -> Outcome | None:
        """Wait for the turn, take the batch and post it; None if there is nothing to send any more."""
        async with self._sender.turn(*attempt.target, self.retries.last) as turn:
            held = await self._budget.reserve(self._due.bytes_wanted(), turn.connected())
            self._wait.reason = Reason.ANSWER
            attempt.began = self._clock.seconds()
            try:
                batch = attempt.batch = await self._next_batch(attempt, held)
                if batch is None:
                    return None
                self._budget.release(held - len(batch.body))
                held = len(batch.body)
                self._due.pace.started(batch.events, attempt.began)
                signing = self._due.subscription.signing(self._offset.stored(attempt.began))
                return await self._attempts.post(turn, attempt, batch, self.retries.failures + 1, signing)
            finally:
                self._budget.release(held)

    async def _next_batch(self, attempt: Attempt, most_bytes: int) -> Batch | None:
        """The batch to send; None if there is no reason for an attempt any more, because the turn came late."""
        async with self._budget.reads(min(self._backlog.count(), self._due.most)):
            if not (self._may_send() and self._due.is_now(self._clock.seconds())):  # any more, after the waits
                return None
            batch = await (self._parked_batch(attempt) if self._due.retried else self._oldest_batch(most_bytes))
        attempt.began = self._clock.seconds()
        if batch is None or not self._may_send():
            return None
        if attempt.retried is None:
            attempt.acks = self._backlog.acks(batch)
            if not (self.retries.failures or self.retries.batch_limit) and self._backlog.count() > batch.events:
                # after a failure it is unlikely that the next batch is needed soon, or how large it is
                Deferred.fromCoroutine(self._backlog.prefetch(batch, self._due.most))
        return batch

    async def _parked_batch(self, attempt: Attempt) -> Batch | None:
        """The next parked event that is to be delivered again; None: there is none."""
        attempt.retried = await self._store.next_retried(self.subscriber)
        if attempt.retried is None:
            self._due.retried = 0
            return None
        return retried_batch(attempt.retried)

    async def _oldest_batch(self, most_bytes: int) -> Batch | None:
        """The oldest events, none of which has expired; None: there is none, or it is not due any more."""
        backlog, expiry, most = self._backlog, self._expiry, self._due.pace.most(self._due.most)
        if self.retries.failures:
            await backlog.refresh()  # autodrop may have dropped some of the events that come again
        if expiry.too_many(backlog.count(), self._clock.seconds()):
            await self._expire()
        batch = await backlog.next_batch(most, most_bytes)
        while batch is not None and expiry.too_old(batch.first, self._clock.seconds()):
            await self._expire()
            batch = await backlog.next_batch(most, most_bytes)
        return None if expiry.limited and not self._due.is_now(self._clock.seconds()) else batch

    def _may_send(self) -> bool:
        return self._run is Run.RUNNING and not self._outdated and self.lease.holds()

    async def _until_stored(self, write: Write) -> None:
        """Repeat an idempotent write until the store has it or the courier is aborted."""
        while True:
            try:
                if await write():
                    self._outdated = True
                return
            except StoreUnavailable:
                if self._run is Run.ABORTING:
                    raise
            await self._wait.wait(Reason.STORE, self._store_pause())

    async def _wait_for(self, step: Step) -> None:
        """Wait until the step's time or an event expires, for as many events as it needs, or for a call."""
        if self._run is not Run.RUNNING or self._outdated:
            return
        now, backlog, waiting = self._clock.seconds(), self._backlog, self._backlog.count()
        # what has to be known for the wait is found out first, in a step of its own
        idle = step.state is State.IDLE or (step.state is State.PAUSED and not waiting)
        expires = self._expiry.next_call(backlog.oldest_event)
        if step.state is State.WAITING and backlog.filling.is_unknown(waiting):
            await backlog.fill(self._due.most)
        elif self._expiry.by_age and waiting and not idle and backlog.oldest_event is None:
            await backlog.find_oldest()
        elif expires <= now:
            await self._expire()
        else:
            if idle:
                backlog.wake_when(1)
            elif step.state is State.WAITING:
                backlog.wake_when(backlog.filling.wake_at(self._due.most) - waiting)
            until = min(expires, inf if step.until is None else step.until)
            await self._wait.wait(Reason.EVENTS if idle else Reason.TIME, None if until == inf else until - now)

    def _store_pause(self) -> float:
        self._store_failures += 1
        return backoff(self._store_failures, *STORE_RETRY, self._random())
