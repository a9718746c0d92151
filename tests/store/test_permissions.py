"""The rights of the Redis user: what the store needs, and what it does without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.errors import StoreUnavailable
from routemaster.model import ApiToken
from routemaster.redis import reconnect
from routemaster.redis.address import RedisAddress
from routemaster.redis.connection import Connection
from routemaster.redis.permissions import _right
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS, needed_rights
from routemaster.testing.redis_server import PrivateRedis, ServerBinary, servers
from tests.store.case import subscription

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.rst"
RULE = re.search(r"ACL SETUSER (routemaster on .*?)\n\n", OPERATIONS.read_text(), re.DOTALL)[1].split()  # type: ignore[index]


class RealRedis(TestCase):
    """Against a server of each version."""

    binary: ServerBinary
    timeout = 20

    def setUp(self) -> None:
        self.redis = PrivateRedis(self.binary)
        self.addCleanup(self.redis.stop)
        self.redis.start()
        self.lines: list[str] = []
        observe: Any = lambda event: self.lines.append(str(event.get("right") or event.get("why")))  # noqa: E731
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.patch(reconnect, "SLOW", 0.02)

    def allow(self, *rules: str) -> None:
        """Give the user the documented rule, and then these."""
        words = ["ACL", "SETUSER", *RULE, *rules]
        self.assertEqual(self.redis.call(*(word.encode() for word in words)), b"+OK\r\n")

    async def store(self) -> tuple[Connection, RedisStore]:
        address = RedisAddress(path=self.redis.socket_path, user=b"routemaster", password=b"PASSWORD")
        connection = Connection(
            address, reactor=reactor, scripts=SCRIPTS.values(), rights=needed_rights("rm")
        )
        connection.start()
        self.addCleanup(connection.stop)
        return connection, RedisStore(connection, "rm", 10)

    async def test_documented_rule(self) -> None:
        """With the documented rule no right is missing, and the check leaves nothing behind."""
        self.allow()
        connection, _ = await self.store()
        await connection.when_connected()
        self.assertEqual([line for line in self.lines if "+" in line], [])
        self.assertEqual(self.redis.call(b"DBSIZE"), b":0\r\n")

    async def test_no_channels(self) -> None:
        """Without rights to channels each write is definite and done, and the log names the right once."""
        self.allow("resetchannels", "-publish", "-subscribe")
        connection, store = await self.store()
        await connection.when_connected()
        await store.publish("cats", "pub", [b"1"])
        await store.subscribe(subscription("cats"))
        await store.publish("cats", "pub", [b"2"])
        await store.add_token(ApiToken("name", "name--1"))
        await store.announce("w1", 10)
        grant: Any = await store.acquire("sub", "w1")
        await store.release("sub", "w1", grant.epoch)
        await store.withdraw("w1")
        self.assertEqual([topic.events for topic in await store.topics()], [2])
        self.assertEqual([each.queued for each in await store.subscriptions()], [1])
        await store.unsubscribe("sub")
        self.assertEqual([line.partition(":")[0] for line in self.lines if "+" in line], ["+publish &rm"])

    async def test_missing_rights(self) -> None:
        """Without a needed right nothing is sent; the log names the rights, until they are given."""
        self.allow("-xadd", "-memory", "-sadd", "-ping", "resetkeys", "~other:*")
        connection, store = await self.store()
        gone = r"lacks rights of the ACL that the bus needs: \+ping .*\+memory\|usage .*\+sadd .*\+xadd .*~rm:\*"
        while not any(re.search(gone, line) for line in self.lines):
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.005, turn.callback, None)
            await turn
        error = await self.assertFailure(
            Deferred.fromCoroutine(store.publish("cats", "pub", [b"1"])), StoreUnavailable
        )
        self.assertFalse(error.outcome_unknown)
        self.allow()
        await connection.when_connected()

    async def test_right_taken_away(self) -> None:
        """A script that loses a right halfway has an unknown outcome; then the rights are checked again."""
        self.allow()
        connection, store = await self.store()
        await connection.when_connected()
        await store.publish("cats", "pub", [b"1"])
        await store.subscribe(subscription("cats"))
        self.allow("-hset")
        publishing = Deferred.fromCoroutine(store.publish("cats", "pub", [b"1"]))
        error = await self.assertFailure(publishing, StoreUnavailable)
        self.assertTrue(error.outcome_unknown, str(error))
        self.assertFalse(connection.connected)
        self.allow()
        await connection.when_connected()


for _binary in servers():
    _name = f"{_binary.name.title()}{_binary.version.replace('.', '_')}PermissionTests"
    globals()[_name] = type(_name, (RealRedis,), {"binary": _binary, "__module__": __name__})
del RealRedis  # trial would run it without a server


class RuleTests(SynchronousTestCase):
    def test_nothing_too_much(self) -> None:
        """The documented rule has the rights that are checked and those of the connections, and no others."""
        rights = needed_rights("rm", waits=True)
        commands = {_right(name.split()) for name in rights.scripted}
        commands |= {_right(probe).partition(" ")[0] for probe in (*rights.direct, *rights.optional)}
        commands |= {"eval", "subscribe", "script|load", "select"}
        self.assertEqual({word[1:] for word in RULE if word[0] == "+"}, commands)

    def test_plain_commands(self) -> None:
        """Each command that the store calls outside of scripts is checked."""
        sources = (OPERATIONS.parents[1] / "routemaster" / "store").glob("*.py")
        called = {name for path in sources for name in re.findall(r'\bb"([A-Z]{3,})"', path.read_text())}
        rights = needed_rights("rm", waits=True)
        known = {*rights.scripted, *(probe[0].decode() for probe in (*rights.direct, *rights.optional))}
        self.assertEqual(called - known - {"COUNT"}, set())
