"""Groups of addresses, and the client of a request behind proxies."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server import addresses
from routemaster.web.http_server.addresses import MAX_HOPS, TrustedProxies, group, shown

NETWORKS = [ip_network("10.1.0.0/16"), ip_network("2001:db8:1::/48")]
CLIENT = "192.0.2.7"


def peer(host: str) -> IPv4Address | IPv6Address | UNIXAddress:
    """A peer with this address, on a Unix socket if it is empty."""
    if not host:
        return UNIXAddress(None)
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1234)


class GroupTests(SynchronousTestCase):
    """Addresses that a limit counts together."""

    def test_shown(self) -> None:
        """IPv4 addresses count by themselves, also if mapped to IPv6; IPv6 by /64; Unix sockets together."""
        for host, text in {
            "192.0.2.1": "192.0.2.1",
            "::ffff:192.0.2.1": "192.0.2.1",
            "2001:db8::1": "2001:db8::/64",
            "2001:db8::ffff:ffff:ffff:ffff": "2001:db8::/64",
            "2001:db8:0:1::": "2001:db8:0:1::/64",
            "::1": "::/64",
            "fe80::1%eth0": "fe80::/64",
            "": "a Unix socket",
        }.items():
            self.assertEqual(shown(group(peer(host))), text)

    def test_equal(self) -> None:
        """Groups are equal if and only if their texts are."""
        groups = {group(peer(host)) for host in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1",
                                                 "2001:db8::2", "2001:db8:0:1::1", "")}  # fmt: skip
        self.assertEqual(len(groups), 5)

    def test_cache(self) -> None:
        """However many addresses there are, few are cached."""
        proxies = TrustedProxies(NETWORKS)
        for number in range(3000):
            host = f"10.{number // 250}.{number % 250}.1"
            self.assertEqual(proxies.trusts(peer(host)), number // 250 == 1)
            self.assertEqual(shown(group(peer(host))), host)
        self.assertLessEqual(addresses._group.cache_info().currsize, addresses.CACHED)
        self.assertLessEqual(proxies._has_host.cache_info().currsize, addresses.CACHED)


class ClientTests(SynchronousTestCase):
    """X-Forwarded-For."""

    def check(self, expected: str, host: str, *values: str, unix: bool = False) -> None:
        proxies = TrustedProxies([*NETWORKS, *(["unix"] if unix else [])])
        client = proxies.client(peer(host), [value.encode("latin-1") for value in values])
        self.assertEqual(shown(client), expected, f"{host or 'unix'} {values}")

    def test_peers(self) -> None:
        """Only trusted proxies are believed, Unix sockets among them if the configuration says so."""
        for host in ("192.0.2.1", "10.2.0.1", "::ffff:10.2.0.1", "2001:db8:2::1", ""):
            self.check(shown(group(peer(host))), host, CLIENT)
        for host in ("10.1.0.1", "::ffff:10.1.0.1", "2001:db8:1::1"):
            self.check(CLIENT, host, CLIENT)
        self.check(CLIENT, "", CLIENT, unix=True)

    def test_walk(self) -> None:
        """The client is the last address that is not a trusted proxy's, or the first if all are trusted."""
        for values, expected in (
            ([CLIENT], CLIENT),
            (["203.0.113.9, 192.0.2.7"], CLIENT),                # the client claims to be another
            (["203.0.113.9, 192.0.2.7, 10.1.2.3"], CLIENT),      # two proxies of ours
            (["203.0.113.9", "192.0.2.7", "10.1.2.3"], CLIENT),  # each in a line of its own
            (["203.0.113.9,192.0.2.7,2001:db8:1::5,10.1.2.3"], CLIENT),
            (["10.1.2.3, 192.0.2.7"], CLIENT),                   # the client claims to be a proxy
            (["10.1.9.9, 10.1.2.3"], "10.1.9.9"),                # a client among the proxies
            ([" \t192.0.2.7 \t"], CLIENT),
            (["192.0.2.7, , ,", ""], CLIENT),
            ([], "10.1.0.1"),
            ([""], "10.1.0.1"),
        ):
            self.check(expected, "10.1.0.1", *values)

    def test_forms(self) -> None:
        """An element is an address, in brackets or not, with a port or not."""
        for element, expected in {
            "192.0.2.7": CLIENT,
            "192.0.2.7:443": CLIENT,
            "::ffff:192.0.2.7": CLIENT,
            "[::ffff:192.0.2.7]:1": CLIENT,
            "2001:db8::7": "2001:db8::/64",
            "[2001:db8::7]": "2001:db8::/64",
            "[2001:DB8::7]:65535": "2001:db8::/64",
        }.items():
            self.check(expected, "10.1.0.1", f"203.0.113.9, {element}")

    def test_malformed(self) -> None:
        """What is no address ends the search: the client is the proxy that wrote it."""
        for element in (
            "unknown", "_hidden", "192.0.2", "192.0.2.256", "192.0.2.07", "0x7f.1", "192.0.2.7:", "192.0.2.7:x",
            "192.0.2.7:123456", "192.0.2.7/24", "[192.0.2.7", "[2001:db8::7", "[2001:db8::7]x", "2001:db8::7]:1",
            "[]", "[2001:db8::7%eth0]", "2001:db8:::7", "192.0.2.7 192.0.2.8", "\xb9.2.3.4", '"192.0.2.7"', "\x7f",
            ":", "1" * 10000, "." * 10000, ":" * 10000,
        ):  # fmt: skip
            self.check("10.1.0.1", "10.1.0.1", f"203.0.113.9, {element}")
            self.check("10.1.2.3", "10.1.0.1", f"203.0.113.9, {element}, 10.1.2.3")

    def test_long(self) -> None:
        """Of a long list only the end is read."""
        self.check(CLIENT, "10.1.0.1", ",".join(["x"] * 5000 + [CLIENT]))
        self.check("10.1.2.3", "10.1.0.1", ",".join([CLIENT] + ["10.1.2.3"] * (MAX_HOPS + 1)))
        self.check(CLIENT, "10.1.0.1", ",".join([CLIENT] + ["10.1.2.3"] * MAX_HOPS))
