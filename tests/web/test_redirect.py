"""The plain-HTTP port: redirects, and requests behind a trusted proxy."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.klein_resource import BusApp
from routemaster.web.redirect import RedirectResource
from tests.web.http_server.test_request_head import REFUSED
from tests.web.wire import Answer, Wire, request

PUBLIC = "https://bus.example.com:17890"
NETWORKS = [ip_network("10.1.0.0/16"), ip_network("2001:db8::/64"), ip_network("192.0.2.9/32")]
TRUSTED = TrustedProxies(NETWORKS)


def api() -> Any:
    """A small API."""
    app = BusApp()
    app.route("/hello")(lambda request: b"the API")
    return app.resource()


class RedirectTests(SynchronousTestCase):
    """Redirects."""

    def call(self, data: bytes, peer: str = "192.0.2.1", public: str = PUBLIC) -> Answer:
        (answer,) = Wire(RedirectResource(public, api(), TRUSTED), peer=peer).send(data)
        return answer

    def test_everything(self) -> None:
        """Every method and path is answered 308 with the same path and query and an empty body."""
        for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS", "BREW"):
            for target in ("/", "/hello", "/topics/cats?a=b&c", "//evil.test/", "/%20?/", "/?https://evil.test"):
                answer = self.call(request(method, target, b"{}"))
                self.assertEqual((answer.status, answer.body), (308, b""))
                self.assertEqual(answer.headers["location"], PUBLIC + target)
                self.assertEqual(answer.headers["content-length"], "0")

    def test_prefix(self) -> None:
        """The public URL may have a path, with or without a slash at its end."""
        for public in ("https://example.com/bus", "https://example.com/bus/"):
            answer = self.call(request("GET", "/hello"), public=public)
            self.assertEqual(answer.headers["location"], "https://example.com/bus/hello")

    def test_host_is_ignored(self) -> None:
        """The answer does not depend on the client's Host."""
        for data in (
            b"GET /hello HTTP/1.1\r\nHost: evil.test\r\n\r\n",
            b"GET /hello HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: evil.test\r\nForwarded: host=evil.test\r\n\r\n",
        ):
            self.assertEqual(self.call(data).headers["location"], PUBLIC + "/hello")

    def test_nothing_splits(self) -> None:
        """A head that the HTTPS port refuses is refused here in the same way, without a Location."""
        redirected = 0
        for name, (data, statuses) in REFUSED.items():
            answer = self.call(data)
            if answer.status == 308:  # it is the body that would be refused
                self.assertEqual(answer.headers["location"].encode(), PUBLIC.encode() + data.split(b" ")[1], name)
                redirected += 1
            else:
                self.assertIn(answer.status, statuses, name)
                self.assertNotIn("location", answer.headers)
        self.assertLess(redirected, len(REFUSED) / 4)

    def test_before_the_body(self) -> None:
        """A redirect does not wait for the body, which takes no memory of those that the API reads."""
        wire = Wire(RedirectResource(PUBLIC, api(), TRUSTED))
        [answer] = wire.send(request("POST", "/topics/cats", b"", "Content-Length: 60000"))
        self.assertEqual((answer.status, answer.headers["location"]), (308, PUBLIC + "/topics/cats"))
        self.assertEqual(wire.site.limits.bodies.held, 0)
        self.assertTrue(wire.closing)


class HealthTests(SynchronousTestCase):
    """Health checks."""

    def test_health(self) -> None:
        """Health checks are answered on the plain port, where load balancers look; other paths redirect."""
        app = BusApp()
        for path in ("/health", "/health/ping", "/health/ready"):
            app.route(path)(lambda request: b"{}")
            wire = Wire(RedirectResource(PUBLIC, app.resource()))
            self.assertEqual([answer.status for answer in wire.send(request("GET", path))], [200], path)
        for path in ("/health/", "/healthy", "/pulse"):
            wire = Wire(RedirectResource(PUBLIC, app.resource()))
            self.assertEqual([answer.status for answer in wire.send(request("GET", path))], [308], path)


class ForwardedTests(SynchronousTestCase):
    """X-Forwarded-Proto."""

    def status(self, peer: Any, *headers: str, networks: Any = NETWORKS) -> int:
        wire = Wire(RedirectResource(PUBLIC, api(), TrustedProxies(networks)))
        wire.peer = peer if not isinstance(peer, str) else type(wire.peer)("TCP", peer, 1234)
        wire.connect()
        first, second = wire.send(request("GET", "/hello", b"", *headers) * 2)
        self.assertEqual(first, second)
        return first.status

    def test_who(self) -> None:
        """Only peers in trusted_proxies are trusted: IPv4, IPv6, and IPv4 mapped to IPv6."""
        for peer, status in {
            "10.1.2.3": 200,
            "::ffff:10.1.2.3": 200,
            "192.0.2.9": 200,
            "2001:db8::1": 200,
            "10.2.0.0": 308,
            "192.0.2.1": 308,
            "::ffff:192.0.2.1": 308,
            "127.0.0.1": 308,
            "::1": 308,
            "2001:db8:0:1::1": 308,
            "fe80::1%eth0": 308,
        }.items():
            self.assertEqual(self.status(peer, "X-Forwarded-Proto: https"), status, peer)

    def test_unix(self) -> None:
        """Peers on a Unix socket are trusted if trusted_proxies has `unix`, and only then."""
        for networks, unix, tcp in ((NETWORKS, 308, 200), (["unix"], 200, 308), ([*NETWORKS, "unix"], 200, 200)):
            for peer, status in ((UNIXAddress(b"/run/x"), unix), (UNIXAddress(None), unix), ("10.1.2.3", tcp)):
                self.assertEqual(self.status(peer, "X-Forwarded-Proto: https", networks=networks), status)
                self.assertEqual(self.status(peer, networks=networks), 308)

    def test_nobody(self) -> None:
        """By default no proxy is trusted."""
        self.assertEqual(self.status("10.1.2.3", "X-Forwarded-Proto: https", networks=()), 308)

    def test_what(self) -> None:
        """One X-Forwarded-Proto whose first value is https, in any case, is served; others are redirected."""
        for value in ("https", "HTTPS", "https, http", "https,http", "Https , https"):
            self.assertEqual(self.status("10.1.2.3", f"X-Forwarded-Proto: {value}"), 200, value)
        for headers in (
            [],
            ["X-Forwarded-Proto: http"],
            ["X-Forwarded-Proto: http, https"],
            ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
            ["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"],
            ["X-Forwarded-Proto:"],
            ["X_Forwarded_Proto: https"],
            ["Forwarded: proto=https"],
            ["X-Forwarded-For: 10.1.2.3"],
            ["X-Forwarded-Ssl: on"],
        ):
            self.assertEqual(self.status("10.1.2.3", *headers), 308, headers)
        self.assertEqual(self.status("10.1.2.3", "x-forwarded-proto: https"), 200)

    def test_a_client_claims(self) -> None:
        """No header makes a client a trusted proxy."""
        for claim in ("X-Forwarded-For: 10.1.2.3", "X-Real-IP: 10.1.2.3", "Forwarded: for=10.1.2.3;proto=https"):
            self.assertEqual(self.status("192.0.2.1", "X-Forwarded-Proto: https", claim), 308)
