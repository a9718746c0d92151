"""A key that somebody else has overwritten costs its topic or its subscriber, and nothing else."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher

from routemaster.errors import StoreBroken, WrongType
from routemaster.model import ApiToken
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

    async def wrong(self, call: Any, owner: str, unknown: bool = False) -> None:
        """A call fails, its error names whose key it is, and whether something may have been written."""
        error = await self.refused(WrongType, call)
        self.assertIn(owner, str(error))
        self.assertIn("of the wrong type", str(error))
        self.assertNotIn("secret", str(error))
        self.assertEqual(error.outcome_unknown, unknown)

    async def test_requests_for_a_topic(self) -> None:
        """A request for a topic with a wrong key fails; the error names the topic, and the log the keys, once."""
        meta, log, _cursors = self.store._keys.topic("bad")
        await self.after_each(meta)
        calls = lambda: (  # noqa: E731
            self.publish("bad", b"{}"), self.store.subscribe(subscription("bad", subscriber="new--secret")),
            self.store.leave("good", "bad"),
        )  # fmt: skip
        for call in calls():
            await self.wrong(call, "topic 'bad'")
        await self.wrong(self.store.delete_topic("bad", None), "topic 'bad'", unknown=True)
        self.assertEqual(len(self.lines), 1, self.lines)
        self.assertIn(meta.decode(), self.lines[0])
        await self.publish("good", b"{}")
        self.assertIsNone(await self.facts("new--secret"))
        await self.clear()
        await self.after_each(log)
        before = [topic.events for topic in await self.store.topics()]
        await self.wrong(self.publish("bad", b"{}"), "topic 'bad'")
        self.assertEqual([topic.events for topic in await self.store.topics()], before)
        await self.clear()

    async def test_requests_of_a_subscriber(self) -> None:
        """A request of a subscriber with a wrong key fails; neither error nor log has the secret of its token."""
        await self.prepare()
        await self.store.subscribe(subscription("good", subscriber="sub--secret"))
        await self.spoil(self.store._keys.subscriber("sub--secret")[0])
        for call in (
            self.store.subscribe(subscription("good", subscriber="sub--secret")),
            self.store.unsubscribe("sub--secret"),
        ):
            await self.wrong(call, "client 'sub'", unknown=True)
        [line] = self.lines
        self.assertIn("{s:sub}:meta", line)
        self.assertNotIn("secret", line)
        await self.clear()

    async def test_topics_of_a_client(self) -> None:
        """With a wrong count of its topics a client creates none, and publishes to those it has."""
        await self.after_each(self.store._keys.owned("pub"))
        await self.wrong(self.publish("new", b"{}"), "client 'pub'")
        await self.publish("good", b"{}")
        await self.store.clean_up()
        self.assertEqual([topic.name for topic in await self.store.topics()], ["bad", "good"])
        await self.clear()

    async def test_indexes(self) -> None:
        """With a wrong index what needs it fails, nothing is stored, and the log names the key once."""
        keys = self.store._keys
        await self.after_each(keys.topics)
        for call in (
            self.store.topics(), self.publish("new", b"{}"), self.store.clean_up(), self.store.log_bytes(),
        ):  # fmt: skip
            await self.wrong(call, keys.topics.decode())
        await self.publish("good", b"{}")
        self.assertEqual(len(self.lines), 1, self.lines)
        self.assertIn(keys.topics.decode(), self.lines[0])
        await self.clear()
        await self.after_each(keys.subscribers)
        for call in (
            self.store.subscriptions(), self.store.subscribers(), self.store.clean_up(),
            self.store.subscribe(subscription("good", subscriber="new")),
        ):  # fmt: skip
            await self.wrong(call, keys.subscribers.decode())
        self.assertIsNone(await self.store.acquire("new", "w1"))
        self.assertEqual(len(self.lines), 1, self.lines)
        await self.clear()

    async def test_tokens(self) -> None:
        """With a wrong hash of tokens they can be neither read nor changed."""
        await self.after_each(self.store._keys.tokens)
        await self.wrong(self.store.tokens(), self.store._keys.tokens.decode())
        for call in (self.store.add_token(ApiToken("new", "new--secret")), self.store.remove_token("new--secret")):
            await self.wrong(call, self.store._keys.tokens.decode(), unknown=True)
        self.assertFalse([line for line in self.lines if "secret" in line])
        await self.clear()

    async def test_counters(self) -> None:
        """With wrong counters nothing is counted, for certain: the counts can be kept for later."""
        await self.after_each(self.store._keys.counters)
        await self.wrong(self.store.add_counts({"events": 1}), self.store._keys.counters.decode())
        await self.wrong(self.store.counts(), self.store._keys.counters.decode())
        await self.clear()

    async def clear(self) -> None:
        for node in self.connection.nodes.values():
            await node.command(b"FLUSHALL")
        self.store._redis._broken.clear()
        self.store.distrust()


globals().update(on_redis(WrongTypeTests))
