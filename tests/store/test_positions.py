"""Where deliveries begin and go on: history, the start of a subscription, rewind, skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import fail

from routemaster.errors import NotSubscribed, StoreUnavailable
from routemaster.interfaces import Ack
from routemaster.model import OLDEST, TopicSettings
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

HOUR = 3600
HOUR_MS = HOUR * 1000
KEPT = TopicSettings(history=24 * HOUR_MS)


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last + 1)]


class PositionTests(StoreTests):
    """Some topics, and events an hour apart."""

    async def begin(self, settings: TopicSettings = KEPT, *topics: str) -> None:
        for topic in topics or ("cats",):
            await self.store.configure_topic(topic, "pub", settings)

    async def hourly(self, *topics: str) -> list[int]:
        """Publish to each topic in turn, with an hour after each event; when they were accepted."""
        accepted = []
        for number, topic in enumerate(topics, 1):
            accepted.append((await self.publish(topic, b"%d" % number)).first.us)
            await self.set_clock(HOUR)  # type: ignore[attr-defined]
        return accepted

    async def kept(self, topic: str) -> tuple[int, int] | None:
        """The numbers of the first and the last event in the log."""
        details = await self.store.topic(topic)
        return (details.first.n, details.last.n) if details.first else None


class HistoryTests(PositionTests):
    """What a topic keeps though every subscriber has it."""

    async def test_nothing_without_settings(self) -> None:
        """A topic without history keeps what is owed only, and nothing without subscribers."""
        await self.create("cats")
        self.assertIsNone(await self.kept("cats"))
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2", b"3")
        await self.deliver("cats", most=2)
        await self.store.clean_up()
        self.assertEqual(await self.kept("cats"), (4, 4))

    async def test_by_time(self) -> None:
        """Trimming keeps the events of the last `history` milliseconds, with and without subscribers."""
        await self.begin(TopicSettings(history=int(2.5 * HOUR_MS)))
        await self.hourly("cats", "cats", "cats", "cats", "cats")
        await self.store.clean_up()
        self.assertEqual(await self.kept("cats"), (4, 5))
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"6")
        await self.deliver("cats")
        await self.store.clean_up()
        self.assertEqual(await self.kept("cats"), (4, 6))
        await self.set_clock(24 * HOUR)  # type: ignore[attr-defined]
        await self.store.clean_up()
        self.assertIsNone(await self.kept("cats"))
        await self.publish("cats", b"7")
        self.assertEqual(await self.kept("cats"), (7, 7))

    async def test_by_count(self) -> None:
        """At most `history_events` of them are kept, of those within the time; 0 keeps none."""
        for most, kept in ((2, (4, 5)), (5, (1, 5)), (9, (1, 5)), (0, None), (1, (5, 5))):
            topic = f"cats_{most}"
            await self.begin(TopicSettings(history=24 * HOUR_MS, history_events=most), topic)
            await self.publish(topic, *numbered(1, 5))
            await self.store.clean_up()
            self.assertEqual(await self.kept(topic), kept, most)
        await self.begin(TopicSettings(history=int(1.5 * HOUR_MS), history_events=3), "dogs")
        await self.hourly(*["dogs"] * 5)
        await self.store.clean_up()
        self.assertEqual(await self.kept("dogs"), (5, 5))

    async def test_count_over_many_times(self) -> None:
        """The event before the last so many is found among events of many times, several of one time."""
        await self.begin()
        for n in range(30):
            await self.publish("cats", *numbered(1, 1 + n % 4))
            await self.set_clock(n % 3)  # type: ignore[attr-defined]
        last = (await self.store.topic("cats")).last.n
        for most in (last, last - 1, 31, 30, 2, 1):
            await self.begin(TopicSettings(history=24 * HOUR_MS, history_events=most))
            self.assertEqual(await self.kept("cats"), (last - most + 1, last))

    async def test_owed_events_are_kept(self) -> None:
        """What a subscriber waits for is kept, however old it is."""
        await self.begin(TopicSettings(history=HOUR_MS // 2, history_events=1))
        await self.store.subscribe(subscription("cats"))
        await self.hourly("cats", "cats", "cats")
        await self.deliver("cats", most=1)
        await self.store.clean_up()
        self.assertEqual(await self.kept("cats"), (2, 3))
        await self.books(3, sent=1, queued=2)

    async def test_less_history_frees_at_once(self) -> None:
        """Settings that keep less take effect at once, and deleting the topic ends them."""
        await self.begin()
        await self.publish("cats", *numbered(1, 5))
        await self.begin(TopicSettings(history=24 * HOUR_MS, history_events=2))
        self.assertEqual(await self.kept("cats"), (4, 5))
        await self.begin(TopicSettings())
        self.assertIsNone(await self.kept("cats"))
        await self.begin()
        await self.store.delete_topic("cats", "pub")
        await self.create("cats")
        self.assertIsNone(await self.kept("cats"))
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings())

    async def test_autodrop_takes_history_first(self) -> None:
        """Events that only a history keeps are dropped before any that is owed, which may be older."""
        await self.create("dogs")
        await self.store.subscribe(subscription("dogs"))
        await self.publish("dogs", *numbered(1, 3))
        await self.begin(KEPT, "cats", "birds")
        for topic in ("cats", "birds", "cats"):
            await self.publish(topic, *numbered(1, 4))
        await self.store.subscribe(subscription("birds", subscriber="two"))
        await self.publish("birds", b"5")
        dropped, history = 0, 12
        while dropped < history:
            step = await self.store.drop_oldest(3)
            self.assertTrue(0 < step <= 6, step)
            dropped += step
            await self.store.clean_up()
            await self.books(3, queued=3)
            await self.books(1, "two", queued=1)
        self.assertEqual(dropped, history)
        self.assertEqual(await self.fragments("birds", subscriber="two"), [b"5"])
        self.assertEqual(await self.store.drop_oldest(3), 3)
        await self.store.clean_up()
        await self.books(3, dropped=3)
        await self.books(1, "two", queued=1)


class StartTests(PositionTests):
    """Where new topics of a subscription begin."""

    async def starts(self, start: int | None, *topics: str, subscriber: str = "sub") -> list[bytes]:
        await self.store.subscribe(subscription(*topics, subscriber=subscriber, start=start))
        return await self.fragments(*topics, subscriber=subscriber)

    async def test_start(self) -> None:
        """A subscription begins at the next event, at the oldest, or with the first event from a time on."""
        await self.begin()
        times = await self.hourly("cats", "cats", "cats")
        for number, (start, expected) in enumerate((
            (None, []), (OLDEST, numbered(1, 3)), (times[1], numbered(2, 3)), (times[1] + 1, numbered(3, 3)),
            (times[0] - 1, numbered(1, 3)), (times[2] + 1, []), (times[2] * 2, []),
        )):  # fmt: skip
            name = f"sub{number}"
            self.assertEqual(await self.starts(start, "cats", subscriber=name), expected, start)
            await self.books(len(expected), name, queued=len(expected))
        await self.publish("cats", b"4")
        self.assertEqual(await self.fragments("cats", subscriber="sub6"), [b"4"])

    async def test_no_further_than_the_history(self) -> None:
        """It begins no earlier than the history reaches, even if the log still holds more for others."""
        await self.store.configure_topic("cats", "pub", TopicSettings(history=int(1.5 * HOUR_MS)))
        await self.create("dogs")
        await self.store.subscribe(subscription("cats", "dogs", subscriber="slow"))
        await self.hourly("cats", "cats", "cats")
        await self.publish("dogs", b"owed")
        self.assertEqual(await self.starts(OLDEST, "cats", "dogs"), [b"3"])
        await self.books(1, queued=1)

    async def test_dropped_history(self) -> None:
        """It begins no earlier than the log does."""
        await self.begin()
        await self.publish("cats", *numbered(1, 5))
        await self.store.drop_oldest(2)
        self.assertEqual(await self.starts(OLDEST, "cats"), numbered(3, 5))

    async def test_only_new_topics(self) -> None:
        """A topic that the subscription has already goes on where it is; one that it left begins anew."""
        await self.begin(KEPT, "cats", "dogs")
        await self.publish("cats", *numbered(1, 2))
        await self.publish("dogs", *numbered(3, 4))
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.starts(OLDEST, "cats", "dogs"), numbered(3, 4))
        await self.publish("cats", b"5")
        self.assertEqual(await self.deliver("cats", "dogs"), [b"3", b"4", b"5"])
        await self.store.subscribe(subscription("dogs"))
        await self.publish("cats", b"6")
        self.assertEqual(await self.starts(OLDEST, "cats", "dogs"), [b"1", b"2", b"5", b"6"])
        await self.books(7, sent=3, queued=4)

    async def test_backlog_of_before(self) -> None:
        """With a backlog from before it left, what lies between comes as far as the start reaches back."""
        await self.begin()
        await self.store.subscribe(subscription("cats"))
        times = await self.hourly("cats", "cats")
        await self.store.leave("sub", "cats")
        times += await self.hourly("cats", "cats")
        self.assertEqual(await self.starts(times[3], "cats"), [b"1", b"2", b"2"])
        await self.books(3, queued=3)
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"5")
        await self.store.leave("sub", "cats")
        await self.publish("cats", b"6")
        self.assertEqual(await self.starts(OLDEST, "cats"), [b"5", b"6"])

    async def test_interrupted(self) -> None:
        """The start is kept, so that whoever completes an interrupted subscription begins there."""
        await self.begin()
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("cats", start=OLDEST))
        self.assertEqual((await self.store.subscription("sub")).subscription.start, OLDEST)
        await self.store.repair("sub")
        self.assertEqual(await self.fragments("cats"), [b"1"])


class RewindTests(PositionTests):
    """Going back."""

    async def delivered(self, *topics: str) -> list[int]:
        await self.begin(KEPT, *dict.fromkeys(topics))
        await self.store.subscribe(subscription(*dict.fromkeys(topics)))
        times = await self.hourly(*topics)
        await self.deliver(*dict.fromkeys(topics))
        return times

    async def test_rewind(self) -> None:
        """What was accepted at or after a time comes again, in order, and counts as added again."""
        times = await self.delivered("cats", "dogs", "cats", "dogs")
        await self.books(4, sent=4)
        self.assertEqual(await self.store.rewind("sub", times[1]), 3)
        await self.books(7, sent=4, queued=3)
        self.assertEqual(await self.deliver("cats", "dogs", most=2), [b"2", b"3"])
        self.assertEqual(await self.store.rewind("sub", OLDEST), 3)
        await self.books(10, sent=6, queued=4)
        self.assertEqual(await self.fragments("cats", "dogs"), numbered(1, 4))
        self.assertEqual(await self.store.rewind("sub", OLDEST), 0)
        self.assertEqual(await self.store.rewind("sub", times[2]), 0)  # it would go forward
        await self.books(10, sent=6, queued=4)

    async def test_named_topics(self) -> None:
        """Only the topics named go back; one that is not subscribed to refuses the whole call."""
        await self.delivered("cats", "dogs", "cats")
        await self.begin(KEPT, "birds")
        await self.refused(NotSubscribed, self.store.rewind("sub", OLDEST, ["cats", "birds"]))
        await self.refused(NotSubscribed, self.store.rewind("nobody", OLDEST))
        await self.books(3, sent=3)
        self.assertEqual(await self.store.rewind("sub", OLDEST, ["cats"]), 2)
        self.assertEqual(await self.fragments("cats", "dogs"), [b"1", b"3"])
        self.assertEqual(await self.store.rewind("sub", OLDEST, []), 0)

    async def test_as_far_as_the_history(self) -> None:
        """Nothing comes again that lies before the history or was dropped; without history nothing does."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", subscriber="slow"))
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", *numbered(1, 4))
        await self.deliver("cats")
        self.assertEqual(await self.store.rewind("sub", OLDEST), 0)
        await self.begin(TopicSettings(history=HOUR_MS, history_events=3))
        self.assertEqual(await self.store.rewind("sub", OLDEST), 3)
        self.assertEqual(await self.deliver("cats"), numbered(2, 4))
        await self.store.drop_oldest(3)
        self.assertEqual(await self.store.rewind("sub", OLDEST), 1)
        self.assertEqual(await self.fragments("cats"), [b"4"])

    async def test_kept_after_a_rewind(self) -> None:
        """What comes again is kept until it is delivered, though the history does not keep it any more."""
        await self.delivered("cats", "cats")
        await self.store.rewind("sub", OLDEST)
        await self.begin(TopicSettings())
        await self.store.clean_up()
        self.assertEqual(await self.deliver("cats"), numbered(1, 2))
        await self.store.clean_up()
        self.assertIsNone(await self.kept("cats"))

    async def attempt(self, *topics: str) -> tuple[Any, Sequence[Ack]]:
        grant, found = await self.grant(), await self.read(*topics)
        last = {topic: entry for topic, entry, _ in found.entries}
        first = {topic: entry for topic, entry, _ in reversed(found.entries)}
        cursors = {topic: found.positions[topic].cursor for topic in last}
        return grant, [
            Ack(topic, cursors[topic].membership, entry, first[topic], cursors[topic].rewinds)
            for topic, entry in last.items()
        ]

    async def test_under_way(self) -> None:
        """An attempt that was under way when the cursor went back acknowledges nothing; the next one does."""
        await self.delivered("cats", "cats")
        await self.publish("cats", b"3", b"4")
        grant, acks = await self.attempt("cats")
        self.assertEqual(await self.store.rewind("sub", OLDEST), 2)
        await self.store.acknowledge("sub", "w1", grant.epoch, acks)
        await self.books(6, sent=2, queued=4)
        self.assertEqual(await self.fragments("cats"), numbered(1, 4))
        grant, again = await self.attempt("cats")
        await self.store.acknowledge("sub", "w1", grant.epoch, again)
        await self.store.acknowledge("sub", "w1", grant.epoch, acks)
        await self.books(6, sent=6)

    async def test_gaps(self) -> None:
        """A rewind over a time without subscription brings the events of that time, too."""
        await self.delivered("cats", "cats")
        await self.publish("cats", b"3")
        await self.store.leave("sub", "cats")
        await self.publish("cats", b"4")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"5")
        await self.books(4, sent=2, queued=2)
        self.assertEqual(await self.store.rewind("sub", OLDEST), 3)
        self.assertEqual(await self.fragments("cats"), numbered(1, 5))
        await self.books(7, sent=2, queued=5)
        self.assertEqual(await self.deliver("cats"), numbered(1, 5))
        await self.books(7, sent=7)

    async def test_backlog_of_a_topic_left(self) -> None:
        """A topic that the subscriber has left does not go back."""
        await self.delivered("cats", "dogs")
        await self.publish("cats", b"3")
        await self.store.leave("sub", "cats")
        self.assertEqual(await self.store.rewind("sub", OLDEST), 1)
        self.assertEqual(await self.fragments("cats", "dogs"), [b"2", b"3"])
        await self.refused(NotSubscribed, self.store.rewind("sub", OLDEST, ["cats"]))
        await self.books(4, sent=2, queued=2)

    async def test_told(self) -> None:
        """The worker is told: the version of the subscription grows, and a hint goes out."""
        await self.delivered("cats")
        for call in (self.store.rewind("sub", OLDEST), self.store.skip("sub", None)):
            version, hints = (await self.store.state("sub")).version, len(self.received)
            await call
            self.assertGreater((await self.store.state("sub")).version, version)
            await self.hinted(b"s sub", hints)


