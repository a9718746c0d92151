"""The base of the delivery tests: workers on a memory store, with a scripted sender and a test clock."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.decision import Rules
from routemaster.delivery.worker import Worker
from routemaster.errors import StoreUnavailable
from routemaster.hints import decode
from routemaster.interfaces import LeaseGrant, Outcome
from routemaster.metrics.meter import Meter
from routemaster.model import Subscription
from routemaster.store.memory_store import MemoryStore
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, ScriptedSender
from routemaster.traces import AttemptTracer

TTL = 10.0
RECONCILE = 3.0
NOW = 1_700_000_000.0
CALLBACK = "https://sub.example/events"
HOT = 3000  #: store calls at one clock time that only an endless loop makes


def hint(worker: Worker, message: bytes) -> None:
    """Pass a message's hint to a worker; ignore a malformed message."""
    found = decode(message)
    if found is not None:
        worker.on_hint(found)


def numbers(body: bytes) -> list[int]:
    """The numbers of the events in a batch."""
    return [event["n"] for event in json.loads(body)]


class StoreClock:
    """The clock of the store's host: the test's clock plus `apart` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.apart = 0.0

    def seconds(self) -> float:
        return self._clock.seconds() + self.apart


class FaultyStore:
    """A store that counts its calls, and fails or delays those that a test selects."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self.calls: Counter[str] = Counter()
        self.unavailable = False  #: every call fails
        self._faults: dict[str, deque[tuple[Exception, bool]]] = defaultdict(deque)
        self._gates: dict[str, deque[tuple[Deferred[None], bool]]] = defaultdict(deque)
        self.hot = HOT
        self._moment, self._at_once = -1.0, 0

    def fail_next(self, name: str, times: int = 1, done: bool = False, error: Exception | None = None) -> None:
        """Make the next calls of `name` raise; with `done`, after the store has executed them."""
        fault = error or StoreUnavailable("the store is unavailable", outcome_unknown=done)
        self._faults[name].extend([(fault, done)] * times)

    def delay(self, name: str, before: bool = False) -> Deferred[None]:
        """Delay the next call's reply, or with `before` the call itself, until the returned Deferred fires."""
        gate: Deferred[None] = Deferred()
        self._gates[name].append((gate, before))
        return gate

    def recover(self) -> None:
        self.unavailable = False
        self._faults.clear()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            self._check_loop()
            if self.unavailable:
                raise StoreUnavailable("the store is unavailable")
            error, done = self._faults[name].popleft() if self._faults[name] else (None, True)
            gate, before = self._gates[name].popleft() if self._gates[name] else (None, False)
            if gate is not None and before:
                await gate
            result = await method(*arguments) if done else None
            if gate is not None and not before:
                await gate
            if error is not None:
                raise error
            return result

        return call

    def _check_loop(self) -> None:
        if self._clock.seconds() != self._moment:
            self._moment, self._at_once = self._clock.seconds(), 0
        self._at_once += 1
        if self._at_once > self.hot:
            raise AssertionError("endless loop of store calls")


class DeliveryTestCase(SynchronousTestCase):
    """Workers without the API; after each test all workers stop, and no timer may be left."""

    tracer: AttemptTracer | None = None  #: of all workers

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.store_clock = StoreClock(self.clock)
        self.memory = MemoryStore(self.store_clock, TTL, self._hint)  # type: ignore[arg-type]
        self.store = FaultyStore(self.memory, self.clock)
        self.sender, self.meter = ScriptedSender(decode=numbers), Meter()
        self.workers: list[Worker] = []
        self.lose_hints = False  #: hints are lost
        self.chance = 0.0
        self._count = 0
        self.addCleanup(self.stop_all)

    def _hint(self, message: bytes) -> None:
        if not self.lose_hints:
            for worker in list(self.workers):
                hint(worker, message)

    def stop_all(self) -> None:
        self.store.recover()
        for worker in self.workers:
            done = Deferred.fromCoroutine(worker.stop(0))
            self.clock.advance(0)
            self.clock.pump([5, 1, 1, 1, 1])  # a reconciliation under way pauses
            self.successResultOf(done)
            self.assertEqual(worker.lease_count, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- doing

    def do(self, work: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def worker(self, name: str = "w1", store: Any = None, **rules: Any) -> Worker:
        """Start a worker and reconcile once."""
        worker = Worker(
            name,
            store or self.store,
            self.sender,
            self.clock,
            lambda: self.chance,
            Rules(lease_ttl=TTL, **rules),
            self.meter,
            tracer=self.tracer,
        )
        self.workers.append(worker)
        self.reconcile(worker)
        return worker

    def reconcile(self, worker: Worker) -> None:
        """Reconcile; an unavailable store is ignored."""
        sweeping = Deferred.fromCoroutine(worker.reconcile())
        sweeping.addErrback(lambda failure: failure.trap(StoreUnavailable))

    def create(self, *topics: str) -> None:
        """Create topics by publishing one event to each."""
        for topic in topics:
            self.do(self.memory.publish(topic, "pub", [b"{}"]))

    def subscribe(self, *topics: str, name: str = "sub", create: bool = True, **options: Any) -> None:
        """Create the topics and subscribe to them; by default batches are sent at once."""
        if create:
            self.create(*topics)
        options = {"callback": CALLBACK, "timeout": 0, "max": 100, **options}
        self.do(self.memory.subscribe(Subscription(name, topics, **options)))

    def half_remove(self) -> None:
        """Leave the subscription as an interrupted removal does: it is gone, until `repair` the rest is not."""
        acquire = self.memory.acquire

        async def acquire_rest(subscriber: str, worker: str) -> Any:
            answer = await acquire(subscriber, worker)
            return evolve(answer, subscription=None) if isinstance(answer, LeaseGrant) else answer

        self.memory.acquire = acquire_rest  # type: ignore[method-assign]
        self.memory.repair = self.memory.unsubscribe  # type: ignore[method-assign]

    def publish(self, topic: str, count: int = 1) -> list[int]:
        """Publish events, numbered in order over all topics; return the numbers."""
        numbered = [self._count + 1 + place for place in range(count)]
        self._count += count
        self.do(self.memory.publish(topic, "pub", [b'{"n":%d}' % number for number in numbered]))
        return numbered

    def pass_time(self, seconds: float, step: float = 1 / 16) -> None:
        """Advance the clock, with the periodic calls that the daemon makes."""
        for _ in range(round(seconds / step)):
            before = self.clock.seconds()
            self.clock.advance(step)
            for worker in self.workers:
                if before // 1 != self.clock.seconds() // 1:
                    worker.tick()
                if before // RECONCILE != self.clock.seconds() // RECONCILE:
                    self.reconcile(worker)

    # -- seeing

    @property
    def batches(self) -> list[list[int]]:
        """The numbers of the events in each attempt."""
        return self.sender.bodies

    @property
    def in_flight(self) -> Attempt:
        """The one attempt in flight."""
        (attempt,) = self.sender.in_flight
        return attempt

    def end(self, outcome: Outcome = ACKNOWLEDGED) -> None:
        """End the one attempt in flight."""
        self.in_flight.end(outcome)

    def facts(self, name: str = "sub") -> Any:
        (facts,) = [f for f in self.do(self.memory.subscriptions()) if f.subscription.subscriber == name]
        return facts

    def queued(self, name: str = "sub") -> int:
        queued: int = self.facts(name).queued
        return queued

    def at(self) -> float:
        """Seconds since the test began."""
        return self.clock.seconds() - NOW
