"""Leases and couriers: which subscribers this process delivers to.

Wake-ups are hints and the store is the truth: `hear` only makes somebody
look, and `sweep` finds by itself, every few seconds, whatever a lost hint
would have told. A lease is good for its time to live counted from when its
renewal was *sent*; an attempt starts only while at least half of that is
left, so that a store that cannot be reached, and so could not take the
acknowledgement, stops deliveries before it makes duplicates.

Workers share the subscribers out by `peers`: each says with every sweep that
it lives, asks for the leases that are its own to have, and hands over those
that have become another's, after the attempt in flight. What belongs to a
peer is left to it until it lives no more, or neglects it for much longer than
it takes to notice; whoever takes a neglected one keeps it until peers change.

A lease is given back when the subscriber belongs to a peer, and when the
worker stops. One that was lost is not ours to give; a subscriber whose courier
broke down keeps its lease until it ends, so that a fault that sits in the data
is met again after a rest, not at once by the next worker.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from routemaster.delivery.attempt_log import Allowances, sum_up
from routemaster.delivery.backoff import pause
from routemaster.delivery.clock_offset import ClockOffset
from routemaster.delivery.courier import Context, Courier
from routemaster.delivery.wakeup_index import WakeupIndex
from routemaster.delivery.worker_membership import WorkerMembership
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, LeaseGrant, LeaseHeld, Meter, Sender, Store
from routemaster.model import EventID, public_name
from routemaster.util.chunks import paced_chunks
from routemaster.util.gather import gather_available

AT_ONCE = 100  #: leases asked for together
RENEWED = 250  #: leases in one call for renewal
MARGIN = 0.1   #: share of a lease's life before its end in which it counts as lost
TRUST = 3      #: lives of a lease for which a peer may leave what is its own lying about


@frozen
class Rules:
    """How this worker delivers; times in seconds."""

    lease_ttl: float = 10.0
    retry_delay: float = 0.1
    max_backoff: float = 60.0
    max_batch_body: int = 8 * 1024 * 1024  #: bytes


@frozen
class _Breakdown:
    """Unforeseen failures of one subscriber's deliveries."""

    count: int    #: in a row
    until: float  #: rest until then


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
        meter: Meter,
    ) -> None:
        """`name` is unique among live processes; `chance` answers in [0, 1)."""
        self._name, self._store, self._clock, self._rules = name, store, clock, rules
        self._chance = chance
        self._watch = WakeupIndex()
        self._peers = WorkerMembership(name)
        self._time = ClockOffset()
        self._couriers: dict[str, Courier] = {}
        self._leased_until: dict[str, float] = {}
        self._held_until: dict[str, float] = {}  #: by another worker
        self._left_until: dict[str, float] = {}  #: to the peer to whom they belong
        self._known: set[str] = set()            #: subscribers, as last told by the store
        self._handing_over: set[str] = set()     #: those whose couriers end because they belong to a peer
        self._breakdowns: dict[str, _Breakdown] = {}
        self._asking: set[str] = set()
        self._told: set[str] = set()    #: hints about them came while they were asked for
        self._tasks: set[Deferred[None]] = set()
        self._wanted: dict[str, bool] = {}  #: leases to be asked for, in order; whether a peer neglects them
        self._taking = False
        self._stopping = False
        self._context = Context(
            worker=name,
            store=store,
            sender=sender,
            clock=clock,
            watch=self._watch,
            meter=meter,
            allowances=Allowances(),
            chance=chance,
            local=self._time.local,
            acquire=self._ask,
            lease_holds=self._lease_holds,
            retry_delay=rules.retry_delay,
            max_backoff=rules.max_backoff,
            max_batch_body=rules.max_batch_body,
        )

    @property
    def leases(self) -> int:
        """How many subscribers this worker delivers to."""
        return len(self._couriers)

    def _lease_holds(self, subscriber: str) -> bool:
        left = self._leased_until.get(subscriber, 0.0) - self._clock.seconds()
        return left > self._rules.lease_ttl / 2

    def _is_stopping(self) -> bool:
        return self._stopping  # asked again after an await, it may have become true

    # -- hints

    def hear(self, message: bytes) -> None:
        """Take a hint from the wake-up channel; what is not understood is none."""
        kind, *words = message.split(b" ")
        if self._stopping:
            return
        if kind == b"t" and len(words) == 3:
            topic = words[0].decode("ascii", "replace")
            if self._watch.attended(topic):
                try:
                    first, last = EventID.parse(words[1]), EventID.parse(words[2])
                except ValueError:
                    return
                self._watch.advance(topic, first, last)
        elif kind == b"s" and len(words) == 1:
            subscriber = words[0].decode("ascii", "replace")
            courier = self._couriers.get(subscriber)
            if courier is not None:
                courier.reload()
            elif subscriber in self._asking:
                self._told.add(subscriber)
            elif self._peers.is_mine(subscriber):
                self._spawn(self._acquire(subscriber))
            else:
                self._leave_to_peer(subscriber)
        elif kind == b"w" and len(words) == 2:
            self._hear_of_peer(words[0].decode("ascii", "replace"), words[1])

    def _hear_of_peer(self, name: str, what: bytes) -> None:
        if what == b"on":
            changed = self._peers.came(name, self._clock.seconds() + self._rules.lease_ttl)
        else:
            changed = what == b"off" and self._peers.left(name)
        if changed:
            self._share_out()

    def distrust(self) -> None:
        """The store may have lost its last writes, and with them what couriers know of it: they look anew."""
        for courier in list(self._couriers.values()):
            courier.reload()

    # -- the sweep

    async def sweep(self) -> None:
        """Renew leases, find what changed, take what is free. Raises StoreUnavailable."""
        self.expire()
        await self._renew()
        topics = self._watch.topics()
        told = {topic: self._watch.tail(topic) for topic in topics}
        for topic, tail in (await self._store.tails(topics)).items():
            self._watch.correct(topic, told[topic], tail)
            self._watch.advance(topic, None, tail)
        # last what lies in one place for all: on a cluster that may be away while the rest is there
        try:
            await self._look_around()
        finally:
            unattended = self._known - self._couriers.keys() - self._held_until.keys() - self._left_until.keys()
            for subscriber in unattended:
                self._leave_to_peer(subscriber)
            self._share_out()

    async def _look_around(self) -> None:
        """Announce this worker, and learn who else there is: peers and subscribers."""
        if not self._stopping:
            # after the leases, which thus end first: whoever sees this worker gone can take them
            left = await self._store.announce(self._name, self._rules.lease_ttl)
            self._peers.heard(left, self._clock.seconds())
        self._known = await self._store.subscribers()
        for notes in (self._held_until, self._left_until, self._breakdowns):
            for gone in notes.keys() - self._known:
                del notes[gone]
        self._peers.forget_all_but(self._known)

    async def _renew(self) -> None:
        """Renew all leases, those of a piece in one call; raises StoreUnavailable if none could be."""
        epochs = [(subscriber, courier.epoch) for subscriber, courier in self._couriers.items()]
        if not epochs:
            await self._renew_some({})  # it tells the store's time all the same
            return
        renewals = []
        # none waits for the last one's answer: a node that is away must not hold up the leases that others keep
        async for piece in paced_chunks(epochs, RENEWED, self._clock):
            renewals.append(Deferred.fromCoroutine(self._renew_some(dict(piece))))
        await gather_available(renewals)

    async def _renew_some(self, epochs: Mapping[str, int]) -> None:
        sent = self._clock.seconds()
        now, versions = await self._store.renew(self._name, epochs)
        self._time.note(sent, self._clock.seconds(), now)
        for subscriber, version in versions.items():
            courier = self._couriers.get(subscriber)
            if courier is None or courier.epoch != epochs[subscriber]:
                continue
            if version is None:
                self._lose(subscriber)
            else:
                self._lease_renewed(subscriber, sent)
                courier.renewed()
                if version != courier.version:
                    courier.reload()

    def _lease_renewed(self, subscriber: str, sent: float) -> None:
        until = sent + self._rules.lease_ttl
        self._leased_until[subscriber] = max(until, self._leased_until.get(subscriber, until))

    def expire(self) -> None:
        """Give up what could not be renewed in time, and ask for what others may have given up.

        To be called about twenty times in a lease's life.
        """
        present = self._clock.seconds()
        sum_up(self._context.allowances, present)
        if self._peers.expire(present):
            self._share_out()
        for subscriber, until in list(self._leased_until.items()):
            if until - MARGIN * self._rules.lease_ttl <= present:
                self._lose(subscriber)
        self._take([subscriber for subscriber, until in self._held_until.items() if until <= present])
        neglected = [subscriber for subscriber, until in self._left_until.items() if until <= present]
        self._take(neglected, neglected=True)

    def _lose(self, subscriber: str) -> None:
        self._leased_until.pop(subscriber, None)
        courier = self._couriers.get(subscriber)
        if courier is not None:
            if self._context.allowances.leases.take(courier.name, ""):
                self._log.warn("lost the lease on '{name}'", name=courier.name)
            courier.abort()

    # -- sharing out

    def _share_out(self) -> None:
        """Hand over what belongs to a peer now, and take what is left to none any more."""
        if self._stopping:
            return
        for subscriber, courier in list(self._couriers.items()):
            if not self._peers.is_mine(subscriber):
                self._handing_over.add(subscriber)
                courier.stop()
        self._take([subscriber for subscriber in self._left_until if self._peers.is_mine(subscriber)])

    def _leave_to_peer(self, subscriber: str) -> None:
        """See `TRUST`; if it proves to be ours, `_share_out` takes it."""
        if subscriber not in self._held_until:
            until = self._clock.seconds() + TRUST * self._rules.lease_ttl
            self._left_until.setdefault(subscriber, until)

    # -- taking leases

    def _take(self, free: Iterable[str], neglected: bool = False) -> None:
        """Ask for leases in the background: however long that takes, those held have to be renewed meanwhile."""
        self._wanted |= dict.fromkeys(sorted(free), neglected)
        if self._wanted and not self._taking:
            self._taking = True
            self._spawn(self._take_wanted())

    async def _take_wanted(self) -> None:
        try:
            while self._wanted:
                bundle = list(islice(self._wanted.items(), AT_ONCE))
                for subscriber, _ in bundle:
                    del self._wanted[subscriber]
                await DeferredList([self._spawn(self._acquire(*one)) for one in bundle])
        finally:
            self._taking = False

    async def _acquire(self, subscriber: str, neglected: bool = False) -> None:
        if self._stopping or subscriber in self._couriers or subscriber in self._asking:
            return
        breakdown = self._breakdowns.get(subscriber)
        if breakdown is not None and breakdown.until > self._clock.seconds():
            return
        self._asking.add(subscriber)
        self._held_until.pop(subscriber, None)
        self._left_until.pop(subscriber, None)
        try:
            grant = await self._ask(subscriber)
            if isinstance(grant, LeaseGrant):
                if neglected:
                    self._peers.adopt(subscriber)
                await self._take_over(subscriber, grant)
        except StoreUnavailable:
            pass  # the next sweep asks again
        except Exception:
            self._broke_down(subscriber)
        finally:
            self._asking.discard(subscriber)
            if subscriber not in self._couriers:
                self._leased_until.pop(subscriber, None)
        if subscriber in self._told:
            self._told.discard(subscriber)
            self.hear(b"s " + subscriber.encode())

    async def _ask(self, subscriber: str) -> LeaseGrant | LeaseHeld | None:
        sent = self._clock.seconds()
        answer = await self._store.acquire(subscriber, self._name)
        if isinstance(answer, LeaseGrant):
            self._time.note(sent, self._clock.seconds(), answer.now)
            self._lease_renewed(subscriber, sent)
        elif isinstance(answer, LeaseHeld):
            self._held_until[subscriber] = self._clock.seconds() + answer.remaining
        return answer

    async def _take_over(self, subscriber: str, grant: LeaseGrant) -> None:
        if grant.subscription is None:
            # this ends the lease too, or else another try has to wait until it ends
            await self._store.repair(subscriber)
        elif self._is_stopping():
            await self._store.release(subscriber, self._name, grant.epoch)
        else:
            courier = self._couriers[subscriber] = Courier(self._context, subscriber, grant)
            self._spawn(self._run(courier))

    async def _run(self, courier: Courier) -> None:
        subscriber = courier.subscriber
        try:
            await courier.run()
            if subscriber in self._leased_until and (self._is_stopping() or not self._peers.is_mine(subscriber)):
                await self._store.release(subscriber, self._name, courier.epoch)
        except StoreUnavailable:
            pass  # the lease ends by itself
        except Exception:
            self._broke_down(subscriber)
        finally:
            del self._couriers[subscriber]
            self._leased_until.pop(subscriber, None)
            if subscriber in self._handing_over:
                self._handing_over.discard(subscriber)
                self._leave_to_peer(subscriber)
                if self._peers.is_mine(subscriber):  # again, meanwhile
                    self._take([subscriber])

    def _broke_down(self, subscriber: str) -> None:
        """Something that nobody foresaw ended the deliveries to a subscriber: report it once, and rest."""
        present, ttl = self._clock.seconds(), self._rules.lease_ttl
        longest = max(ttl, self._rules.max_backoff)
        last = self._breakdowns.get(subscriber)
        count = 1 if last is None or present - last.until > longest else last.count + 1
        rest = pause(count, ttl, longest, self._chance())
        self._breakdowns[subscriber] = _Breakdown(count, present + rest)
        name, rest = public_name(subscriber), round(rest, 1)
        if count == 1:
            self._log.failure("deliveries to '{name}' broke down, and rest for {rest} s", name=name, rest=rest)
        else:
            line = "deliveries to '{name}' broke down {count} times, and rest for {rest} s"
            self._log.error(line, name=name, rest=rest, count=count)

    def _spawn(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Run a coroutine; its failure is reported, never raised."""
        task: Deferred[None] = Deferred.fromCoroutine(work)
        self._tasks.add(task)
        task.addErrback(lambda failure: self._log.failure("the worker broke down", failure))
        task.addBoth(lambda _: self._tasks.discard(task))
        return task

    # -- the end

    async def stop(self, grace: float) -> None:
        """Start no attempt; wait up to `grace` seconds for those in flight, then cut them; give leases back.

        `sweep` must go on meanwhile, for an attempt needs its lease to the end.
        """
        self._stopping = True
        self._spawn(self._withdraw())
        for courier in list(self._couriers.values()):
            courier.stop()
        cut = self._clock.callLater(grace, self._abort_all)
        while self._tasks:
            await DeferredList(list(self._tasks))
        if cut.active():
            cut.cancel()

    async def _withdraw(self) -> None:
        """Have the peers share out what was ours, so that each lease is taken as soon as it is given back."""
        with suppress(StoreUnavailable):
            await self._store.withdraw(self._name)

    def _abort_all(self) -> None:
        for courier in list(self._couriers.values()):
            courier.abort()
