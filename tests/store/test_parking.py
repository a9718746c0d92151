"""Parked events: put aside, listed, delivered again, removed."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from routemaster.errors import NotSubscribed
from routemaster.model import OLDEST, EventID, ParkedEvent, TopicSettings
from routemaster.store import memory_administration, parking
from tests.store.case import TTL, StoreTests, on_every_store, subscription


class ParkingCase(StoreTests):
    """A subscriber with a backlog."""

    async def begin(self, *fragments: bytes, **options: Any) -> list[ParkedEvent]:
        """Subscribe to cats, and publish these in one call; the events as they would be parked."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", **options))
        return await self.more(*fragments)

    async def more(self, *fragments: bytes, topic: str = "cats") -> list[ParkedEvent]:
        first = (await self.publish(topic, *fragments)).first
        return [
            ParkedEvent(topic, EventID(first.us, first.n + n), fragment, f"refused {n}", 1_700_000_000.25 + n)
            for n, fragment in enumerate(fragments)
        ]

    async def park(self, event: ParkedEvent, worker: str = "w1") -> bool:
        grant = await self.grant(worker=worker)
        membership = grant.memberships[event.topic].id
        return bool(await self.store.park("sub", worker, grant.epoch, membership, event))

    async def settle(self, event: ParkedEvent, refused: str = "") -> None:
        await self.store.settle_retried("sub", "w1", (await self.grant()).epoch, event, refused)

    async def listed(self) -> list[ParkedEvent]:
        found, _mark = await self.store.parked("sub", "", 1000)
        return list(found)


class ParkTests(ParkingCase):
    """Putting events aside."""

    async def test_park(self) -> None:
        """A parked event is listed whole and counted; the events behind it go on."""
        events = await self.begin(b"1", b"2", b"3")
        self.assertTrue(await self.park(events[0]))
        await self.books(3, parked=1, queued=2)
        self.assertEqual(await self.listed(), events[:1])
        self.assertEqual(await self.deliver("cats"), [b"2", b"3"])
        await self.books(3, parked=1, sent=2)
        await self.store.clean_up()
        self.assertEqual(await self.listed(), events[:1])

    async def test_repeated(self) -> None:
        """Parking an event again changes nothing."""
        events = await self.begin(b"1", b"2")
        self.assertTrue(await self.park(events[0]))
        self.assertTrue(await self.park(evolve(events[0], reason="another", at=0.0)))
        await self.books(2, parked=1, queued=1)
        self.assertEqual(await self.listed(), events[:1])

    async def test_lease(self) -> None:
        """Without the lease nothing is parked, and the event waits."""
        events = await self.begin(b"1")
        grant = await self.grant()
        membership = grant.memberships["cats"].id
        for worker, epoch in (("w2", grant.epoch), ("w1", grant.epoch - 1)):
            self.assertFalse(await self.store.park("sub", worker, epoch, membership, events[0]))
        await self.set_clock(int(TTL) + 1)  # type: ignore[attr-defined]
        self.assertFalse(await self.store.park("sub", "w1", grant.epoch, membership, events[0]))
        await self.books(1, queued=1)
        self.assertEqual(await self.listed(), [])

    async def test_most_events(self) -> None:
        """At most so many events are parked, those that are to be delivered again included."""
        events = await self.begin(b"1", b"2", b"3", b"4")
        self.limit("MAX_PARKED", 2)
        self.assertEqual([await self.park(event) for event in events[:3]], [True, True, False])
        await self.books(4, parked=2, queued=2)
        await self.store.retry_parked("sub", [events[0].id])
        self.assertFalse(await self.park(events[2]))
        await self.settle(events[0])
        self.assertEqual([await self.park(event) for event in events[2:]], [True, False])
        self.assertEqual(await self.listed(), events[1:3])

    async def test_most_bytes(self) -> None:
        """At most so many bytes are parked; what is delivered or removed makes room again."""
        events = await self.begin(*[b"x" * 1000] * 5)
        self.limit("MAX_PARKED_BYTES", 2100)
        self.assertEqual([await self.park(event) for event in events[:3]], [True, True, False])
        await self.store.retry_parked("sub", [events[0].id])
        await self.settle(events[0], "refused again, " + "and at great length " * 5)
        self.assertFalse(await self.park(events[2]))
        await self.store.retry_parked("sub", [events[0].id])
        await self.settle(events[0])
        self.assertEqual([await self.park(event) for event in events[2:4]], [True, False])
        self.assertEqual(await self.store.drop_parked("sub"), 2)
        self.assertEqual([await self.park(event) for event in events[3:]], [True, True])

    def limit(self, name: str, value: int) -> None:
        for module in (memory_administration, parking):
            self.patch(module, name, value)  # type: ignore[attr-defined]

    async def test_rewound_meanwhile(self) -> None:
        """If the cursor went back meanwhile the events before the parked one come, and are not passed over."""
        await self.store.configure_topic("cats", "pub", TopicSettings(history=3_600_000))
        events = await self.begin(b"1", b"2", b"3")
        await self.deliver("cats", most=2)
        self.assertEqual(await self.store.rewind("sub", events[0].id.us), 2)
        self.assertTrue(await self.park(events[2]))
        await self.books(5, sent=2, queued=3)
        self.assertEqual(await self.deliver("cats", most=2), [b"1", b"2"])
        self.assertTrue(await self.park(events[2]))
        await self.books(5, sent=4, parked=1)

    async def test_other_membership(self) -> None:
        """Parking for an ended membership passes nothing in a new one."""
        events = await self.begin(b"1")
        old = await self.grant()
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", b"2")
        new = await self.grant()
        await self.store.park("sub", "w1", new.epoch, old.memberships["cats"].id, events[0])
        await self.books(1, queued=1)

    async def test_lost_number(self) -> None:
        """An event that the log does not hold passes nothing: a store that lost writes has another one there."""
        events = await self.begin(b"1", b"2")
        await self.park(evolve(events[0], id=EventID(events[0].id.us + 1, events[0].id.n)))
        await self.books(2, queued=2)

    async def test_dropped_before(self) -> None:
        """Events before the parked one that were dropped are counted as dropped."""
        events = await self.begin(b"1", b"2")
        await self.more(b"3", topic="cats")
        await self.grant()
        await self.store.drop_oldest(1)
        await self.publish("cats", b"4")
        found = (await self.read("cats")).entries
        await self.park(ParkedEvent("cats", found[0][1], found[0][2], "refused", 1.0))
        await self.books(4, dropped=4 - len(found), parked=1, queued=len(found) - 1)
        self.assertGreater(4 - len(found), 0)
        self.assertNotIn(events[0], await self.listed())

    async def test_ends_a_membership(self) -> None:
        """A topic that was left ends with its last event parked, which stays in the list and in the books."""
        events = await self.begin(b"1")
        await self.store.leave("sub", "cats")
        self.assertTrue(await self.park(events[0]))
        await self.store.repair("sub")
        self.assertEqual(dict((await self.store.state("sub")).memberships), {})
        await self.books(1, parked=1)
        self.assertEqual(await self.listed(), events)


