"""Streams: how they are read, by all clients from the real bus; and consumers that use them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from client_tests.scripted import ScriptedServer, answer, real_bus, unique
from routemaster_client import Client, NewEvent, errors
from routemaster_client.aio import AsyncClient
from routemaster_client.receiver import Receiver
from routemaster_client.streaming import Parser
from routemaster_client.tx import TwistedClient

URL = "https://shop.example.com/orders/1"
EVENT = b'{"topic":"cats","type":"noop","url":"https://x/","t":%d,"id":"5-%d"}'


def sent(n: int, end: bytes = b"\n") -> bytes:
    """An event as the bus sends it."""
    return end.join([b"id: c%d" % n, b"data: " + EVENT % (n, n), b"", b""])


class ParserTests(SynchronousTestCase):
    """Server-sent events out of bytes."""

    def test_parts(self) -> None:
        """Events are found however the bytes are divided, with any end of line, and comments are passed over."""
        for end in (b"\n", b"\r\n", b"\r"):
            text = b": hello" + end * 2 + sent(1, end) + b":" + end + sent(2, end) + b"retry: 5" + end
            for size in (1, 2, 3, 7, len(text)):
                parser = Parser()
                parts = (text[at:at + size] for at in range(0, len(text), size))
                batches = [batch for part in parts if (batch := parser.feed(part))]
                self.assertEqual([event.t for batch in batches for event in batch], [1, 2], (end, size))
                self.assertEqual(batches[-1].cursor, "c2")

    def test_together(self) -> None:
        """What comes together is one batch, with the cursor of the last event that is complete."""
        batch = Parser().feed(sent(1) + sent(2) + b"id: c3\n")
        assert batch is not None
        self.assertEqual(([event.number for event in batch], batch.cursor, batch.queued), ([1, 2], "c2", 2))

    def test_lines(self) -> None:
        """Several lines of data are one value, and a space after the colon may be missing."""
        batch = Parser().feed(b"id:c\ndata:{\"topic\":\"cats\",\"type\":\"noop\",\ndata: \"url\":\"https://x/\",\"t\":1}\n\n")
        assert batch is not None
        self.assertEqual((batch.events[0].topic, batch.cursor), ("cats", "c"))


class Contract:
    """What the streams of all three clients do; a subclass reads one."""

    def setUp(self: Any) -> None:
        self.topic = unique()
        self.shop, self.mail = real_bus().client(unique()), real_bus().client(unique())
        self.addCleanup(self.shop.close)
        self.addCleanup(self.mail.close)
        self.shop.configure_topic(self.topic)
        self.mail.subscribe([self.topic], max=4)
        self.publish(3)

    def publish(self: Any, count: int) -> None:
        self.shop.bulk(self.topic, [NewEvent("noop", URL, data=n) for n in range(count)])

    @property
    def where(self: Any) -> dict[str, Any]:
        settings = self.mail.settings
        return {"url": settings.url, "token": settings.token, "ca_file": settings.ca_file}

    def queued(self: Any) -> int:
        return int(self.mail.subscription()["events"]["queued"])

    def read(self, took: Callable[[Any], bool], **options: Any) -> Deferred[None]:
        """Read a stream until `took`, which is given each batch in a thread or on the reactor, returns True."""
        raise NotImplementedError

    def consume(self, took: Callable[[Any], bool]) -> Deferred[None]:
        """The same with a consumer."""
        raise NotImplementedError

    async def test_events(self: Any) -> None:
        """What waits comes, then what is published; what is acknowledged meanwhile lets more come."""
        found: list[Any] = []

        def took(batch: Any) -> bool:
            if not found:
                self.publish(4)
            found.extend(event.data for event in batch)
            self.mail.acknowledge(batch.cursor)
            return len(found) == 7

        await self.read(took)
        self.assertEqual(found, [0, 1, 2, 0, 1, 2, 3])
        self.assertEqual(self.queued(), 0)

    async def test_unacknowledged(self: Any) -> None:
        """What was not acknowledged comes again; a cursor given at the start acknowledges."""
        batches: list[Any] = []
        await self.read(lambda batch: bool(batches.append(batch)) or True)
        self.assertEqual(self.queued(), 3)
        first = batches[0]
        self.publish(1)
        await self.read(lambda batch: bool(batches.append(batch)) or True, ack=first.cursor)
        self.assertEqual(batches[1].events[0].data, (first.events[-1].data + 1) % 3)
        self.assertEqual(self.queued(), 4 - len(first))

    async def test_sent(self: Any) -> None:
        """With `sent` no acknowledgement is needed."""
        found: list[Any] = []

        def took(batch: Any) -> bool:
            found.extend(event.data for event in batch)
            if len(found) == 3:
                self.publish(4)
            return len(found) == 7

        await self.read(took, sent=True)
        self.assertEqual(found, [0, 1, 2, 0, 1, 2, 3])

    async def test_refused(self: Any) -> None:
        """A stream that cannot be had raises what any call would."""
        self.mail.unsubscribe()
        with self.assertRaisesRegex(errors.NotFound, "GET /subscription/stream: 404"):
            await self.read(lambda batch: True)

    async def test_ended(self: Any) -> None:
        """When the bus ends it, the iteration ends."""

        def took(batch: Any) -> bool:
            self.mail.unsubscribe()
            return False

        await self.read(took)

    async def test_broken(self: Any) -> None:
        """A connection that breaks is an error that says so; one that cannot be made is tried again."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        event = sent(1)
        begun = head + b"%x\r\n%b\r\n" % (len(event), event)
        busy = answer(503, {"error": "Redis is loading"}, Retry_After=0)
        server = ScriptedServer(busy, *[begun + b"zzz\r\n"] * 4)  # aiohttp sees at once that it breaks
        self.addCleanup(server.close)
        self.mail.settings = Client(server.url, "shop").settings
        with self.assertRaisesRegex(errors.Unavailable, "GET /subscription/stream: no answer: "):
            await self.read(lambda batch: False)
        self.assertEqual(server.asked[1].headers["accept"], "text/event-stream")

    async def test_consumer(self: Any) -> None:
        """A consumer acknowledges each batch when it was handled, and the last one at the end."""
        found: list[Any] = []

        def took(batch: Any) -> bool:
            self.assertEqual(self.queued(), (3 if len(found) < 3 else 7) - len(found))
            found.extend(event.data for event in batch)
            if len(found) == 3:
                self.publish(4)
            return len(found) == 7

        await self.consume(took)
        self.assertEqual((found, self.queued()), ([0, 1, 2, 0, 1, 2, 3], 0))


