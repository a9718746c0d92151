"""Acknowledgements that go out together."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred, fail

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.interfaces import Ack
from routemaster.store.acknowledgements import AT_ONCE
from tests.store.case import StoreTests, on_every_store, on_redis, subscription

SUBSCRIBERS = [f"sub{number}" for number in range(120)]


class TogetherTests(StoreTests):
    """Every store."""

    async def test_each_for_itself(self) -> None:
        """Of acknowledgements at the same time each moves its own cursors, and records its own success."""
        await self.create("cats", "dogs")
        names = SUBSCRIBERS[:7]
        for name in names:
            await self.store.subscribe(subscription("cats", "dogs", subscriber=name))
        await self.publish("cats", b"1", b"2", b"3")
        await self.publish("dogs", b"4", b"5")
        calls = []
        for number, name in enumerate(names):
            grant, found = await self.grant(name), (await self.read("cats", "dogs", subscriber=name))
            last: dict[str, Any] = {topic: entry for topic, entry, _ in found.entries[: 1 + number % 5]}
            acks = [Ack(topic, grant.memberships[topic].id, entry) for topic, entry in last.items()]
            epoch = grant.epoch + (number == 3)  # not the lease's
            calls.append(Deferred.fromCoroutine(self.store.acknowledge(name, "w1", epoch, acks)))
        for number, (name, call) in enumerate(zip(names, calls, strict=True)):
            positions = await call
            facts = await self.facts(name)
            delivered = 1 + number % 5
            self.assertEqual((facts.sent, facts.queued), (delivered, 5 - delivered), name)
            self.assertEqual(facts.health.last_success is None, number == 3)
            self.assertEqual(sum(place.cursor.sent for place in positions.values()), delivered)


class CallsTests(StoreTests):
    """One Redis or a cluster."""

    async def setUp(self) -> None:
        await super().setUp()  # type: ignore[misc]
        await self.create("cats")
        for name in SUBSCRIBERS:
            await self.store.subscribe(subscription("cats", subscriber=name))
        await self.publish("cats", b"1")
        self.grants = {name: await self.grant(name) for name in SUBSCRIBERS}
        [(_, self.event, _)] = (await self.read("cats", subscriber=SUBSCRIBERS[0])).entries

    async def acknowledge_all(self) -> dict[str, Any]:
        """Acknowledge the event for all subscribers at once; the positions or the error, by subscriber."""
        calls = {
            name: Deferred.fromCoroutine(self.store.acknowledge(
                name, "w1", grant.epoch, [Ack("cats", grant.memberships["cats"].id, self.event)]
            )).addErrback(lambda failure: failure.value)
            for name, grant in self.grants.items()
        }  # fmt: skip
        return {name: await call for name, call in calls.items()}

    async def test_few_calls(self) -> None:
        """The cursors of one topic move in one call for all that wait, a hundred at most."""
        run, scripts = self.store._redis.run, []

        def record(name: str, *arguments: Any) -> Deferred[Any]:
            scripts.append(name)
            return run(name, *arguments)

        self.patch(self.store._redis, "run", record)
        results = await self.acknowledge_all()
        self.assertEqual(scripts.count("acknowledge"), 1 + -(-(len(SUBSCRIBERS) - 1) // AT_ONCE))
        self.assertEqual({each["cats"].cursor.sent for each in results.values()}, {1})

    async def test_key_of_wrong_type(self) -> None:
        """A key that was overwritten spoils the acknowledgement of its own subscriber only."""
        await self.store._redis.command(b"SET", self.store._keys.subscriber(SUBSCRIBERS[50])[0], b"overwritten")
        results = await self.acknowledge_all()
        self.assertIsInstance(results.pop(SUBSCRIBERS[50]), StoreBroken)
        self.assertEqual({each["cats"].cursor.sent for each in results.values()}, {1})

    async def test_unavailable(self) -> None:
        """If the call fails each gets an exception of its own, and the next call is made."""
        with patch.object(self.store._redis, "run", lambda *_: fail(StoreUnavailable("gone"))):
            errors = await self.acknowledge_all()
        self.assertEqual({type(error) for error in errors.values()}, {StoreUnavailable})
        self.assertEqual(len({id(error) for error in errors.values()}), len(errors))
        results = await self.acknowledge_all()
        self.assertEqual({each["cats"].cursor.sent for each in results.values()}, {1})


globals().update(on_every_store(TogetherTests) | on_redis(CallsTests))
