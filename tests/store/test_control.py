"""What subscribers decide about deliveries, and see of them: pauses, settings, attempts, pulled events."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from routemaster.administration import MOST_REPORTS, PULLED_RECHECK, Attempts
from routemaster.errors import NotSubscribed
from routemaster.interfaces import Ack, LeaseHeld
from routemaster.model import OLDEST, EventID, TopicSettings
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

HOUR = 3600


class PauseTests(StoreTests):
    """Pause, resume, retry."""

    async def begin(self) -> None:
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))

    async def fail_once(self, pause: float = 1000.0) -> None:
        self.assertTrue(await self.store.fail("sub", "w1", (await self.grant()).epoch, pause, "gone", 3))

    async def seen(self) -> tuple[bool, bool, bool, bool]:
        """Whether it is paused, and whether it is in a pause after failures: by the grant, and by the list."""
        grant, facts = await self.grant(), await self.store.subscription("sub")
        return grant.paused, grant.retry_at > 0, facts.paused, facts.health.retry_at is not None

    async def test_pause_and_resume(self) -> None:
        """A pause lasts until it is resumed, which ends the pause after failures, too; failures stay counted."""
        await self.begin()
        self.assertEqual(await self.seen(), (False, False, False, False))
        await self.fail_once()
        await self.store.pause("sub")
        await self.store.pause("sub")
        self.assertEqual(await self.seen(), (True, True, True, True))
        await self.publish("cats", b"1")
        await self.books(1, queued=1)
        self.assertTrue((await self.store.state("sub")).paused)
        await self.store.resume("sub")
        self.assertEqual(await self.seen(), (False, False, False, False))
        self.assertFalse((await self.store.state("sub")).paused)
        self.assertEqual((await self.grant()).failures, 3)

    async def test_retry(self) -> None:
        """A retry ends the pause after failures only."""
        await self.begin()
        await self.fail_once()
        await self.store.pause("sub")
        await self.store.retry("sub")
        self.assertEqual(await self.seen(), (True, False, True, False))

    async def test_subscribing_again(self) -> None:
        """Subscribing again keeps a pause, and ends the pause after failures; unsubscribing ends both."""
        await self.begin()
        await self.fail_once()
        await self.store.pause("sub")
        await self.store.subscribe(subscription("cats", max=3))
        self.assertEqual(await self.seen(), (True, False, True, False))
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.seen(), (False, False, False, False))

    async def test_attempt_that_ends_in_a_pause(self) -> None:
        """An attempt under way when the pause begins is recorded, and does not end it."""
        await self.begin()
        await self.publish("cats", b"1", b"2")
        grant = await self.grant()
        await self.store.pause("sub")
        self.assertEqual(await self.deliver("cats", most=1), [b"1"])
        self.assertTrue(await self.store.fail("sub", "w1", grant.epoch, 5.0, "gone"))
        self.assertTrue((await self.store.subscription("sub")).paused)
        await self.books(2, sent=1, queued=1)

    async def test_told(self) -> None:
        """Each takes effect at once: the version grows, as the worker with the lease sees, and a hint goes out."""
        await self.begin()
        grant = await self.grant()
        for call in (self.store.pause, self.store.resume, self.store.retry):
            _, before = await self.store.renew("w1", {"sub": grant.epoch})
            seen = len(self.received)  # type: ignore[attr-defined]
            await call("sub")
            _, after = await self.store.renew("w1", {"sub": grant.epoch})
            self.assertGreater(after["sub"], before["sub"])
            await self.hinted(b"s sub", seen)

    async def test_not_subscribed(self) -> None:
        """Whoever has no subscription gets NotSubscribed from each call, and no key is made."""
        await self.create("cats")
        store = self.store
        for call in (
            store.pause, store.resume, store.retry, store.attempts, store.state, store.subscription,
            lambda name: store.acknowledge_pulled(name, []),
        ):  # fmt: skip
            await self.refused(NotSubscribed, call("sub"))
        await self.store.delete_topic("cats", "pub")
        self.assertEqual(await self.leftovers(), [])  # type: ignore[attr-defined]

    async def test_only_a_backlog_left(self) -> None:
        """A subscription of which only a topic's backlog is left can be paused, too."""
        await self.begin()
        await self.publish("cats", b"1")
        await self.store.leave("sub", "cats")
        await self.store.pause("sub")
        self.assertEqual(await self.seen(), (True, False, True, False))