class BlockingTests(Contract, TestCase):
    """`Client.stream`."""

    def read(self, took: Callable[[Any], bool], **options: Any) -> Deferred[None]:
        def run() -> None:
            with Client(**self.where) as bus, bus.stream(**options) as stream:
                bus._sleep = lambda seconds: None
                for batch in stream:
                    if took(batch):
                        break

        return deferToThread(run)

    def consume(self, took: Callable[[Any], bool]) -> Deferred[None]:
        def run() -> None:
            with Client(**self.where) as bus:
                consumer = bus.consume(stream=True)
                for batch in consumer:
                    if took(batch):
                        consumer.stop()

        return deferToThread(run)

    def test_stop(self) -> None:
        """A consumer that waits is ended by another thread, at once."""
        consumer, found = self.mail.consume(stream=True), list[Any]()

        def run() -> None:
            for batch in consumer:
                found.extend(batch)
                if len(found) == 3:
                    threading.Timer(0.1, consumer.stop).start()

        reader = threading.Thread(target=run)
        reader.start()
        reader.join(10)
        self.assertFalse(reader.is_alive())
        self.assertEqual((len(found), self.queued()), (3, 0))

    def test_handlers(self) -> None:
        """If a handler raises, the batch comes again."""
        consumer, receiver, found = self.mail.consume(stream=True), Receiver(anybody=True), list[Any]()

        @receiver.on(self.topic)
        def handler(event: Any) -> None:
            found.append(event.data)
            if found == [0]:
                raise ZeroDivisionError
            if event.data == 2:
                consumer.stop()

        consumer.run(receiver)
        self.assertEqual((found, self.queued()), ([0, 0, 1, 2], 0))


class AsyncioTests(Contract, TestCase):
    """`AsyncClient.stream`."""

    def read(self, took: Callable[[Any], bool], **options: Any) -> Deferred[None]:
        async def run() -> None:
            async with AsyncClient(**self.where) as bus, bus.stream(**options) as stream:
                bus._sleep = lambda seconds: asyncio.sleep(0)  # type: ignore[assignment]
                async for batch in stream:
                    if await asyncio.to_thread(took, batch):
                        break

        return deferToThread(asyncio.run, run())

    def consume(self, took: Callable[[Any], bool]) -> Deferred[None]:
        async def run() -> None:
            async with AsyncClient(**self.where) as bus:
                consumer = bus.consume(stream=True)
                async for batch in consumer:
                    if await asyncio.to_thread(took, batch):
                        consumer.stop()

        return deferToThread(asyncio.run, run())


class TwistedTests(Contract, TestCase):
    """`TwistedClient.stream`."""

    def client(self) -> TwistedClient:
        bus = TwistedClient(reactor, **self.where)
        self.addCleanup(bus.close)
        return bus

    def read(self, took: Callable[[Any], bool], **options: Any) -> Deferred[None]:
        async def run() -> None:
            async with self.client().stream(**options) as stream:
                async for batch in stream:
                    if await deferToThread(took, batch):
                        break

        return ensureDeferred(run())

    def consume(self, took: Callable[[Any], bool]) -> Deferred[None]:
        async def run() -> None:
            consumer = self.client().consume(stream=True)
            async for batch in consumer:
                if await deferToThread(took, batch):
                    consumer.stop()

        return ensureDeferred(run())
