"""Requests under way by client, behind trusted proxies."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.klein_resource import BusApp
from routemaster.web.requests_by_client import RequestsByClient
from tests.web.test_api import Case, basic
from tests.web.wire import Wire, request

PROXIES = TrustedProxies([ip_network("10.1.0.0/16"), "unix"])
PROXY: Any = IPv4Address("TCP", "10.1.2.3", 1)
NEAR, FAR = ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 10.1.9.9, 203.0.113.8, 10.1.2.4")


class RequestsByClientTests(SynchronousTestCase):
    """A small API with requests that wait."""

    def setUp(self) -> None:
        self.limit, self.waiting = RequestsByClient(PROXIES, 3), list[Deferred[bytes]]()
        app = BusApp(begin=[self.limit])
        app.route("/hello", endpoint="hello")(lambda request: b"hello")
        app.route("/wait", endpoint="wait")(lambda request: self.waiting.append(Deferred()) or self.waiting[-1])
        self.wire = Wire(app.resource())
        self.wire.peer = PROXY

    def send(self, *headers: str, path: str = "/wait") -> list[int]:
        """The statuses of the answers so far to a request on a connection of its own."""
        self.wire.connect()
        return [answer.status for answer in self.wire.send(request("GET", path, b"", *headers))]

    def test_limit(self) -> None:
        """One request too many is answered 429 with Retry-After, on any connection; other clients' are not."""
        self.assertEqual([self.send(NEAR) for _ in range(3)], [[]] * 3)
        for peer in (PROXY, IPv4Address("TCP", "10.1.2.9", 1), UNIXAddress(None)):
            self.wire.peer = peer
            for path in ("/wait", "/hello"):
                self.assertEqual(self.send(NEAR, path=path), [429])
                [answer] = self.wire.answers()
                self.assertEqual(answer.headers["retry-after"], "1")
                self.assertIn("at most 3", answer.error)
        self.assertEqual(self.send(FAR, path="/hello"), [200])

    def test_ends(self) -> None:
        """A request counts until it is answered or its connection is lost."""
        for _ in range(3):
            self.send(NEAR)
        self.waiting[0].callback(b"")
        self.assertEqual([self.send(NEAR), self.send(NEAR)], [[], [429]])
        self.wire.connect()
        self.wire.transport.lose()
        self.send(FAR)
        self.assertEqual(list(self.limit.under_way.values()), [3, 1])
        self.wire.transport.lose()
        for waiting in self.waiting[1:4]:
            waiting.callback(b"")
        self.assertEqual(self.limit.under_way, {})
        self.assertEqual([self.send(NEAR, path="/hello") for _ in range(9)], [[200]] * 9)
        self.assertEqual(self.limit.under_way, {})

    def test_one_connection(self) -> None:
        """On one connection of a proxy, each request counts for its own client."""
        self.wire.connect()
        for header in (NEAR, FAR) * 10:
            self.wire.send(request("GET", "/hello", b"", header))
        self.assertEqual([answer.status for answer in self.wire.answers()], [200] * 20)
        self.assertEqual(self.limit.under_way, {})

    def test_nobody_named(self) -> None:
        """Without a client that a trusted proxy names there is no limit; others have one of connections."""
        cases: list[tuple[Any, tuple[str, ...]]] = [
            (PROXY, ()),
            (PROXY, ("X-Forwarded-For: unknown",)),
            (PROXY, ("X-Forwarded-For: 10.1.9.9",)),
            (IPv4Address("TCP", "192.0.2.1", 1), (NEAR,)),
        ]
        for peer, headers in cases:
            self.wire.peer = peer
            self.assertEqual([self.send(*headers) for _ in range(5)], [[]] * 5)
        self.assertEqual(self.limit.under_way, {})


class ApiTests(Case):
    """The limit in the API."""

    def test_polls(self) -> None:
        """Polls of one client behind a proxy are limited if the options say so; nothing is counted otherwise."""
        for limits, proxies, statuses in (
            (evolve(self.limits, max_per_client=3), PROXIES, [[], [], [], [429], [429]]),
            (self.limits, PROXIES, [[]] * 5),
            (evolve(self.limits, max_per_client=3), TrustedProxies(), [[]] * 5),
        ):
            self.setUp()
            self.limits = limits
            api = self.make_api(proxies=proxies)
            self.assertEqual(not api.app.begin, statuses == [[]] * 5)
            self.wire = Wire(api.app.resource())
            self.publish()
            self.expect(204, "POST", "/subscription", {"topics": ["cats"]})
            self.wire.peer, found = PROXY, []
            for _ in statuses:
                self.wire.connect()
                poll = request("GET", "/subscription/events?wait=60000", b"", basic("alice--a1"), NEAR)
                found.append([answer.status for answer in self.wire.send(poll)])
            self.assertEqual(found, statuses)
