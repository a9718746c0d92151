"""Messages arrive, and `on_up` is called when some may have been missed."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from routemaster.redis import reconnect
from routemaster.redis.address import RedisAddress
from routemaster.redis.pubsub import PubSub
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from tests.redis.fake_redis import FakeRedis, polite


class RealRedis(TestCase):
    """Against a server of each version."""

    binary: ServerBinary
    timeout = 20
    fails = False

    def setUp(self) -> None:
        self.redis = PrivateRedis(self.binary)
        self.addCleanup(self.redis.stop)
        self.redis.start()
        self.messages: list[bytes] = []
        self._expected: list[Deferred[None]] = []

    def listen(self, address: RedisAddress | None = None, timeout: float = 0.2) -> PubSub:
        pubsub = PubSub(
            address or self.redis.address, b"rm:wake", reactor=reactor, reply_timeout=timeout,
            on_message=self.received, on_up=lambda: self.received(b"UP"),
        )
        pubsub.start()
        self.addCleanup(pubsub.stop)
        return pubsub

    def received(self, message: bytes) -> None:
        self.messages.append(message)
        fails = self.fails
        if self._expected:
            self._expected.pop(0).callback(None)
        if fails:
            raise ZeroDivisionError

    async def expect(self, *messages: bytes) -> None:
        """These messages and no others arrive from now on."""
        while len(self.messages) < len(messages):
            self._expected.append(Deferred())
            await self._expected[-1]
        self.assertEqual(self.messages, list(messages))
        self.messages.clear()

    async def test_messages(self) -> None:
        """After on_up each message of the channel, and of no other, is passed on, byte for byte, in order."""
        pubsub = self.listen()
        self.assertFalse(pubsub.connected)
        await self.expect(b"UP")
        self.assertTrue(pubsub.connected)
        self.redis.call(b"PUBLISH", b"rm:other", b"no")
        odd = [b"007", b"\xff\r\n", b"", b"subscribe"]
        for message in odd:
            self.redis.call(b"PUBLISH", b"rm:wake", message)
        await self.expect(*odd)

    async def test_restart(self) -> None:
        """After a restart of Redis it subscribes again, and calls on_up."""
        self.listen()
        for _ in range(2):
            await self.expect(b"UP")
            self.redis.call(b"PUBLISH", b"rm:wake", b"x")
            await self.expect(b"x")
            self.redis.restart()
        await self.expect(b"UP")

    async def test_killed_subscription(self) -> None:
        """A subscription whose connection the server closes is made again."""
        self.listen()
        for _ in range(3):
            await self.expect(b"UP")
            self.redis.call(b"CLIENT", b"KILL", b"TYPE", b"pubsub")
        await self.expect(b"UP")

    async def test_half_open(self) -> None:
        """A half-open subscribed connection is found, and replaced when the server replies again."""
        pubsub = self.listen(timeout=0.1)
        await self.expect(b"UP")
        protocol: Any = pubsub._reconnector.protocol
        self.redis.pause()
        await protocol.when_lost()
        self.assertFalse(pubsub.connected)
        self.redis.resume()
        await self.expect(b"UP")

    async def test_idle(self) -> None:
        """An idle subscription stays: Redis replies to the PINGs of a subscribed connection."""
        pubsub = self.listen(timeout=0.02)
        await self.expect(b"UP")
        pings = 0
        protocol: Any = pubsub._reconnector.protocol
        plain = protocol.execute_command
        enough: Deferred[None] = Deferred()

        def count(*args: bytes) -> Any:
            nonlocal pings
            pings += 1
            if pings == 5:
                enough.callback(None)
            return plain(*args)

        self.patch(protocol, "execute_command", count)
        await enough
        self.assertTrue(pubsub.connected)
        self.assertEqual(self.messages, [])

    async def test_password(self) -> None:
        """User and password of the address are used."""
        self.redis.call(b"ACL", b"SETUSER", b"bus", b"on", b">pw", b"+@pubsub", b"+ping", b"allchannels")
        self.listen(RedisAddress(path=self.redis.socket_path, user=b"bus", password=b"pw"))
        await self.expect(b"UP")

    async def test_failing_listener(self) -> None:
        """An exception in on_message is logged, and affects neither the connection nor the next message."""
        self.fails = True
        self.listen()
        await self.expect(b"UP")
        for message in (b"one", b"two", b"three"):
            self.fails = message != b"three"
            self.redis.call(b"PUBLISH", b"rm:wake", message)
            await self.expect(message)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)


for _binary in servers():
    _name = f"{_binary.name.title()}{_binary.version.replace('.', '_')}PubSubTests"
    globals()[_name] = type(_name, (RealRedis,), {"binary": _binary, "__module__": __name__})
del RealRedis  # trial would run it without a server


class FakeRedisTests(TestCase):
    timeout = 10

    async def test_refused_subscription(self) -> None:
        """A channel that the ACL denies is retried slowly until it is permitted."""
        self.patch(reconnect, "SLOW", 0.02)
        denied = b"-NOPERM this user has no permissions to access one of the channels\r\n"
        fake = FakeRedis(lambda n, c: denied if c[0] == b"SUBSCRIBE" and n < 3 else polite(n, c))
        await fake.listen(reactor)
        self.addCleanup(fake.stop)
        up: Deferred[None] = Deferred()
        pubsub = PubSub(
            fake.address, b"c", reactor=reactor, on_message=lambda _: None, on_up=lambda: up.callback(None)
        )
        pubsub.start()
        self.addCleanup(pubsub.stop)
        await up
        self.assertEqual(len(fake.servers), 4)
