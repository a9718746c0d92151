"""Places for connections: limits in all and by address, and who makes way."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from routemaster.web.http_server.addresses import TrustedProxies, shown
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.places import Places
from routemaster.web.http_server.site import BusSite
from tests.web.wire import Case, Transport

PROXIES = TrustedProxies([ip_network("10.1.0.0/16"), "unix"])


class PlacesTests(Case):
    """Connections to a site, without sockets."""

    def open(self, most: int, each: int, proxies: TrustedProxies = PROXIES) -> None:
        self.rejected: list[tuple[str, str]] = []
        self.places = Places(most, each, proxies, lambda *which: self.rejected.append((which[0], shown(which[1]))))
        self.site = self.make_site()

    def make_site(self) -> BusSite:
        return BusSite(self.api.app.resource(), reactor=Clock(), limits=Limits(places=self.places))

    def connect(self, host: str, site: BusSite | None = None) -> Any:
        """A channel with a peer of this address, on a Unix socket if it is empty; None if it is rejected."""
        peer: Any = UNIXAddress(None)
        if host:
            peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1234)
        channel = (site or self.site).buildProtocol(peer)
        if channel is not None:
            transport = Transport(peer)
            transport.channel = channel
            channel.makeConnection(transport)
        return channel

    def test_each(self) -> None:
        """One connection too many for an address is rejected, until another one of it is closed."""
        self.open(most=100, each=3)
        first, *_ = [self.connect("192.0.2.1") for _ in range(3)]
        self.assertIsNone(self.connect("192.0.2.1"))
        self.assertIsNone(self.connect("::ffff:192.0.2.1"))
        self.assertIsNotNone(self.connect("192.0.2.2"))
        self.assertEqual(self.rejected, [("address", "192.0.2.1")] * 2)
        first.transport.lose()
        self.assertIsNotNone(self.connect("192.0.2.1"))
        self.assertIsNone(self.connect("192.0.2.1"))

    def test_networks(self) -> None:
        """IPv6 addresses of one /64 are limited together."""
        self.open(most=100, each=3)
        opened = [self.connect(f"2001:db8::{number}") is not None for number in range(1, 6)]
        self.assertEqual(opened, [True] * 3 + [False] * 2)
        self.assertIsNotNone(self.connect("2001:db8:0:1::1"))

    def test_no_limit(self) -> None:
        """0 means no limit; trusted proxies and peers on a Unix socket have none."""
        self.open(most=100, each=0)
        self.assertNotIn(None, [self.connect("192.0.2.1") for _ in range(50)])
        self.assertEqual(self.places.addresses, 0)
        self.open(most=100, each=1)
        self.assertNotIn(None, [self.connect(host) for host in ("10.1.2.3", "") * 20])
        self.open(most=100, each=1, proxies=TrustedProxies())
        self.assertNotIn(None, [self.connect("") for _ in range(20)])

    def test_memory(self) -> None:
        """An address without connections is not counted."""
        self.open(most=5000, each=3)
        channels = [self.connect(f"10.2.{number // 250}.{number % 250}") for number in range(1000)]
        self.assertEqual((self.places.addresses, self.places.taken), (1000, 1000))
        for channel in channels:
            channel.transport.lose()
        self.assertEqual((self.places.addresses, self.places.taken), (0, 0))
        self.assertEqual(len(self.places._strangers), 0)

    def test_all_sites(self) -> None:
        """The sites of a process share its places."""
        self.open(most=100, each=3)
        other = self.make_site()
        opened = [self.connect("192.0.2.1", site) is not None for site in (self.site, other) * 3]
        self.assertEqual(opened, [True] * 3 + [False] * 3)

    def test_strangers_make_way(self) -> None:
        """Without a place left, the oldest connection that has not authenticated makes way."""
        self.open(most=3, each=0)
        first, known, second = (self.connect(f"192.0.2.{number}") for number in range(3))
        self.site.keep(known)
        third = self.connect("192.0.2.9")
        self.assertEqual([each.transport.aborted for each in (first, known, second)], [True, False, False])
        self.site.keep(third)
        fourth = self.connect("192.0.2.9")
        self.assertTrue(second.transport.aborted)
        self.site.keep(fourth)
        self.assertIsNone(self.connect("192.0.2.9"))
        expected = [("stranger", "192.0.2.0"), ("stranger", "192.0.2.2"), ("total", "192.0.2.9")]
        self.assertEqual(self.rejected, expected)
        self.assertEqual(self.places.taken, 3)

    def test_slow_to_close(self) -> None:
        """A connection that makes way is not chosen again while it is being closed."""
        self.open(most=2, each=0)
        channels = [self.connect("192.0.2.1") for _ in range(2)]
        closing: list[Any] = []
        for channel in channels:
            channel.transport.abortConnection = lambda channel=channel: closing.append(channel)
        self.connect("192.0.2.2")
        self.connect("192.0.2.2")
        self.assertEqual(closing, channels)
        self.assertEqual(self.places.taken, 4)
        for channel in channels:
            channel.transport.lose()
        self.assertEqual(self.places.taken, 2)

    def test_proxies_stay(self) -> None:
        """Connections of trusted proxies do not make way: they have many clients."""
        self.open(most=2, each=0)
        self.connect("10.1.2.3")
        self.connect("")
        self.assertIsNone(self.connect("192.0.2.1"))
        self.assertEqual(self.rejected, [("total", "192.0.2.1")])

    def test_one_address_cannot_fill_all(self) -> None:
        """Strangers of one address leave places for others, and those of many addresses make way for a client."""
        self.open(most=100, each=10)
        self.assertEqual(sum(self.connect("192.0.2.1") is not None for _ in range(200)), 10)
        for number in range(2, 30):
            for _ in range(10):
                self.connect(f"192.0.2.{number}")
        self.assertEqual(self.places.taken, 100)
        for _ in range(10):
            client = self.connect("198.51.100.1")
            self.site.keep(client)
            self.assertFalse(client.transport.aborted)
        self.assertEqual(self.places.taken, 100)
