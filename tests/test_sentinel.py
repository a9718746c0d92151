"""Redis Sentinel: its URL, and a connection that follows the master."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from routemaster.errors import ConfigError, StoreUnavailable
from routemaster.store.connection import Connection
from routemaster.store.sentinel import SentinelAddress
from routemaster.testing.redis_server import servers
from routemaster.testing.sentinels import SentinelGroup

ILL = (
    "redis+sentinel://:hunter2@h",
    "redis+sentinel://:hunter2@h/s/x",
    "redis+sentinel://:hunter2@h,/s",
    "redis+sentinel://h/s?sentinel_passwort=hunter2",
    "redis+sentinel://:hunter2@h:0/s",
)


class UrlTests(SynchronousTestCase):
    """Reading the option."""

    def test_parts(self) -> None:
        """Hosts, service, database and both passwords are read; none is shown."""
        address = SentinelAddress.parse("redis+sentinel://u:hunter2@a:1,b/s/3?sentinel_password=hunter3")
        self.assertEqual(
            [(s.host, s.port, s.password) for s in address.sentinels],
            [("a", 1, b"hunter3"), ("b", 26379, b"hunter3")],
        )
        self.assertEqual((address.service, address.server.db, address.server.password), ("s", 3, b"hunter2"))
        self.assertNotIn("hunter", repr(address) + address.label)

    def test_ill_formed(self) -> None:
        """What is ill-formed is refused without showing a secret."""
        for url in ILL:
            self.assertNotIn("hunter", str(self.assertRaises(ConfigError, SentinelAddress.parse, url)))


class GroupTests(TestCase):
    """With real servers."""

    timeout = 90

    async def test_failover(self) -> None:
        """When the master stands still, the connection goes to its successor."""
        group = SentinelGroup(servers()[0])
        self.addCleanup(group.stop)
        group.start()
        connection = Connection(SentinelAddress.parse(group.url), reactor=reactor)
        connection.start()
        self.addCleanup(connection.stop)
        await connection.when_connected()
        group.master.pause()
        while True:
            try:
                await connection.command(b"SET", b"k", b"v")
                break
            except StoreUnavailable:
                await deferLater(reactor, 0.02, lambda: None)
        self.assertEqual((await connection.command(b"CONFIG", b"GET", b"port"))[1], b"%d" % group.ports[1])
