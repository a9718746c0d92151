"""Requests are measured by route and status."""

from __future__ import annotations

from routemaster.metrics.meter import parse_series
from routemaster.web.redirect import RedirectResource
from routemaster.web.request_metrics import HISTOGRAM
from tests.web.test_api import ROOT_KEY, A, Case, basic
from tests.web.wire import Wire, head, request


class RequestMetricsTests(Case):
    """`RequestMetrics` behind the API."""

    def measured(self) -> dict[tuple[str, str, str], dict[str, int]]:
        """How many requests fell into each bucket, by method, route and status, since the last call."""
        found: dict[tuple[str, str, str], dict[str, int]] = {}
        for text, count in self.meter.take().items():
            name, tags = parse_series(text)
            if name == f"{HISTOGRAM}.bucket":
                found.setdefault((tags["method"], tags["route"], tags["status"]), {})[tags["le"]] = count
        return found

    def test_routes(self) -> None:
        """A request counts for its route's template, whatever its path."""
        self.publish("cats")
        self.publish("dogs")
        self.expect(404, "DELETE", "/topic/birds", user=ROOT_KEY)
        self.expect(401, "GET", "/topics", user=None)
        self.assertEqual(self.measured(), {
            ("POST", "/topics/<name>", "204"): {"1": 2},
            ("DELETE", "/topic/<name>", "404"): {"1": 1},
            ("GET", "/topics", "401"): {"1": 1},
        })  # fmt: skip

    def test_no_route(self) -> None:
        """What has no route counts as `other`: no path and no method that clients choose is in a metric."""
        self.expect(404, "GET", "/nothing")
        self.expect(405, "BREW", "/topics")
        self.wire.connect()
        self.wire.send(b"\x16\x03\x01")
        self.assertEqual(self.measured(), {
            ("other", "other", "404"): {"1": 1},
            ("other", "other", "405"): {"1": 1},
            ("other", "other", "400"): {"1": 1},
        })  # fmt: skip

    def test_duration(self) -> None:
        """The time is that from the last byte of the request to the answer, not that in which it arrives."""
        self.store.holding = True
        self.wire.connect()
        whole = request("DELETE", "/subscriber", b"", basic(A))
        self.wire.send(whole[:-1])
        self.wire.pass_time(5)
        self.wire.send(whole[-1:])
        self.wire.pass_time(3)
        self.assertEqual(self.measured(), {})
        self.store.release()
        self.assertEqual(self.measured(), {("DELETE", "/subscriber", "404"): {"5000": 1}})

    def test_refused_before_complete(self) -> None:
        """A request that is refused before its body has arrived counts for its route, with no time."""
        line, size = b"POST /topics/cats HTTP/1.1", b"Content-Length: %d"
        for headers, wait, status in (
            ([size % 100], 0, "401"),
            ([basic(A).encode(), size % 10**7], 0, "413"),
            ([basic(A).encode(), size % 100], 40, "408"),
        ):
            self.wire.connect()
            self.wire.send(head(line, b"Host: bus.test", *headers))
            self.wire.pass_time(wait)
            self.assertEqual(self.measured(), {("POST", "/topics/<name>", status): {"1": 1}})

    def test_connection_in_use_again(self) -> None:
        """After a request on the same connection, one without a route does not count for that."""
        self.publish()
        self.measured()
        self.wire.send(b"\x16")
        self.assertEqual(self.measured(), {("other", "other", "400"): {"1": 1}})

    def test_plain_port(self) -> None:
        """Redirects count as `other`, health checks on the plain port for their route."""
        wire = Wire(RedirectResource("https://bus.test", self.api.app.resource()))
        wire.send(request("GET", "/topics") + request("GET", "/health"))
        self.assertEqual(self.measured(), {
            ("other", "other", "308"): {"1": 1},
            ("GET", "/health", "200"): {"1": 1},
        })  # fmt: skip
