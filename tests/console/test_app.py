"""Every page, the forms and the streams, over HTTP."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from attrs import evolve
from twisted.internet.defer import Deferred

from routemaster.console.app import CSP
from routemaster.console.bus_client import BusError
from routemaster.console.control import ACTIONS
from routemaster.console.model import Change, Topic
from tests.console.desk import Desk
from tests.console.made import NOW, bus, metrics, subscriber, subscription_json
from tests.web.wire import request

SHOP = "/buses/main/subscribers/shop"
EVENT = {"topic": "cats", "type": "update", "url": "https://x.example.com/1", "t": 1, "id": "1-1"}
ATTEMPT = {
    "at": NOW,
    "duration": 0.25,
    "events": 3,
    "first": "1-1",
    "last": "1-3",
    "topics": ["cats"],
    "status": 500,
    "reason": "answered 500",
    "answer": "<b>broken</b>",
}
DETAILS = subscription_json(
    "shop",
    max_bytes=None,
    retention=None,
    max_queued=None,
    rate=None,
    start="next",
    missing_topics="refuse",
    park_after=3,
    signed=True,
    events={
        "sent": 1,
        "queued": 3,
        "oldest": NOW,
        "added": 4,
        "expired": 0,
        "skipped": 0,
        "parked": 1,
        "dropped": 0,
    },
)


class Case(Desk):
    """A bus with a topic, and a subscriber in trouble."""

    def setUp(self) -> None:
        super().setUp()
        self.shop = subscriber(
            "shop",
            queued=3,
            oldest=NOW - 60,
            failures=2,
            state="backoff",
            last_error="<i>refused</i>",
            trouble="failing",
        )
        self.publish(self.shop)
        self.scripted.answers |= {
            "topics/cats": {
                "name": "cats",
                "publisher": "demo",
                "events": 10,
                "history": 0,
                "history_events": None,
                "max_data": None,
                "first": "1-1",
                "last": "1-10",
                "subscribers": [{"subscriber": "shop", "queued": 3, "oldest": NOW}],
            },
            "topics/cats/events": {"events": [EVENT], "next": "1-1"},
            "topics/cats/events/1-1": {
                "id": "1-1",
                "topic": "cats",
                "event": EVENT,
                "subscribers": [{"subscriber": "shop", "state": "queued", "ahead": 2}],
            },
            "subscriptions/shop": DETAILS,
            "subscriptions/shop/attempts": {"failed": [ATTEMPT], "success": None},
            "subscriptions/shop/parked": {
                "events": [{**EVENT, "reason": "answered 400", "parked_at": NOW}],
                "next": None,
            },
        }
        self.log_in()

    def publish(self, *subscribers: Any, **fields: Any) -> None:
        self.state.publish(evolve(bus(*subscribers, **fields), control=True))


PAGES = (
    "/",
    "/changes",
    "/buses/main/topics",
    "/buses/main/topics/cats",
    "/buses/main/topics/cats/events/1-1",
    "/buses/main/subscribers",
    SHOP,
    f"{SHOP}/parked",
    *(f"{SHOP}/control/{action}" for action in ACTIONS),
)


class PageTests(Case):
    """Pages."""

    def test_every_page(self) -> None:
        """Each page is there, is complete, and forbids whatever is not the console's own."""
        for path in PAGES:
            answer = self.get(path)
            self.assertEqual(
                (answer.status, answer.headers["content-type"]), (200, "text/html; charset=utf-8"), path
            )
            self.assertEqual(answer.headers["content-security-policy"], CSP)
            self.assertEqual(
                (answer.headers["cache-control"], answer.headers["referrer-policy"]), ("no-store", "no-referrer")
            )
            text = answer.body.decode()
            self.assertTrue(text.startswith("<!doctype html>") and text.rstrip().endswith("</html>"), path)
            for inline in (" style=", " onclick=", "<style", "javascript:", "http://"):
                self.assertNotIn(inline, text, path)

    def test_escaped(self) -> None:
        """What a bus, its subscribers and its receivers say is text on every page."""
        for path in PAGES:
            text = self.page(path)
            self.assertNotIn("<i>refused", text, path)
            self.assertNotIn("<b>broken", text, path)
        self.assertIn("&lt;i&gt;refused", self.page(SHOP))

    def test_content(self) -> None:
        """Each page shows what it is for."""
        for path, words in {
            "/": ("main", "shop"),
            "/buses/main/topics": ("cats", "demo"),
            "/buses/main/subscribers": ("shop",),
            "/buses/main/topics/cats": ("cats", "https://x.example.com/1"),
            f"{SHOP}/parked": ("answered 400",),
            "/buses/main/topics/cats/events/1-1": ("1-1", "shop"),
            SHOP: ("shop", "answered 500"),
        }.items():
            text = self.page(path)
            for word in words:
                self.assertIn(word, text, path)

    def test_empty_bus(self) -> None:
        """A bus that was never reached has its pages too, which say so."""
        self.publish(
            at=None, unreachable_since=NOW, error="connection refused", topics=(), measured=None, redis_up=None
        )
        self.assertIn("connection refused", self.page("/"))
        for path in ("/buses/main/topics", "/buses/main/subscribers", "/changes"):
            self.page(path)

    def test_bus_does_not_answer(self) -> None:
        """When the bus cannot be asked for details, the page shows what is known, and why there is no more."""
        for path in (
            "topics/cats",
            "topics/cats/events/1-1",
            "subscriptions/shop",
            "subscriptions/shop/attempts",
            "subscriptions/shop/parked",
        ):
            self.scripted.answers[path] = BusError("no answer within 10 s")
        for path in ("/buses/main/topics/cats", "/buses/main/topics/cats/events/1-1", SHOP, f"{SHOP}/parked"):
            self.assertIn("no answer within 10 s", self.page(path), path)

    def test_answers_that_are_none(self) -> None:
        """Whatever a bus answers to what a page asks, the page says that it is no answer; nothing is logged."""
        for answer in ({}, [], None, 3, "x", {"events": 3}, {"topics": 3}, {"events": [{}], "next": None}):
            for path in list(self.scripted.answers):
                if "/" in path:
                    self.scripted.answers[path] = answer
            for page in PAGES:
                status = self.get(page).status
                self.assertIn(status, (200, 502), (page, answer))
            for action in ACTIONS:
                form = {"csrf": self.csrf(), "expected": "3"}
                status = self.post(f"{SHOP}/control/{action}", form).status
                self.assertIn(status, (303, 409, 502), (action, answer))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unreachable_bus(self) -> None:
        """Nobody waits for a bus that is known not to answer: its pages show what was read last, at once."""
        self.publish(self.shop, unreachable_since=NOW, error="connection refused")
        self.scripted.asked.clear()
        for path in (SHOP, "/buses/main/topics/cats", f"{SHOP}/parked"):
            self.assertIn("connection refused", self.page(path))
        self.assertEqual(self.scripted.asked, [])

    def test_internal_error(self) -> None:
        """A fault of the console is a page that says so, and a line in its log; it shows nothing of the fault."""
        self.patch(self.rendering, "page", self.fault)
        answer = self.get("/")
        self.assertEqual(answer.status, 500)
        self.assertNotIn(b"d1vided", answer.body)
        self.assertIn("content-security-policy", answer.headers)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def fault(self, template: str, **context: Any) -> str:
        if template == "overview.html":
            raise ZeroDivisionError("d1vided")
        return type(self.rendering).page(self.rendering, template, **context)

    def test_odd_paths(self) -> None:
        """A path that is no text is not found, and no fault."""
        for path in ("/buses/%FF", "/%00", "/buses/main/subscribers/%F0%9F%92%A5", "/buses//topics", "//"):
            self.assertIn(self.get(path).status, (400, 404), path)

    def test_not_found(self) -> None:
        """What is not there is a page with 404."""
        for path in (
            "/nope",
            "/buses/two/topics",
            "/buses/main/topics/dogs",
            "/buses/main/subscribers/crm",
            "/data/two",
            f"{SHOP}/control/nope",
            "/static/nope.css",
            "/buses/main/subscribers/%3Cscript%3E",
        ):
            answer = self.get(path)
            self.assertEqual(answer.status, 404, path)
            self.assertNotIn(b"<script>", answer.body)
            self.assertIn("content-security-policy", answer.headers)

    def test_odd_queries(self) -> None:
        """Whatever a query holds, there is a page."""
        for query in (
            "page=-1&sort=x&order=y",
            "filter=%FF%00<",
            "before=²",
            "kind=%27",
            "page=" + "9" * 100,
            "&&=&",
        ):
            for path in ("/buses/main/topics", "/buses/main/subscribers", "/changes"):
                self.page(f"{path}?{query.replace('²', '%C2%B2')}")

    def test_find_event(self) -> None:
        """The form that asks where an event is leads to the event's page."""
        answer = self.get("/buses/main/topics/cats/event?id=+1-1%2F..+")
        self.assertEqual(
            (answer.status, answer.headers["location"]), (303, "/buses/main/topics/cats/events/1-1%2F..")
        )
        self.assertEqual(self.get("/buses/main/topics/cats/event").headers["location"], "/buses/main/topics/cats")

    def test_latency(self) -> None:
        """The page of a subscriber has the histogram of the bus's last metrics."""
        from routemaster.interfaces import Sample

        bucket = Sample("delivery.duration.bucket", 7, {"queue": "shop", "le": "100"})
        self.console._pages._watched["main"].poller.exposition = metrics(
            bucket, Sample("delivery.duration.sum", 1, {"queue": "shop"})
        )
        self.page(SHOP)

    def test_static(self) -> None:
        """Static files need no login; those whose address has their content's hash are kept for good."""
        self.cookie = ""
        [(name, file), *_] = self.rendering.static.items()
        for query, kept in (
            ("", "no-cache"),
            ("?v=old", "no-cache"),
            (f"?v={file.version}", "public, max-age=31536000, immutable"),
        ):
            answer = self.get(f"/static/{name}{query}")
            self.assertEqual(
                (answer.status, answer.body, answer.headers["cache-control"]), (200, file.content, kept)
            )
        self.assertEqual(self.get("/static/../app.py").status, 404)
        self.assertEqual(self.get("/health").body, b"{}")


