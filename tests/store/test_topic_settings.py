"""Topics: who may set what they keep, their details, and where an event is."""

from __future__ import annotations

from typing import Any

from routemaster.errors import NotYourTopic, TooManyTopics, UnknownTopic
from routemaster.model import OLDEST, EventID, ParkedEvent, TopicBacklog, TopicInfo, TopicSettings, Whereabouts
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

DAY_MS = 86_400_000
SETTINGS = TopicSettings(history=DAY_MS, history_events=50, max_data=70_000)


class ConfigureTests(StoreTests):
    """Settings of a topic."""

    async def test_claim(self) -> None:
        """A client that puts a free name has claimed it, as by publishing, and no event is counted."""
        self.assertIsNone(await self.store.topic_settings("cats"))
        await self.store.configure_topic("cats", "pub", SETTINGS)
        self.assertEqual(await self.store.topic_settings("cats"), SETTINGS)
        self.assertEqual(await self.store.topics(), [TopicInfo("cats", "pub", 0)])
        await self.refused(NotYourTopic, self.publish("cats", b"1", publisher="other"))
        await self.refused(NotYourTopic, self.store.configure_topic("cats", "other", TopicSettings()))
        self.assertEqual((await self.publish("cats", b"1")).first.n, 1)
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.store.topic_settings("cats"), SETTINGS)

    async def test_publishing_keeps_the_settings(self) -> None:
        """Publishing leaves the settings as they are; each call replaces all of them."""
        await self.create("cats")
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings())
        await self.store.configure_topic("cats", "pub", SETTINGS)
        await self.publish("cats", b"1")
        self.assertEqual(await self.store.topic_settings("cats"), SETTINGS)
        await self.store.configure_topic("cats", "pub", TopicSettings(max_data=5))
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings(max_data=5))
        self.assertEqual((await self.store.topic("cats")).info.events, 2)

    async def test_root(self) -> None:
        """Root sets what any topic keeps, and owns none by that; one that does not exist stays so."""
        await self.create("cats")
        await self.store.configure_topic("cats", None, SETTINGS)
        self.assertEqual(await self.store.topics(), [TopicInfo("cats", "pub", 1)])
        self.assertEqual(await self.store.topic_settings("cats"), SETTINGS)
        await self.refused(UnknownTopic, self.store.configure_topic("dogs", None, SETTINGS))
        self.assertIsNone(await self.store.topic_settings("dogs"))

    async def test_too_many(self) -> None:
        """A client claims no more topics than it may have; those that it has it can still set."""
        self.store._max_topics = 2
        for topic in ("cats", "dogs"):
            await self.store.configure_topic(topic, "pub", SETTINGS)
        await self.refused(TooManyTopics, self.store.configure_topic("birds", "pub", SETTINGS))
        self.assertIsNone(await self.store.topic_settings("birds"))
        await self.store.configure_topic("cats", "pub", TopicSettings())
        await self.store.delete_topic("cats", "pub")
        await self.store.configure_topic("birds", "pub", SETTINGS)

    async def test_gone_with_the_topic(self) -> None:
        """Settings go with their topic, though its backlogs remain; whoever claims the name begins without."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.store.delete_topic("cats", "pub")
        self.assertIsNone(await self.store.topic_settings("cats"))
        await self.refused(UnknownTopic, self.store.configure_topic("cats", None, SETTINGS))
        await self.store.configure_topic("cats", "other", TopicSettings(max_data=9))
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings(max_data=9))
        self.assertEqual(await self.store.topics(), [TopicInfo("cats", "other", 0)])
        self.assertEqual(await self.fragments("cats"), [b"1"])

    async def test_no_key_is_left(self) -> None:
        """A topic that was only set leaves no key when it is deleted, nor one with history."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats", start=OLDEST))
        await self.store.skip("sub", None)
        await self.store.rewind("sub", OLDEST)
        await self.store.unsubscribe("sub")
        await self.store.configure_topic("dogs", "pub", SETTINGS)
        for topic in ("cats", "dogs"):
            await self.store.delete_topic(topic, "pub")
        await self.store.clean_up()
        self.assertEqual(await self.leftovers(), [])  # type: ignore[attr-defined]


    async def test_large_topics(self) -> None:
        """Topics with a `max_data` are known; the clean-up takes out those that were deleted, and no other."""
        for topic in ("cats", "dogs", "birds"):
            await self.store.configure_topic(topic, "pub", SETTINGS)
        await self.store.configure_topic("birds", "pub", TopicSettings())
        await self.store.delete_topic("cats", "pub")
        await self.store.clean_up()
        self.assertEqual(await self.store.large_topics(), {"dogs"})


