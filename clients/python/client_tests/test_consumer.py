"""Pull consumers: what they acknowledge, and what becomes of failures."""

from __future__ import annotations

import logging
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from client_tests.scripted import ScriptedServer, answer, real_bus, unique
from routemaster_client import Client, NotFound, Unavailable, errors
from routemaster_client.aio import AsyncClient
from routemaster_client.consuming import Pulling, subscribing
from routemaster_client.model import Pulled
from routemaster_client.receiver import Receiver
from routemaster_client.tx import TwistedClient

URL = "https://shop.example.com/orders/1"


class ConsumerCase(TestCase):
    """A topic on the real bus, and a client that consumes it."""

    def setUp(self) -> None:
        logging.getLogger("routemaster_client").propagate = False
        self.topic = unique()
        self.shop, self.mail = real_bus().client(unique()), real_bus().client(unique())
        self.addCleanup(self.shop.close)
        self.addCleanup(self.mail.close)
        self.shop.configure_topic(self.topic)
        self.mail.subscribe([self.topic], max=2)
        for n in range(5):
            self.shop.noop(self.topic, URL, data=n)

    def queued(self) -> int:
        return self.mail.subscription()["events"]["queued"]

    @property
    def options(self) -> dict[str, Any]:
        return {"ca_file": self.mail.settings.ca_file}


class BlockingTests(ConsumerCase):
    """`Client.consume`."""

    def test_acknowledges_when_handled(self) -> None:
        """A batch is acknowledged when the next one is asked for; the last one when the consumer is stopped."""
        consumer, found = self.mail.consume(self.topic, wait=5), []
        for batch in consumer:
            self.assertEqual(self.queued(), 5 - len(found))
            found += [event.data for event in batch]
            if len(found) == 5:
                consumer.stop()
        self.assertEqual((found, self.queued()), ([0, 1, 2, 3, 4], 0))

    def test_resumes(self) -> None:
        """What a consumer had not handled when it ended comes to the next one, first."""
        for batch in self.mail.consume(self.topic):
            self.assertEqual([event.data for event in batch], [0, 1])
            break
        consumer = self.mail.consume()
        for batch in consumer:
            self.assertEqual([event.data for event in batch], [0, 1])
            consumer.stop()
        self.assertEqual(self.queued(), 3)

    def test_handlers(self) -> None:
        """A receiver's handlers are called; if one raises, the batch comes again."""
        consumer, receiver, found = self.mail.consume(self.topic), Receiver(anybody=True), list[Any]()

        @receiver.on(self.topic)
        def handler(event: Any) -> None:
            found.append(event.data)
            if found == [0]:
                raise ZeroDivisionError
            if event.data == 4:
                consumer.stop()

        consumer.run(receiver)
        self.assertEqual((found, self.queued()), ([0, 0, 1, 2, 3, 4], 0))


class AsyncioTests(ConsumerCase):
    """`AsyncClient.consume`."""

    def consume(self, use: Any) -> Any:
        import asyncio

        async def main() -> None:
            async with AsyncClient(self.mail.settings.url, self.mail.settings.token, **self.options) as bus:
                await use(bus)

        return deferToThread(asyncio.run, main())

    async def test_iteration(self) -> None:
        """As for the blocking client."""
        found = []

        async def use(bus: AsyncClient) -> None:
            consumer = bus.consume(self.topic, wait=5)
            async for batch in consumer:
                found.extend(event.data for event in batch)
                if len(found) == 5:
                    consumer.stop()

        await self.consume(use)
        self.assertEqual((found, self.queued()), ([0, 1, 2, 3, 4], 0))

    async def test_handlers(self) -> None:
        """Handlers of a receiver, plain and asynchronous."""
        receiver, found = Receiver(anybody=True), list[Any]()

        async def use(bus: AsyncClient) -> None:
            consumer = bus.consume(self.topic)
            receiver.on()(lambda event: found.append(event.data))

            @receiver.on()
            async def last(event: Any) -> None:
                if event.data == 4:
                    consumer.stop()

            await consumer.run(receiver)

        await self.consume(use)
        self.assertEqual((found, self.queued()), ([0, 1, 2, 3, 4], 0))


