"""One subscriber's deliveries: look, decide, act, and look again.

A courier exists while its worker holds the subscriber's lease. It keeps the
facts in memory (places in logs, failures, the pause), corrected by every
answer of the store; a wake-up only makes it look. What it does follows from
`machine.decide`, so a successor that starts from the store goes on the same.

One attempt is two round trips to the store: read, and acknowledge or fail.
It may have to wait for its turn at the sender, for long where many are dead;
the batch is read when the turn has come, so that only attempts under way hold
one. While an attempt is in flight the next batch is read ahead. The next attempt
starts only after the acknowledgement of the last is stored, so that a crash
repeats one batch at most.

Each turn of the loop awaits one thing at most and then decides anew: whatever
was told meanwhile (stop, a changed subscription, a lost lease) is seen before
an attempt starts. A store that is away makes the courier rest and look again;
it ends only when it is told to, or has nothing to deliver for. Any other
exception ends it, and the worker decides when to try again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.delivery.attempt_log import Allowances, AttemptLog
from routemaster.delivery.backlog import Backlog, Batch
from routemaster.delivery.backoff import pause
from routemaster.delivery.decision import Facts, State, Step, decide
from routemaster.delivery.wakeup_index import WakeupIndex
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import (
    Ack,
    Clock,
    LeaseGrant,
    LeaseHeld,
    Meter,
    Outcome,
    ReadResult,
    Sender,
    Store,
    Timer,
    Verdict,
)
from routemaster.model import EventID, Subscription, public_name

STORE_RETRY = 0.2          #: seconds before the store is asked again after it was away, growing ...
STORE_RETRY_LONGEST = 2.0  #: ... up to this
LEASE_POLL = 0.5    #: seconds between looks at a lease under which no attempt may start
LOCAL_PAUSE = 1.0   #: seconds to wait after a fault of this machine, and up to half as long again
HOLLOW_PAUSE = 5.0  #: seconds between looks for events that are owed but not there


@frozen
class Context:
    """What all couriers of a worker share."""

    worker: str
    store: Store
    sender: Sender
    clock: Clock
    watch: WakeupIndex
    meter: Meter
    allowances: Allowances              #: of lines in the log
    chance: Callable[[], float]         #: in [0, 1)
    local: Callable[[int], float]       #: store's microseconds -> seconds by `clock`
    acquire: Callable[[str], Awaitable[LeaseGrant | LeaseHeld | None]]  #: the store's, noted by the worker
    lease_holds: Callable[[str], bool]  #: whether an attempt may start under the lease
    retry_delay: float                  #: seconds
    max_backoff: float                  #: seconds
    max_batch_body: int                 #: bytes


@define
class _Flight:
    """An attempt whose turn has come."""

    began: float  #: seconds, by the clock here
    batch: Batch | None = None  #: None: nothing is to be sent any more
    behind: Deferred[ReadResult | None] | None = None  #: what is being read behind the batch


class Courier:
    """Delivers to one subscriber while the lease lasts."""

    _log = Logger()

    def __init__(self, context: Context, subscriber: str, grant: LeaseGrant) -> None:
        if grant.subscription is None:
            raise ValueError("there is nothing to deliver for a subscription that was dissolved")
        self._context = context
        self.subscriber = subscriber
        self.name = public_name(subscriber)  #: as logs show it
        self.step = Step(State.IDLE)
        self._telling = AttemptLog(context.meter, self.name, context.allowances)
        self._backlog = Backlog(context.watch, self, context.clock, context.local)
        self._stopping = self._aborted = False
        self._stale = True                 #: whether the subscription and the places have to be learnt anew
        self._given: LeaseGrant | None = grant  #: not looked at yet
        self._mended = 0
        self._troubles = 0
        self._told_hollow = False
        self._idling = False               #: whether it sleeps because nothing waits
        self._held_up = False              #: whether it rests until the store answers, or renews the lease
        self._wake: Deferred[None] | None = None
        self._timer: Timer | None = None
        self._attempt: Deferred[Outcome | None] | None = None
        self._flight: _Flight | None = None  #: of the attempt; None while it waits for its turn
        self._obey(grant, grant.subscription)

    def _obey(self, grant: LeaseGrant, subscription: Subscription) -> None:
        self._subscription = subscription
        self.epoch, self.version = grant.epoch, grant.version
        self._failures, self._retry_at = grant.failures, 0.0
        if grant.retry_at > grant.now:
            # no pause is longer than the longest, whatever the store's clock does
            longest = self._context.clock.seconds() + self._context.max_backoff
            self._retry_at = min(self._context.local(grant.retry_at), longest)

    # -- from outside

    def woken(self, topic: str, first: EventID | None) -> None:
        """The watch's call: a log has grown."""
        self._backlog.answered(topic)
        if first is not None and self._idling:
            self._backlog.accepted(topic, first)
        self._rouse()

    def reload(self) -> None:
        """The subscription, or where it stands, may have changed: read it anew before the next step."""
        self._stale = True
        self._rouse()

    def renewed(self) -> None:
        """The store answers, and has renewed the lease: whoever waited for that need not wait on."""
        if self._held_up:
            self._rouse()

    def stop(self) -> None:
        """Start nothing more; an attempt in flight goes on."""
        self._stopping = True
        if self._attempt is not None and self._flight is None:
            self._attempt.cancel()
        self._rouse()

    def abort(self) -> None:
        """Stop at once: the attempt in flight is cut, its events stay owed."""
        self._aborted = True
        self.stop()
        if self._attempt is not None:
            self._attempt.cancel()

    # -- the loop

    async def run(self) -> None:
        """Deliver until stopped, or until there is no subscription or no lease any more."""
        try:
            while not self._stopping:
                try:
                    await self._turn()
                    self._troubles = 0
                except StoreUnavailable as error:
                    self._log.debug("delivery to '{name}' rests: {error}", name=self.name, error=error)
                    if not self._stopping:
                        await self._rest(self._store_pause())
        finally:
            self._backlog.leave()

    async def _turn(self) -> None:
        """Decide on what is known now, and do one thing."""
        now = self._context.clock.seconds()
        if self._stale:
            await self._look()
        elif self._backlog.is_hollow():
            await self._wait_for_lost()
        elif (facts := self._facts(now)) is None:
            await self._read()
        elif (step := self._decide(facts, now)).state is not State.DELIVERING:
            await self._sleep(step)
        elif not self._context.lease_holds(self.subscriber):
            await self._rest(LEASE_POLL)
            self._backlog.aged()
        else:
            await self._deliver()

    def _decide(self, facts: Facts, now: float) -> Step:
        self.step = decide(facts, now)
        return self.step

    def _facts(self, now: float) -> Facts | None:
        """The facts, or None if the oldest event's age matters and is not known."""
        waiting, subscription = self._backlog.count(), self._subscription
        oldest = self._backlog.oldest
        if oldest is None:
            if 0 < waiting < subscription.max and subscription.timeout and now >= self._retry_at:
                return None
            oldest = now
        return Facts(waiting, oldest, subscription.max, subscription.timeout / 1000, self._retry_at)

    async def _look(self) -> None:
        """Learn anew what is to be delivered and where the subscriber stands; mend what does not fit."""
        self._stale = False  # first: whatever is told from now on makes it stale again
        try:
            grant, self._given = self._given, None
            answer = grant or await self._context.acquire(self.subscriber)
            if not isinstance(answer, LeaseGrant):
                return self._finish()
            if answer.subscription is None:
                await self._context.store.repair(self.subscriber)
                return self._finish()
            self._obey(answer, answer.subscription)
            self._backlog.follow(answer.memberships)
            await self._read()
            if self._mended != answer.version and self._backlog.amiss():
                await self._context.store.repair(self.subscriber)
                self._mended, self._stale = answer.version, True
        except StoreUnavailable:
            self._stale = True
            raise

    def _finish(self) -> None:
        """There is nothing to deliver for, unless something was told since."""
        self._stopping = self._stopping or not self._stale

    async def _read(self) -> None:
        """Read the next batch; the answer also tells where the subscriber stands."""
        after, most = self._backlog.after({}), self._subscription.max
        told = self._backlog.told()
        reading = ReadResult((), {})
        if after:
            reading = await self._context.store.read(self.subscriber, after, most, self._context.max_batch_body)
        self._backlog.take_in(reading, most, told)
        self._told_hollow = self._told_hollow and not reading.entries

    async def _wait_for_lost(self) -> None:
        """Events are owed that the log does not hold; the store's upkeep has to say what became of them."""
        if not self._told_hollow:
            self._log.error("'{name}' is owed events that the store does not hold", name=self.name)
            self._told_hollow = True
        self.step = Step(State.WAITING, self._context.clock.seconds() + HOLLOW_PAUSE)
        await self._sleep(self.step, missing=1)

    # -- one attempt

    async def _deliver(self) -> None:
        """Make one attempt, unless there is no reason for it any more when its turn comes."""
        subscription, whom = self._subscription, self._whom()
        sending = self._context.sender.send(subscription.callback, subscription.uuid, self._board)
        self._attempt = attempt = Deferred.fromCoroutine(sending)
        if self._flight is None:
            self._backlog.discard()  # it waits, and what it is to carry is read then
        try:
            outcome = await attempt
        except CancelledError:
            outcome = Outcome(Verdict.LOCAL, error="the attempt was cut short")
            self._stopping = True
        finally:
            flight, self._flight, self._attempt = self._flight, None, None
        if outcome is None:
            return
        if flight is not None and flight.batch is not None:
            self._report(flight.batch, outcome, flight.began)
            if outcome.verdict is Verdict.ACKNOWLEDGED:
                await self._settle(flight.batch, flight.behind)
                return
        self._backlog.discard()  # the next attempt reads anew: the batch may have grown, or been dropped
        if outcome.verdict is Verdict.FAILED:
            await self._record_failure(outcome, whom)
        else:
            self._retry_at = self._context.clock.seconds() + LOCAL_PAUSE * (1 + self._context.chance() / 2)

    async def _board(self) -> bytes | None:
        """The sender's call when the turn has come: what is to go now, if anything is."""
        flight = self._flight = _Flight(self._context.clock.seconds())
        if not self._backlog.is_ready(self._subscription.max):  # it has waited, or has nothing yet
            if self._is_free():
                await self._read()
                flight.began = self._context.clock.seconds()
            if not (self._is_free() and self._is_due() and self._backlog.is_ready(self._subscription.max)):
                return None
        waiting = self._backlog.count()
        flight.batch = batch = self._backlog.take()
        # who has failed will hardly take the next batch too: reading it would only burden the store
        if not self._failures and waiting > batch.events:
            flight.behind = Deferred.fromCoroutine(self._read_behind(batch.ends))
        return batch.body

    def _is_free(self) -> bool:
        """Whether nothing forbids an attempt."""
        return not self._stopping and not self._stale and self._context.lease_holds(self.subscriber)

    def _is_due(self) -> bool:
        """Whether a batch waits whose time has come, by what was read last."""
        now = self._context.clock.seconds()
        facts = None if self._backlog.is_hollow() else self._facts(now)
        return facts is not None and self._decide(facts, now).state is State.DELIVERING

    async def _settle(self, batch: Batch, behind: Deferred[ReadResult | None] | None) -> None:
        """The subscriber has acknowledged."""
        await self._until_stored(lambda: self._acknowledge(batch.ends))
        self._failures, self._retry_at = 0, 0.0
        reading = await behind if behind else None
        if reading and not self._stale:
            self._backlog.take_behind(reading, self._subscription.max)

    async def _read_behind(self, last: Mapping[str, EventID]) -> ReadResult | None:
        """Read on behind a batch in flight; a failure only means to read later, when it will be told."""
        try:
            after, most = self._backlog.after(last), self._subscription.max
            return await self._context.store.read(self.subscriber, after, most, self._context.max_batch_body)
        except Exception:
            return None

    async def _acknowledge(self, last: Mapping[str, EventID]) -> None:
        acks = [Ack(topic, self._backlog.membership(topic), entry_id) for topic, entry_id in last.items()]
        context = self._context
        places = await context.store.acknowledge(self.subscriber, context.worker, self.epoch, acks)
        # a store that lost its last writes: what was read behind the batch may not follow what it holds now
        self._stale = self._stale or any(places[topic].owes(event) for topic, event in last.items())
        if not self._backlog.acknowledged(places):
            self._stale = True
            await self._context.store.repair(self.subscriber)

    def _whom(self) -> tuple[int, str, str | None]:
        """Under which lease, and where, the subscriber is tried."""
        return self.epoch, self._subscription.callback, self._subscription.uuid

    async def _record_failure(self, outcome: Outcome, whom: tuple[int, str, str | None]) -> None:
        context = self._context
        if self._stale:
            await self._look()
            if self._stopping or self._whom() != whom:
                return  # it says nothing about who is to be reached now
        wait = pause(
            self._failures + 1, context.retry_delay, context.max_backoff, context.chance(), outcome.retry_after
        )
        self._failures += 1
        self._retry_at = context.clock.seconds() + wait

        async def record() -> None:
            left = max(0.0, self._retry_at - context.clock.seconds())
            failures = await context.store.fail(self.subscriber, context.worker, self.epoch, left, outcome.error)
            if failures is None:
                self._stopping = True  # the lease is lost
            else:
                self._failures = failures

        await self._until_stored(record)

    async def _until_stored(self, step: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Repeat an idempotent step until the store has taken it or the lease is lost."""
        while True:
            try:
                return await step()
            except StoreUnavailable:
                if self._aborted:
                    raise
            await self._rest(self._store_pause())

    def _report(self, batch: Batch, outcome: Outcome, began: float) -> None:
        ended, oldest = self._context.clock.seconds(), self._context.local(batch.first.us)
        self._telling.ended(batch, outcome, self._failures + 1, oldest, began, ended)

    # -- sleep

    async def _sleep(self, step: Step, missing: int | None = None) -> None:
        """Rest until the step's time or a reason to look again; `missing` events are one."""
        if self._stopping or self._stale:
            return
        if step.state is State.IDLE:
            missing = 1
        elif step.state is State.WAITING and missing is None:
            missing = self._subscription.max - self._backlog.count()
        if missing is not None:
            self._backlog.ask(missing)
        self._idling = step.state is State.IDLE
        await self._pause(None if step.until is None else step.until - self._context.clock.seconds())
        self._idling = False
        self._backlog.aged()

    async def _rest(self, seconds: float) -> None:
        """Rest for a while, or until `renewed`, or until there is another reason to look again."""
        self._held_up = True
        await self._pause(seconds)
        self._held_up = False

    def _store_pause(self) -> float:
        self._troubles += 1
        return pause(self._troubles, STORE_RETRY, STORE_RETRY_LONGEST, self._context.chance())

    async def _pause(self, seconds: float | None) -> None:
        wake: Deferred[None] = Deferred()
        self._wake = wake
        if seconds is not None:
            self._timer = self._context.clock.callLater(max(0.0, seconds), self._rouse)
        await wake

    def _rouse(self) -> None:
        wake, self._wake = self._wake, None
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if wake is not None:
            wake.callback(None)