class SettingsTests(StoreTests):
    """What a subscription carries, and what is read of it."""

    async def test_fields(self) -> None:
        """Every field of a subscription is stored, and is at its default again when it is left out."""
        await self.create("cats")
        whole = subscription(
            "cats", uuid="secret", timeout=7, max=9, max_bytes=2000, retention=5000, max_queued=10, rate=20,
            park_after=3, start=OLDEST,
        )  # fmt: skip
        for wanted in (whole, subscription("cats"), evolve(whole, callback=None, uuid=None)):
            await self.store.subscribe(wanted)
            self.assertEqual((await self.store.subscription("sub")).subscription, wanted)
            self.assertEqual((await self.store.state("sub")).subscription, wanted)
            if wanted.callback:
                self.assertEqual((await self.grant()).subscription, wanted)

    async def test_state(self) -> None:
        """The state has the memberships, a version that grows, and when the subscription was created."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats"))
        first = await self.store.state("sub")
        await self.publish("cats", b"1")
        await self.store.subscribe(subscription("dogs"))
        second = await self.store.state("sub")
        self.assertEqual({topic: each.state for topic, each in second.memberships.items()},
                         {"cats": "left", "dogs": "on"})  # fmt: skip
        self.assertEqual(second.memberships["cats"].id, first.memberships["cats"].id)
        self.assertEqual((second.subscription.topics, second.created), (("dogs",), first.created))
        self.assertGreater(second.version, first.version)
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("dogs"))
        third = await self.store.state("sub")
        self.assertGreater((third.created, third.version), (second.created, second.version))
        self.assertGreater(third.memberships["dogs"].id, second.memberships["dogs"].id)

    async def test_one_is_as_in_the_list(self) -> None:
        """One subscription is the same as in the list, with several topics, awaited ones and backlogs."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs", "ants", awaits=True, max_queued=3))
        await self.store.subscribe(subscription("dogs", subscriber="two"))
        await self.publish("cats", b"1", b"2")
        await self.publish("dogs", b"3", b"4")
        await self.deliver("cats", most=1)
        await self.store.expire("sub")
        await self.store.leave("two", "dogs")
        await self.store.delete_topic("dogs", "pub")
        await self.store.pause("two")
        listed = await self.store.subscriptions()
        self.assertEqual([await self.store.subscription(name) for name in ("sub", "two")], listed)
        self.assertEqual(listed[0].awaited, ("ants", "dogs"))
        await self.books(4, sent=1, queued=3)

    async def test_counts_outlive_the_memberships(self) -> None:
        """Every count of a topic stays in the books when its membership ends."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", max_queued=5))
        await self.publish("cats", *[b"%d" % n for n in range(9)])
        await self.store.expire("sub")
        await self.deliver("cats", most=1)
        await self.store.skip("sub", None)
        await self.books(9, expired=4, sent=1, skipped=4)
        await self.store.clean_up()
        await self.publish("cats", b"9")
        self.assertEqual(await self.store.drop_oldest(1), 1)
        await self.store.leave("sub", "cats")
        await self.store.repair("sub")
        self.assertEqual(dict((await self.store.state("sub")).memberships), {})
        await self.books(10, expired=4, sent=1, dropped=1, skipped=4)


class AttemptTests(StoreTests):
    """The list of attempts."""

    async def fail_once(self, report: bytes, worker: str = "w1", **options: Any) -> bool:
        epoch = (await self.grant()).epoch
        return bool(await self.store.fail("sub", worker, epoch, 0.5, "gone", report=report, **options))

    async def test_attempts(self) -> None:
        """The last failed attempts are listed, newest first, each once, and the last success."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.store.attempts("sub"), Attempts([], None))
        reports = [b'{"n":%d}' % n for n in range(MOST_REPORTS + 5)]
        for report in reports:
            self.assertTrue(await self.fail_once(report))
            self.assertTrue(await self.fail_once(report))
        self.assertEqual((await self.store.attempts("sub")).failed, reports[:4:-1])
        self.assertEqual(len(reports[:4:-1]), MOST_REPORTS)
        await self.acknowledge(b'{"ok":1}')
        await self.acknowledge(b"")  # of a worker that reports none
        self.assertEqual(await self.store.attempts("sub"), Attempts(reports[:4:-1], b'{"ok":1}'))
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        self.assertEqual(await self.store.attempts("sub"), Attempts([], None))

    async def acknowledge(self, report: bytes) -> None:
        epoch = (await self.grant()).epoch
        await self.store.acknowledge("sub", "w1", epoch, [], report=report)

    async def test_not_recorded(self) -> None:
        """A failure that is not recorded is not listed; nor is one without a report."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        self.assertFalse(await self.fail_once(b"x", worker="w2"))
        self.assertFalse(await self.fail_once(b"x", tried=("https://elsewhere/", None)))
        self.assertTrue(await self.fail_once(b""))
        await self.store.acknowledge("sub", "w2", 1, [], report=b"x")
        self.assertEqual(await self.store.attempts("sub"), Attempts([], None))

    async def test_refusals(self) -> None:
        """How often the oldest event was refused alone is kept for the next worker, until a success."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.fail_once(b"", refusals=2, batch_limit=1)
        grant = await self.grant()
        self.assertEqual((grant.refusals, grant.batch_limit), (2, 1))
        await self.fail_once(b"")
        self.assertEqual((await self.grant()).refusals, 0)
        await self.fail_once(b"", refusals=3)
        await self.acknowledge(b"")
        self.assertEqual((await self.grant()).refusals, 0)