class FragmentTests(Case):
    """Live parts of pages."""

    def test_live_part(self) -> None:
        """A request of htmx gets the live part alone, without anything of one user."""
        for path in PAGES[:8]:
            answer = self.get(path, "HX-Request: true")
            self.assertEqual((answer.status, answer.headers["vary"]), (200, "HX-Request"))
            text = answer.body.decode()
            self.assertNotIn("<html", text)
            self.assertNotIn(self.csrf(), text)
        self.assertIn("<html", self.page("/", "HX-Request: true", "HX-Boosted: true"))

    def test_gone(self) -> None:
        """When what an open page shows is there no more, the page is loaded again; a question stays."""
        self.scripted.answers["subscriptions/shop"] = BusError("answered 404: not subscribed", 404)
        question = self.get(f"{SHOP}/control/unsubscribe", "HX-Request: true")
        self.assertEqual((question.status, question.headers.get("hx-refresh")), (204, None))
        answer = self.post(f"{SHOP}/control/unsubscribe", {"csrf": self.csrf(), "expected": "3"})
        self.assertEqual((answer.status, self.get(f"{SHOP}/control/unsubscribe").status), (404, 404))
        self.assertIn(b"The bus answered 404: not subscribed.", answer.body)
        self.publish()
        answer = self.get(SHOP, "HX-Request: true")
        self.assertEqual((answer.status, answer.headers.get("hx-refresh")), (204, "true"))
        self.assertEqual(self.get(SHOP).status, 404)

    def test_shared(self) -> None:
        """It is made once for each snapshot: the bus is asked once for all who look."""
        for user in ("ann--1", "ann--1"):
            self.log_in(user)
            self.page(SHOP, "HX-Request: true")
        self.assertEqual(self.scripted.asked.count("subscriptions/shop"), 1)
        self.publish(self.shop)
        self.page(SHOP, "HX-Request: true")
        self.assertEqual(self.scripted.asked.count("subscriptions/shop"), 2)

    def test_not_shared_with_others(self) -> None:
        """Who may not control is shown no controls that somebody else has had rendered."""
        first = self.page(SHOP, "HX-Request: true")
        self.log_in("bob--2")
        second = self.page(SHOP, "HX-Request: true")
        self.assertIn("/control/", first + self.page(SHOP) + first)
        self.assertNotIn("/control/", second)


