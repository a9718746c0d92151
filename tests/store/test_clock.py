"""A store whose clock is set back or forth by an hour."""

from __future__ import annotations

from routemaster.interfaces import LeaseHeld
from tests.store.case import TTL, StoreTests, on_every_store, subscription

HOUR = 3600


class ClockTests(StoreTests):
    """IDs, versions, leases, locks and announcements after a jump of the store's clock."""

    async def test_ids_grow(self) -> None:
        """The IDs of a topic grow and stay dense whatever the clock shows."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        last = (await self.publish("cats", b"0")).last
        for number, by in enumerate((HOUR, -2 * HOUR, HOUR), 1):
            await self.set_clock(by)
            published = (await self.publish("cats", b"%d" % number)).last
            self.assertEqual(published.n, last.n + 1)
            self.assertGreaterEqual(published.us, last.us)
            last = published
        self.assertEqual(await self.deliver("cats"), [b"0", b"1", b"2", b"3"])

    async def test_subscription_changes(self) -> None:
        """After the clock was set back, versions and epochs still grow, so that each later change is applied."""
        await self.create("cats", "dogs")
        await self.store.subscribe(subscription("cats"))
        before = await self.grant()
        await self.store.release("sub", "w1", before.epoch)
        await self.set_clock(-HOUR)
        await self.store.subscribe(subscription("dogs"))
        await self.publish("cats", b"1")
        await self.publish("dogs", b"2")
        self.assertEqual(await self.fragments("cats", "dogs"), [b"2"])
        after = await self.grant()
        self.assertGreater((after.version, after.epoch), (before.version, before.epoch))

    async def test_lease_of_a_dead_worker(self) -> None:
        """After the clock was set back, leases and leader locks still end within their time to live."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        await self.grant(worker="dead")
        await self.store.elect_leader("monitor", "dead", TTL)
        await self.set_clock(-HOUR)
        held = await self.store.acquire("sub", "w2")
        assert isinstance(held, LeaseHeld)
        self.assertTrue(0 < held.remaining <= TTL, held)
        self.assertFalse(await self.store.elect_leader("monitor", "p2", TTL))
        await self.set_clock(int(TTL) + 1)
        await self.grant(worker="w2")
        self.assertTrue(await self.store.elect_leader("monitor", "p2", TTL))

    async def test_dead_worker(self) -> None:
        """After the clock was set back, an announcement still ends within its time to live."""
        await self.store.announce("dead", TTL)
        await self.set_clock(-HOUR)
        left = await self.store.announce("w2", TTL)
        self.assertTrue(0 < left["dead"] <= TTL, left)
        await self.set_clock(int(TTL) + 1)
        self.assertEqual(set(await self.store.announce("w2", TTL)), {"w2"})

    async def test_lease_after_a_jump_forward(self) -> None:
        """A clock set forward ends every lease; the worker can acquire it again."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats"))
        grant = await self.grant()
        await self.set_clock(HOUR)
        self.assertEqual((await self.store.renew("w1", {"sub": grant.epoch}))[1], {"sub": None})
        self.assertGreater((await self.grant()).epoch, grant.epoch)


globals().update(on_every_store(ClockTests))
