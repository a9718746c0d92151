"""Retention: events that are too old, or too many, expire for a subscriber."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher

from routemaster.interfaces import Ack
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

HOUR = 3600
HOUR_MS = HOUR * 1000


class RetentionTests(StoreTests):
    """Every store."""

    async def hourly(self, *topics: str) -> None:
        """Publish an event to each topic in turn, with an hour after each."""
        for number, topic in enumerate(topics, 1):
            await self.publish(topic, b"%d" % number)
            await self.set_clock(HOUR)  # type: ignore[attr-defined]

    async def begin(self, *topics: str, **options: Any) -> None:
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics, **options))

    async def test_retention(self) -> None:
        """What was accepted longer ago than `retention` expires, over all topics, and is never delivered."""
        await self.begin("cats", "dogs", retention=int(2.5 * HOUR_MS))
        await self.hourly("cats", "dogs", "dogs", "cats")
        self.assertEqual(await self.store.expire("sub"), 2)
        self.assertEqual(await self.store.expire("sub"), 0)
        await self.books(4, expired=2, queued=2)
        self.assertEqual(await self.deliver("cats", "dogs"), [b"3", b"4"])
        await self.set_clock(HOUR)  # type: ignore[attr-defined]
        self.assertEqual(await self.store.expire("sub"), 0)
        await self.books(4, expired=2, sent=2)

    async def test_max_queued(self) -> None:
        """The oldest events over all topics expire until `max_queued` wait."""
        await self.begin("cats", "dogs", "birds", max_queued=4)
        order = ("cats", "dogs", "dogs", "birds", "cats", "dogs", "cats", "birds", "birds", "dogs")
        for n, topic in enumerate(order):
            await self.publish(topic, b"%d" % n)
        self.assertEqual(await self.store.expire("sub"), 6)
        self.assertEqual(await self.store.expire("sub"), 0)
        self.assertEqual(await self.fragments("cats", "dogs", "birds"), [b"%d" % n for n in range(6, 10)])
        await self.books(10, expired=6, queued=4)
        await self.publish("cats", b"10")
        self.assertEqual(await self.store.expire("sub"), 1)
        self.assertEqual(await self.fragments("cats", "dogs", "birds"), [b"%d" % n for n in range(7, 11)])

    async def test_bulk(self) -> None:
        """Exactly `max_queued` events are left of events of one microsecond, in one topic or in several."""
        await self.begin("cats", max_queued=7)
        await self.publish("cats", *[b"%d" % n for n in range(20)])
        self.assertEqual(await self.store.expire("sub"), 13)
        self.assertEqual(await self.fragments("cats"), [b"%d" % n for n in range(13, 20)])
        await self.begin("dogs", "birds", subscriber="two", max_queued=9)
        await self.publish("birds", b"first")
        self.freeze_clock()  # type: ignore[attr-defined]
        for topic in ("dogs", "birds", "dogs"):
            await self.publish(topic, *[topic.encode()] * 5)
        self.assertEqual(await self.store.expire("two"), 7)
        await self.books(16, "two", expired=7, queued=9)
        self.assertEqual(await self.fragments("dogs", "birds", subscriber="two"), [b"dogs"] * 9)

    async def test_both(self) -> None:
        """With both settings an event expires by whichever comes first."""
        await self.begin("cats", retention=int(3.5 * HOUR_MS), max_queued=2)
        await self.hourly("cats", "cats", "cats", "cats")
        self.assertEqual(await self.store.expire("sub"), 2)
        await self.books(4, expired=2, queued=2)
        await self.set_clock(3 * HOUR)  # type: ignore[attr-defined]
        self.assertEqual(await self.store.expire("sub"), 2)
        await self.books(4, expired=4)

    async def test_each_for_itself(self) -> None:
        """What expires for one subscriber is still delivered to the others, and kept for them."""
        await self.begin("cats", max_queued=1)
        await self.store.subscribe(subscription("cats", subscriber="patient"))
        await self.publish("cats", b"1", b"2", b"3")
        self.assertEqual(await self.store.expire("sub"), 2)
        self.assertEqual(await self.store.expire("patient"), 0)
        await self.store.clean_up()
        await self.books(3, "patient", queued=3)
        self.assertEqual(await self.deliver("cats", subscriber="patient"), [b"1", b"2", b"3"])

    async def test_backlog_of_a_topic_left(self) -> None:
        """The backlog of a topic that was left expires, too, and its membership then ends."""
        await self.begin("cats", "dogs", retention=HOUR_MS // 2)
        await self.hourly("cats")
        await self.store.leave("sub", "cats")
        self.assertEqual(await self.store.expire("sub"), 1)
        await self.store.repair("sub")
        self.assertEqual(list((await self.store.state("sub")).memberships), ["dogs"])
        await self.books(1, expired=1)

    async def test_spans(self) -> None:
        """Events between two memberships of a topic are not counted among those that wait."""
        await self.begin("cats", max_queued=3)
        for n in range(3):
            await self.publish("cats", b"%d" % n, b"%d" % n)
            await self.store.leave("sub", "cats")
            await self.publish("cats", *[b"between"] * 5)
            await self.store.subscribe(subscription("cats", max_queued=3))
        self.assertEqual(await self.store.expire("sub"), 3)
        self.assertEqual(await self.fragments("cats"), [b"1", b"2", b"2"])
        await self.books(6, expired=3, queued=3)

    async def test_gone_before(self) -> None:
        """Events that were dropped before are counted as dropped, and not expired, whichever rule applies."""
        for options in ({"max_queued": 2}, {"retention": HOUR_MS // 2}):
            await self.begin("cats", "dogs", **options)
            await self.publish("cats", b"1", b"2", b"3")
            await self.publish("dogs", b"4", b"5")
            await self.grant()  # an attempt may be under way, so the clean-up does not count them
            self.assertEqual(await self.store.drop_oldest(2), 2)
            if "retention" in options:
                await self.set_clock(HOUR)  # type: ignore[attr-defined]
            expired = 1 if "max_queued" in options else 3
            self.assertEqual(await self.store.expire("sub"), expired)
            await self.books(5, dropped=2, expired=expired, queued=3 - expired)
            await self.store.unsubscribe("sub")

    async def test_more_gone_than_too_many(self) -> None:
        """If more were dropped than are too many, none expires."""
        await self.begin("cats", "dogs", max_queued=4)
        await self.publish("cats", b"1", b"2", b"3")
        await self.publish("dogs", b"4", b"5", b"6")
        await self.grant()
        self.assertEqual(await self.store.drop_oldest(3), 3)
        self.assertEqual(await self.store.drop_oldest(1), 1)
        self.assertEqual(await self.store.expire("sub"), 0)
        await self.books(6, dropped=4, queued=2)

    async def test_nothing_to_do(self) -> None:
        """Without either setting, or without a subscription, nothing expires."""
        await self.begin("cats")
        await self.hourly("cats")
        self.assertEqual([await self.store.expire(name) for name in ("sub", "nobody")], [0, 0])
        await self.books(1, queued=1)

    async def test_clean_up(self) -> None:
        """The clean-up has events expire, but asks the worker for it if an attempt may be under way."""
        await self.begin("cats", max_queued=1)
        await self.store.subscribe(subscription("cats", subscriber="two", retention=HOUR_MS // 2))
        await self.store.subscribe(subscription("cats", subscriber="three"))
        await self.hourly("cats", "cats")
        grant = await self.grant("two")
        seen = len(await self.hints(5))  # type: ignore[attr-defined]
        await self.store.clean_up()
        await self.hinted(b"d two", seen)
        await self.books(2, expired=1, queued=1)
        await self.books(2, "two", queued=2)
        await self.books(2, "three", queued=2)
        await self.store.release("two", "w1", grant.epoch)
        await self.store.clean_up()
        await self.books(2, "two", expired=2)

    async def test_logged(self) -> None:
        """What expired is logged, with the public name."""
        lines: list[str] = []
        globalLogPublisher.addObserver(observer := lambda event: lines.append(str(formatEvent(event))))
        self.addCleanup(globalLogPublisher.removeObserver, observer)  # type: ignore[attr-defined]
        await self.begin("cats", subscriber="sub--secret", max_queued=1)
        await self.publish("cats", b"1", b"2", b"3")
        await self.store.expire("sub--secret")
        self.assertIn("2 events for 'sub' expired", lines)
        self.assertNotIn("secret", " ".join(lines))

    async def test_late_acknowledgement(self) -> None:
        """An acknowledgement of events that expired meanwhile counts none of them again."""
        await self.begin("cats", max_queued=1)
        await self.publish("cats", b"1", b"2", b"3")
        found, grant = await self.read("cats", most=2), await self.grant()
        await self.store.expire("sub")
        ack = Ack("cats", found.positions["cats"].cursor.membership, found.entries[-1][1])
        await self.store.acknowledge("sub", "w1", grant.epoch, [ack])
        await self.books(3, expired=2, queued=1)


class BoundedTests(StoreTests):
    """One Redis or a cluster."""

    async def test_bounded(self) -> None:
        """However many events wait, a call per slot is made for each step of a bisection over times."""
        topics = ("cats", "dogs", "birds")
        await self.create(*topics)
        await self.store.subscribe(subscription(*topics, max_queued=100))
        for n in range(60):
            await self.publish(topics[n % 3], *[b"x"] * (1 + n))
        run, calls = self.store._redis.run, []

        def record(name: str, *arguments: Any) -> Any:
            calls.append(name)
            return run(name, *arguments)

        self.patch(self.store._redis, "run", record)  # type: ignore[attr-defined]
        self.assertEqual(await self.store.expire("sub"), sum(range(1, 61)) - 100)
        self.assertLessEqual(calls.count("waiting"), 55 * len(topics))
        self.assertLessEqual(calls.count("cut"), len(topics))
        await self.books(sum(range(1, 61)), expired=sum(range(1, 61)) - 100, queued=100)


globals().update(on_every_store(RetentionTests) | on_redis(BoundedTests))
