"""The store's promises, held to by the memory store and by Redis, each version at hand."""

from __future__ import annotations

import itertools
from collections.abc import Coroutine
from string import ascii_lowercase
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from routemaster.errors import NotSubscribed, NotYourTopic, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Ack, LeaseGrant, LeaseHeld
from routemaster.model import ApiToken, Subscription
from routemaster.redis.cluster import Cluster
from routemaster.redis.cluster_slots import slot_of
from routemaster.redis.connection import Connection
from routemaster.redis.pubsub import PubSub
from routemaster.store.keys import Keys
from routemaster.store.memory_store import MemoryStore
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.testing.redis_cluster import PrivateCluster, shared_cluster
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers, shared

TTL = 10.0


def subscription(*topics: str, subscriber: str = "sub", **options: Any) -> Subscription:
    return Subscription(subscriber, topics, "https://localhost/events", **options)


class StoreContract:
    """What every store promises; a player gives `self.store`."""

    store: Any

    async def publish(self, topic: str, *fragments: bytes, publisher: str = "pub") -> Any:
        return await self.store.publish(topic, publisher, fragments)

    async def create(self, *topics: str) -> None:
        for topic in topics:
            await self.publish(topic, b"before")

    async def read(self, *topics: str, subscriber: str = "sub", most: int = 100, after: Any = None) -> Any:
        after = after or {}
        wanted = {topic: after.get(topic) for topic in topics}
        return await self.store.read(subscriber, wanted, most, 1 << 30)

    async def fragments(self, *topics: str, **options: Any) -> list[bytes]:
        return [fragment for _, _, fragment in (await self.read(*topics, **options)).entries]

    async def grant(self, subscriber: str = "sub", worker: str = "w1") -> LeaseGrant:
        grant = await self.store.acquire(subscriber, worker)
        self.assertIsInstance(grant, LeaseGrant)
        return grant

    async def deliver(self, *topics: str, most: int = 100, subscriber: str = "sub") -> list[bytes]:
        """Read and acknowledge one batch, as a worker would."""
        grant = await self.grant(subscriber)
        reading = await self.read(*topics, most=most, subscriber=subscriber)
        last = {topic: entry_id for topic, entry_id, _ in reading.entries}
        acks = [Ack(topic, reading.positions[topic].cursor.membership, entry) for topic, entry in last.items()]
        await self.store.acknowledge(subscriber, "w1", grant.epoch, acks)
        return [fragment for _, _, fragment in reading.entries]

    async def facts(self, subscriber: str = "sub") -> Any:
        found = [f for f in await self.store.subscriptions() if f.subscription.subscriber == subscriber]
        return found[0] if found else None

    async def refused(self, error: type[Exception], call: Coroutine[Any, Any, Any]) -> Exception:
        return await self.assertFailure(Deferred.fromCoroutine(call), error)

    # -- publishing

    async def test_ids_are_dense_and_in_order(self) -> None:
        """IDs number the events of a topic without gap, and never go back in time."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        published = [await self.publish("cats", b"a"), await self.publish("cats", b"b", b"c")]
        self.assertEqual([(p.first.n, p.last.n) for p in published], [(2, 2), (3, 4)])
        entries = (await self.read("cats")).entries
        self.assertEqual([(topic, entry.n) for topic, entry, _ in entries], [("cats", n) for n in (2, 3, 4)])
        stamps = [entry.us for _, entry, _ in entries]
        self.assertEqual(stamps, sorted(stamps))

    async def test_fragments_come_back_byte_for_byte(self) -> None:
        """What was appended is delivered unchanged, whatever bytes it holds."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        odd = [b'{"data":"\xc3\xa9\\u0000 \r\n"}', b"007", b"1e5", b"x" * 70_000]
        await self.publish("cats", *odd)
        self.assertEqual(await self.fragments("cats"), odd)

    async def test_first_publisher_owns_the_topic(self) -> None:
        """Only the first client to publish to a topic may publish to it."""
        await self.create("cats")
        await self.refused(NotYourTopic, self.publish("cats", b"x", publisher="other"))
        self.assertEqual([(t.publisher, t.events) for t in await self.store.topics()], [("pub", 1)])

    async def test_racing_publishers_one_wins(self) -> None:
        """Of clients that race for a new topic exactly one gets it."""
        racing = [Deferred.fromCoroutine(self.publish("cats", b"x", publisher=f"p{n}")) for n in range(8)]
        for race in racing:
            race.addErrback(lambda failure: failure.trap(NotYourTopic) and None)
        winners = [result for result in await gatherResults(racing) if result is not None]
        self.assertEqual(len(winners), 1)

    async def test_topics_counts_all_events(self) -> None:
        """A topic's figure counts every event ever published, subscribed to or not."""
        await self.publish("cats", b"a", b"b")
        await self.publish("dogs", b"a")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"c")
        await self.deliver("cats")
        self.assertEqual([(t.name, t.events) for t in await self.store.topics()], [("cats", 3), ("dogs", 1)])

    async def test_nobody_subscribed_nothing_stored(self) -> None:
        """Events of a topic without subscribers are counted and not kept."""
        await self.publish("cats", *[b"x"] * 10)
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.fragments("cats"), [])
        self.assertEqual((await self.facts()).queued, 0)

    async def test_bulk_is_whole_and_in_order(self) -> None:
        """A thousand events of one publication are stored in their order."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", max=10_000))
        events = [b"%d" % n for n in range(1000)]
        await self.publish("cats", *events)
        self.assertEqual(await self.fragments("cats", most=10_000), events)

    # -- subscribing

    async def test_subscription_starts_with_the_next_event(self) -> None:
        """A new subscription gets every event accepted after it, and none of before."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", subscriber="early"))
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        self.assertEqual(await self.fragments("cats"), [b"2"])
        self.assertEqual(await self.fragments("cats", subscriber="early"), [b"1", b"2"])

    async def test_unknown_topic_changes_nothing(self) -> None:
        """A subscription that names a topic which does not exist is refused whole."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", max=7))
        await self.refused(UnknownTopic, self.store.subscribe(subscription("cats", "dogs", max=9)))
        facts = await self.facts()
        self.assertEqual((facts.subscription.max, facts.subscription.topics), (7, ("cats",)))

    async def test_subscribing_again_keeps_the_queue(self) -> None:
        """Subscribing again to the same topics changes options and keeps what waits."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", uuid="secret", timeout=5))
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats", max=3))
        facts = await self.facts()
        self.assertEqual(facts.subscription, subscription("cats", max=3))
        self.assertEqual(await self.fragments("cats"), [b"1"])

    async def test_topic_not_listed_is_left(self) -> None:
        """A topic that a new subscription does not name is unsubscribed; what was owed still comes."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("dogs", b"1")
        await self.store.subscribe(subscription("cats"))
        await self.publish("dogs", b"2")
        facts = await self.facts()
        self.assertEqual((facts.subscription.topics, facts.queued), (("cats",), 1))
        self.assertEqual(await self.deliver("cats", "dogs"), [b"1"])
        self.assertEqual((await self.facts()).sent, 1)

    async def test_events_between_leaving_and_coming_back_do_not_come(self) -> None:
        """Whoever leaves and returns gets what was owed and what follows, not what lies between."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.store.subscribe(subscription("cats", subscriber="other"))
        for _ in range(2):
            await self.publish("cats", b"owed")
            await self.store.leave("sub", "cats")
            await self.publish("cats", b"between")
            await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"after")
        self.assertEqual((await self.facts()).queued, 3)
        for batch in ([b"owed", b"owed"], [b"after"], []):
            self.assertEqual(await self.deliver("cats", most=2), batch)
        self.assertEqual((await self.facts()).sent, 3)

    async def test_returning_at_once_loses_nothing(self) -> None:
        """Leaving and coming back with nothing accepted in between is as if it had not been."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.store.leave("sub", "cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        self.assertEqual(await self.fragments("cats"), [b"1", b"2"])

    async def test_leave(self) -> None:
        """Leaving ends one subscription; leaving what is not subscribed to, or does not exist, is refused."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats"))
        await self.store.leave("sub", "cats")
        self.assertEqual((await self.facts()).subscription.topics, ())
        await self.refused(NotSubscribed, self.store.leave("sub", "cats"))
        await self.refused(NotSubscribed, self.store.leave("sub", "dogs"))
        await self.refused(UnknownTopic, self.store.leave("sub", "birds"))

    async def test_unsubscribe_drops_the_queue(self) -> None:
        """Unsubscribing altogether takes the queue away; a later subscription starts anew."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        await self.publish("cats", b"2")
        await self.store.unsubscribe("sub")
        await self.refused(NotSubscribed, self.store.unsubscribe("sub"))
        self.assertIsNone(await self.facts())
        self.assertIsNone(await self.store.acquire("sub", "w2"))
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.fragments("cats"), [])
        self.assertEqual(((await self.facts()).sent, (await self.facts()).queued), (0, 0))

    async def test_acknowledgement_of_a_lost_event(self) -> None:
        """An event that the log does not hold moves nothing: its number may be another's by now."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2")
        reading, grant = await self.read("cats"), await self.grant()
        last = reading.entries[-1][1]
        lost = Ack("cats", reading.positions["cats"].cursor.membership, type(last)(last.us - 1, last.n))
        places = await self.store.acknowledge("sub", "w1", grant.epoch, [lost])
        self.assertEqual(places, reading.positions)
        self.assertEqual(await self.fragments("cats"), [b"1", b"2"])

    async def test_late_acknowledgement_of_an_earlier_life(self) -> None:
        """An acknowledgement from before unsubscribing moves nothing after subscribing again."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        reading = await self.read("cats")
        late = Ack("cats", reading.positions["cats"].cursor.membership, reading.entries[0][1])
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        await self.store.acknowledge("sub", "w1", 1, [evolve(late, last=type(late.last)(late.last.us, 99))])
        self.assertEqual(await self.fragments("cats"), [b"2"])

    # -- deleting topics

    async def test_delete_topic_rights(self) -> None:
        """A topic is deleted by its publisher or by root, by nobody else, and once."""
        await self.create("cats", "dogs")
        await self.refused(NotYourTopic, self.store.delete_topic("cats", "other"))
        await self.store.delete_topic("cats", "pub")
        await self.store.delete_topic("dogs", None)
        await self.refused(UnknownTopic, self.store.delete_topic("cats", "pub"))
        self.assertEqual(await self.store.topics(), [])

    async def test_delete_topic_still_delivers_what_is_queued(self) -> None:
        """Deleting a topic unsubscribes everybody; what was queued is still delivered."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2")
        await self.store.delete_topic("cats", "pub")
        facts = await self.facts()
        self.assertEqual((facts.subscription.topics, facts.queued), ((), 2))
        self.assertEqual(await self.deliver("cats", most=1), [b"1"])
        self.assertEqual(await self.deliver("cats", most=1), [b"2"])
        await self.store.repair("sub")
        self.assertEqual(((await self.facts()).sent, (await self.facts()).queued), (2, 0))

    async def test_recreated_topic_is_another(self) -> None:
        """A topic made again has another owner, counts from nothing, and hides no event behind old cursors."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"old")
        await self.store.delete_topic("cats", "pub")
        await self.publish("cats", b"not for us", publisher="other")
        self.assertEqual([(t.publisher, t.events) for t in await self.store.topics()], [("other", 1)])
        self.assertEqual((await self.facts()).subscription.topics, ())
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"new", publisher="other")
        self.assertEqual(await self.deliver("cats"), [b"old", b"new"])

    async def test_repair_does_not_subscribe_to_a_recreated_topic(self) -> None:
        """Repairing and tidying never undo that the deletion of a topic ended its subscriptions."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"old")
        await self.store.delete_topic("cats", "pub")
        await self.publish("cats", b"not for us", publisher="other")
        await self.store.repair("sub")
        await self.store.clean_up()
        await self.publish("cats", b"nor this", publisher="other")
        self.assertEqual(await self.deliver("cats"), [b"old"])

    async def test_recreated_after_nobody_was_owed(self) -> None:
        """A topic that left nothing behind and is made again delivers to new subscribers."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        await self.store.delete_topic("cats", "pub")
        await self.publish("cats", b"2", publisher="other")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"3", publisher="other")
        self.assertEqual(await self.deliver("cats"), [b"3"])

    # -- reading and acknowledging

    async def test_reading_merges_topics_by_acceptance(self) -> None:
        """Events of several topics come in the order in which they were accepted."""
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
        """A reading holds at most so many events and bytes, but always one."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", *[b"x" * 10] * 5)
        self.assertEqual(len(await self.fragments("cats", most=3)), 3)
        sized = await self.store.read("sub", {"cats": None}, 100, 25)
        self.assertEqual(len(sized.entries), 2)
        sized = await self.store.read("sub", {"cats": None}, 100, 1)
        self.assertEqual(len(sized.entries), 1)

    async def test_reading_ahead(self) -> None:
        """A reading can start behind what is on its way."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        for n in range(4):
            await self.publish("cats" if n % 2 else "dogs", b"%d" % n)
        entries = (await self.read("cats", "dogs", most=2)).entries
        after = {topic: entry for topic, entry, _ in entries}
        self.assertEqual(await self.fragments("cats", "dogs", after=after), [b"2", b"3"])

    async def test_acknowledging_is_idempotent_and_forward_only(self) -> None:
        """An acknowledgement repeated, or older than another, changes nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2", b"3")
        grant = await self.grant()
        reading = await self.read("cats")
        membership = reading.positions["cats"].cursor.membership
        acks = [Ack("cats", membership, entry) for _, entry, _ in reading.entries]
        for ack in (acks[1], acks[1], acks[0]):
            places = await self.store.acknowledge("sub", "w1", grant.epoch, [ack])
            self.assertEqual(places["cats"].cursor.backlog(places["cats"].tail), 1)
        self.assertEqual(await self.fragments("cats"), [b"3"])
        self.assertEqual((await self.facts()).sent, 2)

    async def test_acknowledging_without_a_lease_only_moves_the_cursor(self) -> None:
        """A worker that lost its lease may move the cursor over what it delivered, and records nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        grant = await self.grant(worker="w2")
        self.assertEqual(await self.store.fail("sub", "w2", grant.epoch, 5.0, "gone"), 1)
        reading = await self.read("cats")
        ack = Ack("cats", reading.positions["cats"].cursor.membership, reading.entries[0][1])
        await self.store.acknowledge("sub", "w1", grant.epoch - 1, [ack])
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.health.failures), (1, 1))

    async def test_counts_are_exact(self) -> None:
        """sent, queued and oldest are what a recount would give."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        first = await self.publish("cats", b"1", b"2")
        await self.publish("dogs", b"3")
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.queued), (0, 3))
        self.assertAlmostEqual(facts.oldest, first.first.us / 1e6, places=3)
        await self.deliver("cats", "dogs", most=2)
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.queued), (2, 1))
        await self.deliver("cats", "dogs")
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.queued, facts.oldest), (3, 0, None))

    async def test_all_are_listed(self) -> None:
        """However many subscriptions there are, each is told once, in order, with what it alone is owed."""
        await self.create("cats", "dogs")
        names = [f"sub{number:03}" for number in range(230)]
        wanted = {name: ("cats", "dogs")[: 1 + (name > "sub120")] for name in names}
        subscribing = [self.store.subscribe(subscription(*wanted[name], subscriber=name)) for name in names]
        await gatherResults(map(Deferred.fromCoroutine, subscribing))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2", b"3")
        told = [(fact.subscription.subscriber, fact.queued) for fact in await self.store.subscriptions()]
        self.assertEqual(told, [(name, 1 if len(wanted[name]) == 1 else 3) for name in names])

    async def test_slow_subscriber_keeps_its_events(self) -> None:
        """What one subscriber has taken is kept for those that have not."""
        await self.create("cats")
        for subscriber in ("fast", "slow"):
            await self.store.subscribe(subscription("cats", subscriber=subscriber))
        await self.publish("cats", b"1", b"2")
        await self.deliver("cats", subscriber="fast")
        await self.store.clean_up()
        self.assertEqual(await self.deliver("cats", subscriber="slow"), [b"1", b"2"])

    # -- leases and health

    async def test_one_holder_at_a_time(self) -> None:
        """A lease has one holder; another is told how long it lasts, and gets it once it is given back."""
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
        """A renewal tells the version of each subscription, and which leases are lost."""
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
        """Failures count up with their pause and error, and a success or a new callback resets them."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        epoch = (await self.grant()).epoch
        self.assertEqual(await self.store.fail("sub", "w1", epoch, 0.1, "refused"), 1)
        self.assertEqual(await self.store.fail("sub", "w1", epoch, 60.0, "timed out é"), 2)
        grant = await self.grant()
        self.assertEqual(grant.failures, 2)
        self.assertGreater(grant.retry_at, grant.now + 50e6)
        health = (await self.facts()).health
        self.assertEqual((health.failures, health.last_error), (2, "timed out é"))
        self.assertIsNone(await self.store.fail("sub", "other", epoch, 1.0, "not ours"))
        await self.deliver("cats")
        health = (await self.facts()).health
        self.assertEqual((health.failures, health.retry_at), (0, None))
        self.assertIsNotNone(health.last_success)
        await self.store.fail("sub", "w1", epoch, 60.0, "again")
        await self.store.subscribe(evolve(subscription("cats"), callback="https://elsewhere/"))
        grant = await self.grant()
        self.assertEqual((grant.failures, grant.retry_at), (0, 0))

    async def test_subscribing_again_ends_the_pause(self) -> None:
        """The same subscription again removes the pause, and leaves the count of failures."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.store.fail("sub", "w1", (await self.grant()).epoch, 60.0, "refused")
        await self.store.subscribe(subscription("cats"))
        grant = await self.grant()
        self.assertEqual((grant.failures, grant.retry_at), (1, 0))

    async def test_tails(self) -> None:
        """Tails tell where logs end; a topic that does not exist has none."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        published = await self.publish("cats", b"1")
        self.assertEqual(await self.store.tails(["cats", "dogs"]), {"cats": published.last})
        self.assertEqual(await self.store.tails([]), {})

    # -- autodrop

    async def test_drop_oldest(self) -> None:
        """The oldest events go first, over all topics, each counted for everybody who was owed it."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.store.subscribe(subscription("cats", subscriber="two"))
        for n in range(10):
            await self.publish("dogs" if n % 3 else "cats", b"%d" % n)
        await self.deliver("cats", subscriber="two", most=1)
        gone, lost = 0, {"sub": 0, "two": 0}
        while left := await self.fragments("cats", "dogs"):
            self.assertEqual(left, [b"%d" % n for n in range(gone, 10)])
            dropped = await self.store.drop_oldest(2)
            self.assertTrue(0 < dropped.events <= 4)
            gone += dropped.events
            for subscriber, count in dropped.lost.items():
                lost[subscriber] += count
            facts = await self.facts()
            self.assertEqual((facts.sent, facts.queued, facts.dropped), (0, 10 - gone, gone))
        self.assertEqual(lost, {"sub": 10, "two": 3})
        self.assertEqual((await self.store.drop_oldest(2)).events, 0)
        facts = await self.facts("two")
        self.assertEqual((facts.sent, facts.queued, facts.dropped), (1, 0, 3))

    async def test_drop_under_a_batch_in_flight(self) -> None:
        """A batch acknowledged after its events were dropped is neither counted twice nor moves back."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2", b"3")
        reading = await self.read("cats", most=2)
        membership = reading.positions["cats"].cursor.membership
        await self.store.drop_oldest(1)
        await self.store.acknowledge("sub", "w1", 1, [Ack("cats", membership, reading.entries[-1][1])])
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.dropped, facts.queued), (1, 1, 1))

    async def test_counters(self) -> None:
        """Counts of all processes add up, all of a step together, and what was reported is kept apart."""
        await self.store.add_counts({"a|x=1": 2, "b": 1})
        await self.store.add_counts({"a|x=1": 3})
        await self.store.set_reported({"b": 1})
        await self.store.set_reported({"b": 7, "c": 1})
        self.assertEqual(await self.store.counts(), {"a|x=1": 5, "b": 1})
        self.assertEqual(await self.store.reported(), {"b": 7, "c": 1})

    async def test_office(self) -> None:
        """An office has one holder, who keeps it by asking again."""
        holders = [await self.store.elect_leader("monitor", process, 60) for process in ("p1", "p2", "p1")]
        self.assertEqual(holders, [True, False, True])
        self.assertTrue(await self.store.elect_leader("other", "p2", 60))

    async def test_workers(self) -> None:
        """Who announces itself lives until its time is over or it withdraws; the others hear of both."""
        await self.store.announce("short", 0)
        self.assertEqual(set(await self.store.announce("w1", 60)), {"w1"})
        left = await self.store.announce("w2", 65)
        self.assertEqual(set(left), {"w1", "w2"})
        self.assertTrue(55 < left["w1"] <= 60 < left["w2"] <= 65, left)
        await self.store.withdraw("w1")
        await self.store.withdraw("w1")
        self.assertEqual(set(await self.store.announce("w2", 30)), {"w2"})
        expected = [b"w short on", b"w w1 on", b"w w2 on", b"w w1 off"]
        # from one Redis in this order; the nodes of a cluster speak when they will
        self.assertCountEqual(await self.hints(len(expected)), expected)

    async def test_figures(self) -> None:
        """The store tells how much memory it uses."""
        for figures in await self.store.stats():
            self.assertGreaterEqual(figures.bytes_used, 0)

    # -- tokens

    async def test_tokens(self) -> None:
        """Tokens are listed by name, renamed, removed; every change changes the version."""
        versions = [await self.store.tokens_version()]
        for change in (
            self.store.add_token(ApiToken("zoo", "zoo--1")),
            self.store.add_token(ApiToken("bar", "bar--1")),
            self.store.add_token(ApiToken("ape", "zoo--1")),
            self.store.remove_token("bar--1"),
        ):
            await change
            versions.append(await self.store.tokens_version())
        await self.store.remove_token("never--1")
        self.assertEqual([(t.name, t.token) for t in await self.store.tokens()], [("ape", "zoo--1")])
        self.assertEqual(len(set(versions)), len(versions))

    async def test_hints(self) -> None:
        """Events, changes of a subscription, given-back leases and tokens are hinted at."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        published = await self.publish("cats", b"1", b"2")
        await self.store.release("sub", "w1", (await self.grant()).epoch)
        await self.store.add_token(ApiToken("zoo", "zoo--1"))
        expected = [b"s sub", f"t cats {published.first} {published.last}".encode(), b"s sub", b"k"]
        # from one Redis in this order; the nodes of a cluster speak when they will
        self.assertCountEqual(await self.hints(len(expected)), expected)

    async def test_nothing_is_left_behind(self) -> None:
        """When everything is deleted and delivered the store is as empty as it began."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.store.subscribe(subscription("cats", subscriber="two"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        await self.store.leave("sub", "cats")
        await self.publish("dogs", b"2")
        for topic in ("cats", "dogs"):
            await self.store.delete_topic(topic, "pub")
        for subscriber in ("sub", "two"):
            await self.store.unsubscribe(subscriber)
        await self.store.clean_up()
        self.assertEqual(await self.leftovers(), [])


class MemoryStoreTests(StoreContract, TestCase):
    """The memory store keeps the contract."""

    def setUp(self) -> None:
        self.clock, self.heard = Clock(), []
        self.clock.advance(1_700_000_000)
        self.store = MemoryStore(self.clock, TTL, self.heard.append)

    async def hints(self, count: int) -> list[bytes]:
        return self.heard

    async def leftovers(self) -> list[object]:
        return [*self.store._topics, *self.store._subscribers, *self.store._leases]


class RedisStoreContract(StoreContract):
    """Redis keeps the contract; a player names the server."""

    binary: ServerBinary
    server: PrivateRedis | PrivateCluster
    connection: Connection | Cluster
    namespace = "rm"

    def connect(self) -> None:
        """Have the server running, and a connection to it."""
        self.server = shared(self.binary)
        self.connection = Connection(self.server.address, reactor=reactor, scripts=SCRIPTS.values())

    async def setUp(self) -> None:
        self.connect()
        self.connection.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.connection.stop()))
        await self.connection.when_connected()
        self.store = RedisStore(self.connection, self.namespace, TTL)
        self.heard: list[bytes] = []
        self.awaited: list[tuple[int, Deferred[None]]] = []
        listening: Deferred[None] = Deferred()
        wakeups = PubSub(
            self.connection.address,
            Keys(self.namespace).wakeups,
            reactor=reactor,
            on_message=self.hear,
            on_up=lambda: listening.callback(None),
        )
        wakeups.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(wakeups.stop()))
        await listening

    def hear(self, message: bytes) -> None:
        self.heard.append(message)
        for count, enough in self.awaited:
            if len(self.heard) == count:
                enough.callback(None)

    async def hints(self, count: int) -> list[bytes]:
        if len(self.heard) < count:
            enough: Deferred[None] = Deferred()
            self.awaited.append((count, enough))
            await enough.addTimeout(5, reactor)
        return self.heard

    async def leftovers(self) -> list[object]:
        keys = await gatherResults([node.command(b"KEYS", b"*") for node in self.connection.nodes.values()])
        return [key for some in keys for key in some if not key.endswith(b":tokens_version")]

    async def test_leaving_that_ended_half_way(self) -> None:
        """Who is told, trying again, that it is not subscribed gets nothing that is accepted from then on."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        keys = self.store._keys.subscriber("sub")
        await self.store._redis.run("remove_topic", keys, b"cats")  # and there the process was killed
        await self.refused(NotSubscribed, self.store.leave("sub", "cats"))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2")
        self.assertEqual(await self.fragments("cats", "dogs"), [b"2"])
        await self.store._redis.run("unsubscribe", keys)
        await self.refused(NotSubscribed, self.store.unsubscribe("sub"))
        await self.store.delete_topic("cats", None)
        await self.store.delete_topic("dogs", None)
        self.assertEqual(await self.leftovers(), [])

    async def test_counts_while_a_stay_ends(self) -> None:
        """What was sent is counted once, though the stay ends between the looks at topic and subscriber."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        run, looked = self.store._redis.run, set()

        async def meddle(name: str, *arguments: Any) -> Any:
            if name in ("backlog", "subscribers") and name not in looked:
                looked.add(name)
                if len(looked) == 2:
                    await self.store.leave("sub", "cats")
            return await run(name, *arguments)

        self.patch(self.store._redis, "run", lambda *call: Deferred.fromCoroutine(meddle(*call)))
        self.assertEqual((await self.facts()).sent, 1)
        self.assertEqual(len(looked), 2)
        self.assertEqual((await self.facts()).subscription.topics, ("dogs",))
        self.assertEqual((await self.facts()).sent, 1)

    async def test_full_memory(self) -> None:
        """With Redis full nothing new is taken, and all that makes room or keeps order goes on."""
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
        self.assertEqual(await self.store.fail("sub", "w1", grant.epoch, 1.0, "x"), 1)
        _, versions = await self.store.renew("w1", {"sub": grant.epoch})
        self.assertIsNotNone(versions["sub"])
        self.assertEqual((await self.store.drop_oldest(2)).lost, {"sub": 1, "two": 2})
        await self.store.leave("sub", "cats")
        await self.store.delete_topic("cats", "pub")
        await self.store.unsubscribe("two")
        await self.store.clean_up()
        await self.store.add_counts({"a": 1})
        await self.store.set_reported({"a": 1})
        self.assertTrue(await self.store.elect_leader("monitor", "p1", 60))
        self.assertEqual(set(await self.store.announce("w1", 60)), {"w1"})
        await self.store.withdraw("w1")
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.dropped, facts.queued), (1, 1, 1))


class ClusterStoreContract(RedisStoreContract):
    """A Redis Cluster keeps the contract too: no call touches the keys of two slots."""

    runs = itertools.count()

    def connect(self) -> None:
        # hints of the test before may still be on their way from node to node
        self.namespace = f"rm{next(self.runs)}"
        self.keys = Keys(self.namespace)
        self.server = shared_cluster(self.binary)
        self.connection = Cluster(
            self.server.address, reactor=reactor, chance=lambda: 0.5, scripts=SCRIPTS.values()
        )

    def place(self, topic: str) -> str:
        return self.connection.node_of(self.keys.topic(topic)[0])

    async def test_many_in_few_calls(self) -> None:
        """Topics and subscribers on all nodes are renewed, looked up and read together."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        self.assertEqual(len({self.place(topic) for topic in topics}), 3)
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
        """A batch is full although all of it comes from one topic of many."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics))
        events = [b"%d" % n for n in range(200)]
        await self.publish("topic_k", *events)
        self.assertEqual(await self.fragments(*topics, most=150), events[:150])

    async def test_figures_and_drops_of_a_node(self) -> None:
        """Each node tells its own figures, and only the oldest events that lie on it can be dropped."""
        topics = [f"topic_{letter}" for letter in ascii_lowercase]
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics))
        for topic in topics:
            await self.publish(topic, topic.encode())
        names = [figures.node for figures in await self.store.stats()]
        self.assertEqual(sorted(names), sorted(node.name for node in self.server.nodes))
        node = names[0]
        there = [topic for topic in topics if self.place(topic) == node]
        gone = 0
        while dropped := (await self.store.drop_oldest(1, node)).events:
            gone += dropped
        self.assertEqual(gone, len(there))
        self.assertEqual(await self.fragments(*topics), [t.encode() for t in topics if t not in there])

    def move(self, *keys: bytes) -> None:
        """Begin to move the slots of these keys; the keys stay where they are."""
        for slot in {slot_of(key) for key in keys}:
            source = self.server.holder(slot)
            self.server.open_move(slot, next(node for node in self.server.nodes if node is not source))
            self.addCleanup(self.server.cancel_move, slot)

    def stay(self, *keys: bytes) -> None:
        for slot in {slot_of(key) for key in keys}:
            self.server.cancel_move(slot)

    async def tried(self, call: Coroutine[Any, Any, Any]) -> None:
        """Make a call that succeeds or is refused whole: what is half done would be no such refusal."""
        try:
            await call
        except StoreUnavailable as error:
            self.assertFalse(error.outcome_unknown)

    async def test_no_script_ends_half_way(self) -> None:
        """While a slot moves a script that deletes a key does not stumble over its absence."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", b"1", b"2", b"3", b"4")
        grant = await self.grant()
        await self.store.announce("w1", 60)
        await self.store.elect_leader("monitor", "p1", 60)
        cats, dogs, keys = self.keys.topic("cats"), self.keys.topic("dogs"), self.keys
        moving = (cats[0], dogs[0], keys.lease("sub"), keys.workers, keys.leader_lock("monitor"))
        self.move(*moving)
        reading = await self.read("cats", most=2)
        membership = reading.positions["cats"].cursor.membership
        ack = Ack("cats", membership, reading.entries[-1][1])
        places = await self.store.acknowledge("sub", "w1", grant.epoch, [ack])
        self.assertEqual(places["cats"].cursor.sent, 2)
        self.assertEqual((await self.store.drop_oldest(3)).lost, {"sub": 1})
        self.assertTrue(await self.store.elect_leader("monitor", "p1", 60))
        await self.store.announce("w1", 60)
        self.assertEqual((await self.store.renew("w1", {"sub": grant.epoch}))[1], {"sub": grant.version})
        await self.tried(self.store.leave("sub", "dogs"))
        await self.tried(self.store.leave("sub", "cats"))
        await self.tried(self.store.delete_topic("cats", "pub"))
        self.stay(*moving)
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.dropped, facts.queued), (2, 1, 1))
        self.move(*moving)
        await self.tried(self.store.unsubscribe("sub"))
        self.stay(*moving)
        self.assertIsNone(await self.facts())


CONTRACTS: dict[str, Any] = {"": RedisStoreContract, "Cluster": ClusterStoreContract}
for binary in servers():
    for what, contract in CONTRACTS.items():
        name = f"Redis{binary.version.replace('.', '_')}{what}StoreTests"
        doc = f"Redis {binary.version} {what} keeps the contract."
        globals()[name] = type(
            name, (contract, TestCase), {"binary": binary, "__doc__": doc, "__module__": __name__}
        )
