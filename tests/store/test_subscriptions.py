"""Subscriptions: joining and leaving topics, and the figures of each subscriber."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from routemaster.errors import NotSubscribed, UnknownTopic
from tests.store.case import StoreTests, on_every_store, subscription


class SubscriptionTests(StoreTests):
    """Subscriptions."""

    async def test_subscription_starts_with_the_next_event(self) -> None:
        """A new subscription receives every event accepted after it, and none accepted before."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", subscriber="early"))
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        self.assertEqual(await self.fragments("cats"), [b"2"])
        self.assertEqual(await self.fragments("cats", subscriber="early"), [b"1", b"2"])

    async def test_unknown_topic_changes_nothing(self) -> None:
        """A subscription to a topic that does not exist raises UnknownTopic and changes nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", max=7))
        await self.refused(UnknownTopic, self.store.subscribe(subscription("cats", "dogs", max=9)))
        facts = await self.facts()
        self.assertEqual((facts.subscription.max, facts.subscription.topics), (7, ("cats",)))

    async def test_subscribing_again_keeps_the_queue(self) -> None:
        """Subscribing again to the same topics changes the options and keeps the backlog."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", uuid="secret", timeout=5))
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats", max=3))
        facts = await self.facts()
        self.assertEqual(facts.subscription, subscription("cats", max=3))
        self.assertEqual(await self.fragments("cats"), [b"1"])

    async def test_topic_not_listed_is_left(self) -> None:
        """A topic that a new subscription does not list is unsubscribed; its backlog is still delivered."""
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
        """A subscriber that leaves a topic and subscribes again receives no event accepted between."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.store.subscribe(subscription("cats", subscriber="other"))
        for _ in range(2):
            await self.publish("cats", b"before")
            await self.store.leave("sub", "cats")
            await self.publish("cats", b"between")
            await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"after")
        self.assertEqual((await self.facts()).queued, 3)
        for batch in ([b"before", b"before"], [b"after"], []):
            self.assertEqual(await self.deliver("cats", most=2), batch)
        self.assertEqual((await self.facts()).sent, 3)

    async def test_returning_at_once_loses_nothing(self) -> None:
        """Leaving and subscribing again, with no event accepted between, changes nothing."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.store.leave("sub", "cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        self.assertEqual(await self.fragments("cats"), [b"1", b"2"])

    async def test_leave(self) -> None:
        """Leaving ends the subscription to one topic; without one it raises NotSubscribed, or UnknownTopic."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats"))
        await self.store.leave("sub", "cats")
        self.assertEqual((await self.facts()).subscription.topics, ())
        await self.refused(NotSubscribed, self.store.leave("sub", "cats"))
        await self.refused(NotSubscribed, self.store.leave("sub", "dogs"))
        await self.refused(UnknownTopic, self.store.leave("sub", "birds"))

    async def test_unsubscribe_drops_the_queue(self) -> None:
        """Unsubscribing removes the backlog and the counts; a later subscription starts from zero."""
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

    async def test_counts_are_exact(self) -> None:
        """`sent`, `queued` and `oldest` are exact after each step."""
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
        """Hundreds of subscriptions are listed once each, by name, each with its own backlog."""
        await self.create("cats", "dogs")
        names = [f"sub{number:03}" for number in range(230)]
        wanted = {name: ("cats", "dogs")[: 1 + (name > "sub120")] for name in names}
        subscribing = [self.store.subscribe(subscription(*wanted[name], subscriber=name)) for name in names]
        await gatherResults(map(Deferred.fromCoroutine, subscribing))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2", b"3")
        listed = [(fact.subscription.subscriber, fact.queued) for fact in await self.store.subscriptions()]
        self.assertEqual(listed, [(name, 1 if len(wanted[name]) == 1 else 3) for name in names])

    async def test_no_key_is_left(self) -> None:
        """When every topic and subscription is deleted, no key is left."""
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


globals().update(on_every_store(SubscriptionTests))
