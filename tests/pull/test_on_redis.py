"""Pulled subscriptions on Redis and on a cluster, in two processes that learn of each other by hints only."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from routemaster.errors import Invalid
from routemaster.hints import decode
from routemaster.model import TopicSettings
from routemaster.pull.poller import Answer
from routemaster.pull.service import PullService
from tests.pull.test_stream import Connection
from tests.store.case import StoreTests, on_redis, subscription


class PullTests(StoreTests):
    """`PullService` on a real store."""

    received: list[bytes]
    services: list[PullService]

    def on_message(self, message: bytes) -> None:
        hint = decode(message)
        for service in getattr(self, "services", ()):
            if hint is not None:
                service.on_hint(hint)

    async def start(self, *topics: str, **options: Any) -> tuple[PullService, PullService]:
        """Topics, a subscription without callback to them, and two processes."""
        await self.create(*topics)
        await self.store.subscribe(evolve(subscription(*topics, **options), callback=None, timeout=0))
        one, two = (PullService(self.store, reactor) for _ in range(2))
        self.services = [one, two]
        for service in self.services:
            await service.sweep()
            self.addCleanup(lambda service=service: Deferred.fromCoroutine(service.stop()))
        return one, two

    async def poll(self, service: PullService, wait: float = 0, ack: Answer | None = None) -> Answer:
        state = await service.state("sub")
        if ack is not None:
            await service.acknowledge(state, ack.cursor)
        return await service.poll(state, None, wait)

    def numbers(self, answer: Answer) -> list[int]:
        return [event["n"] for event in json.loads(answer.events)]

    async def add(self, topic: str, *numbers: int) -> None:
        await self.publish(topic, *(b'{"n":%d}' % number for number in numbers))

    async def until_waiting(self, service: PullService, polls: int) -> None:
        """Wait until so many polls wait, and know that nothing is there."""
        while service.waiting < polls or not all(each.reading.is_current for each in service._pollers.values()):
            await deferLater(reactor, 0.005)

    async def test_event(self) -> None:
        """An event that one process accepts answers polls that wait in both; either takes the cursor."""
        one, two = await self.start("cats", "dogs")
        polls = [Deferred.fromCoroutine(self.poll(service, 30)) for service in (one, one, two)]
        await self.until_waiting(one, 2)
        await self.until_waiting(two, 1)
        await self.add("dogs", 1)
        answers = [await poll for poll in polls]
        self.assertEqual([self.numbers(answer) for answer in answers], [[1]] * 3)
        await self.add("cats", 2, 3)
        self.assertEqual(self.numbers(await self.poll(two, ack=answers[0])), [2, 3])
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.queued, facts.health.failures), (1, 2, 0))
        self.assertIsNotNone(facts.health.last_success)

    async def stream(self, service: PullService, sent: bool = False) -> Connection:
        """A stream, whose client reads everything at once."""
        stream = service.stream(await service.state("sub"), sent, lambda: True)
        connection = Connection(reactor, stream)
        self.addCleanup(connection.disconnect)
        return connection

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await deferLater(reactor, 0.005)

    async def test_stream(self) -> None:
        """A stream in one process goes on when its client acknowledges through another."""
        one, two = await self.start("cats", "dogs", max=3)
        await self.add("cats", 1, 2)
        connection = await self.stream(one)
        await self.until(lambda: connection.numbers == [1, 2])
        await self.add("dogs", 3, 4, 5)
        await self.until(lambda: connection.numbers == [1, 2, 3])
        await two.acknowledge(await two.state("sub"), connection.events[1].cursor)
        await self.until(lambda: connection.numbers == [1, 2, 3, 4, 5])
        described = await self.facts()
        self.assertEqual((described.sent, described.queued, described.added), (2, 3, 5))

    async def test_stream_that_acknowledges(self) -> None:
        """With `ack=sent` a stream acknowledges what is sent, a window after another."""
        one, _ = await self.start("cats", max=3)
        await self.add("cats", *range(10))
        connection = await self.stream(one, sent=True)
        await self.until(lambda: len(connection.numbers) == 10)
        self.assertEqual(connection.numbers, list(range(10)))
        while (await self.facts()).queued:
            await deferLater(reactor, 0.005)
        self.assertEqual((await self.facts()).sent, 10)

    async def test_limits(self) -> None:
        """What is beyond `max_queued` or older than `retention` is not pulled, and is counted."""
        one, _ = await self.start("cats", max_queued=2, retention=1000)
        await self.add("cats", 1, 2, 3)
        answer = await self.poll(one)
        self.assertEqual((self.numbers(answer), answer.queued), ([2, 3], 2))
        self.assertEqual((await self.facts()).expired, 1)
        while (await self.poll(one)).queued:
            await deferLater(reactor, 0.05)
        facts = await self.facts()
        self.assertEqual((facts.expired, facts.sent, facts.added), (3, 0, 3))

    async def test_rewind(self) -> None:
        """A cursor from before a rewind changes nothing; one of an earlier subscription is refused."""
        one, two = await self.start("cats")
        await self.store.configure_topic("cats", "pub", TopicSettings(history=3_600_000))
        await self.add("cats", 1, 2)
        answer = await self.poll(one)
        self.assertEqual(self.numbers(await self.poll(two, ack=answer)), [])
        moment = json.loads(answer.events)[0]["id"].partition("-")[0]
        self.assertEqual(await self.store.rewind("sub", int(moment)), 2)
        self.assertEqual(self.numbers(await self.poll(one, ack=answer)), [1, 2])
        await self.store.unsubscribe("sub")
        await self.store.subscribe(evolve(subscription("cats"), callback=None, timeout=0))
        await self.refused(Invalid, self.poll(one, ack=answer))


globals().update(on_redis(PullTests))
