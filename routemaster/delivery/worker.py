"""Leases and couriers: which subscribers this process delivers to.

Wake-ups are hints and the store is the truth: `hear` only makes somebody
look, and `sweep` finds by itself, every few seconds, whatever a lost hint
would have told. A lease is good for its time to live counted from when its
renewal was *sent*; an attempt starts only while at least half of that is
left, so that a store that cannot be reached, and so could not take the
acknowledgement, stops deliveries before it makes duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from routemaster.delivery.courier import Context, Courier
from routemaster.delivery.watch import Watch
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, Grant, Sender, Store
from routemaster.model import EventID, chunks

AT_ONCE = 100  #: leases asked for together


@frozen
class Rules:
    """How this worker delivers; times in seconds."""

    lease_ttl: float = 10.0
    retry_delay: float = 0.1
    max_backoff: float = 60.0
    max_batch_body: int = 8 * 1024 * 1024  #: bytes


class Worker:
    """Holds leases, and runs a courier for each."""

    _log = Logger()

    def __init__(
        self,
        name: str,
        store: Store,
        sender: Sender,
        clock: Clock,
        chance: Callable[[], float],
        rules: Rules,
    ) -> None:
        """`name` is unique among live processes; `chance` answers in [0, 1)."""
        self._name, self._store, self._clock, self._rules = name, store, clock, rules
        self._watch = Watch()
        self._couriers: dict[str, Courier] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._leased_until: dict[str, float] = {}
        self._held_until: dict[str, float] = {}
        self._asking: set[str] = set()
        self._offset: float | None = None
        self._stopping = False
        self._context = Context(
            worker=name,
            store=store,
            sender=sender,
            clock=clock,
            watch=self._watch,
            chance=chance,
            local=self._local,
            lease_holds=self._lease_holds,
            retry_delay=rules.retry_delay,
            max_backoff=rules.max_backoff,
            max_batch_body=rules.max_batch_body,
            spawn=self._spawn,
        )

    @property
    def leases(self) -> int:
        """How many subscribers this worker delivers to."""
        return len(self._leased_until)

    # -- time

    def _note_time(self, store_us: int) -> None:
        self._offset = store_us / 1e6 - self._clock.seconds()

    def _local(self, us: int) -> float:
        return us / 1e6 - (self._offset or 0.0)

    def _lease_holds(self, subscriber: str) -> bool:
        left = self._leased_until.get(subscriber, 0.0) - self._clock.seconds()
        return left > self._rules.lease_ttl / 2

    def _stopped(self) -> bool:
        return self._stopping  # asked again after an await, it may have become true

    # -- hints

    def hear(self, message: bytes) -> None:
        """Take a hint from the wake-up channel; what is not understood is none."""
        kind, _, rest = message.partition(b" ")
        if kind == b"t" and not self._stopping:
            topic, first, last = rest.decode("ascii", "replace").split(" ")
            self._watch.advance(topic, EventID.parse(first.encode()), EventID.parse(last.encode()))
        elif kind == b"s" and not self._stopping:
            subscriber = rest.decode("ascii", "replace")
            courier = self._couriers.get(subscriber)
            if courier is not None:
                courier.reload()
            else:
                self._held_until.pop(subscriber, None)
                self._spawn(self._acquire(subscriber))

    # -- the sweep

    async def sweep(self) -> None:
        """Renew leases, find what changed, take what is free. Raises StoreUnavailable."""
        self.expire()
        sent = self._clock.seconds()
        epochs = {subscriber: self._couriers[subscriber].epoch for subscriber in self._couriers}
        now, versions = await self._store.renew(self._name, epochs)
        self._note_time(now)
        for subscriber, version in versions.items():
            courier = self._couriers.get(subscriber)
            if courier is None or courier.epoch != epochs[subscriber]:
                continue
            if version is None:
                self._lose(subscriber)
            else:
                self._leased_until[subscriber] = sent + self._rules.lease_ttl
                if version != courier.version:
                    courier.reload()
        for topic, tail in (await self._store.tails(self._watch.topics())).items():
            self._watch.advance(topic, None, tail)
        await self._take_free()

    async def _take_free(self) -> None:
        present = self._clock.seconds()
        known = await self._store.subscribers()
        self._held_until = {name: until for name, until in self._held_until.items() if name in known}
        free = [
            name
            for name in sorted(known - self._couriers.keys())
            if self._held_until.get(name, 0.0) <= present
        ]
        for bundle in chunks(free, AT_ONCE):
            await DeferredList([self._spawn(self._acquire(subscriber)) for subscriber in bundle])

    def expire(self) -> None:
        """Give up what could not be renewed in time; to be called several times in a lease's life."""
        present = self._clock.seconds()
        for subscriber, until in list(self._leased_until.items()):
            if until <= present:
                self._lose(subscriber)

    def _lose(self, subscriber: str) -> None:
        self._leased_until.pop(subscriber, None)
        courier = self._couriers.get(subscriber)
        if courier is not None:
            self._log.warn("lost the lease on '{name}'", name=courier.name)
            courier.abort()

    async def _acquire(self, subscriber: str) -> None:
        if self._stopping or subscriber in self._couriers or subscriber in self._asking:
            return
        self._asking.add(subscriber)
        try:
            sent = self._clock.seconds()
            grant = await self._store.acquire(subscriber, self._name)
        except StoreUnavailable:
            return  # the next sweep asks again
        finally:
            self._asking.discard(subscriber)
        if grant is None:
            return
        if not isinstance(grant, Grant):
            self._held_until[subscriber] = sent + grant.remaining
            return
        self._note_time(grant.now)
        if grant.subscription is None:
            await self._store.repair(subscriber)
        if self._stopped() or grant.subscription is None:
            await self._store.release(subscriber, self._name, grant.epoch)
        else:
            self._leased_until[subscriber] = sent + self._rules.lease_ttl
            courier = self._couriers[subscriber] = Courier(self._context, subscriber, grant)
            self._running[subscriber] = self._spawn(self._run(courier))

    async def _run(self, courier: Courier) -> None:
        subscriber = courier.subscriber
        try:
            await courier.run()
        finally:
            del self._couriers[subscriber], self._running[subscriber]
            if self._leased_until.pop(subscriber, None) is not None:
                await self._release(courier)

    async def _release(self, courier: Courier) -> None:
        try:
            await self._store.release(courier.subscriber, self._name, courier.epoch)
        except StoreUnavailable:
            return  # it ends by itself

    def _spawn(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Run a coroutine; its failure is reported, never raised."""
        running: Deferred[None] = Deferred.fromCoroutine(work)
        running.addErrback(lambda failure: self._log.failure("a delivery broke down", failure))
        return running

    # -- the end

    async def stop(self, grace: float) -> None:
        """Start no attempt; wait up to `grace` seconds for those in flight, then cut them; give leases back.

        `sweep` must go on meanwhile, for an attempt needs its lease to the end.
        """
        self._stopping = True
        for courier in list(self._couriers.values()):
            courier.stop()
        cut = self._clock.callLater(grace, self._abort_all)
        await DeferredList(list(self._running.values()))
        if cut.active():
            cut.cancel()

    def _abort_all(self) -> None:
        for courier in list(self._couriers.values()):
            courier.abort()
