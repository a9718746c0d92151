"""Workers on Redis and on a cluster, with what subscribers decide about their events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from routemaster.delivery.courier import Courier
from routemaster.delivery.decision import Rules
from routemaster.delivery.worker import Worker
from routemaster.errors import StoreUnavailable
from routemaster.hints import decode
from routemaster.metrics.meter import Meter
from routemaster.model import OLDEST, TopicSettings
from routemaster.testing.script_sender import ACKNOWLEDGED, Attempt, ScriptedSender, refused
from tests.delivery.deliveries import numbers
from tests.store.case import TTL, StoreTests, on_redis, subscription

HOUR = 3_600_000  #: milliseconds


class DecidedTests(StoreTests):
    """A worker and a receiver that refuses some events."""

    received: list[bytes]
    workers: list[Worker]

    def on_message(self, message: bytes) -> None:
        hint = decode(message)
        for worker in () if self.deaf else self.workers:
            if hint is not None:
                worker.on_hint(hint)

    async def begin(self, *topics: str, history: int = 0, **options: Any) -> None:
        """Topics, and a subscription to them without a worker."""
        self.workers, self.deaf = [], False
        self.bad: set[int] = set()
        self.taken: list[int] = []  #: the events that the receiver took, in order
        self.sender = ScriptedSender(otherwise=None, decode=numbers)
        self.sender.on_post = self.receive
        await self.create(*topics)
        for topic in topics:
            await self.store.configure_topic(topic, "pub", TopicSettings(history=history))
        await self.store.subscribe(subscription(*topics, **{"timeout": 0, **options}))

    def receive(self, attempt: Attempt) -> None:
        """End an attempt."""
        if self.bad & set(attempt.events):
            attempt.end(refused(400))
        else:
            self.taken += attempt.events
            attempt.end(ACKNOWLEDGED)

    async def work(self, name: str = "w1", **options: float) -> Worker:
        """Start a worker."""
        rules = Rules(**{"lease_ttl": TTL, "retry_delay": 0.001, "max_backoff": 0.01, **options})
        worker = Worker(name, self.store, self.sender, reactor, lambda: 0.0, rules, Meter())  # type: ignore[arg-type]
        self.workers.append(worker)
        self.addCleanup(lambda: Deferred.fromCoroutine(worker.stop(0)))
        await worker.reconcile()
        await self.until(lambda: worker.lease_count == 1)
        return worker

    async def stop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        await worker.stop(0)

    @property
    def courier(self) -> Courier:
        """The courier of the one worker."""
        return self.workers[-1]._couriers["sub"]

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await deferLater(reactor, 0.002)

    async def until_settled(self) -> Any:
        """Wait until nothing is queued; the subscription then, whose books balance."""
        while (info := await self.facts()).queued:
            await deferLater(reactor, 0.005)
        return info

    async def add(self, topic: str, *events: int) -> None:
        await self.publish(topic, *(b'{"n":%d}' % number for number in events))

    async def test_pause(self) -> None:
        """Pause and resume take effect with the hint; failures and pauses outlive the worker."""
        await self.begin("cats")
        await self.work()
        await self.store.pause("sub")
        await self.until(lambda: self.courier._due.paused)
        await self.add("cats", 1, 2)
        await self.until(lambda: self.courier._backlog.count() == 2)
        self.assertTrue((await self.facts()).paused)
        await self.stop(self.workers[0])
        worker = await self.work("w2")
        await self.until(lambda: self.courier._backlog.count() == 2)
        self.assertEqual(self.sender.bodies, [])
        await self.store.resume("sub")
        await self.until(lambda: self.taken == [1, 2])
        self.deaf = True
        await self.store.pause("sub")
        await worker.reconcile()
        await self.until(lambda: self.courier._due.paused)

    async def test_rewound_in_flight(self) -> None:
        """What was read before a rewind does not move the cursor, and all comes again."""
        await self.begin("cats", history=HOUR, max=2)
        await self.work()
        await self.add("cats", 1, 2)
        await self.until(lambda: self.taken == [1, 2])
        self.sender.on_post = lambda attempt: None
        await self.add("cats", 3)
        await self.until(lambda: bool(self.sender.in_flight))
        self.assertEqual(await self.store.rewind("sub", OLDEST), 2)
        self.sender.on_post = self.receive
        self.receive(self.sender.in_flight[0])
        info = await self.until_settled()
        self.assertEqual((self.taken, info.sent), ([1, 2, 3, 1, 2, 3], 5))

    async def test_parked_and_retried(self) -> None:
        """A bad event is found, parked, and delivered when the receiver is corrected; the others do not wait."""
        await self.begin("cats", "dogs", max=8, park_after=3)
        self.bad = {3, 6}
        await self.add("cats", 1, 2, 3)
        await self.add("dogs", 4, 5, 6, 7, 8)
        await self.work()
        info = await self.until_settled()
        self.assertEqual((self.taken, info.parked, info.added), ([1, 2, 4, 5, 7, 8], 2, 8))
        self.assertEqual((self.sender.bodies.count([3]), self.sender.bodies.count([6])), (3, 3))
        parked, _ = await self.store.parked("sub", "", 10)
        self.assertEqual([event.fragment for event in parked], [b'{"n":3}', b'{"n":6}'])
        self.bad = {6}
        await self.store.retry_parked("sub", None)
        info = await self.until_settled()
        parked, _ = await self.store.parked("sub", "", 10)
        self.assertEqual([event.fragment for event in parked], [b'{"n":6}'])
        self.assertEqual((self.taken[6:], info.sent, info.parked), ([3], 7, 3))
        await self.add("cats", 9)
        await self.until(lambda: 9 in self.taken)

    async def test_crash_between_the_steps(self) -> None:
        """If a worker dies when the copy of a bad event is made and the cursor not moved, the next ends it."""
        await self.begin("cats", max=1, park_after=2)
        self.bad = {1}
        run, cuts = self.store._redis.run, []

        async def fail_to_cut(script: str, *arguments: Any) -> Any:
            if script == "cut":
                cuts.append(arguments)
                raise StoreUnavailable("the worker dies here")
            return await run(script, *arguments)

        self.store._redis.run = fail_to_cut
        worker = await self.work()
        await self.add("cats", 1, 2)
        await self.until(lambda: bool(cuts))
        await self.stop(worker)
        self.store._redis.run = run
        parked, _ = await self.store.parked("sub", "", 10)
        self.assertEqual((len(parked), (await self.facts()).queued, self.taken), (1, 2, []))
        await self.work("w2")
        info = await self.until_settled()
        parked, _ = await self.store.parked("sub", "", 10)
        self.assertEqual((len(parked), info.parked, info.sent, info.added, self.taken), (1, 1, 1, 2, [2]))
        self.assertEqual(self.sender.bodies.count([1]), 3)

    async def test_count(self) -> None:
        """Of a burst beyond `max_queued` the newest events come, in order over all topics."""
        await self.begin("cats", "dogs", max_queued=5, max=3)
        for number in range(1, 21, 2):
            await self.add("cats", number)
            await self.add("dogs", number + 1)
        await self.work()
        info = await self.until_settled()
        self.assertEqual((self.taken, info.expired, info.added), ([16, 17, 18, 19, 20], 15, 20))

    async def test_retention(self) -> None:
        """An event that is too old when the worker comes is not delivered, and counts as expired."""
        await self.begin("cats", retention=50)
        await self.add("cats", 1, 2)
        await deferLater(reactor, 0.06)
        await self.work()
        info = await self.until_settled()
        self.assertEqual((self.taken, info.expired, info.sent), ([], 2, 0))

    async def test_expires_in_a_pause(self) -> None:
        """In a pause after a failure events expire by themselves."""
        await self.begin("cats", retention=400)
        self.bad = {1}
        await self.work(retry_delay=3600.0, max_backoff=3600.0)
        await self.add("cats", 1)
        info = await self.until_settled()
        self.assertEqual((self.sender.bodies, info.expired, info.sent), ([[1]], 1, 0))

    async def test_attempts(self) -> None:
        """Failed attempts and the last success are kept, with the IDs of their events."""
        await self.begin("cats")
        self.bad = {1}
        await self.work()
        published = await self.publish("cats", b'{"n":1}')
        await self.until(lambda: len(self.sender.attempts) > 2)
        self.bad = set()
        await self.until_settled()
        found = await self.store.attempts("sub")
        newest, last = json.loads(found.failed[0]), json.loads(found.success)
        for report in (newest, last):
            self.assertEqual((report["first"], report["topics"]), (str(published.last), ["cats"]))
            self.assertLess(abs(report["at"] - published.last.us / 1e6), 60)
        self.assertEqual((newest["status"], newest["reason"], last["status"]), (400, "answered 400", 204))

    async def test_rate(self) -> None:
        """A rate spaces the batches."""
        await self.begin("cats", rate=40)
        await self.work()
        began = reactor.seconds()  # type: ignore[attr-defined]
        await self.add("cats", *range(1, 31))
        await self.until_settled()
        self.assertEqual([len(batch) for batch in self.sender.bodies], [10] * 3)
        self.assertEqual(self.taken, list(range(1, 31)))
        self.assertGreaterEqual(reactor.seconds() - began, 0.49)  # type: ignore[attr-defined]


globals().update(on_redis(DecidedTests))
del DecidedTests
