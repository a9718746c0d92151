"""Redis URLs: what is valid, what is refused, and that no password is shown."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import ConfigError
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress, parse
from routemaster.redis.dial import endpoint

GOOD = {
    "redis://localhost": RedisAddress(host="localhost"),
    "redis://localhost/": RedisAddress(host="localhost"),
    "redis://LOCALHOST:7000/3": RedisAddress(host="localhost", port=7000, db=3),
    "redis://[::1]:7000": RedisAddress(host="::1", port=7000),
    "redis://:s%40cret%2F@h": RedisAddress(host="h", password=b"s@cret/"),
    "redis://us%3Aer:p%FFw@h": RedisAddress(host="h", user=b"us:er", password=b"p\xffw"),
    "redis://user@h": RedisAddress(host="h", user=b"user", password=b""),
    "redis://:@h": RedisAddress(host="h"),
    "redis://redis_cache:6379": RedisAddress(host="redis_cache"),
    "rediss://h:6380/1": RedisAddress(host="h", port=6380, db=1, tls=True),
    "rediss://h?ca_file=/etc/ca%20x.pem": RedisAddress(host="h", tls=True, ca_file="/etc/ca x.pem"),
    "unix:///run/redis.sock": RedisAddress(path="/run/redis.sock"),
    "unix:///run/re%20dis.sock?db=2": RedisAddress(path="/run/re dis.sock", db=2),
    "unix://user:pw@/run/redis.sock": RedisAddress(path="/run/redis.sock", user=b"user", password=b"pw"),
}
HOSTILE = [
    "", "localhost", "localhost:6379", "hunter2:hunter2@host:1", "http://hunter2@host", "redis:/host", "redis://",
    "redis://:hunter2@", "redis://:6379", "redis://:hun/ter2@host", "redis://:hunter2@host:port",
    "redis://:hunter2@host:0", "redis://:hunter2@host:65536", "redis://:hunter2@host:-1",
    "redis://:hunter2@host/x", "redis://:hunter2@host/-1", "redis://:hunter2@host/1/2", "redis://:hunter2@host/٣",
    "redis://:hunter2@host/999999", "redis://:hunter2%@host", "redis://:hunter2%zz@host", "redis://:hunter2#@host",
    "redis://:hunter2@host?db=1", "redis://:hunter2@host?", "rediss://:hunter2@host?verify=no",
    "rediss://:hunter2@host?ca_file=", "rediss://:hunter2@host?ca_file=a&ca_file=b", "unix://:hunter2@host/path",
    "unix://:hunter2@", "unix://relative", "unix:///s?db=", "unix:///s?db=hunter2", "unix:///s?ca_file=/x",
    "redis://:hunter2@[::1", "redis://:hunter 2@host", "redis://:hunter2\n@host", "unix:///a%00b", "redis://h\x00",
]

NODE = RedisAddress(host="h", port=7000)
CLUSTERS = {
    "redis+cluster://h:7000": (NODE,),
    "redis+cluster://H:7000,h:7000,other,[::1]:1/": (
        NODE, RedisAddress(host="other"), RedisAddress(host="::1", port=1),
    ),
    "rediss+cluster://u:p%40w@h:7000,b/0?ca_file=/x": (
        RedisAddress(host="h", port=7000, user=b"u", password=b"p@w", tls=True, ca_file="/x"),
        RedisAddress(host="b", user=b"u", password=b"p@w", tls=True, ca_file="/x"),
    ),
}
NO_CLUSTERS = [
    "redis+cluster://", "redis+cluster://:hunter2@", "redis+cluster://:hunter2@h,", "redis+cluster://:hunter2@h:0",
    "redis+cluster://:hunter2@h/1", "redis+cluster://:hunter2@h,b:65536", "redis+cluster://:hunter2@h?ca_file=/x",
    "redis+cluster://h,:hunter2@b@c d", "redis+cluster://:hunter2@a b", "redis+cluster://:hunter2#@a",
    "unix+cluster:///hunter2",
]

NO_SENTINELS = [
    "redis+sentinel://:hunter2@h", "redis+sentinel://:hunter2@h/s/x", "redis+sentinel://:hunter2@h,/s",
    "redis+sentinel://h/s?sentinel_passwort=hunter2", "redis+sentinel://:hunter2@h:0/s",
]


class ParseTests(SynchronousTestCase):
    def test_good(self) -> None:
        """Each form of URL gives its address."""
        for url, address in GOOD.items():
            self.assertEqual(parse(url), address, url)

    def test_ill_formed(self) -> None:
        """An ill-formed URL is a ConfigError that shows no part of it, nor does its context."""
        for url in HOSTILE:
            if url == "redis://:hunter2@host?":  # an empty query is no query
                continue
            error = self.assertRaises(ConfigError, parse, url)
            self.assertNotIn("hunter", f"{error}", url)
            self.assertTrue(error.__suppress_context__ or error.__context__ is None, url)

    def test_clusters(self) -> None:
        """The nodes in a cluster's URL have the same user and password; a database other than 0 is refused."""
        for url, seeds in CLUSTERS.items():
            address = parse(url)
            self.assertIsInstance(address, ClusterAddress)
            self.assertEqual(address.seeds, seeds, url)
        self.assertEqual(address.label, "rediss+cluster://h:7000,b:6379")
        self.assertEqual(address.node("c", 9), evolve(seeds[0], host="c", port=9))
        self.assertEqual(parse("redis://h:7000"), NODE)
        for url in NO_CLUSTERS:
            error = self.assertRaises(ConfigError, parse, url)
            self.assertNotIn("hunter", f"{error}", url)

    def test_sentinels(self) -> None:
        """A URL of sentinels has hosts, a service, a database and two passwords; an ill-formed one is refused."""
        address = parse("redis+sentinel://u:hunter2@a:1,b,[::1]/s%20x/3?sentinel_password=hunter3")
        assert isinstance(address, SentinelAddress)
        self.assertEqual(
            address.sentinels,
            (
                RedisAddress(host="a", port=1, password=b"hunter3"),
                RedisAddress(host="b", port=26379, password=b"hunter3"),
                RedisAddress(host="::1", port=26379, password=b"hunter3"),
            ),
        )
        server = address.server
        self.assertEqual((address.service, server.db, server.user, server.password), ("s x", 3, b"u", b"hunter2"))
        self.assertNotIn("hunter", repr(address) + address.label)
        secure = parse("rediss+sentinel://:p@a/s/?ca_file=/x/y%20z.pem")
        assert isinstance(secure, SentinelAddress)
        for each in (secure.server, *secure.sentinels):
            self.assertEqual((each.tls, each.ca_file), (True, "/x/y z.pem"))
        self.assertEqual((secure.server.password, secure.sentinels[0].password), (b"p", None))
        named = parse("redis+sentinel://a_1/s", "watch", "hunter4")
        assert isinstance(named, SentinelAddress)
        self.assertEqual((named.sentinels[0].logins, named.server.logins), ([(b"watch", b"hunter4")], []))
        in_url = parse("redis+sentinel://a/s?sentinel_username=u&sentinel_password=p", "watch", "hunter4")
        assert isinstance(in_url, SentinelAddress)
        self.assertEqual(in_url.sentinels[0].logins, [(b"u", b"p")])
        for url in NO_SENTINELS:
            self.assertNotIn("hunter", str(self.assertRaises(ConfigError, parse, url)))

    def test_logins(self) -> None:
        """A user name is sent as it is; after one that is only a placeholder the default user is tried."""
        for user, logins in {
            "": [(b"p",)], "bus": [(b"bus", b"p")], "default": [(b"default", b"p")], "h": [(b"h", b"p"), (b"p",)],
            "user": [(b"user", b"p"), (b"p",)], "redistogo": [(b"redistogo", b"p"), (b"p",)],
        }.items():  # fmt: skip
            self.assertEqual(RedisAddress(host="h", user=user.encode() or None, password=b"p").logins, logins)

    def test_shown(self) -> None:
        """Neither `repr` nor `label` shows user or password."""
        address = parse("rediss://:hunter2@host:1/4")
        self.assertNotIn("hunter2", repr(address))
        self.assertEqual(address.label, "rediss://host:1/4")
        self.assertEqual(parse("unix://u:hunter2@/s?db=1").label, "unix:///s?db=1")
        self.assertEqual(parse("redis://[::1]").label, "redis://[::1]:6379")

    def test_ca_file(self) -> None:
        """The error for a ca_file that cannot be read, or holds no valid certificate, names the file."""
        empty = self.mktemp()
        broken = self.mktemp()
        Path(empty).touch()
        Path(broken).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")
        for path, word in (("/nowhere", "No such file"), (empty, "holds no"), (broken, "broken")):
            address = RedisAddress(host="h", tls=True, ca_file=path)
            error = self.assertRaises(ConfigError, endpoint, address, Clock())
            self.assertIn(word, str(error))
            self.assertIn(path, str(error))
