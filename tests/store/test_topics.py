"""Topics and events: publishing, ownership, deletion."""

from __future__ import annotations

from string import ascii_lowercase

from twisted.internet.defer import Deferred, gatherResults

from routemaster.errors import NotYourTopic, TooManyTopics, UnknownTopic
from routemaster.store.redis_store import RedisStore
from routemaster.util.chunks import chunks
from tests.store.case import StoreTests, on_every_store, subscription


class TopicTests(StoreTests):
    """Topics and their events."""

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

    async def test_reachable(self) -> None:
        """A store that can be called says so; one without a connection says so, too."""
        self.assertTrue(self.store.reachable)
        if isinstance(self.store, RedisStore):
            await self.connection.stop()  # type: ignore[attr-defined]
            self.assertFalse(self.store.reachable)

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
        """If several clients publish first to a new topic at the same time, exactly one owns it."""
        racing = [Deferred.fromCoroutine(self.publish("cats", b"x", publisher=f"p{n}")) for n in range(8)]
        for race in racing:
            race.addErrback(lambda failure: failure.trap(NotYourTopic) and None)
        winners = [result for result in await gatherResults(racing) if result is not None]
        self.assertEqual(len(winners), 1)

    async def test_topics_counts_all_events(self) -> None:
        """`events` of a topic counts every event ever published, with and without subscribers."""
        await self.publish("cats", b"a", b"b")
        await self.publish("dogs", b"a")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"c")
        await self.deliver("cats")
        self.assertEqual([(t.name, t.events) for t in await self.store.topics()], [("cats", 3), ("dogs", 1)])

    async def test_no_subscribers(self) -> None:
        """Events of a topic without subscribers are counted and not stored."""
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

    async def test_tails(self) -> None:
        """`tails` returns the last ID of each log, and nothing for a topic that does not exist."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        published = await self.publish("cats", b"1")
        self.assertEqual(await self.store.tails(["cats", "dogs"]), {"cats": published.last})
        self.assertEqual(await self.store.tails([]), {})

    async def test_delete_topic_rights(self) -> None:
        """Only the publisher of a topic and root can delete it; a second deletion raises UnknownTopic."""
        await self.create("cats", "dogs")
        await self.refused(NotYourTopic, self.store.delete_topic("cats", "other"))
        await self.store.delete_topic("cats", "pub")
        await self.store.delete_topic("dogs", None)
        await self.refused(UnknownTopic, self.store.delete_topic("cats", "pub"))
        self.assertEqual(await self.store.topics(), [])

    async def test_delete_topic_still_delivers_what_is_queued(self) -> None:
        """Deleting a topic ends all subscriptions to it; the backlogs are still delivered."""
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
        """A topic created again has a new owner and a new count, and old cursors skip none of its events."""
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
        """Repair and clean-up do not restore subscriptions that the deletion of the topic ended."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"old")
        await self.store.delete_topic("cats", "pub")
        await self.publish("cats", b"not for us", publisher="other")
        await self.store.repair("sub")
        await self.store.clean_up()
        await self.publish("cats", b"nor this", publisher="other")
        self.assertEqual(await self.deliver("cats"), [b"old"])

    async def test_recreated_without_backlog(self) -> None:
        """A topic that was deleted without backlog and created again delivers to new subscribers."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.deliver("cats")
        await self.store.delete_topic("cats", "pub")
        await self.publish("cats", b"2", publisher="other")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"3", publisher="other")
        self.assertEqual(await self.deliver("cats"), [b"3"])

    async def test_many_topics(self) -> None:
        """However many topics there are, each is listed once, in order, and each piece is small."""
        names = [f"t_{a}{b}{c}" for a in ascii_lowercase for b in ascii_lowercase[:6] for c in "xyz"]
        for some in chunks(names, 50):
            await gatherResults([Deferred.fromCoroutine(self.create(name)) for name in some])
        pieces = [piece async for piece in self.store.each_topic()]
        self.assertEqual([fact.name for piece in pieces for fact in piece], names)
        self.assertLessEqual(max(map(len, pieces)), 256)

    async def test_most_topics(self) -> None:
        """A client has at most `max_topics`, also by racing; what exists goes on, and a deletion makes room."""
        self.store._max_topics = 5
        await self.create("t_a", "t_b")
        names = [f"t_{letter}" for letter in ascii_lowercase[2:12]]
        racing = [Deferred.fromCoroutine(self.create(name)) for name in names]
        refusals = [race.addErrback(lambda failure: failure.trap(TooManyTopics)) for race in racing]
        self.assertEqual(sum(each is TooManyTopics for each in await gatherResults(refusals)), 7)
        made = [fact.name for fact in await self.store.topics()]
        self.assertEqual(len(made), 5)
        await self.publish(made[4], b"goes on")
        await self.publish("other", b"1", publisher="other")
        error = await self.refused(TooManyTopics, self.create("t_z"))
        self.assertIn("5", str(error))
        await self.store.delete_topic(made[0], None)
        await self.create("t_z")
        await self.refused(TooManyTopics, self.create("t_y"))
        await self.refused(NotYourTopic, self.publish("other", b"2"))
        await self.store.clean_up()
        await self.refused(TooManyTopics, self.create("t_y"))

    async def test_awaited_topic(self) -> None:
        """A topic that is awaited is joined from its first event, whether it never existed or was deleted."""
        await self.create("cats")
        await self.refused(UnknownTopic, self.store.subscribe(subscription("cats", "dogs")))
        self.assertIsNone(await self.facts())
        await self.store.subscribe(subscription("cats", "dogs", awaits=True))
        facts = await self.facts()
        self.assertEqual((facts.subscription.topics, facts.awaited), (("cats",), ("dogs",)))
        self.assertEqual([fact.name for fact in await self.store.topics()], ["cats"])
        await self.store.clean_up()
        await self.store.repair("sub")
        self.assertEqual((await self.facts()).awaited, ("dogs",))
        await self.publish("dogs", b"1", b"2", publisher="other")
        facts = await self.facts()
        self.assertEqual((facts.subscription.topics, facts.awaited, facts.queued), (("cats", "dogs"), (), 2))
        self.assertEqual([(t.name, t.events) for t in await self.store.topics()], [("cats", 1), ("dogs", 2)])
        self.assertEqual(await self.deliver("cats", "dogs"), [b"1", b"2"])
        await self.publish("dogs", b"3", publisher="other")
        await self.store.delete_topic("dogs", "other")
        await self.store.clean_up()
        self.assertEqual((await self.facts()).awaited, ("dogs",))
        await self.publish("dogs", b"4", publisher="third")
        self.assertEqual(await self.deliver("cats", "dogs"), [b"3", b"4"])
        self.assertEqual([(t.name, t.events) for t in await self.store.topics()], [("cats", 1), ("dogs", 1)])
        facts = await self.facts()
        self.assertEqual((facts.sent, facts.queued, facts.dropped), (4, 0, 0))

    async def test_awaited_topic_that_is_left(self) -> None:
        """A client that leaves an awaited topic, or subscribes without awaiting it, gets none of its events."""
        await self.store.subscribe(subscription("cats", "dogs", awaits=True))
        await self.store.leave("sub", "cats")
        await self.refused(UnknownTopic, self.store.leave("sub", "cats"))
        self.assertEqual((await self.facts()).awaited, ("dogs",))
        await self.refused(UnknownTopic, self.store.subscribe(subscription("dogs")))
        await self.store.subscribe(subscription())
        self.assertEqual((await self.facts()).awaited, ())
        await self.publish("cats", b"1")
        await self.publish("dogs", b"1")
        self.assertEqual(await self.fragments("cats", "dogs"), [])
        await self.store.subscribe(subscription("dogs", awaits=True))
        await self.store.subscribe(subscription("dogs"))
        await self.store.delete_topic("dogs", None)
        await self.publish("dogs", b"2")
        self.assertEqual(await self.fragments("dogs"), [])
        self.assertEqual((await self.facts()).awaited, ())
        await self.store.unsubscribe("sub")

    async def test_awaited_topics_leave_nothing_behind(self) -> None:
        """When all who await a topic are gone, nothing of it is stored."""
        await self.store.subscribe(subscription("cats", awaits=True))
        await self.store.subscribe(subscription("cats", subscriber="two", awaits=True))
        await self.store.unsubscribe("sub")
        await self.store.unsubscribe("two")
        await self.store.clean_up()
        self.assertEqual(await self.leftovers(), [])


globals().update(on_every_store(TopicTests))
