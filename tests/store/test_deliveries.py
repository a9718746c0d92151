"""Deliveries: reading, acknowledging, leases and failures."""

from __future__ import annotations

from attrs import evolve

from routemaster.interfaces import Ack, LeaseHeld
from tests.store.case import TTL, StoreTests, on_every_store, subscription
from tests.store.reading import read


class DeliveryTests(StoreTests):
    """What workers call."""

    async def test_reading_merges_topics_by_acceptance(self) -> None:
        """Events of several topics are read in the order of acceptance."""
        topics = ("cats", "dogs", "birds")
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics))
        expected = []
        for n in range(60):
            fragment = b"%d" % n
            await self.publish(topics[n * n % 3], fragment)
            expected.append(fragment)
        self.assertEqual(await self.fragments(*topics, most=100), expected)
        received = []
        while batch := await self.deliver(*topics, most=7):
            self.assertLessEqual(len(batch), 7)
            received += batch
        self.assertEqual(received, expected)

    async def test_reading_is_bounded(self) -> None:
        """A read returns at most `most` events and `most_bytes` bytes, but at least one event."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", *[b"x" * 10] * 5)
        self.assertEqual(len(await self.fragments("cats", most=3)), 3)
        sized = await read(self.store, "sub", {"cats": None}, 100, 25)
        self.assertEqual(len(sized.entries), 2)
        sized = await read(self.store, "sub", {"cats": None}, 100, 1)
        self.assertEqual(len(sized.entries), 1)

    async def test_reading_ahead(self) -> None:
        """A read can start after the events of a batch in flight."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        for n in range(4):
            await self.publish("cats" if n % 2 else "dogs", b"%d" % n)
        entries = (await self.read("cats", "dogs", most=2)).entries
        after = {topic: entry for topic, entry, _ in entries}
        self.assertEqual(await self.fragments("cats", "dogs", after=after), [b"2", b"3"])

    async def test_acknowledging_is_idempotent_and_forward_only(self) -> None:
        """An acknowledgement that is repeated, or older than the last, changes nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2", b"3")
        grant = await self.grant()
        result = await self.read("cats")
        membership = result.positions["cats"].cursor.membership
        acks = [Ack("cats", membership, entry) for _, entry, _ in result.entries]
        for ack in (acks[1], acks[1], acks[0]):
            positions = await self.store.acknowledge("sub", "w1", grant.epoch, [ack])
            self.assertEqual(positions["cats"].cursor.backlog(positions["cats"].tail), 1)
        self.assertEqual(await self.fragments("cats"), [b"3"])
        self.assertEqual((await self.facts()).sent, 2)

    async def test_acknowledging_without_a_lease_only_moves_the_cursor(self) -> None:
        """Without the lease an acknowledgement moves the cursor, and leaves the health as it is."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        grant = await self.grant(worker="w2")
        self.assertTrue(await self.store.fail("sub", "w2", grant.epoch, 5.0, "gone"))
        result = await self.read("cats")
        ack = Ack("cats", result.positions["cats"].cursor.membership, result.entries[0][1])
        await self.store.acknowledge("sub", "w1", grant.epoch - 1, [ack])
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.health.failures), (1, 1))

    async def test_acknowledgement_of_a_lost_event(self) -> None:
        """An acknowledgement of an ID that the log does not hold moves nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2")
        result, grant = await self.read("cats"), await self.grant()
        last = result.entries[-1][1]
        lost = Ack("cats", result.positions["cats"].cursor.membership, type(last)(last.us - 1, last.n))
        positions = await self.store.acknowledge("sub", "w1", grant.epoch, [lost])
        self.assertEqual(positions, result.positions)
        self.assertEqual(await self.fragments("cats"), [b"1", b"2"])

    async def test_acknowledgement_for_an_ended_subscription(self) -> None:
        """An acknowledgement for an ended subscription moves nothing in a new one."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        result = await self.read("cats")
        late = Ack("cats", result.positions["cats"].cursor.membership, result.entries[0][1])
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        await self.store.acknowledge("sub", "w1", 1, [evolve(late, last=type(late.last)(late.last.us, 99))])
        self.assertEqual(await self.fragments("cats"), [b"2"])

    async def test_slow_subscriber_keeps_its_events(self) -> None:
        """An event is stored until every subscriber has acknowledged it."""
        await self.create("cats")
        for subscriber in ("fast", "slow"):
            await self.store.subscribe(subscription("cats", subscriber=subscriber))
        await self.publish("cats", b"1", b"2")
        await self.deliver("cats", subscriber="fast")
        await self.store.clean_up()
        self.assertEqual(await self.deliver("cats", subscriber="slow"), [b"1", b"2"])

    async def test_one_holder_at_a_time(self) -> None:
        """A lease has one holder; another worker gets the seconds left, and the lease once it is released."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        grant = await self.grant(worker="w1")
        held = await self.store.acquire("sub", "w2")
        self.assertIsInstance(held, LeaseHeld)
        self.assertTrue(0 < held.remaining <= TTL)
        self.assertEqual((await self.grant(worker="w1")).epoch, grant.epoch)
        await self.store.release("sub", "w2", grant.epoch)
        self.assertIsInstance(await self.store.acquire("sub", "w2"), LeaseHeld)
        await self.store.release("sub", "w1", grant.epoch)
        self.assertGreater((await self.grant(worker="w2")).epoch, grant.epoch)

    async def test_renewal(self) -> None:
        """A renewal returns the version of each subscription, and None for each lost lease."""
        await self.create("cats")
        for subscriber in ("sub", "two"):
            await self.store.subscribe(subscription("cats", subscriber=subscriber))
        grant = await self.grant()
        _, versions = await self.store.renew("w1", {"sub": grant.epoch, "two": 5})
        self.assertEqual(versions, {"sub": grant.version, "two": None})
        await self.store.subscribe(subscription("cats", max=1))
        _, versions = await self.store.renew("w1", {"sub": grant.epoch})
        self.assertGreater(versions["sub"], grant.version)
        self.assertEqual((await self.store.renew("w1", {}))[1], {})

    async def test_failures_are_recorded_and_reset(self) -> None:
        """Failures are counted and stored with pause and error; a success or a new callback resets them."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        epoch = (await self.grant()).epoch
        self.assertTrue(await self.store.fail("sub", "w1", epoch, 0.1, "refused"))
        for _ in range(2):  # a reply was lost
            self.assertTrue(await self.store.fail("sub", "w1", epoch, 60.0, "timed out é", 2))
        grant = await self.grant()
        self.assertEqual((grant.failures, grant.succeeded), (2, False))
        self.assertGreater(grant.retry_at, grant.now + 50e6)
        health = (await self.facts()).health
        self.assertEqual((health.failures, health.last_error), (2, "timed out é"))
        self.assertFalse(await self.store.fail("sub", "other", epoch, 1.0, "not ours"))
        await self.deliver("cats")
        self.assertTrue((await self.grant()).succeeded)
        health = (await self.facts()).health
        self.assertEqual((health.failures, health.retry_at), (0, None))
        self.assertIsNotNone(health.last_success)
        await self.store.fail("sub", "w1", epoch, 60.0, "again")
        await self.store.subscribe(evolve(subscription("cats"), callback="https://elsewhere/"))
        grant = await self.grant()
        self.assertEqual((grant.failures, grant.retry_at), (0, 0))

    async def test_failure_of_another_callback(self) -> None:
        """A failure is recorded only if the subscription still has the callback and uuid that were tried."""
        await self.create("cats")
        mine = subscription("cats", uuid="alice")
        await self.store.subscribe(mine)
        epoch = (await self.grant()).epoch
        for tried in (("https://elsewhere/", "alice"), (mine.callback, None), (mine.callback, "bob")):
            self.assertFalse(await self.store.fail("sub", "w1", epoch, 9.0, "x", 1, 0, tried))
        self.assertEqual((await self.grant()).failures, 0)
        self.assertTrue(await self.store.fail("sub", "w1", epoch, 9.0, "x", 1, 0, (mine.callback, "alice")))
        self.assertEqual((await self.grant()).failures, 1)

    async def test_batch_limit(self) -> None:
        """The most events in the next batch are kept with the outcome of an attempt, until one has none."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        epoch = (await self.grant()).epoch
        await self.store.fail("sub", "w1", epoch, 9.0, "answered 413", 1, 50)
        self.assertEqual((await self.grant()).batch_limit, 50)
        self.assertEqual((await self.facts()).health.batch_limit, 50)
        await self.store.acknowledge("sub", "w1", epoch, [], 25)
        self.assertEqual((await self.grant()).batch_limit, 25)
        await self.deliver("cats")
        self.assertEqual((await self.grant()).batch_limit, 0)
        self.assertEqual((await self.facts()).health.batch_limit, 0)

    async def test_subscribing_again_ends_the_pause(self) -> None:
        """Subscribing again, unchanged, ends the pause and keeps the count of failures."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.store.fail("sub", "w1", (await self.grant()).epoch, 60.0, "refused")
        await self.store.subscribe(subscription("cats"))
        grant = await self.grant()
        self.assertEqual((grant.failures, grant.retry_at), (1, 0))


globals().update(on_every_store(DeliveryTests))