class SkipTests(PositionTests):
    """Going forward."""

    async def backlog(self) -> list[int]:
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        return await self.hourly("cats", "dogs", "cats", "dogs")

    async def test_skip(self) -> None:
        """What was accepted before a time, or at all, is not delivered, and is counted as skipped."""
        times = await self.backlog()
        self.assertEqual(await self.store.skip("sub", times[1]), 1)
        self.assertEqual(await self.store.skip("sub", times[1]), 0)
        await self.books(4, skipped=1, queued=3)
        self.assertEqual(await self.fragments("cats", "dogs"), numbered(2, 4))
        self.assertEqual(await self.deliver("cats", "dogs", most=1), [b"2"])
        self.assertEqual(await self.store.skip("sub", None), 2)
        await self.books(4, sent=1, skipped=3)
        await self.publish("cats", b"5")
        self.assertEqual(await self.fragments("cats", "dogs"), [b"5"])

    async def test_named_topics(self) -> None:
        """Only the topics named are skipped; one that is not subscribed to refuses the whole call."""
        await self.backlog()
        await self.refused(NotSubscribed, self.store.skip("sub", None, ["cats", "birds"]))
        await self.refused(NotSubscribed, self.store.skip("nobody", None))
        await self.books(4, queued=4)
        self.assertEqual(await self.store.skip("sub", None, ["dogs"]), 2)
        self.assertEqual(await self.fragments("cats", "dogs"), [b"1", b"3"])

    async def test_backlog_of_a_topic_left(self) -> None:
        """The backlog of a topic that was left is skipped with all others, and its membership then ends."""
        await self.backlog()
        await self.store.leave("sub", "cats")
        self.assertEqual(await self.store.skip("sub", None), 4)
        await self.books(4, skipped=4)
        await self.store.repair("sub")
        self.assertEqual(list((await self.store.state("sub")).memberships), ["dogs"])
        await self.books(4, skipped=4)

    async def test_gone_before(self) -> None:
        """Events that were dropped before are counted as dropped, not as skipped."""
        await self.backlog()
        await self.store.drop_oldest(1)
        self.assertEqual(await self.store.skip("sub", None), 3)
        await self.books(4, skipped=3, dropped=1)

    async def test_under_way(self) -> None:
        """An attempt under way that delivers what is skipped meanwhile counts nothing twice."""
        await self.backlog()
        grant, found = await self.grant(), await self.read("cats", "dogs")
        acks = [
            Ack(topic, found.positions[topic].cursor.membership, entry) for topic, entry, _ in found.entries[-2:]
        ]
        await self.store.skip("sub", None, ["cats"])
        await self.store.acknowledge("sub", "w1", grant.epoch, acks)
        await self.books(4, sent=2, skipped=2)

    async def test_memory_is_freed(self) -> None:
        """What was skipped is trimmed by the clean-up."""
        await self.backlog()
        await self.store.skip("sub", None)
        await self.store.clean_up()
        self.assertEqual([await self.kept(topic) for topic in ("cats", "dogs")], [None, None])


