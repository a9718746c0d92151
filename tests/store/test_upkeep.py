"""Upkeep: dropping events, counters, leader locks, workers, tokens."""

from __future__ import annotations

from attrs import evolve

from routemaster.errors import TokenTaken, UnknownToken
from routemaster.interfaces import Ack
from routemaster.model import ApiToken
from tests.store.case import StoreTests, on_every_store, subscription


class UpkeepTests(StoreTests):
    """What no publisher or subscriber calls."""

    async def test_drop_oldest(self) -> None:
        """The oldest events over all topics are dropped, each counted for every subscriber that waits for it."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats", "dogs"))
        await self.store.subscribe(subscription("cats", subscriber="two"))
        for n in range(10):
            await self.publish("dogs" if n % 3 else "cats", b"%d" % n)
        await self.deliver("cats", subscriber="two", most=1)
        gone = 0
        while left := await self.fragments("cats", "dogs"):
            self.assertEqual(left, [b"%d" % n for n in range(gone, 10)])
            dropped = await self.store.drop_oldest(2)
            self.assertTrue(0 < dropped <= 4)
            gone += dropped
            facts = await self.facts()
            self.assertEqual((facts.sent, facts.queued + facts.dropped), (0, 10))
            await self.store.clean_up()
            facts = await self.facts()
            self.assertEqual((facts.sent, facts.queued, facts.dropped), (0, 10 - gone, gone))
        self.assertEqual(await self.store.drop_oldest(2), 0)
        await self.store.repair("two")  # whose worker holds the lease
        facts = await self.facts("two")
        self.assertEqual((facts.sent, facts.queued, facts.dropped), (1, 0, 3))

    async def in_flight(self, events: int, most: int, drop: int) -> Ack:
        """Publish events and read a batch; then the oldest events are dropped, and the store is cleaned up."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.publish("cats", *[b"x"] * events)
        await self.grant()
        result = await self.read("cats", most=most)
        membership = result.positions["cats"].cursor.membership
        self.assertEqual(await self.store.drop_oldest(drop), drop)
        await self.store.clean_up()
        return Ack("cats", membership, result.entries[-1][1], result.entries[0][1])

    async def counts(self) -> tuple[int, int, int]:
        """Events of `sub` that are sent, dropped, queued."""
        facts = await self.facts()
        return facts.sent, facts.dropped, facts.queued

    async def test_dropped_in_flight(self) -> None:
        """An event that is dropped while it is in flight is counted once: as sent if it is acknowledged."""
        for drop, sent, queued in ((2, 5, 3), (5, 5, 3), (8, 5, 0)):
            ack = await self.in_flight(8, 5, drop)
            self.assertEqual(await self.counts(), (0, 0, 8))
            for _ in range(2):
                await self.store.acknowledge("sub", "w1", 1, [ack])
                self.assertEqual(await self.counts(), (sent, 0, 3))
            await self.store.repair("sub")
            self.assertEqual(await self.counts(), (sent, 3 - queued, queued))
            await self.store.unsubscribe("sub")

    async def test_dropped_before_a_batch(self) -> None:
        """An event that is dropped before the batch that is acknowledged is counted as dropped."""
        ack = await self.in_flight(8, 5, 3)
        first = ack.first
        await self.store.acknowledge("sub", "w1", 1, [evolve(ack, first=type(first)(first.us, first.n + 3))])
        self.assertEqual(await self.counts(), (2, 3, 3))

    async def test_dropped_and_not_delivered(self) -> None:
        """Dropped events are counted once their attempt has failed, or the lease is released."""
        for end in ("failed", "released", "repaired"):
            await self.in_flight(8, 5, 6)
            self.assertEqual(await self.counts(), (0, 0, 8))
            grant = await self.grant()
            if end == "failed":
                await self.store.fail("sub", "w1", grant.epoch, 60.0, "refused")
            elif end == "released":
                await self.store.release("sub", "w1", grant.epoch)
            else:
                await self.store.repair("sub")
            await self.store.clean_up()
            self.assertEqual(await self.counts(), (0, 6, 2), end)
            await self.store.unsubscribe("sub")

    async def test_acknowledgement_of_lost_events_after_a_drop(self) -> None:
        """An ID that the log never held moves nothing, although the log is empty."""
        ack = await self.in_flight(3, 3, 3)
        for us, n in ((0, 1), (1, 0)):
            lost = evolve(ack, last=type(ack.last)(ack.last.us + us, ack.last.n + n))
            await self.store.acknowledge("sub", "w1", 1, [lost])
            self.assertEqual(await self.counts(), (0, 0, 3))

    async def test_counters(self) -> None:
        """Counters of all processes are added up; the totals last reported are stored separately."""
        await self.store.add_counts({"a|x=1": 2, "b": 1})
        await self.store.add_counts({"a|x=1": 3})
        await self.store.set_reported({"b": 1})
        await self.store.set_reported({"b": 7, "c": 1})
        self.assertEqual(await self.store.counts(), {"a|x=1": 5, "b": 1})
        self.assertEqual(await self.store.reported(), {"b": 7, "c": 1})

    async def test_leader_lock(self) -> None:
        """A leader lock has one holder, which keeps it by asking again."""
        holders = [await self.store.elect_leader("monitor", process, 60) for process in ("p1", "p2", "p1")]
        self.assertEqual(holders, [True, False, True])
        self.assertTrue(await self.store.elect_leader("other", "p2", 60))

    async def test_workers(self) -> None:
        """A worker is live until its announcement expires or it withdraws; hints announce both."""
        await self.store.announce("short", 0)
        self.assertEqual(set(await self.store.announce("w1", 60)), {"w1"})
        left = await self.store.announce("w2", 65)
        self.assertEqual(set(left), {"w1", "w2"})
        self.assertTrue(55 < left["w1"] <= 60 < left["w2"] <= 65, left)
        self.assertEqual(await self.store.count_workers(), 2)
        await self.store.withdraw("w1")
        await self.store.withdraw("w1")
        self.assertEqual(await self.store.count_workers(), 1)
        self.assertEqual(set(await self.store.announce("w2", 30)), {"w2"})
        expected = [b"w short on", b"w w1 on", b"w w2 on", b"w w1 off"]
        # in this order from one Redis; the nodes of a cluster send in any order
        self.assertCountEqual(await self.hints(len(expected)), expected)

    async def test_figures(self) -> None:
        """`stats` returns the memory in use, and the time by the clock that dates events."""
        await self.create("cats")
        published = (await self.publish("cats", b"1")).first.us / 1e6
        for figures in await self.store.stats():
            self.assertGreaterEqual(figures.bytes_used, 0)
            assert figures.time is not None
            self.assertLess(abs(figures.time - published), 60)

    async def test_dead_workers(self) -> None:
        """A worker whose announcement has expired is not counted, though nobody has announced itself since."""
        await self.store.announce("short", 0)
        self.assertEqual(await self.store.count_workers(), 0)

    async def test_log_bytes(self) -> None:
        """`log_bytes` is the memory that all logs take together."""
        await self.create("cats", "dogs")
        self.assertEqual(await self.store.log_bytes(), 0)
        await self.store.subscribe(subscription("cats", "dogs"))
        for topic in ("cats", "dogs"):
            for _ in range(5):
                await self.publish(topic, *[b"x" * 1000] * 100)
        self.assertTrue(1_000_000 <= await self.store.log_bytes() < 1_200_000)

    async def test_tokens(self) -> None:
        """Tokens are added, renamed, removed; the changes since a mark lead from the tokens then to those now."""
        marked = [await self.store.tokens()]
        for change in (
            self.store.add_token(ApiToken("zoo", "zoo--1")),
            self.store.add_token(ApiToken("bar", "bar--1")),
            self.store.add_token(ApiToken("ape", "zoo--1")),
            self.store.add_token(ApiToken("new", "new--1", "bar--1")),
            self.store.remove_token("bar--1"),
        ):
            await change
            marked.append(await self.store.tokens())
        await self.store.remove_token("never--1")
        self.assertEqual(marked[-1].names, {"zoo--1": "ape", "new--1": "new"})
        self.assertEqual(marked[-1].clients, {"new--1": "bar--1"})
        self.assertEqual(len({each.mark for each in marked}), 6)
        for then in marked[1:]:
            names, clients, mark = dict(then.names), dict(then.clients), then.mark
            while True:
                changes, mark = await self.store.token_changes(mark) or self.fail("unknown")
                if not changes:
                    break
                for each in changes:
                    names[each.token] = each.name or ""
                    if each.client is not None:
                        clients[each.token] = each.client
            self.assertEqual({token: name for token, name in names.items() if name}, marked[-1].names)
            self.assertEqual((clients, mark), (marked[-1].clients, marked[-1].mark))

    async def test_replaced_tokens(self) -> None:
        """A token speaks for the client of the one that it replaces, even if that or it is removed."""
        add = self.store.add_token
        await add(ApiToken("a", "a--1"))
        await add(ApiToken("b", "b--1", "a--1"))
        await self.store.remove_token("a--1")
        await add(ApiToken("c", "c--1", "b--1"))
        await self.store.assign_client("d--1", "c--1")
        await add(ApiToken("e", "e--1", "d--1"), "d--1")
        await self.store.remove_token("b--1")
        await add(ApiToken("b", "b--1"))
        clients = dict.fromkeys(("b--1", "c--1", "d--1", "e--1"), "a--1")
        self.assertEqual((await self.store.tokens()).clients, clients)
        await add(ApiToken("x", "x--1"))
        await self.refused(UnknownToken, add(ApiToken("y", "y--1", "a--1")))
        for taken in ("x--1", "b--1"):
            await self.refused(TokenTaken, add(ApiToken("z", taken, "x--1" if taken == "b--1" else "c--1")))
        await add(ApiToken("x", "x--1", "x--1"))
        found = await self.store.tokens()
        self.assertEqual(found.clients, clients)
        self.assertEqual(found.names, {"b--1": "b", "c--1": "c", "e--1": "e", "x--1": "x"})
        await self.store.assign_client("d--1", "x--1")
        self.assertEqual((await self.store.tokens()).clients, clients | {"d--1": "x--1"})

    async def test_hints(self) -> None:
        """Hints announce events, changed subscriptions, released leases and changed tokens."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        published = await self.publish("cats", b"1", b"2")
        await self.store.release("sub", "w1", (await self.grant()).epoch)
        await self.store.add_token(ApiToken("zoo", "zoo--1"))
        expected = [b"s sub", f"t cats {published.first} {published.last}".encode(), b"s sub", b"k log"]
        # in this order from one Redis; the nodes of a cluster send in any order
        self.assertCountEqual(await self.hints(len(expected)), expected)


globals().update(on_every_store(UpkeepTests))