class DetailTests(StoreTests):
    """One topic."""

    async def test_topic(self) -> None:
        """A topic is shown with its settings, the IDs that it keeps, and on request each subscriber's backlog."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        empty = await self.store.topic("cats")
        self.assertEqual((empty.info, empty.settings), (TopicInfo("cats", "pub", 0), SETTINGS))
        self.assertEqual((empty.first, empty.last, list(empty.backlogs)), (None, None, []))
        published = await self.publish("cats", b"1", b"2", b"3")
        for name, start in (("two", OLDEST), ("one", None)):
            await self.store.subscribe(subscription("cats", subscriber=name, start=start))
        await self.deliver("cats", subscriber="two", most=1)
        found = await self.store.topic("cats", backlogs=True)
        self.assertEqual(found.info, TopicInfo("cats", "pub", 3))
        self.assertEqual((found.first, found.last), (published.first, published.last))
        at = published.first.us / 1e6
        self.assertEqual(
            list(found.backlogs), [TopicBacklog("one", 0, None), TopicBacklog("two", 2, at)]
        )  # fmt: skip
        self.assertEqual(list((await self.store.topic("cats")).backlogs), [])

    async def test_unknown(self) -> None:
        """A topic that does not exist raises UnknownTopic, also while backlogs of it remain."""
        await self.refused(UnknownTopic, self.store.topic("cats"))
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.store.delete_topic("cats", "pub")
        await self.refused(UnknownTopic, self.store.topic("cats", backlogs=True))


class WhereaboutsTests(StoreTests):
    """Where an event is."""

    async def begin(self, *names: str, **options: Any) -> None:
        await self.store.configure_topic("cats", "pub", SETTINGS)
        for name in names or ("sub",):
            await self.store.subscribe(subscription("cats", subscriber=name, **options))

    async def events(self, *fragments: bytes) -> list[EventID]:
        first = (await self.publish("cats", *fragments)).first
        return [EventID(first.us, first.n + n) for n in range(len(fragments))]

    async def states(self, *events: EventID, subscriber: str = "sub") -> list[str]:
        found = []
        for event in events:
            places = {each.subscriber: each for each in await self.store.whereabouts("cats", event)}
            place = places[subscriber]
            found.append(f"queued {place.ahead}" if place.state == "queued" else place.state)
        return found

    async def test_delivered_and_queued(self) -> None:
        """Each subscriber has acknowledged an event, or so many wait before it."""
        await self.begin("one", "two")
        events = await self.events(b"1", b"2", b"3")
        await self.deliver("cats", subscriber="two", most=2)
        self.assertEqual(
            [list(await self.store.whereabouts("cats", event)) for event in events],
            [
                [Whereabouts("one", "queued", 0), Whereabouts("two", "acknowledged")],
                [Whereabouts("one", "queued", 1), Whereabouts("two", "acknowledged")],
                [Whereabouts("one", "queued", 2), Whereabouts("two", "queued", 0)],
            ],
        )

    async def test_passed(self) -> None:
        """An event that expired, was skipped, parked or dropped is said to be so, and those around it are not."""
        await self.begin(max_queued=4)
        events = await self.events(*[b"%d" % n for n in range(5)])
        await self.store.expire("sub")
        await self.deliver("cats", most=1)
        grant = await self.grant()
        event = ParkedEvent("cats", events[2], b"2", "refused", 1.0)
        await self.store.park("sub", "w1", grant.epoch, grant.memberships["cats"].id, event)
        await self.store.skip("sub", None)
        await self.store.configure_topic("cats", "pub", TopicSettings())
        await self.store.clean_up()
        events += await self.events(b"5", b"6")
        await self.store.drop_oldest(1)
        await self.store.repair("sub")
        self.assertEqual(
            await self.states(*events),
            ["expired", "acknowledged", "parked", "skipped", "skipped", "dropped", "queued 0"],
        )
        await self.books(7, expired=1, sent=1, parked=1, skipped=2, dropped=1, queued=1)

    async def test_parked(self) -> None:
        """A parked event that is tried again waits, then is acknowledged or parked; a removed one is unknown."""
        await self.begin()
        events = await self.events(b"1", b"2", b"3", b"4")
        grant = await self.grant()
        parked = [ParkedEvent("cats", event, b"%d" % n, "refused", 1.0) for n, event in enumerate(events, 1)]
        for event in parked[:3]:
            await self.store.park("sub", "w1", grant.epoch, grant.memberships["cats"].id, event)
        await self.store.retry_parked("sub", events[:2])
        self.assertEqual(await self.states(*events), ["queued 0", "queued 0", "parked", "queued 0"])
        await self.store.settle_retried("sub", "w1", grant.epoch, parked[0])
        await self.store.settle_retried("sub", "w1", grant.epoch, parked[1], "refused again")
        self.assertEqual(await self.states(*events), ["acknowledged", "parked", "parked", "queued 0"])
        await self.store.drop_parked("sub")
        self.assertEqual(await self.states(*events), ["acknowledged", "unknown", "unknown", "queued 0"])
        await self.store.rewind("sub", OLDEST)
        self.assertEqual(await self.states(*events), ["queued 0", "queued 1", "queued 2", "queued 3"])

    async def test_not_subscribed(self) -> None:
        """Events from before the subscription, between two, and after it are none of the subscriber's."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        events = await self.events(b"1", b"2")
        await self.begin()
        events += await self.events(b"3")
        await self.store.leave("sub", "cats")
        events += await self.events(b"4")
        self.assertEqual(
            await self.states(*events), ["not subscribed", "not subscribed", "queued 0", "not subscribed"]
        )
        await self.begin()
        events += await self.events(b"5")
        await self.deliver("cats", most=1)
        self.assertEqual(
            await self.states(*events),
            ["not subscribed", "not subscribed", "acknowledged", "not subscribed", "queued 0"],
        )

    async def test_backlog_delivered_after_leaving(self) -> None:
        """Until a finished membership is removed nothing is known of events; then the subscriber is not named."""
        await self.begin()
        events = await self.events(b"1")
        await self.store.leave("sub", "cats")
        events += await self.events(b"2")
        await self.deliver("cats")
        self.assertEqual(await self.states(*events), ["unknown", "unknown"])
        await self.store.repair("sub")
        self.assertEqual(list(await self.store.whereabouts("cats", events[0])), [])

    async def test_after_a_rewind(self) -> None:
        """After a rewind an event is where it is this time; what went another way before it is kept."""
        await self.begin()
        events = await self.events(b"0")
        await self.store.skip("sub", None)
        events += await self.events(b"1", b"2")
        events += await self.events(b"3")
        await self.store.skip("sub", None)
        self.assertEqual(await self.states(*events), ["skipped"] * 4)
        await self.store.rewind("sub", events[1].us)
        self.assertEqual(await self.states(*events), ["skipped", "queued 0", "queued 1", "queued 2"])
        await self.deliver("cats", most=2)
        await self.store.skip("sub", None)
        self.assertEqual(await self.states(*events), ["skipped", "acknowledged", "acknowledged", "skipped"])

    async def test_begun_in_the_history(self) -> None:
        """A subscription that began in the history has no events from before its start."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        events = await self.events(b"1")
        events += await self.events(b"2")
        await self.begin(start=events[1].us)
        self.assertEqual(await self.states(*events), ["not subscribed", "queued 0"])
        await self.deliver("cats")
        self.assertEqual(await self.states(*events), ["not subscribed", "acknowledged"])

    async def test_come_back_after_the_backlog(self) -> None:
        """Whoever comes back before the finished membership is removed gets the right answer for later events."""
        await self.begin(max_queued=2)
        events = await self.events(b"1")
        for n in range(2, 5):
            events += await self.events(b"%d" % n)
        await self.store.expire("sub")
        await self.store.leave("sub", "cats")
        await self.deliver("cats")
        await self.begin(start=events[1].us)
        self.assertEqual(await self.fragments("cats"), [b"2", b"3", b"4"])
        await self.deliver("cats")
        self.assertEqual(await self.states(*events[1:]), ["acknowledged"] * 3)

    async def test_bounded(self) -> None:
        """Of many changes the oldest are given up, and their events said to be unknown."""
        await self.begin()
        events = []
        for n in range(50):
            events += await self.events(b"%d" % n, b"x")
            await self.deliver("cats", most=1)
            await self.store.skip("sub", None)
        states = await self.states(*events)
        known = states.index("acknowledged")
        self.assertEqual(states[:known], ["unknown"] * known)
        self.assertEqual(states[known:], ["acknowledged", "skipped"] * ((100 - known) // 2))
        self.assertTrue(60 <= 100 - known <= 64, known)

    async def test_neighbours_are_one(self) -> None:
        """Changes of one kind that follow each other take one place, so that none is given up."""
        await self.begin()
        events = await self.events(b"0")
        await self.deliver("cats")
        for n in range(1, 50):
            events += await self.events(b"%d" % n)
            await self.store.skip("sub", None)
        self.assertEqual(await self.states(*events), ["acknowledged"] + ["skipped"] * 49)

    async def test_no_such_event(self) -> None:
        """An event that was not accepted yet, or a topic that was never there, is nowhere."""
        self.assertEqual(list(await self.store.whereabouts("cats", EventID(1, 1))), [])
        await self.begin()
        (event,) = await self.events(b"1")
        self.assertEqual(list(await self.store.whereabouts("cats", EventID(event.us, 2))), [])


class ManyTests(StoreTests):
    """One Redis or a cluster."""

    async def test_many_subscribers(self) -> None:
        """Hundreds of subscribers are answered for in calls of bounded size."""
        await self.create("cats")
        names = [f"sub{number:03}" for number in range(300)]
        for name in names:
            await self.store.subscribe(subscription("cats", subscriber=name))
        event = (await self.publish("cats", b"1")).first
        command, sizes = self.store._redis.command, []

        def record(*words: bytes) -> Any:
            sizes.append(len(words))
            return command(*words)

        self.patch(self.store._redis, "command", record)  # type: ignore[attr-defined]
        found = await self.store.whereabouts("cats", event)
        self.assertEqual(list(found), [Whereabouts(name, "queued", 0) for name in names])
        self.assertLess(max(sizes), 300)

    async def test_another_client_is_faster(self) -> None:
        """A client that loses the race for a name is refused, and the name is not counted as one of its topics."""
        run = self.store._redis.run

        async def faster(name: str, *arguments: Any) -> Any:
            if name == "claim":
                self.patch(self.store._redis, "run", run)  # type: ignore[attr-defined]
                await self.publish("cats", b"1", publisher="other")
            return await run(name, *arguments)

        self.patch(self.store._redis, "run", faster)  # type: ignore[attr-defined]
        await self.refused(NotYourTopic, self.store.configure_topic("cats", "pub", SETTINGS))
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings())
        owned = await self.store._redis.command(b"SMEMBERS", self.store._keys.owned("pub"))
        self.assertEqual(list(owned), [])

    async def test_index(self) -> None:
        """A topic that only has settings is listed, and stays so over a clean-up."""
        await self.store.configure_topic("cats", "pub", SETTINGS)
        await self.store.clean_up()
        self.assertEqual([topic.name for topic in await self.store.topics()], ["cats"])


for _tests in (ConfigureTests, DetailTests, WhereaboutsTests):
    globals().update(on_every_store(_tests))
globals().update(on_redis(ManyTests))