class PartlyLostTests(PositionTests):
    """A call for several topics while a node of the cluster, which holds some of them, is lost."""

    async def begin_two(self) -> None:
        await self.begin(KEPT, "cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2")

    def lose(self, *topics: str) -> None:
        """Let the calls for these topics fail, as those to a node that cannot be reached do."""
        lost = {self.store._keys.topic(topic)[0] for topic in topics}
        script = self.store._redis._connection.script

        def call(what: Any, keys: Sequence[bytes], *arguments: Any) -> Any:
            if lost & {*keys}:
                return fail(StoreUnavailable("the node is lost"))
            return script(what, keys, *arguments)

        self.patch(self.store._redis._connection, "script", call)  # type: ignore[attr-defined]

    async def outcomes_unknown(self) -> list[bool]:
        """Whether each of the calls says that its outcome is unknown, while some of its topics are lost."""
        memberships = (await self.store.state("sub")).memberships
        acks = [Ack(topic, each.id, (await self.store.topic(topic)).last) for topic, each in memberships.items()]
        self.lose(*self.away)
        store = self.store
        calls = store.skip("sub", None), store.rewind("sub", OLDEST), store.acknowledge_pulled("sub", acks)
        errors: list[Any] = [await self.refused(StoreUnavailable, call) for call in calls]
        return [error.outcome_unknown for error in errors]

    async def test_some(self) -> None:
        """What was done for one topic, but not for another, has an unknown outcome."""
        await self.begin_two()
        self.away = ["dogs"]
        self.assertEqual(await self.outcomes_unknown(), [True, True, True])

    async def test_all(self) -> None:
        """What was done for no topic is refused for certain."""
        await self.begin_two()
        self.away = ["cats", "dogs"]
        self.assertEqual(await self.outcomes_unknown(), [False, False, False])


globals().update(on_redis(PartlyLostTests))
for _tests in (HistoryTests, StartTests, RewindTests, SkipTests):
    globals().update(on_every_store(_tests))