class ListTests(ParkingCase):
    """What is parked, and what becomes of it."""

    async def parked_events(self, count: int = 4, **options: Any) -> list[ParkedEvent]:
        events = await self.begin(*[b"%d" % n for n in range(count)], **options)
        for event in events:
            self.assertTrue(await self.park(event))
        return events

    async def waits_since(self, event: ParkedEvent) -> None:
        self.assertEqual((await self.store.subscription("sub")).oldest, event.id.us / 1e6)

    async def test_list(self) -> None:
        """The list is in the order of acceptance, over several topics and numbers, in parts on request."""
        events = await self.parked_events(12)
        await self.create("ants")
        await self.store.subscribe(subscription("cats", "ants"))
        events += await self.more(b"12", b"13", topic="ants")
        for event in events[12:]:
            await self.park(event)
        self.assertEqual(await self.listed(), events)
        found: list[ParkedEvent] = []
        mark = ""
        while True:
            some, mark = await self.store.parked("sub", mark, 5)
            if not some:
                break
            self.assertEqual(len(some), min(5, 14 - len(found)))
            self.assertEqual(mark, f"{some[-1].topic} {some[-1].id}")
            found += some
        self.assertEqual((found, mark), (events, ""))

    async def test_list_goes_on_after_a_removed_event(self) -> None:
        """A list goes on though the event after which it stopped is gone, and misses none."""
        events = await self.parked_events(6)
        some, mark = await self.store.parked("sub", "", 3)
        await self.store.retry_parked("sub", [event.id for event in some])
        self.assertEqual((await self.store.parked("sub", mark, 100))[0], events[3:])

    async def test_retry_some(self) -> None:
        """Events that are to be retried leave the list, wait again, and come in the order of acceptance."""
        events = await self.parked_events()
        await self.books(4, parked=4)
        asked = [events[2].id, events[1].id, EventID(1, 1)]
        self.assertEqual(await self.store.retry_parked("sub", asked), 2)
        self.assertEqual(await self.store.retry_parked("sub", asked), 0)
        await self.books(6, parked=4, queued=2)
        self.assertEqual((await self.grant()).retried, 2)
        self.assertEqual(await self.listed(), [events[0], events[3]])
        self.assertEqual(await self.store.next_retried("sub"), events[1])
        await self.settle(events[1])
        self.assertEqual(await self.store.next_retried("sub"), events[2])
        await self.books(6, parked=4, queued=1, sent=1)

    async def test_oldest(self) -> None:
        """The oldest of the events that are to be retried counts as waiting since it was received."""
        events = await self.parked_events(2)
        events += await self.more(b"2")
        await self.waits_since(events[2])
        for retried in reversed(events[:2]):
            await self.store.retry_parked("sub", [retried.id])
            await self.waits_since(retried)
        await self.settle(events[1])
        await self.waits_since(events[0])
        await self.settle(events[0], "again")
        await self.waits_since(events[2])
        await self.deliver("cats")
        self.assertIsNone((await self.store.subscription("sub")).oldest)

    async def test_retry_all(self) -> None:
        """Without IDs all parked events are retried, hundreds of them."""
        events = await self.parked_events(300)
        self.assertEqual(await self.store.retry_parked("sub", None), 300)
        await self.books(600, parked=300, queued=300)
        for event in events:
            self.assertEqual(await self.store.next_retried("sub"), event)
            await self.settle(event)
        self.assertIsNone(await self.store.next_retried("sub"))
        await self.books(600, parked=300, sent=300)
        self.assertEqual((await self.grant()).retried, 0)

    async def test_settle(self) -> None:
        """A retried event is delivered, or parked again with the new reason; a repetition changes nothing."""
        events = await self.parked_events(2)
        await self.store.retry_parked("sub", None)
        for _ in range(2):
            await self.settle(events[0])
            await self.settle(events[1], "once more")
            await self.books(4, parked=3, sent=1)
        self.assertEqual(await self.listed(), [evolve(events[1], reason="once more")])
        self.assertEqual(await self.store.retry_parked("sub", [events[0].id]), 0)

    async def test_settle_without_the_lease(self) -> None:
        """Without the lease a retried event stays to be delivered."""
        events = await self.parked_events(1)
        await self.store.retry_parked("sub", None)
        epoch = (await self.grant()).epoch
        for worker, old in (("w2", epoch), ("w1", epoch - 1)):
            await self.store.settle_retried("sub", worker, old, events[0])
            await self.store.settle_retried("sub", worker, old, events[0], "refused")
        self.assertEqual(await self.store.next_retried("sub"), events[0])
        await self.books(2, parked=1, queued=1)

    async def test_drop(self) -> None:
        """Removing takes all but what is to be retried, and changes nothing in the books."""
        events = await self.parked_events(3)
        await self.store.retry_parked("sub", [events[1].id])
        self.assertEqual(await self.store.drop_parked("sub"), 2)
        self.assertEqual(await self.store.drop_parked("sub"), 0)
        self.assertEqual(await self.listed(), [])
        self.assertEqual(await self.store.next_retried("sub"), events[1])
        await self.books(4, parked=3, queued=1)

    async def test_told(self) -> None:
        """The worker is told of events to be retried: the version grows, and a hint goes out."""
        await self.parked_events(1)
        version = (await self.store.state("sub")).version
        await self.store.configure_topic("marker", "pub", TopicSettings())
        await self.hinted(b"c marker", 0)  # what was sent before has come
        seen = len(self.received)
        await self.store.retry_parked("sub", None)
        self.assertGreater((await self.store.state("sub")).version, version)
        await self.hinted(b"s sub", seen)

    async def test_comes_again_by_a_rewind(self) -> None:
        """A parked event that comes again by a rewind is counted as what becomes of it then; its copy stays."""
        await self.store.configure_topic("cats", "pub", TopicSettings(history=3_600_000))
        events = await self.parked_events(2)
        self.assertEqual(await self.store.rewind("sub", OLDEST), 3)  # the first is from before
        await self.deliver("cats", most=2)
        self.assertTrue(await self.park(events[1]))
        await self.books(5, parked=3, sent=2)
        self.assertEqual(await self.listed(), events)

    async def test_unsubscribed(self) -> None:
        """Parked events go with the subscription, and a new one begins without; no key is left."""
        await self.parked_events(2)
        await self.store.retry_parked("sub", None)
        await self.more(b"more")
        await self.store.unsubscribe("sub")
        for call in (
            self.store.parked("sub", "", 10), self.store.retry_parked("sub", None), self.store.drop_parked("sub"),
        ):  # fmt: skip
            await self.refused(NotSubscribed, call)
        self.assertIsNone(await self.store.next_retried("sub"))
        await self.store.subscribe(subscription("cats"))
        self.assertEqual((await self.listed(), (await self.grant()).retried), ([], 0))
        await self.books(0)
        await self.store.unsubscribe("sub")
        await self.store.delete_topic("cats", "pub")
        self.assertEqual(await self.leftovers(), [])  # type: ignore[attr-defined]


for _tests in (ParkTests, ListTests):
    globals().update(on_every_store(_tests))
