"""One worker: it carries out what its table of leases says, and runs a courier for each lease.

A hint may be lost; the store is authoritative. `on_hint` wakes a courier, and
`reconcile` reads every few seconds what a lost hint would have announced.

Workers share the subscribers by rendezvous hashing (`live_workers`). Each
one announces itself with every reconciliation, requests the leases for which it
is preferred, and gives back those for which a peer is preferred now, when the
attempt under way has ended. How leases change is in `leases`.

A lease is released when the subscriber belongs to a peer, and when the worker
stops. A lease that was lost is not released; a subscriber whose deliveries ended
with an internal error keeps its lease until that expires, so that another worker
does not repeat the same error at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger

from routemaster.delivery.attempt_budget import AttemptBudget
from routemaster.delivery.attempt_log import Allowances, AttemptLog, TracedAttemptLog, log_suppressed
from routemaster.delivery.backlog import Backlog
from routemaster.delivery.batch import Batch, Batches, TracedBatch
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.courier import Courier
from routemaster.delivery.decision import Rules
from routemaster.delivery.lease import Lease
from routemaster.delivery.leases import Leases
from routemaster.delivery.live_workers import LiveWorkers
from routemaster.delivery.log_cache import LogCache
from routemaster.delivery.wakeup_index import WakeupIndex
from routemaster.errors import StoreBroken, StoreUnavailable, WrongType
from routemaster.hints import EventsDropped, Hint, SubscriptionChanged, TopicGrew, WorkerJoined, WorkerLeft
from routemaster.interfaces import Clock, LeaseGrant, Meter, Sender, Store
from routemaster.model import public_name, with_id
from routemaster.traces import AttemptTracer, traced_with_id
from routemaster.util.chunks import paced_chunks
from routemaster.util.gather import gather_available

REQUESTS = 100  #: leases requested at the same time
RENEWALS = 250  #: leases renewed in one call


class Worker:
    """Delivers to the subscribers whose leases it holds."""

    _log = Logger()

    def __init__(
        self, name: str, store: Store, sender: Sender, clock: Clock, random: Callable[[], float], rules: Rules,
        meter: Meter, ordered_hints: bool = True, tracer: AttemptTracer | None = None,
    ) -> None:  # fmt: skip
        """`name` is unique among live workers; `random` returns a number in [0, 1).

        `ordered_hints`: as for `WakeupIndex`. `tracer` makes each attempt a span.
        """
        self._tracer, self._batches = tracer, Batches(Batch if tracer is None else TracedBatch)
        self._name, self._store, self._sender, self._clock = name, store, sender, clock
        self._random, self._rules, self._meter = random, rules, meter
        self._index, self._offset, self._allowances = WakeupIndex(ordered_hints), ClockOffset(), Allowances()
        self._cache = LogCache(store, with_id if tracer is None else traced_with_id)
        self._budget = AttemptBudget(clock, rules.max_outgoing_bodies)
        self._live_workers = LiveWorkers(name)
        self._leases = Leases(self._live_workers, rules.lease_ttl, rules.max_backoff)
        self._couriers: dict[str, Courier] = {}
        self._requests = DeferredSemaphore(REQUESTS)
        self._tasks: set[Deferred[None]] = set()
        self._stopping = False

    @property
    def lease_count(self) -> int:
        """How many subscribers this worker delivers to."""
        return len(self._couriers)

    @property
    def counts(self) -> tuple[int, int]:
        """The same, and to how many of them the last attempt failed."""
        return len(self._couriers), sum(courier.retries.failures > 0 for courier in self._couriers.values())

    # -- hints

    def on_hint(self, hint: Hint) -> None:
        """Take a hint from the wake-up channel."""
        if self._stopping:
            return
        match hint:
            case TopicGrew(topic, first, last):
                self._index.advance(topic, first, last)
            case SubscriptionChanged(subscriber):
                self._on_subscription_changed(subscriber)
            case EventsDropped(subscriber) if subscriber in self._couriers:
                self._couriers[subscriber].dropped()
            case WorkerJoined(worker):
                if self._live_workers.joined(worker, self._clock.seconds() + self._rules.lease_ttl):
                    self._on_peers_changed()
            case WorkerLeft(worker):
                if self._live_workers.left(worker):
                    self._on_peers_changed()

    def _on_subscription_changed(self, subscriber: str) -> None:
        courier = self._couriers.get(subscriber)
        if courier is not None:
            courier.reload()
        elif self._leases.hinted(subscriber, self._clock.seconds()):
            self._request([subscriber])

    def _on_peers_changed(self) -> None:
        self._leases.peers_changed()
        self._act()

    def hints_missed(self) -> None:
        """Hints may have been missed: until the next reconciliation they do not tell the order between topics."""
        self._index.missed()

    def reload_all(self) -> None:
        """Make every courier read its subscription and positions again, because the store may have lost writes."""
        self._cache.clear()
        for courier in list(self._couriers.values()):
            courier.reload()

    # -- reconciliation

    async def reconcile(self) -> None:
        """Renew leases, read what hints may have missed, request what is free. Raises StoreUnavailable."""
        self.tick()
        await self._renew()
        missed = self._index.times_missed
        known = {topic: self._index.tail(topic) for topic in self._index.topics()}
        for topic, tail in (await self._store.tails(list(known))).items():
            self._index.step_back(topic, known[topic], tail)
            self._index.advance(topic, None, tail)
        self._index.caught_up(missed)
        # workers and subscribers are on one node of a cluster: its outage must not stop the steps above
        subscribers: set[str] | None = None
        broken: StoreBroken | None = None
        try:
            try:
                await self._announce()
            except StoreBroken as error:
                broken = error  # reported when the rest is done
            subscribers = await self._store.subscribers()
        finally:
            self._leases.reconcile(subscribers, self._clock.seconds())
            self._act()
        if broken is not None:
            raise broken

    async def _announce(self) -> None:
        if not self._stopping:
            # after the renewals: leases expire before the announcement, so that peers can acquire them
            left = await self._store.announce(self._name, self._rules.lease_ttl)
            self._live_workers.update(left, self._clock.seconds())

    async def _renew(self) -> None:
        """Renew all leases, in several calls; raises StoreUnavailable if none succeeds."""
        couriers = {subscriber: self._couriers.get(subscriber) for subscriber in self._leases.to_renew()}
        epochs = [(subscriber, courier.lease.epoch) for subscriber, courier in couriers.items() if courier]
        if not epochs:
            await self._renew_some({})  # the reply carries the store's time
            return
        calls = []
        # the calls do not wait for each other: an unavailable node must not delay leases on the others
        async for piece in paced_chunks(epochs, RENEWALS, self._clock):
            calls.append(Deferred.fromCoroutine(self._renew_some(dict(piece))))
        await gather_available(calls)

    async def _renew_some(self, epochs: Mapping[str, int]) -> None:
        sent = self._clock.seconds()
        now, versions = await self._store.renew(self._name, epochs)
        self._offset.observe(sent, self._clock.seconds(), now)
        for subscriber, version in versions.items():
            courier = self._couriers.get(subscriber)
            if courier is None or courier.lease.epoch != epochs[subscriber]:
                continue
            if version is None:
                self._lose(subscriber)
            else:
                self._leases.granted(subscriber, sent)
                courier.renewed()
                if version != courier.version:
                    courier.reload()

    # -- leases

    def tick(self) -> None:
        """Act on expired leases and ended pauses; to be called about 20 times in a lease's life."""
        log_suppressed(self._allowances, self._clock.seconds())
        self._act()

    def _act(self) -> None:
        """Carry out what the table of leases says."""
        actions = self._leases.actions(self._clock.seconds())
        for subscriber in actions.abort:
            self._lose(subscriber)
        if not self._stopping:
            for subscriber in actions.give_back:
                if (courier := self._couriers.get(subscriber)) is not None:  # none while it is taken over
                    courier.stop()
            self._request(actions.request)

    def _lose(self, subscriber: str) -> None:
        self._leases.lost(subscriber)
        courier = self._couriers.get(subscriber)
        if courier is not None:
            if self._allowances.leases.take(courier.name, ""):
                self._log.warn("lost the lease on '{name}'", name=courier.name)
            courier.abort()

    def _request(self, subscribers: Iterable[str]) -> None:
        """Request leases in the background: those held have to be renewed meanwhile."""
        for subscriber in subscribers:
            self._spawn(self._requests.run(self._acquire, subscriber))

    async def _acquire(self, subscriber: str) -> None:
        """Acquire a lease; if it is granted, start a courier."""
        if not self._stopping and subscriber not in self._couriers:
            lease = Lease(subscriber, self._name, self._store, self._leases, self._clock, self._offset)
            try:
                grant = await lease.acquire()
                if isinstance(grant, LeaseGrant):
                    await self._take_over(lease, grant)
            except StoreUnavailable:
                pass  # the next reconciliation tries again
            except Exception as error:
                self._failed(subscriber, error)
        has_courier = subscriber in self._couriers
        if self._leases.take_hint(subscriber) if has_courier else self._leases.ended(subscriber):
            self._on_subscription_changed(subscriber)

    async def _take_over(self, lease: Lease, grant: LeaseGrant) -> None:
        if grant.subscription is None:
            # the repair releases the lease, too, so that the next request need not wait until it expires
            await self._store.repair(lease.subscriber)
        elif self._stopping:
            await lease.release()
        else:
            subscriber, rules = lease.subscriber, self._rules
            backlog = Backlog(
                subscriber, self._store, self._cache, self._index, self._clock, self._offset, self._batches
            )
            attempts = self._attempt_log(public_name(subscriber))
            courier = Courier(
                lease, grant, self._store, self._sender, backlog, attempts, self._budget, rules, self._clock,
                self._offset, self._random,
            )  # fmt: skip
            self._couriers[subscriber] = courier
            self._spawn(Deferred.fromCoroutine(self._run(courier)))

    def _attempt_log(self, name: str) -> AttemptLog:
        if self._tracer is None:
            return AttemptLog(self._meter, name, self._allowances)
        return TracedAttemptLog(self._meter, name, self._allowances, self._tracer)

    async def _run(self, courier: Courier) -> None:
        subscriber = courier.subscriber
        try:
            await courier.run()
            if self._leases.is_to_be_released(subscriber, self._stopping):
                await courier.lease.release()
        except StoreUnavailable:
            pass  # the lease expires
        except Exception as error:
            self._failed(subscriber, error)
        finally:
            del self._couriers[subscriber]
            if self._leases.ended(subscriber):
                self._on_subscription_changed(subscriber)

    def _failed(self, subscriber: str, error: Exception) -> None:
        """Report an unexpected exception, with its traceback only the first time in a row."""
        count, pause = self._leases.failed(subscriber, self._clock.seconds(), self._random())
        name, pause = public_name(subscriber), round(pause, 1)
        if isinstance(error, WrongType):
            return  # the store has logged which key it is
        if count == 1:
            self._log.failure("deliveries to '{name}': internal error; retry in {pause} s", name=name, pause=pause)
        else:
            line = "deliveries to '{name}': internal error, {count} in a row; retry in {pause} s"
            self._log.error(line, name=name, pause=pause, count=count)

    def _spawn(self, task: Deferred[None]) -> None:
        """Keep a task until it has ended; its failure is reported, never raised."""
        self._tasks.add(task)
        task.addErrback(lambda failure: self._log.failure("internal error in the worker", failure))
        task.addBoth(lambda _: self._tasks.discard(task))

    # -- the end

    async def stop(self, grace: float) -> None:
        """Start no attempt; wait up to `grace` seconds for those under way, then abort them; release the leases.

        The caller keeps calling `reconcile` meanwhile, because an attempt needs its lease to the end.
        """
        self._stopping = True
        self._spawn(Deferred.fromCoroutine(self._withdraw()))
        for courier in list(self._couriers.values()):
            courier.stop()
        abort = self._clock.callLater(grace, self._abort_all)
        while self._tasks:
            await DeferredList(list(self._tasks))
        if abort.active():
            abort.cancel()

    async def _withdraw(self) -> None:
        """Withdraw the announcement, so that peers acquire each lease as soon as it is released."""
        with suppress(StoreUnavailable):
            await self._store.withdraw(self._name)

    def _abort_all(self) -> None:
        for courier in list(self._couriers.values()):
            courier.abort()
