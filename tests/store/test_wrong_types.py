"""A key that somebody else has overwritten costs its topic or its subscriber, and nothing else."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher

from routemaster.errors import StoreBroken
from tests.store.case import StoreTests, on_redis, subscription


class WrongTypeTests(StoreTests):
    """Topics `bad` and `good`, and subscribers of the same names to both."""

    async def prepare(self) -> None:
        self.lines: list[str] = []
        observer = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        await self.create("bad", "good")
        self.epochs = {}
        for name in ("bad", "good"):
            await self.store.subscribe(subscription("bad", "good", subscriber=name))
            self.epochs[name] = (await self.grant(name)).epoch
        for topic in ("bad", "good"):
            self.last = (await self.publish(topic, b'{"n":1}', b'{"n":2}', b'{"n":3}')).last

    def observe(self, event: Any) -> None:
        if "wrong type" in (line := formatEvent(event)):
            self.lines.append(line)

    async def spoil(self, key: bytes) -> None:
        """Put a value of another type in place of a key's."""
        await self.connection.command(b"DEL", key)
        await self.connection.command(b"RPUSH", key, b"x")

    async def after_each(self, key: bytes) -> Any:
        await self.prepare()
        await self.spoil(key)

    async def test_topic(self) -> None:
        """With a wrong key of a topic, the sweep, lists and deliveries go on for all others."""
        for place in range(3):
            await self.after_each(self.store._keys.topic("bad")[place])
            _, versions = await self.store.renew("w1", self.epochs)
            self.assertNotIn(None, versions.values())
            self.assertEqual((await self.store.tails(["bad", "good"]))["good"], self.last)
            self.assertIn("good", [topic.name for topic in await self.store.topics()])
            listed = [fact.subscription.subscriber for fact in await self.store.subscriptions()]
            self.assertEqual(listed, ["bad", "good"])
            self.assertGreater(await self.store.log_bytes(), 0)
            positions = (await self.store.positions("good", ["bad", "good"])).by_topic
            start = positions["good"].cursor.spans[0].after
            read = await self.store.read({"bad": start, "good": start}, 10)
            self.assertEqual([fragment for _, fragment in read["good"]], [b'{"n":1}', b'{"n":2}', b'{"n":3}'])
            self.assertEqual(read["bad"] == (), place == 1)
            await self.store.repair("good")
            self.assertGreater(await self.store.drop_oldest(2), 0)
            await self.store.clean_up()
            await self.store.clean_up()
            self.assertEqual(len(self.lines), len(set(self.lines)), self.lines)
            self.assertTrue([line for line in self.lines if "'bad'" in line], self.lines)
            await self.clear()

    async def test_subscriber(self) -> None:
        """With a wrong key of a subscriber, the sweep, lists and deliveries go on for all others."""
        for place, key in enumerate((*self.store._keys.subscriber("bad"), self.store._keys.lease("bad"))):
            await self.after_each(key)
            _, versions = await self.store.renew("w1", self.epochs)
            self.assertIsNotNone(versions["good"])
            listed = [fact.subscription.subscriber for fact in await self.store.subscriptions()]
            self.assertEqual(listed, ["good"] if place < 2 else ["bad", "good"])
            self.assertEqual(await self.deliver("good", subscriber="good", most=1), [b'{"n":1}'])
            await self.store.drop_oldest(2)
            await self.store.clean_up()
            await self.store.repair("good")
            facts = await self.facts("good")
            self.assertEqual(facts.sent + facts.dropped + facts.queued, 6)
            await self.refused(StoreBroken, self.store.acquire("bad", "w1"))
            self.assertEqual(len(self.lines), len(set(self.lines)), self.lines)
            self.assertTrue([line for line in self.lines if "'bad'" in line], self.lines)
            await self.clear()

    async def test_subscribing(self) -> None:
        """A subscription to a topic with a wrong key fails, and includes the other topics all the same."""
        for place in (0, 2):
            await self.after_each(self.store._keys.topic("bad")[place])
            new = subscription("bad", "good", subscriber="new")
            await self.refused(StoreBroken, self.store.subscribe(new))
            if place == 2:
                await self.publish("good", b'{"n":4}')
                self.assertEqual(await self.fragments("good", subscriber="new"), [b'{"n":4}'])
            await self.clear()

    async def clear(self) -> None:
        for node in self.connection.nodes.values():
            await node.command(b"FLUSHALL")
        self.store._redis._broken.clear()
        self.store.distrust()


globals().update(on_redis(WrongTypeTests))
