"""Failed authentications: 429 after 20 in a minute, for that address alone, and for nobody known there."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web import failed_authentications
from routemaster.web.auth import MONITOR, ROOT
from routemaster.web.failed_authentications import (
    ADDRESSES,
    CLIENTS,
    MINUTE,
    MOST,
    TIDIED,
    FailedAuthentications,
)
from routemaster.web.http_server.addresses import TrustedProxies
from tests.web.test_api import EVENT, MADE, MONITOR_KEY, ROOT_KEY, A, B, Case, basic
from tests.web.wire import Wire, request

X, Y = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"


class TableTests(SynchronousTestCase):
    """The table by itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.failures = FailedAuthentications(self.clock)

    def fail(self, address: bytes, times: int) -> list[float]:
        return [self.failures.failed(address) for _ in range(times)]

    def test_minute(self) -> None:
        """20 failures do not block, the 21st blocks until a minute after the first; then all begins again."""
        for _ in range(3):
            self.assertEqual(self.fail(X, 1), [0])
            self.clock.advance(45)
            self.assertEqual(self.fail(X, 19), [0] * 19)
            self.assertEqual((self.failures.blocked, self.failures.wait(X)), (0, 0))
            self.assertEqual(self.fail(X, 3), [15] * 3)
            self.clock.advance(14.5)
            self.assertEqual((self.failures.blocked, self.failures.wait(X), self.fail(X, 1)), (1, 0.5, [0.5]))
            self.clock.advance(0.5)
            self.assertEqual((self.failures.wait(X), self.failures.blocked), (0, 0))

    def test_seldom(self) -> None:
        """20 failures a minute never block."""
        for _ in range(600):
            self.assertEqual(self.fail(X, 1), [0])
            self.clock.advance(3)

    def test_other_addresses(self) -> None:
        """A blocked address has no effect on others."""
        self.fail(X, 100)
        self.assertEqual(self.failures.wait(Y), 0)
        self.assertEqual(self.fail(Y, MOST + 1), [0] * MOST + [MINUTE])

    def test_known_clients(self) -> None:
        """A client that has authenticated itself from an address is not blocked with it, others are."""
        self.failures.succeeded(X, ROOT)
        self.fail(X, MOST + 1)
        waits = [self.failures.wait(X, who) for who in (ROOT, MONITOR, None)]
        self.assertEqual(waits, [0, MINUTE, MINUTE])
        self.fail(Y, MOST + 1)
        self.assertEqual(self.failures.wait(Y, ROOT), MINUTE)

    def test_nothing_stays(self) -> None:
        """Minutes that are over are forgotten, those of addresses that do not come back too."""
        for number in range(1000):
            self.fail(number.to_bytes(4), MOST + 1)
            self.clock.advance(0.01)
        self.assertEqual(self.failures.size, 1000)
        self.clock.advance(MINUTE)
        self.assertEqual(self.failures.blocked, 1000)
        self.assertEqual((self.failures.wait(number.to_bytes(4)), self.fail(b"\0" * 4, 1)), (0, [0]))
        for _ in range(1000 // TIDIED):
            self.failures.wait(Y)
        self.assertEqual((self.failures.blocked, self.failures.size), (0, 1))

    def test_a_million_addresses(self) -> None:
        """The tables are bounded, nobody is blocked without cause, and new addresses are still counted."""
        self.patch(failed_authentications, "ADDRESSES", 1000)
        self.patch(failed_authentications, "CLIENTS", 1000)
        for number in range(100_000):
            self.assertEqual(self.failures.failed(number.to_bytes(8)), 0)
            self.failures.succeeded(number.to_bytes(8), ROOT)
        self.assertEqual(self.failures.size, 2000)
        self.assertEqual(self.failures.wait(X), 0)
        self.assertEqual(self.fail(X, MOST + 1)[-1], MINUTE)

    def test_to_be_forgotten(self) -> None:
        """A block is forgotten early only after failures from as many other addresses as are counted."""
        self.patch(failed_authentications, "ADDRESSES", 1000)
        self.fail(X, MOST + 1)
        for number in range(999):
            self.failures.failed(number.to_bytes(8))
        self.assertEqual(self.failures.wait(X), MINUTE)
        self.failures.failed(Y)
        self.assertEqual((self.failures.wait(X), self.failures.blocked), (0, 0))

    def test_size(self) -> None:
        """So many addresses may fail that a process cannot answer more in a minute."""
        self.assertGreater(MOST * ADDRESSES / MINUTE, 10_000)
        self.assertGreaterEqual(CLIENTS, ADDRESSES)

    def test_log(self) -> None:
        """A block is logged once, with the address; many cost few lines."""
        with capturedLogs() as events:
            self.fail(X, 200)
            for number in range(1000):
                self.fail(number.to_bytes(8), MOST + 1)
        lines = [event["log_format"].format(**event) for event in events]
        self.assertIn("192.0.2.1 is answered 429", lines[0])
        self.assertLessEqual(len(lines), 30)


class ApiTests(Case):
    """Answers to wrong tokens, over HTTP."""

    def setUp(self) -> None:
        super().setUp()
        self.peer: Any = IPv4Address("TCP", "192.0.2.1", 1)

    def trust(self, *proxies: Any) -> None:
        self.api = self.make_api(proxies=TrustedProxies(proxies))
        self.wire = Wire(self.api.app.resource())

    def come_from(self, host: str) -> None:
        self.peer = UNIXAddress(None)
        if host:
            self.peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)

    def begin(self, *request: Any) -> None:
        self.wire.peer = self.peer
        super().begin(*request)

    def guess(self, times: int = MOST + 1, *headers: str) -> list[int]:
        """Statuses of requests with wrong tokens, no two alike."""
        return [self.call("GET", "/topics", None, f"guess--{number}", *headers).status for number in range(times)]

    def test_429(self) -> None:
        """The 21st wrong token in a minute is answered 429 with the seconds that are left, until they are over."""
        self.assertEqual(self.guess(), [401] * MOST + [429])
        self.clock.advance(MINUTE - 0.5)
        self.assertEqual(self.expect(429, "GET", "/topics", user="wrong").headers["retry-after"], "1")
        self.clock.advance(0.5)
        self.assertEqual(self.guess(), [401] * MOST + [429])

    def test_right_guess(self) -> None:
        """During that time a right token gets the same answer as a wrong one, at whatever endpoint."""
        self.guess()
        self.expect(429, "GET", "/topics", user="wrong")
        for user in (A, B, ROOT_KEY, MONITOR_KEY):
            for method, path in (("GET", "/topics"), ("GET", "/api_tokens"), ("POST", "/topics/cats")):
                wrong = self.expect(429, method, path, EVENT, "wrong")
                self.assertEqual(self.expect(429, method, path, EVENT, user), wrong)
        self.clock.advance(MINUTE)
        self.read("/topics", A)

    def test_known_clients(self) -> None:
        """A client, root and a monitor that were there before are served on, until their token is deleted."""
        self.cats()
        known = (A, ROOT_KEY, MONITOR_KEY, MADE)
        for user in known:
            self.read("/topics", user)
        self.guess()
        for user in known:
            self.read("/topics", user)
        self.expect(429, "GET", "/topics", user=B)
        self.expect(204, "DELETE", f"/api_tokens/{MADE}", user=ROOT_KEY)
        self.expect(429, "GET", "/topics", user=MADE)

    def test_other_addresses(self) -> None:
        """Only the address that failed is answered 429; an IPv6 client has a whole /64."""
        self.guess()
        for host in ("192.0.2.2", "2001:db8::1", ""):
            self.come_from(host)
            self.read("/topics", A)
            self.expect(401, "GET", "/topics", user="wrong")
        for many, one, other in (
            ([f"2001:db8::{number}" for number in range(1, 30)], "2001:db8::ffff", "2001:db8:0:1::1"),
            (["198.51.100.1", "::ffff:198.51.100.1"] * 15, "198.51.100.1", "198.51.100.2"),
        ):
            for host in many:
                self.come_from(host)
                self.guess(1)
            self.come_from(one)
            self.expect(429, "GET", "/topics", user="wrong")
            self.come_from(other)
            self.expect(401, "GET", "/topics", user="wrong")

    def test_what_counts(self) -> None:
        """Malformed credentials and wrong keys count; none, a token of the wrong kind, and 503 do not."""
        for _ in range(50):
            self.expect(401, "GET", "/topics", user=None)
            self.expect(401, "GET", "/api_tokens", user=A)
            self.expect(401, "POST", "/topics/cats", EVENT, ROOT_KEY)
            self.expect(200, "GET", "/health", user="wrong")
            self.expect(404, "GET", "/nowhere", user="wrong")
        for number in range(MOST):
            header = ("Authorization: Basic ?", "Authorization: Bearer x", basic(f"Wrong {number}"))[number % 3]
            self.assertEqual(self.call("GET", "/metrics", None, None, header).status, 401)
        self.assertEqual(self.call("GET", "/metrics", None, A, basic(A)).status, 429)
        self.expect(429, "GET", "/topics", user=None)
        for path in ("/health", "/health/ping", "/openapi.json"):
            self.expect(200, "GET", path, user=None)

    def test_before_the_body(self) -> None:
        """A wrong token counts, and is refused, when the head has arrived; a whole request counts once."""
        for status in [401] * MOST + [429] * 2:
            self.wire.peer = self.peer
            self.wire.connect()
            [answer] = self.wire.send(request("POST", "/topics/cats", b"", basic("wrong"), "Content-Length: 9999"))
            self.assertEqual(answer.status, status)
        self.assertEqual(answer.headers["retry-after"], "60")
        self.clock.advance(MINUTE)
        self.assertEqual(self.guess(MOST), [401] * MOST)
        body = b" " * 30_000
        self.wire.connect()
        [answer] = self.wire.send(request("POST", "/topics/cats", body, basic(A)), 10_000)
        self.assertEqual(answer.status, 400)

    def test_one_connection(self) -> None:
        """Requests on one connection are counted one by one, and a client known there is not blocked on it."""
        self.wire.peer = self.peer
        self.wire.connect()
        answers = self.wire.send(b"".join(request("GET", "/pulse", b"", basic(user))
                                          for user in [A, *["wrong"] * (MOST + 1), A, B]))  # fmt: skip
        self.assertEqual([answer.status for answer in answers], [204] + [401] * MOST + [429, 204, 429])

    def test_proxy(self) -> None:
        """Behind a trusted proxy the address is the client's, whatever else the client claims."""
        for proxy, trusted in (("10.1.2.3", ip_network("10.1.0.0/16")), ("", "unix")):
            self.trust(trusted)
            self.come_from(proxy)
            self.assertEqual(self.guess(MOST + 1, "X-Forwarded-For: 203.0.113.7")[-1], 429)
            for claim, status in (
                ("X-Forwarded-For: 10.1.9.9, 203.0.113.7", 429), ("X-Forwarded-For: 203.0.113.7:99", 429),
                ("X-Forwarded-For: 203.0.113.7, 203.0.113.8", 200), ("X-Forwarded-For: 203.0.113.8", 200),
                ("X-Real-IP: 203.0.113.7", 200),
            ):  # fmt: skip
                self.assertEqual(self.call("GET", "/topics", None, A, claim).status, status, claim)
            self.come_from("203.0.113.7")
            self.expect(429, "GET", "/topics")

    def test_clients_of_a_proxy(self) -> None:
        """On a connection of a proxy, each client is known from its own address alone."""
        self.trust(ip_network("10.1.0.0/16"))
        self.come_from("10.1.2.3")
        self.wire.peer = self.peer
        self.wire.connect()
        near, far = "X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 203.0.113.8"
        before, after = [(A, near), (A, far), (B, near)], [(A, far), (B, near), (B, far), (A, near)]
        for user, where in before + [("wrong", far)] * (MOST + 1) + after:
            answers = self.wire.send(request("GET", "/pulse", b"", basic(user), where))
        statuses = [answer.status for answer in answers]
        self.assertEqual((statuses[:3], statuses[-4:]), ([204] * 3, [204, 204, 429, 204]))

    def test_claims(self) -> None:
        """Without trusted proxies, X-Forwarded-For has no effect."""
        statuses = [self.guess(1, f"X-Forwarded-For: 203.0.113.{number}")[0] for number in range(MOST + 1)]
        self.assertEqual(statuses, [401] * MOST + [429])

    def test_metrics(self) -> None:
        """Failures are counted by the status that they were answered with."""
        self.guess(MOST + 5)
        self.expect(429, "GET", "/topics", user=A)
        taken = self.meter.take()
        self.assertEqual([taken[f"authentication.failures|status={each}"] for each in (401, 429)], [MOST, 6])

    def test_places(self) -> None:
        """An authenticated request keeps its connection's place; 401, 429 and what needs no token do not."""
        places = self.wire.site.limits.places
        for path, user, kept in (("/topics", A, True), ("/topics", "wrong", False), ("/topics", None, False),
                                 ("/health", A, False), ("/openapi.json", None, False),
                                 ("/api_tokens", A, True)):  # fmt: skip
            self.call("GET", path, None, user)
            self.assertEqual(self.wire.channel not in places._strangers, kept, f"{path} {user}")
        self.guess()
        self.expect(429, "GET", "/topics", user=B)
        self.assertIn(self.wire.channel, places._strangers)
        self.wire.connect()
        self.wire.send(request("POST", "/topics/cats", b"", basic(A), "Content-Length: 9999"))
        self.assertNotIn(self.wire.channel, places._strangers)