class ControlTests(Case):
    """Changing subscriptions."""

    def setUp(self) -> None:
        super().setUp()
        self.scripted.answers["POST subscriptions/shop/pause"] = None
        self.scripted.answers["POST subscriptions/shop/skip"] = {"events": 3}
        self.path = f"{SHOP}/control/pause"

    def test_done(self) -> None:
        """A question that is confirmed is done, once, and the next page says so; what happened has who did it."""
        self.assertIn("3 events", self.page(self.path))
        answer = self.post(self.path, {"csrf": self.csrf(), "expected": "3"})
        self.assertEqual((answer.status, answer.headers["location"]), (303, SHOP))
        self.assertEqual(self.scripted.sent, [("POST", "root", "subscriptions/shop/pause", None)])
        self.assertEqual(self.refreshed, 1)
        self.assertIn("shop is paused.", self.page(SHOP))
        self.assertNotIn('role="status">shop is paused.', self.page(SHOP))
        self.assertIn("by ann", self.page("/changes"))

    def test_browser_goes_away(self) -> None:
        """A change whose browser goes away is completed, and what happened has who did it."""
        for refusal in (None, BusError("answered 503: Redis", 503)):
            self.scripted.answers["POST subscriptions/shop/pause"] = refusal
            self.scripted.held = held = Deferred()
            self.wire.connect()
            body = urlencode({"csrf": self.csrf()}).encode()
            cookie = f"Cookie: __Host-routemaster-console={self.cookie}"
            self.wire.send_only(request("POST", self.path, body, cookie))
            self.wire.transport.lose()
            self.scripted.held = None
            held.callback(None)
        self.assertEqual(len(self.scripted.sent), 2)
        self.assertEqual(self.page("/changes").count("Pause deliveries, by ann"), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unknown_outcome(self) -> None:
        """A change of which the bus did not say whether it was done is among what happened, too."""
        self.scripted.answers["POST subscriptions/shop/pause"] = BusError("no answer within 10 s", unknown=True)
        self.assertEqual(self.post(self.path, {"csrf": self.csrf()}).status, 409)
        self.assertIn("whether it was done is not known", self.page("/changes"))

    def test_htmx(self) -> None:
        """htmx is sent to the page by its own header."""
        answer = self.post(self.path, {"csrf": self.csrf()}, "HX-Request: true")
        self.assertEqual((answer.status, answer.headers["hx-redirect"]), (204, SHOP))

    def test_forged(self) -> None:
        """Without the session's secret, or from another site, nothing is done."""
        for fields, header in (
            ({}, "X: y"),
            ({"csrf": "secret-1"}, "X: y"),
            ({"csrf": self.csrf()}, "Sec-Fetch-Site: cross-site"),
            ({"csrf": self.csrf()}, "Origin: https://evil.example.com"),
        ):
            self.assertEqual(self.post(self.path, fields, header).status, 403)
        self.assertEqual(self.ask("GET", f"{self.path}?csrf={self.csrf()}").status, 200)
        self.assertEqual(self.scripted.sent, [])

    def test_not_allowed(self) -> None:
        """A user who may only look sees no links, and is refused."""
        self.log_in("bob--2")
        self.assertNotIn("/control/", self.page(SHOP))
        self.assertEqual(self.get(self.path).status, 403)
        self.assertEqual(self.post(self.path, {"csrf": self.csrf()}).status, 403)
        self.assertEqual(self.scripted.sent, [])

    def test_only_watched(self) -> None:
        """A bus without a root key has no controls at all."""
        watched = self.console._pages._watched
        self.console._pages._watched = {"main": evolve(watched["main"], control=None)}
        self.assertEqual(self.get(self.path).status, 404)
        self.assertEqual(self.post(self.path, {"csrf": self.csrf()}).status, 404)

    def test_asked_again(self) -> None:
        """What was not done is the question again, with the reason."""
        self.scripted.answers["POST subscriptions/shop/pause"] = BusError("answered 503: Redis", 503)
        answer = self.post(self.path, {"csrf": self.csrf()})
        self.assertEqual(answer.status, 409)
        self.assertIn(b"nswered 503: Redis", answer.body)

    def test_count_again(self) -> None:
        """Other fields are counted again without anything being done."""
        path = f"{SHOP}/control/skip"
        answer = self.post(path, {"csrf": self.csrf(), "to": "next", "topics": "cats", "count": "1"})
        self.assertEqual(answer.status, 200)
        self.assertIn(b"3 events", answer.body)
        self.assertEqual(self.scripted.sent, [])
        self.assertEqual(
            self.post(path, {"csrf": self.csrf(), "to": "next", "topics": "cats", "expected": "3"}).status, 303
        )
        self.assertEqual(self.scripted.sent[0][3], {"to": "next", "topics": ["cats"]})

    def test_unsubscribed(self) -> None:
        """After the end of a subscription the list is shown: its page is no more."""
        self.scripted.answers["DELETE subscriptions/shop"] = None
        answer = self.post(f"{SHOP}/control/unsubscribe", {"csrf": self.csrf(), "expected": "9"})
        self.assertEqual(answer.headers["location"], "/buses/main/subscribers")


class DataTests(Case):
    """Charts, changes and streams."""

    def test_charts(self) -> None:
        """A chart has columns of the same length, of the bus, a topic or a subscriber."""
        self.clock.advance(5)
        self.publish(evolve(self.shop, sent=10), at=NOW + 5, topics=(Topic("cats", "demo", 30),))
        for path, last in {
            "/data/main?span=15m": {
                "at": NOW + 5,
                "queued": 3,
                "sent": 2.0,
                "received": 4.0,
                "failures": 1,
                "age": 65.0,
            },
            "/data/main/subscribers/shop": {"queued": 3, "sent": 2.0, "received": 2.0, "failures": 2},
            "/data/main/topics/cats?span=nonsense": {"received": 4.0},
        }.items():
            answer = self.get(path)
            self.assertEqual(answer.headers["content-type"], "application/json")
            columns = json.loads(answer.body)
            self.assertEqual({len(column) for column in columns.values()}, {2})
            self.assertEqual({name: columns[name][-1] for name in last}, last)
        self.assertEqual(set(columns), {"at", "received"})
        self.assertEqual(json.loads(self.get("/data/main?span=24h").body)["at"], [])

    def test_changes(self) -> None:
        """What happened is listed by the page, with a link to what was before, and selected."""
        self.history.add(
            [], [Change(NOW, "main", "paused", "info", f"no. {each}", "crm") for each in range(120)], NOW
        )
        first = self.page("/changes?kind=paused")
        self.assertIn("no. 119", first)
        self.assertNotIn("no. 69<", first)
        self.assertIn("before=", first)
        self.assertNotIn("no. 1", self.page("/changes?subscriber=shop"))

    def test_stream(self) -> None:
        """A page that is open hears of each snapshot; the stream ends with the session."""
        self.wire.connect()
        self.wire.send_only(
            b"GET /live HTTP/1.1\r\nHost: x\r\nCookie: __Host-routemaster-console=%b\r\n\r\n"
            % self.cookie.encode()
        )
        self.wire.clock.pump([0.1] * 3)
        text = self.wire.transport.value()
        self.assertIn(b"Content-Type: text/event-stream", text)
        self.assertIn(b"retry: 3000\n\nevent: snapshot\ndata: {", text)
        self.wire.transport.clear()
        self.publish(self.shop)
        self.wire.clock.pump([0.1] * 3)
        self.assertIn(b'"trouble":1}', self.wire.transport.value())
        self.sessions.end(self.cookie)
        self.clock.advance(15)
        self.wire.clock.pump([0.1] * 3)
        self.assertTrue(self.wire.transport.value().endswith(b"0\r\n\r\n"))
        self.assertEqual(self.live.open, 0)

    def test_too_many_streams(self) -> None:
        """One stream too many is refused."""
        self.live.stop()
        answer = self.get("/live")
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "10"))

    def test_gone_browser(self) -> None:
        """A browser that goes away while the bus is asked leaves nothing behind."""
        self.scripted.held = Deferred()
        self.wire.connect()
        self.wire.send_only(
            b"GET %b HTTP/1.1\r\nHost: x\r\nCookie: __Host-routemaster-console=%b\r\n\r\n"
            % (SHOP.encode(), self.cookie.encode())
        )
        self.wire.transport.lose()
        held, self.scripted.held = self.scripted.held, None
        if not held.called:
            held.callback(None)
        self.assertEqual(self.flushLoggedErrors(), [])