class TwistedTests(ConsumerCase):
    """`TwistedClient.consume`."""

    async def test_iteration(self) -> None:
        """As for the blocking client."""
        bus = TwistedClient(reactor, self.mail.settings.url, self.mail.settings.token, **self.options)
        self.addCleanup(bus.close)
        consumer, found = bus.consume(self.topic), list[Any]()
        async for batch in consumer:
            found += [event.data for event in batch]
            if len(found) == 5:
                consumer.stop()
        self.assertEqual((found, self.queued()), ([0, 1, 2, 3, 4], 0))


class DecisionTests(SynchronousTestCase):
    """The rules, without I/O."""

    def test_subscribing(self) -> None:
        """A subscription is made, changed or left as it is; its options stay."""
        there: Any = {"callback": None, "topics": ["a"], "awaited": ["b"], "max_events": 7, "timeout": 0}
        self.assertIsNone(subscribing(there, (), {}))
        self.assertIsNone(subscribing(there, ("b", "a"), {}))
        for current, topics, options, body in (
            (None, ("a",), {"missing_topics": "await"}, b'{"topics":["a"],"missing_topics":"await"}'),
            (there, ("a",), {}, b'{"topics":["a"],"timeout":0,"max":7}'),
            (there, ("a", "b"), {"max": 9}, b'{"topics":["a","b"],"timeout":0,"max":9}'),
        ):
            call = subscribing(current, topics, options)
            assert call is not None
            self.assertEqual(call.body, body)

    def test_callback(self) -> None:
        """A subscription with a callback is never replaced silently."""
        with self.assertRaisesRegex(errors.Conflict, "has a callback: unsubscribe first"):
            subscribing({"callback": "https://x/", "topics": ["a"]}, ("a",), {})

    def test_failures(self) -> None:
        """Pauses grow until a batch is handled or nothing is there; what cannot succeed ends the consumer."""
        pulling, batch = Pulling(None, 1, lambda: 1.0), Pulled((), "c", 0)
        gone = Unavailable("x")
        self.assertEqual([pulling.failed(gone) for _ in range(3)], [0.2, 0.4, 0.8])
        pulling.handled(batch)
        self.assertEqual(pulling.failed(RuntimeError()), 0.2)
        self.assertEqual(max(pulling.failed(gone) for _ in range(2000)), 30.0)
        self.assertEqual(pulling.failed(Unavailable("x", retry_after=60)), 60)
        with self.assertRaises(NotFound):
            pulling.failed(NotFound("x"))

    def test_acknowledgement_is_repeated(self) -> None:
        """A request that failed is repeated with its cursor; one that succeeded is done with it."""
        pulling, batch = Pulling(5, 1, lambda: 1.0), Pulled((), "c", 0)
        self.assertNotIn("ack", pulling.call().path)
        pulling.handled(batch)
        self.assertIn("ack=c", pulling.call().path)
        pulling.failed(Unavailable("x"))
        self.assertIn("ack=c", pulling.call().path)
        pulling.took(batch)
        self.assertNotIn("ack", pulling.call().path)
        self.assertIsNone(pulling.last())

    def test_outage(self) -> None:
        """An outage of the bus does not end the iteration."""
        event = {"topic": "cats", "type": "noop", "url": URL, "t": 1, "id": "1-1"}
        server = ScriptedServer(
            answer(200, {"callback": None, "topics": ["cats"]}), answer(502, b"<html>"),
            answer(200, {"events": [event], "cursor": "c", "queued": 1}), answer(204),
        )  # fmt: skip
        self.addCleanup(server.close)
        with Client(server.url, "shop", retries=0) as bus:
            consumer = bus.consume()
            consumer._pulling._chance = lambda: 0.0
            for batch in consumer:
                self.assertEqual(len(batch), 1)
                consumer.stop()
        self.assertEqual(server.asked[-1].body, b'{"cursor":"c"}')