class PulledTests(StoreTests):
    """Subscriptions without a callback."""

    async def begin(self) -> None:
        await self.create("cats", "dogs")
        await self.pull("cats", "dogs")

    async def pull(self, *topics: str) -> None:
        await self.store.subscribe(evolve(subscription(*topics), callback=None))

    async def acks(self, *topics: str, most: int = 100) -> list[Ack]:
        found = await self.read(*topics, most=most)
        last = {topic: entry for topic, entry, _ in found.entries}
        first = {topic: entry for topic, entry, _ in reversed(found.entries)}
        cursors = {topic: found.positions[topic].cursor for topic in last}
        return [
            Ack(topic, cursors[topic].membership, entry, first[topic], cursors[topic].rewinds)
            for topic, entry in last.items()
        ]

    async def test_acknowledge(self) -> None:
        """Cursors move over what was pulled; a repeated or older acknowledgement moves nothing."""
        await self.begin()
        await self.publish("cats", b"1", b"2")
        await self.publish("dogs", b"3", b"4")
        older, newer = await self.acks("cats", "dogs", most=1), await self.acks("cats", "dogs", most=3)
        await self.store.acknowledge_pulled("sub", newer)
        await self.books(4, sent=3, queued=1)
        for acks in (newer, older, []):
            await self.store.acknowledge_pulled("sub", acks)
        await self.books(4, sent=3, queued=1)
        self.assertEqual(await self.fragments("cats", "dogs"), [b"4"])

    async def test_health_and_hint(self) -> None:
        """An acknowledgement is recorded as a success, and a hint goes out."""
        await self.begin()
        await self.publish("cats", b"1")
        acks, seen = await self.acks("cats"), len(await self.hints(2))  # type: ignore[attr-defined]
        self.assertIsNone((await self.store.subscription("sub")).health.last_success)
        await self.store.acknowledge_pulled("sub", acks)
        health = (await self.store.subscription("sub")).health
        self.assertIsNotNone(health.last_success)
        self.assertEqual(health.last_attempt, health.last_success)
        await self.hinted(b"a sub", seen)

    async def test_outdated(self) -> None:
        """What was pulled before a rewind, or in another membership, or does not exist, acknowledges nothing."""
        for topic in ("cats", "dogs"):
            await self.store.configure_topic(topic, "pub", TopicSettings(history=HOUR * 1000))
        await self.pull("cats", "dogs")
        await self.publish("cats", b"1", b"2")
        first = await self.acks("cats", most=1)
        await self.store.acknowledge_pulled("sub", first)
        second = await self.acks("cats")
        await self.store.rewind("sub", OLDEST)
        lost = [evolve(ack, rewinds=1, last=EventID(ack.last.us + 1, ack.last.n)) for ack in second]
        for acks in (first, second, lost, [evolve(second[0], rewinds=1, membership=1)]):
            await self.store.acknowledge_pulled("sub", acks)
        await self.books(3, sent=1, queued=2)
        await self.store.acknowledge_pulled("sub", [evolve(second[0], rewinds=1)])
        await self.books(3, sent=3)

    async def test_dropped(self) -> None:
        """Events that were dropped before the first that was pulled are counted as dropped."""
        await self.begin()
        await self.publish("cats", b"1", b"2", b"3")
        await self.store.drop_oldest(1)
        await self.store.acknowledge_pulled("sub", await self.acks("cats"))
        await self.books(3, sent=2, dropped=1)

    async def test_no_lease(self) -> None:
        """No worker gets the lease of a pulled subscription; with a callback one does, at once."""
        await self.begin()
        self.assertEqual(await self.store.acquire("sub", "w1"), LeaseHeld(PULLED_RECHECK))
        await self.store.subscribe(subscription("cats"))
        grant = await self.grant()
        await self.pull("cats")
        self.assertEqual(await self.store.acquire("sub", "w1"), LeaseHeld(PULLED_RECHECK))
        await self.store.release("sub", "w1", grant.epoch)

    async def test_pushed(self) -> None:
        """For a subscription with a callback the cursors move, and nothing is recorded about its attempts."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1")
        await self.store.acknowledge_pulled("sub", await self.acks("cats"))
        await self.books(1, sent=1)
        self.assertIsNone((await self.store.subscription("sub")).health.last_success)

    async def test_expires(self) -> None:
        """What a subscriber does not pull expires by its settings, in the clean-up."""
        await self.create("cats")
        await self.store.subscribe(evolve(subscription("cats", max_queued=1), callback=None))
        await self.publish("cats", b"1", b"2", b"3")
        await self.store.clean_up()
        await self.books(3, expired=2, queued=1)


class OldDataTests(StoreTests):
    """What a version without these calls has written."""

    async def test_older_version(self) -> None:
        """Its cursors and counts are read on, and each of the new calls works on them."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"1", b"2", b"3")
        command, keys = self.store._redis.command, self.store._keys
        _meta, _log, cursors = keys.topic("cats")
        words = (await command(b"HGET", cursors, b"sub")).split()
        self.assertEqual(words[2:4], [b"0", b"0"])  # as before: four words, then the spans
        await command(b"HSET", cursors, b"sub", b" ".join([*words[:2], b"7", b"2", *words[4:]]))
        fields = [b"created", b"sent", *(name.encode() for name in ("max_bytes", "rate", "awaits", "start"))]
        await command(b"HDEL", keys.subscriber("sub")[0], *fields)
        await command(b"HSET", keys.subscriber("sub")[0], b"sent", b"5", b"dropped", b"4")
        await self.books(21, sent=12, dropped=6, queued=3)
        self.assertEqual((await self.store.state("sub")).created, 0)
        self.assertEqual(await self.deliver("cats", most=1), [b"1"])
        text = await command(b"HGET", cursors, b"sub")
        self.assertEqual(text.split()[2:4], [b"8", b"2"])  # which that version reads, too
        self.assertEqual(await self.store.skip("sub", None), 2)
        await self.books(21, sent=13, dropped=6, skipped=2)
        self.assertEqual(await self.store.topic_settings("cats"), TopicSettings())
        self.assertEqual(await self.store.rewind("sub", OLDEST), 0)


for _tests in (PauseTests, SettingsTests, AttemptTests, PulledTests):
    globals().update(on_every_store(_tests))
globals().update(on_redis(OldDataTests))
