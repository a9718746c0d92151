"""What only stores on Redis promise: interrupted calls, full memory, moving slots, the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from string import ascii_lowercase
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from routemaster.errors import NotSubscribed, StoreUnavailable, TooManyTopics
from routemaster.interfaces import Ack, Position
from routemaster.model import OLDEST, ApiToken, EventID, ParkedEvent, TopicSettings
from routemaster.redis.cluster_slots import slot_of
from routemaster.store.log_read import CALL_BYTES
from tests.store.case import StoreTests, on_clusters, on_redis, subscription


class RedisTests(StoreTests):
    """One Redis or a cluster."""

    async def test_leaving_that_ended_half_way(self) -> None:
        """A repeated call that raises NotSubscribed has completed the interrupted one: no later event comes."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        keys = self.store._keys.subscriber("sub")
        await self.store._redis.run("remove_topic", keys, b"cats")  # the process is killed here
        await self.refused(NotSubscribed, self.store.leave("sub", "cats"))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2")
        self.assertEqual(await self.fragments("cats", "dogs"), [b"2"])
        await self.store._redis.run("unsubscribe", (*keys, *self.store._keys.others("sub")))
        await self.refused(NotSubscribed, self.store.unsubscribe("sub"))
        await self.store.delete_topic("cats", None)
        await self.store.delete_topic("dogs", None)
        self.assertEqual(await self.leftovers(), [])

    async def test_unknown_changes_of_tokens(self) -> None:
        """Changes after a mark that is trimmed, lost or older than the log are not known; older data is read."""
        keys, command = self.store._keys, self.store._redis.command
        await command(b"HSET", keys.tokens, b"old--1", b"old")  # as versions without the log write it
        tokens = await self.store.tokens()
        self.assertEqual((tokens.names, tokens.clients), ({"old--1": "old"}, {}))
        self.assertEqual(await self.store.token_changes(tokens.mark), ((), tokens.mark))
        version = int(await command(b"GET", keys.tokens_version) or 0)
        await self.store.add_token(ApiToken("new", "new--1", "old--1"))
        self.assertGreater(int(await command(b"GET", keys.tokens_version)), version)  # those versions read it then
        self.assertIsNone(await self.store.token_changes(tokens.mark))
        mark = (await self.store.tokens()).mark
        self.assertEqual(await self.store.token_changes(mark), ([], mark))
        await self.store.remove_token("new--1")
        await command(b"XTRIM", keys.token_log, b"MAXLEN", b"=", b"1")
        self.assertIsNone(await self.store.token_changes(mark))
        mark = (await self.store.tokens()).mark
        await command(b"XDEL", keys.token_log, mark)
        self.assertIsNone(await self.store.token_changes(mark))

    async def test_outcome_after_a_write(self) -> None:
        """A call that fails after its first write has an unknown outcome, even if no later step was sent."""

        async def fail(*_: Any) -> None:
            raise StoreUnavailable("not connected")

        await self.create("cats")
        for step in ("follow", "retire", "tidy_topic"):
            self.patch(self.store._memberships, step, fail)
        for call in (
            self.store.subscribe(subscription("cats")),
            self.store.leave("sub", "cats"),
            self.store.unsubscribe("sub"),
            self.store.delete_topic("cats", "pub"),
        ):
            self.assertTrue((await self.refused(StoreUnavailable, call)).outcome_unknown)

    async def test_counts_while_a_membership_ends(self) -> None:
        """Events are counted once although their membership ends between the reads of topic and subscriber."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        run, seen = self.store._redis.run, set()

        async def interleaved(name: str, *arguments: Any) -> Any:
            if name in ("backlog", "subscribers") and name not in seen:
                seen.add(name)
                if len(seen) == 2:
                    await self.store.leave("sub", "cats")
            return await run(name, *arguments)

        self.patch(self.store._redis, "run", lambda *call: Deferred.fromCoroutine(interleaved(*call)))
        self.assertEqual((await self.facts()).sent, 1)
        self.assertEqual(len(seen), 2)
        self.assertEqual((await self.facts()).subscription.topics, ("dogs",))
        self.assertEqual((await self.facts()).sent, 1)

    async def test_small_calls(self) -> None:
        """No call carries more than 256 events or topics, or 256 KiB and the event that exceeds them."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", *[b"%d" % n for n in range(1000)])
        await self.publish("dogs", *[b"x" * 100] * 20, *[b"x" * 5_000] * 200)
        starts = {"cats": EventID(0, 0), "dogs": EventID(0, 0)}
        found = await self.store.read({"cats": starts["cats"]}, 10_000)
        self.assertEqual([fragment for _, fragment in found["cats"]], [b"%d" % n for n in range(256)])
        size = sum(len(fragment) for _, fragment in (await self.store.read({"dogs": starts["dogs"]}, 256))["dogs"])
        self.assertTrue(CALL_BYTES <= size < 1.5 * CALL_BYTES, size)
        both = await self.store.read(starts, 10)
        self.assertEqual([len(both[topic]) for topic in starts], [10, 10])
        run, calls = self.store._redis.run, []

        def record(name: str, keys: Sequence[bytes], *arguments: bytes) -> Deferred[Any]:
            calls.append(len(keys))
            return run(name, keys, *arguments)

        self.patch(self.store._redis, "run", record)
        topics = ["cats", "dogs", *(f"none_{a}{b}" for a in ascii_lowercase for b in ascii_lowercase)]
        positions = await self.store.positions("sub", topics)
        self.assertEqual(sorted(positions.by_topic), sorted(topics))
        self.assertEqual(positions.by_topic["none_az"], Position(None, None))
        read = await self.store.read(dict.fromkeys(topics, starts["cats"]), 2)
        self.assertEqual(len(read), len(topics))
        self.assertLessEqual(max(calls), 512)

    async def test_topics_of_a_client_are_counted_anew(self) -> None:
        """The clean-up counts the topics that no call has counted, and forgets those that do not exist."""
        self.store._max_topics = 3
        await self.create("cats", "dogs")
        key, command = self.store._keys.owned("pub"), self.store._redis.command
        await command(b"DEL", key)  # as a version that does not count leaves it
        await command(b"SADD", key, b"gone", b"gone_too")
        await self.publish("taken", b"1", publisher="other")
        await command(b"SADD", key, b"taken")
        await self.refused(TooManyTopics, self.create("apes"))
        await self.publish("cats", b"goes on")
        await self.store.clean_up()
        self.assertEqual(set(await command(b"SMEMBERS", key)), {b"cats", b"dogs"})
        await self.create("apes")
        await self.refused(TooManyTopics, self.create("bees"))

    async def test_full_memory(self) -> None:
        """When Redis is out of memory, publishing and subscribing are refused; every other call succeeds."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.store.subscribe(subscription("cats", subscriber="two"))
        await self.publish("cats", b"1", b"2", b"3")
        self.server.call(b"CONFIG", b"SET", b"maxmemory", b"1")
        self.addCleanup(self.server.call, b"CONFIG", b"SET", b"maxmemory", b"0")
        for call in (self.publish("cats", b"4"), self.store.subscribe(subscription("dogs"))):
            error = await self.refused(StoreUnavailable, call)
            self.assertFalse(error.outcome_unknown)
        self.assertEqual(await self.deliver("cats", "dogs", most=1), [b"1"])
        grant = await self.grant()
        self.assertTrue(await self.store.fail("sub", "w1", grant.epoch, 1.0, "x"))
        _, versions = await self.store.renew("w1", {"sub": grant.epoch})
        self.assertIsNotNone(versions["sub"])
        self.assertEqual(await self.store.drop_oldest(2), 2)
        await self.store.clean_up()
        await self.store.repair("sub")
        await self.store.leave("sub", "cats")
        await self.store.delete_topic("cats", "pub")
        await self.store.unsubscribe("two")
        await self.store.clean_up()
        await self.store.add_counts({"a": 1})
        await self.store.set_reported({"a": 1})
        self.assertTrue(await self.store.elect_leader("monitor", "p1", 60))
        self.assertEqual(set(await self.store.announce("w1", 60)), {"w1"})
        self.assertEqual(await self.store.count_workers(), 1)
        await self.store.withdraw("w1")
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.dropped, facts.queued), (1, 1, 1))

    async def parked(self, *fragments: bytes) -> list[ParkedEvent]:
        """A subscription to cats whose backlog these are, all parked."""
        await self.store.configure_topic("cats", "pub", TopicSettings(history=3_600_000))
        await self.store.subscribe(subscription("cats", max_queued=2))
        published, grant = await self.publish("cats", *fragments), await self.grant()
        first, membership = published.first, grant.memberships["cats"].id
        events = [
            ParkedEvent("cats", EventID(first.us, first.n + n), fragment, "refused", 1.0)
            for n, fragment in enumerate(fragments)
        ]
        for event in events:
            self.assertTrue(await self.store.park("sub", "w1", grant.epoch, membership, event))
        return events

    async def test_administration_with_full_memory(self) -> None:
        """Out of memory, whatever takes none succeeds; parking and claiming a topic are refused as a whole."""
        events = await self.parked(b"1", b"2", b"3")
        await self.publish("cats", b"4", b"5", b"6")
        await self.store.subscribe(evolve(subscription("cats", subscriber="pull"), callback=None))
        await self.publish("cats", b"7")
        epoch = (await self.grant()).epoch
        self.server.call(b"CONFIG", b"SET", b"maxmemory", b"1")
        self.addCleanup(self.server.call, b"CONFIG", b"SET", b"maxmemory", b"0")
        found = (await self.read("cats")).entries[0]
        event = ParkedEvent(found[0], found[1], found[2], "refused", 1.0)
        membership = (await self.grant()).memberships["cats"].id
        for call in (
            self.store.park("sub", "w1", epoch, membership, event),
            self.store.configure_topic("dogs", "pub", TopicSettings()),
        ):
            self.assertFalse((await self.refused(StoreUnavailable, call)).outcome_unknown)
        for control in (self.store.pause, self.store.resume, self.store.retry):
            await control("sub")
        self.assertEqual(await self.store.retry_parked("sub", [event.id for event in events[:2]]), 2)
        await self.store.settle_retried("sub", "w1", epoch, events[0])
        await self.store.settle_retried("sub", "w1", epoch, events[1], "again")
        self.assertEqual(await self.store.drop_parked("sub"), 2)
        self.assertTrue(await self.store.fail("sub", "w1", epoch, 1.0, "x", report=b"{}", refusals=1))
        self.assertEqual((await self.store.attempts("sub")).failed, [b"{}"])
        self.assertEqual(await self.store.expire("sub"), 2)
        self.assertEqual(await self.store.skip("sub", None), 2)
        self.assertEqual(await self.store.rewind("sub", OLDEST), 7)
        await self.books(7 + 2 + 7, sent=1, parked=4, expired=2, skipped=2, queued=7)
        pulled = (await self.read("cats", subscriber="pull")).positions["cats"]
        await self.store.acknowledge_pulled("pull", [Ack("cats", pulled.cursor.membership, found[1])])
        await self.store.acknowledge_pulled("pull", [Ack("cats", pulled.cursor.membership, pulled.tail)])
        await self.books(1, "pull", sent=1)
        await self.store.skip("sub", None)
        await self.store.configure_topic("cats", "pub", TopicSettings())
        await self.store.configure_topic("cats", None, TopicSettings())
        await self.store.clean_up()
        self.assertIsNone((await self.store.topic("cats")).first)


class ClusterTests(StoreTests):
    """A cluster."""

    def node_of(self, topic: str) -> str:
        return self.connection.node_of(self.keys.topic(topic)[0])

    async def test_many_in_few_calls(self) -> None:
        """Renewals, tails and reads span topics and subscribers on all nodes."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        self.assertEqual(len({self.node_of(topic) for topic in topics}), 3)
        epochs = {}
        for number in range(9):
            subscriber = f"sub{number}"
            await self.store.subscribe(subscription(*topics, subscriber=subscriber))
            epochs[subscriber] = (await self.grant(subscriber)).epoch
        published = {topic: await self.publish(topic, topic.encode()) for topic in topics}
        _, versions = await self.store.renew("w1", epochs)
        self.assertEqual(versions.keys(), epochs.keys())
        self.assertNotIn(None, versions.values())
        tails = await self.store.tails(topics)
        self.assertEqual(tails, {topic: each.last for topic, each in published.items()})
        expected = [topic.encode() for topic in topics]
        self.assertEqual(await self.fragments(*topics, most=5, subscriber="sub0"), expected[:5])
        self.assertEqual(await self.fragments(*topics, subscriber="sub8"), expected)

    async def test_a_share_is_not_enough(self) -> None:
        """A batch is full even if all its events are in one topic of many."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics))
        events = [b"%d" % n for n in range(200)]
        await self.publish("topic_k", *events)
        self.assertEqual(await self.fragments(*topics, most=150), events[:150])

    async def test_figures_and_drops_of_a_node(self) -> None:
        """`stats` has one entry for each node, and `drop_oldest` with a node drops events stored there only."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics))
        for topic in topics:
            await self.publish(topic, topic.encode())
        names = [figures.node for figures in await self.store.stats()]
        self.assertEqual(sorted(names), sorted(node.name for node in self.server.nodes))
        node = names[0]
        there = [topic for topic in topics if self.node_of(topic) == node]
        sizes = [await self.store.log_bytes(name) for name in ("", *names)]
        self.assertEqual(sizes[0], sum(sizes[1:]))
        self.assertNotIn(0, sizes)
        gone = 0
        while dropped := await self.store.drop_oldest(1, node):
            gone += dropped
        self.assertEqual(gone, len(there))
        self.assertEqual(await self.fragments(*topics), [t.encode() for t in topics if t not in there])

    def move(self, *keys: bytes) -> None:
        """Start to migrate the slots of these keys; the keys stay on their node."""
        for slot in {slot_of(key) for key in keys}:
            source = self.server.holder(slot)
            self.server.open_move(slot, next(node for node in self.server.nodes if node is not source))
            self.addCleanup(self.server.cancel_move, slot)

    def cancel_moves(self, *keys: bytes) -> None:
        for slot in {slot_of(key) for key in keys}:
            self.server.cancel_move(slot)

    async def whole(self, call: Coroutine[Any, Any, Any]) -> None:
        """Make a call of which each script succeeds or is refused as a whole."""
        try:
            await call
        except StoreUnavailable as error:
            cause = error.__cause__ or error  # of a script after the first
            self.assertFalse(cause.outcome_unknown)

    async def test_no_script_ends_half_way(self) -> None:
        """While a slot migrates, a script that empties a key does not fail half-way."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", b"1", b"2", b"3", b"4")
        grant = await self.grant()
        await self.store.announce("w1", 60)
        await self.store.elect_leader("monitor", "p1", 60)
        cats, dogs, keys = self.keys.topic("cats"), self.keys.topic("dogs"), self.keys
        moving = (cats[0], dogs[0], keys.lease("sub"), keys.workers, keys.leader_lock("monitor"))
        self.move(*moving)
        result = await self.read("cats", most=2)
        membership = result.positions["cats"].cursor.membership
        ack = Ack("cats", membership, result.entries[-1][1])
        positions = await self.store.acknowledge("sub", "w1", grant.epoch, [ack])
        self.assertEqual(positions["cats"].cursor.sent, 2)
        self.assertEqual(await self.store.drop_oldest(3), 3)
        await self.whole(self.store.repair("sub"))
        self.assertTrue(await self.store.elect_leader("monitor", "p1", 60))
        await self.store.announce("w1", 60)
        self.assertEqual((await self.store.renew("w1", {"sub": grant.epoch}))[1], {"sub": grant.version})
        await self.whole(self.store.leave("sub", "dogs"))
        await self.whole(self.store.leave("sub", "cats"))
        await self.whole(self.store.delete_topic("cats", "pub"))
        self.cancel_moves(*moving)
        await self.store.repair("sub")
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.dropped, facts.queued), (2, 1, 1))
        self.move(*moving)
        await self.whole(self.store.unsubscribe("sub"))
        self.cancel_moves(*moving)
        if await self.facts():  # it was refused, because some of the subscriber's keys do not exist
            await self.store.unsubscribe("sub")
        self.assertIsNone(await self.facts())

    async def test_no_script_for_parked_events_ends_half_way(self) -> None:
        """While a slot migrates, a script that takes the last parked event does all of it, or nothing."""
        events = await RedisTests.parked(self, *[b"%d" % n for n in range(6)])  # type: ignore[arg-type]
        epoch, moving = (await self.grant()).epoch, (self.keys.lease("sub"), self.keys.topic("cats")[0])
        await self.store.retry_parked("sub", [events[0].id])
        self.move(*moving)
        await self.store.settle_retried("sub", "w1", epoch, events[0])  # the last that is to be retried
        self.cancel_moves(*moving)
        self.assertEqual((await self.grant()).retried, 0)
        await self.books(7, sent=1, parked=6)
        await self.store.retry_parked("sub", [events[1].id])
        self.move(*moving)
        members = [b"cats %d-%016d" % event.id for event in events]
        keys = (self.keys.subscriber("sub")[0], *self.keys.parked("sub"))
        # none is left that is not to be retried, when the script finds that another call took the last one
        await self.store._redis.run("retry_parked", keys, b"retry", *members[2:], members[0])
        self.cancel_moves(*moving)
        await self.books(12, sent=1, parked=6, queued=5)
        await self.store.settle_retried("sub", "w1", epoch, events[1], "refused again")
        self.move(*moving)
        await self.store.drop_parked("sub")
        await self.store.skip("sub", None)
        await self.store.rewind("sub", OLDEST)
        await self.whole(self.store.expire("sub"))
        self.cancel_moves(*moving)
        await self.store.expire("sub")
        await self.books(18, sent=1, parked=7, queued=4 + 2, expired=4)


globals().update(on_redis(RedisTests))
globals().update(on_clusters(ClusterTests))
