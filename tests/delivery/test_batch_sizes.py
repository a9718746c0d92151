"""Batches that a receiver refuses for their size: a worker, a real sender and a receiver over TLS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import TestCase

from routemaster.delivery.decision import Rules
from routemaster.delivery.worker import Worker
from routemaster.hints import decode
from routemaster.metrics.meter import Meter
from routemaster.model import Subscription
from routemaster.sender import TreqSender
from routemaster.store.memory_store import MemoryStore
from routemaster.testing.zoo import Authority, ScriptedServer, Wire

AUTHORITY = Authority()
TTL = 60.0


class Limited:
    """A receiver that takes at most `most` events in a request, or `most_bytes` bytes."""

    def __init__(self, most: int, status: int = 413, most_bytes: int | None = None) -> None:
        self.most, self.status, self.most_bytes = most, status, most_bytes
        self.sizes: list[int] = []     #: events in each request; 0: it was not read to its end
        self.received: list[int] = []  #: the events that were taken
        self.wanted = 0
        self.done: Deferred[None] = Deferred()

    async def __call__(self, wire: Wire) -> None:
        while True:
            if self.most_bytes is not None:
                while b"\r\n\r\n" not in wire._buffer:
                    await wire.more()
                length = int(wire._buffer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                if length > self.most_bytes:
                    self.sizes.append(0)
                    wire.transport.pauseProducing()
                    return wire.cut()
            events = [event["n"] for event in json.loads((await wire.request()).body)]
            self.sizes.append(len(events))
            refused = len(events) > self.most
            if not refused:
                self.received += events
            wire.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (self.status if refused else 200))
            if len(self.received) >= self.wanted and not self.done.called:
                self.done.callback(None)


class BatchSizeTests(TestCase):
    """What a receiver with a limit gets."""

    timeout = 30

    def setUp(self) -> None:
        self.workers: list[Worker] = []
        self.store = MemoryStore(reactor, TTL, self.hint)  # type: ignore[arg-type]
        self.count = 0
        ca_file = AUTHORITY.write(Path(self.mktemp()))
        self.sender = TreqSender(reactor, user_agent="test", ca_files=[ca_file], loopback=lambda: True)
        self.addCleanup(lambda: ensureDeferred(self.sender.close()))
        self.addCleanup(lambda: ensureDeferred(self.stop_all()))

    def hint(self, message: bytes) -> None:
        found = decode(message)
        for worker in self.workers:
            if found is not None:
                worker.on_hint(found)

    async def worker(self) -> Worker:
        rules = Rules(lease_ttl=TTL, retry_delay=0.001, max_backoff=0.002)
        worker = Worker(f"w{len(self.workers)}", self.store, self.sender, reactor, lambda: 0.0, rules, Meter())  # type: ignore[arg-type]
        self.workers.append(worker)
        await worker.reconcile()
        return worker

    async def stop_all(self) -> None:
        for worker in tuple(self.workers):
            await self.stop(worker)

    async def stop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        await worker.stop(0)

    async def publish(self, count: int, pad: int = 0) -> None:
        numbers = range(self.count, self.count + count)
        self.count += count
        await self.store.publish("cats", "pub", [b'{"n":%d,"pad":"%s"}' % (n, b"x" * pad) for n in numbers])

    async def subscribe(self, receiver: Limited, **options: Any) -> None:
        server = ScriptedServer(reactor, AUTHORITY.issue(), receiver)
        self.addCleanup(lambda: ensureDeferred(server.stop()))
        await self.store.publish("cats", "pub", [b"{}"])
        options = {"max": 100, "timeout": 3_600_000, **options}
        await self.store.subscribe(Subscription("sub", ("cats",), server.url, None, **options))

    async def test_refused(self) -> None:
        """A batch that is refused comes again with half as many events, and each success doubles the size."""
        for status in (413, 400, 422):
            receiver = Limited(30, status)
            receiver.wanted = 200
            await self.subscribe(receiver)
            await self.publish(200)
            worker = await self.worker()
            await receiver.done
            self.assertEqual(receiver.received, list(range(self.count - 200, self.count)))
            self.assertEqual(receiver.sizes[:6], [100, 50, 25, 50, 25, 50])
            await self.stop(worker)
            await self.store.unsubscribe("sub")

    async def test_one_bad_event(self) -> None:
        """A single event that is refused is tried again, alone, and nothing overtakes it."""
        receiver = Limited(0)
        receiver.wanted = 4
        await self.subscribe(receiver, max=4)
        await self.publish(4)
        await self.worker()
        while len(receiver.sizes) < 6:
            await self.pause()
        self.assertEqual(receiver.sizes[:6], [4, 2, 1, 1, 1, 1])
        receiver.most = 4
        await receiver.done
        self.assertEqual(receiver.received, [0, 1, 2, 3])

    async def test_connection_closed_while_sending(self) -> None:
        """A batch whose connection is closed while it is being sent is halved from the second time in a row on."""
        receiver = Limited(100, most_bytes=300_000)
        receiver.wanted = 100
        await self.subscribe(receiver)
        await self.publish(100, pad=10_000)
        await self.worker()
        await receiver.done
        self.assertEqual(receiver.received, list(range(100)))
        self.assertEqual(receiver.sizes[:4], [0, 0, 0, 25])

    async def test_restarts_while_halving(self) -> None:
        """Workers that are stopped after each attempt arrive at the size that is taken all the same."""
        receiver = Limited(10)
        receiver.wanted = 5
        await self.subscribe(receiver)
        await self.publish(100)
        for failures in (1, 2, 3, 4):
            worker = await self.worker()
            while (await self.store.subscriptions())[0].health.failures < failures:
                await self.pause()
            await self.stop(worker)
        await self.worker()
        await receiver.done
        self.assertEqual(receiver.sizes[:5], [100, 50, 25, 12, 6])

    async def pause(self) -> None:
        turn: Deferred[None] = Deferred()
        reactor.callLater(0, turn.callback, None)  # type: ignore[attr-defined]
        await turn
