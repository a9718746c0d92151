"""One subscriber's deliveries: look, decide, act, and look again.

A courier exists while its worker holds the subscriber's lease. It keeps the
facts in memory (places in logs, failures, the pause), corrected by every
answer of the store; a wake-up only makes it look. What it does follows from
`machine.decide`, so a successor that starts from the store goes on the same.

One attempt is two round trips to the store: read, and acknowledge or fail.
While an attempt is in flight the next batch is read ahead. The next attempt
starts only after the acknowledgement of the last is stored, so that a crash
repeats one batch at most.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.delivery.health import pause
from routemaster.delivery.machine import Facts, State, Step, decide
from routemaster.delivery.watch import Watch
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Ack, Clock, Grant, Outcome, Place, Sender, Store, Timer, Verdict
from routemaster.model import EventID, Subscription, public_name

SLACK = 64         #: events after which a waiting courier looks again although its batch is not full
STORE_RETRY = 0.2  #: seconds between tries to store the end of an attempt
LOCAL_PAUSE = 1.0  #: seconds to wait after a fault of this machine

Entry = tuple[str, EventID, bytes]


@frozen
class Context:
    """What all couriers of a worker share."""

    worker: str
    store: Store
    sender: Sender
    clock: Clock
    watch: Watch
    chance: Callable[[], float]            #: in [0, 1)
    local: Callable[[int], float]          #: store's microseconds -> seconds by `clock`
    lease_holds: Callable[[str], bool]     #: whether an attempt may start under the lease
    retry_delay: float                     #: seconds
    max_backoff: float                     #: seconds
    max_batch_body: int                    #: bytes
    spawn: Callable[[Coroutine[Deferred[Any], Any, None]], Deferred[None]]  #: runs a coroutine, reports its failure


class Courier:
    """Delivers to one subscriber while the lease lasts."""

    _log = Logger()

    def __init__(self, context: Context, subscriber: str, grant: Grant) -> None:
        self._context = context
        self.subscriber = subscriber
        self.step = Step(State.IDLE)
        self._places: dict[str, Place] = {}
        self._ahead: Sequence[Entry] = ()
        self._oldest: float | None = None
        self._stopping = self._aborted = False
        self._stale = False
        self._mended = 0
        self._wake: Deferred[None] | None = None
        self._timer: Timer | None = None
        self._attempt: Deferred[Outcome] | None = None
        self._asked: dict[str, int] = {}
        self._take(grant)

    def _take(self, grant: Grant) -> None:
        if grant.subscription is None:
            raise ValueError("there is nothing to deliver for a subscription that was dissolved")
        self._subscription: Subscription = grant.subscription
        self.epoch, self.version = grant.epoch, grant.version
        self._grant = grant
        self._failures = grant.failures
        self._retry_at = self._context.local(grant.retry_at) if grant.retry_at > grant.now else 0.0

    # -- from outside

    @property
    def attempting(self) -> bool:
        """Whether a POST is in flight."""
        return self._attempt is not None

    def woken(self, topic: str, first: EventID | None) -> None:
        """The watch's call: a log has grown."""
        self._asked.pop(topic, None)
        place = self._places.get(topic)
        if first is not None and place is not None and place.tail is not None:
            if self.step.state is State.IDLE and self._oldest is None and first.n == place.tail.n + 1:
                self._oldest = self._context.local(first.us)
        self._rouse()

    def reload(self) -> None:
        """The subscription changed: read it anew before the next step."""
        self._stale = True
        self._rouse()

    def stop(self) -> None:
        """Start nothing more; an attempt in flight goes on."""
        self._stopping = True
        self._rouse()

    def abort(self) -> None:
        """Stop at once: the attempt in flight is cut, its events stay owed."""
        self._aborted = True
        self.stop()
        if self._attempt is not None:
            self._attempt.cancel()

    # -- the loop

    async def run(self) -> None:
        """Deliver until stopped, or until there is no subscription any more."""
        try:
            await self._look()
            while not self._stopping:
                if self._stale and not await self._reload():
                    break
                facts = self._facts()
                if facts is None:
                    await self._read_ahead(self._after(()))
                    continue
                self.step = decide(facts, self._context.clock.seconds())
                if self.step.state is not State.DELIVERING:
                    await self._sleep(self.step)
                elif self._context.lease_holds(self.subscriber):
                    await self._deliver(facts.max)
                else:
                    await self._sleep(Step(State.DELIVERING, self._context.clock.seconds() + STORE_RETRY))
        except StoreUnavailable as error:
            self._log.debug("delivery to '{name}' rests: {error}", name=self.name, error=error)
        finally:
            for topic in self._places:
                self._context.watch.leave(topic, self)

    @property
    def name(self) -> str:
        """The subscriber as logs show it."""
        return public_name(self.subscriber)

    async def _reload(self) -> bool:
        self._stale = False
        grant = await self._context.store.acquire(self.subscriber, self._context.worker)
        if not isinstance(grant, Grant) or grant.epoch != self.epoch:
            return False
        if grant.subscription is None:
            await self._context.store.repair(self.subscriber)
            return False
        self._take(grant)
        await self._look()
        return True

    async def _look(self) -> None:
        """Learn where the subscriber stands in each topic, and mend what does not fit."""
        grant = self._grant
        for topic in self._places.keys() - grant.stays.keys():
            self._context.watch.leave(topic, self)
        self._places, self._asked = dict.fromkeys(grant.stays, Place(None, None)), {}
        for topic in grant.stays:
            self._context.watch.attend(topic, self)  # before reading, so that no hint falls in between
        await self._read_ahead(dict.fromkeys(grant.stays))
        if self._mended != grant.version and self._amiss():
            self._mended = grant.version
            await self._context.store.repair(self.subscriber)
            self._stale = True

    def _amiss(self) -> bool:
        """Whether a stay and its cursor disagree, or a stay is over."""
        for topic, stay in self._grant.stays.items():
            cursor = self._places[topic].cursor
            if cursor is None or cursor.membership != stay.membership or not cursor.spans:
                return True
            if cursor.open and stay.state != "on":
                return True
        return False

    def _backlog(self) -> int:
        """Events waiting, by all that is known here."""
        backlog = 0
        for topic, place in self._places.items():
            if place.cursor is not None and place.tail is not None:
                known = self._context.watch.tail(topic)
                if known is not None and known > place.tail:
                    place = self._places[topic] = Place(place.cursor, known)
                backlog += place.cursor.backlog(place.tail)  # type: ignore[union-attr, arg-type]
        return backlog

    def _facts(self) -> Facts | None:
        """The facts, or None if the oldest event's age matters and is not known."""
        backlog = self._backlog()
        subscription = self._subscription
        now = self._context.clock.seconds()
        if not backlog:
            self._oldest = None
        elif self._oldest is None:
            if backlog < subscription.max and subscription.timeout and now >= self._retry_at:
                return None
        oldest = now if self._oldest is None else self._oldest
        return Facts(backlog, oldest, subscription.max, subscription.timeout / 1000, self._retry_at)

    def _after(self, sent: Sequence[Entry]) -> dict[str, EventID | None]:
        """Where to read on, in each topic that holds something behind what was `sent`."""
        after: dict[str, EventID | None] = {topic: entry_id for topic, entry_id, _ in sent}
        return {
            topic: after.get(topic)
            for topic, place in self._places.items()
            if place.cursor and place.tail and place.cursor.backlog(place.tail)
        }

    async def _read_ahead(self, after: Mapping[str, EventID | None]) -> None:
        """Read the next batch; the answer also corrects the places."""
        subscription = self._subscription
        self._ahead, self._oldest = (), None
        if not after:
            return
        reading = await self._context.store.read(
            self.subscriber, after, subscription.max, self._context.max_batch_body
        )
        self._places.update({topic: reading.places[topic] for topic in after if topic in self._places})
        self._ahead = reading.entries
        if self._ahead:
            self._oldest = self._context.local(self._ahead[0][1].us)
        elif not any(after.values()):
            # nothing where something should be: an autodrop, or a lost tail of the store's own log
            self._oldest = self._context.clock.seconds()

    # -- one attempt

    async def _deliver(self, most: int) -> None:
        waiting = self._backlog()
        if len(self._ahead) < min(most, waiting):
            await self._read_ahead(self._after(()))
        batch, self._ahead = self._ahead, ()
        if not batch:
            self._log.error("{name} is owed events that the store does not hold", name=self.name)
            self._stale = True
            await self._sleep(Step(State.DELIVERING, self._context.clock.seconds() + LOCAL_PAUSE))
            return
        subscription = self._subscription
        body = b"[%s]" % b",".join([fragment for _, _, fragment in batch])
        began = self._context.clock.seconds()
        sending = self._context.sender.send(subscription.callback, subscription.uuid, body)
        self._attempt = attempt = Deferred.fromCoroutine(sending)
        ahead = self._start_reading(batch) if waiting > len(batch) else None
        try:
            outcome = await attempt
        except CancelledError:
            outcome = Outcome(Verdict.LOCAL, error="the attempt was cut short")
            self._stopping = True
        finally:
            self._attempt = None
        elapsed = self._context.clock.seconds() - began
        self._report(batch, outcome, elapsed)
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            await self._until_stored(lambda: self._acknowledge(batch))
            self._failures, self._retry_at, self._oldest = 0, 0.0, None
            if ahead is not None:
                await ahead
                if self._ahead:
                    self._oldest = self._context.local(self._ahead[0][1].us)
        else:
            self._oldest = self._context.local(batch[0][1].us)
            if ahead is not None:
                await ahead
                self._ahead = ()
            if outcome.verdict is Verdict.LOCAL:
                self._retry_at = self._context.clock.seconds() + LOCAL_PAUSE
            else:
                await self._record_failure(outcome)

    def _start_reading(self, batch: Sequence[Entry]) -> Deferred[None]:
        """Read behind a batch in flight; a failure to do so only means to read later."""

        async def read() -> None:
            try:
                reading = await self._context.store.read(
                    self.subscriber, self._after(batch), most, self._context.max_batch_body
                )
            except StoreUnavailable:
                return
            self._ahead = reading.entries

        most = self._subscription.max
        return self._context.spawn(read())

    async def _acknowledge(self, batch: Sequence[Entry]) -> None:
        last = {topic: entry_id for topic, entry_id, _ in batch}
        acks = [Ack(topic, self._grant.stays[topic].membership, entry_id) for topic, entry_id in last.items()]
        places = await self._context.store.acknowledge(
            self.subscriber, self._context.worker, self.epoch, acks
        )
        self._places.update(places)
        if any(place.cursor is None or not place.cursor.spans for place in places.values()):
            await self._context.store.repair(self.subscriber)
            self._stale = True

    async def _record_failure(self, outcome: Outcome) -> None:
        context = self._context
        self._failures += 1
        wait = pause(
            self._failures, context.retry_delay, context.max_backoff, context.chance(), outcome.retry_after
        )
        self._retry_at = context.clock.seconds() + wait

        async def record() -> None:
            failures = await context.store.fail(
                self.subscriber, context.worker, self.epoch, wait, outcome.error
            )
            self._stopping = self._stopping or failures is None

        await self._until_stored(record)

    async def _until_stored(self, step: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Repeat an idempotent step until the store has taken it or the lease is lost."""
        while True:
            try:
                return await step()
            except StoreUnavailable:
                if self._aborted:
                    raise
            await self._pause(STORE_RETRY)

    def _report(self, batch: Sequence[Entry], outcome: Outcome, elapsed: float) -> None:
        facts = {
            "name": self.name,
            "events": len(batch),
            "first": str(batch[0][1]),
            "last": str(batch[-1][1]),
            "attempt": self._failures + 1,
            "status": outcome.status,
            "ms": round(elapsed * 1000, 1),
            "reused": outcome.reused,
        }
        if outcome.verdict is Verdict.ACKNOWLEDGED:
            self._log.debug("delivered {events} events to '{name}' in {ms} ms", **facts)
        else:
            self._log.warn(
                "failed to deliver {events} events to '{name}': {error}", error=outcome.error, **facts
            )

    # -- sleep

    async def _sleep(self, step: Step) -> None:
        """Rest until the step's time or a reason to look again."""
        if self._stopping or self._stale:
            return
        if step.state in (State.IDLE, State.WAITING):
            self._ask_to_be_woken(step.state)
        await self._pause(None if step.until is None else step.until - self._context.clock.seconds())

    async def _pause(self, seconds: float | None) -> None:
        wake: Deferred[None] = Deferred()
        self._wake = wake
        if seconds is not None:
            self._timer = self._context.clock.callLater(max(0.0, seconds), self._rouse)
        await wake

    def _ask_to_be_woken(self, state: State) -> None:
        """Name the number in each log at which there is something to decide.

        A batch is full when the topics together have grown enough; then at
        least one of them has grown by its share.
        """
        subscription = self._subscription
        step = 1
        if state is State.WAITING:
            missing = subscription.max - self._backlog()
            step = max(1, min(SLACK, missing // len(self._places)))
        for topic, place in self._places.items():
            if place.tail is not None and self._asked.get(topic, place.tail.n + step + 1) > place.tail.n + step:
                self._asked[topic] = place.tail.n + step
                self._context.watch.wake_at(topic, place.tail.n + step, self)

    def _rouse(self) -> None:
        wake, self._wake = self._wake, None
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if wake is not None:
            wake.callback(None)
