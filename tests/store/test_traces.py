"""Trace contexts of events: kept and read by stores that are to, left out by all others, no part of a fragment."""

from __future__ import annotations

from typing import Any

from routemaster.model import EventID
from routemaster.store.redis_store import RedisStore
from routemaster.traces import Traced, trace_of
from tests.store.case import TTL, StoreTests, on_every_store, on_redis, subscription

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=1,other=2"
EVENT = b'{"topic":"cats"}'


class TraceTests(StoreTests):
    """A store that keeps trace contexts."""

    connection: Any
    namespace: str

    async def setUp(self) -> None:
        made: Any = super().setUp()  # type: ignore[misc]  # the other base has it
        if made is not None:
            await made
            self.store = RedisStore(self.connection, self.namespace, TTL, traces=True)
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))

    async def test_kept(self) -> None:
        """Each event is read with its own context, or with none, and its fragment is as it was published."""
        await self.publish("cats", Traced.of(EVENT, TRACE), b"{}", Traced.of(b"{1}", b"other"))
        entries = (await self.store.read({"cats": EventID(0, 0)}, 10))["cats"]
        self.assertEqual([(fragment, trace_of(fragment)) for _, fragment in entries],
                         [(EVENT, TRACE), (b"{}", b""), (b"{1}", b"other")])  # fmt: skip
        self.assertEqual([event.n for event, _ in entries], [2, 3, 4])

    async def test_created(self) -> None:
        """The first event of a topic that a client awaits has its context too."""
        await self.store.subscribe(subscription("cats", "dogs", awaits=True))
        await self.publish("dogs", Traced.of(EVENT, TRACE))
        entries = (await self.store.read({"dogs": EventID(0, 0)}, 10))["dogs"]
        self.assertEqual([trace_of(fragment) for _, fragment in entries], [TRACE])

    async def test_pieces(self) -> None:
        """Contexts stay with their events where a read begins in the middle, and where its bytes end it."""
        await self.publish("cats", *(Traced.of(b"%d" % n, b"t%d" % n) for n in range(40)))
        start, found = EventID(0, 0), []
        while entries := (await self.store.read({"cats": start}, 7))["cats"]:
            found += [(bytes(fragment), trace_of(fragment)) for _, fragment in entries]
            start = entries[-1][0]
        self.assertEqual(found, [(b"%d" % n, b"t%d" % n) for n in range(40)])

    async def test_delivered(self) -> None:
        """Deliveries and acknowledgements are the same with and without contexts."""
        await self.publish("cats", Traced.of(b"1", TRACE), b"2")
        self.assertEqual(await self.deliver("cats"), [b"1", b"2"])
        await self.books(2, sent=2)


class MixedTests(StoreTests):
    """Processes with and without tracing on one Redis, as while a setting is being changed."""

    connection: Any
    namespace: str

    async def setUp(self) -> None:
        await super().setUp()  # type: ignore[misc]  # the other base has it
        self.traced = RedisStore(self.connection, self.namespace, TTL, traces=True)
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))

    async def raw(self) -> list[Any]:
        """The entries of the log, as they lie in Redis: the fields of each."""
        log = self.store._keys.topic("cats")[1]
        return [fields for _, fields in await self.connection.command(b"XRANGE", log, b"-", b"+")]

    async def test_not_read(self) -> None:
        """A process without tracing reads what one with tracing has stored, without the contexts."""
        await self.traced.publish("cats", "pub", [Traced.of(EVENT, TRACE), b"{}"])
        entries = (await self.store.read({"cats": EventID(0, 0)}, 10))["cats"]
        self.assertEqual([(type(fragment), fragment) for _, fragment in entries], [(bytes, EVENT), (bytes, b"{}")])

    async def test_bytes(self) -> None:
        """Redis holds a context only for an event that has one, behind the field that all versions read."""
        await self.store.publish("cats", "pub", [Traced.of(EVENT, TRACE)])
        await self.traced.publish("cats", "pub", [b"{}", Traced.of(EVENT, TRACE)])
        self.assertEqual(await self.raw(), [[b"e", EVENT], [b"e", b"{}"], [b"e", EVENT, b"t", TRACE]])

    async def test_old_data(self) -> None:
        """A process with tracing reads what was stored without it."""
        await self.store.publish("cats", "pub", [EVENT, b"{}"])
        entries = (await self.traced.read({"cats": EventID(0, 0)}, 10))["cats"]
        self.assertEqual([(fragment, trace_of(fragment)) for _, fragment in entries], [(EVENT, b""), (b"{}", b"")])


globals().update(on_every_store(TraceTests))
globals().update(on_redis(MixedTests))
del TraceTests, MixedTests
