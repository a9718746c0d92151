"""The secrets that deliveries are signed with: kept with the subscription, and for a day when replaced."""

from __future__ import annotations

from base64 import b64encode

from routemaster.model import MAX_OLD_SECRETS, OLD_SECRET_LIFE
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

A, B, C, *MORE = (f"whsec_{b64encode(bytes([number]) * 24).decode()}" for number in range(12))
HOUR = 3600


class SecretTests(StoreTests):
    """Subscribing with a secret, with another one, and with none."""

    async def subscribe(self, secret: str | None) -> None:
        await self.store.subscribe(subscription(secret=secret))

    async def assert_signs(self, *secrets: str) -> None:
        """These sign now, in this order, for the worker as for a test of the callback."""
        grant = await self.grant()
        for found in (grant.subscription, (await self.store.state("sub")).subscription):
            signing = found.signing(grant.now / 1e6)
            self.assertEqual(() if signing is None else signing.secrets, secrets)

    async def test_none(self) -> None:
        """Without a secret nothing is signed."""
        await self.subscribe(None)
        await self.assert_signs()

    async def test_replaced(self) -> None:
        """The secret that was replaced signs too, for 24 hours and no longer."""
        await self.subscribe(A)
        await self.assert_signs(A)
        await self.subscribe(B)
        await self.set_clock(OLD_SECRET_LIFE - HOUR)
        await self.assert_signs(B, A)
        await self.set_clock(HOUR + 1)
        await self.assert_signs(B)

    async def test_subscribing_again(self) -> None:
        """Subscribing again with the same secret does not prolong the old one's 24 hours."""
        await self.subscribe(A)
        await self.subscribe(B)
        await self.set_clock(OLD_SECRET_LIFE - HOUR)
        await self.subscribe(B)
        await self.assert_signs(B, A)
        await self.set_clock(HOUR + 1)
        await self.subscribe(B)
        await self.assert_signs(B)

    async def test_replaced_twice(self) -> None:
        """Each secret that was replaced signs for 24 hours of its own."""
        await self.subscribe(A)
        await self.subscribe(B)
        await self.set_clock(20 * HOUR)
        await self.subscribe(C)
        await self.assert_signs(C, B, A)
        await self.set_clock(5 * HOUR)
        await self.assert_signs(C, B)

    async def test_back(self) -> None:
        """A secret that is used again is the present one only, and the one that it replaces is an old one."""
        await self.subscribe(A)
        await self.subscribe(B)
        await self.subscribe(A)
        await self.assert_signs(A, B)

    async def test_bound(self) -> None:
        """Of many old secrets the last few sign."""
        for secret in (A, B, C, *MORE):
            await self.subscribe(secret)
        old = [C, *MORE][:-1]
        await self.assert_signs(MORE[-1], *old[: -MAX_OLD_SECRETS - 1 : -1])

    async def test_removed(self) -> None:
        """Without the secret nothing is signed at once, and with a new one the removed one does not sign."""
        await self.subscribe(A)
        await self.subscribe(B)
        await self.subscribe(None)
        await self.assert_signs()
        await self.subscribe(C)
        await self.assert_signs(C)

    async def test_unsubscribed(self) -> None:
        """Who unsubscribes leaves no secret behind."""
        await self.create("cats")
        await self.store.subscribe(subscription("cats", secret=A))
        await self.store.subscribe(subscription("cats", secret=B))
        await self.store.unsubscribe("sub")
        await self.store.subscribe(subscription("cats", secret=C))
        await self.assert_signs(C)


class EarlierVersionTests(StoreTests):
    """Data of versions that know no secrets."""

    async def test_same_data(self) -> None:
        """A subscription without a secret has no field that those did not have, also when one was removed."""
        for secret in (None, A, B, None):
            await self.store.subscribe(subscription(secret=secret))
            meta = await self.store._redis.command(b"HGETALL", self.store._keys.subscriber("sub")[0])
            stored = {name for name in meta if name.endswith((b"secret", b"secrets"))}
            expected = {None: set(), A: {b"secret"}, B: {b"secret", b"old_secrets"}}[secret]
            self.assertEqual(stored, expected)


globals().update(on_every_store(SecretTests))
globals().update(on_redis(EarlierVersionTests))
