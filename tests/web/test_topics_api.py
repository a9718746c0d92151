"""The endpoints about one topic, on the store in memory."""

from __future__ import annotations

import json
from typing import Any

from routemaster.json_compaction import TOKENS
from routemaster.limits import MAX_DATA
from routemaster.model import TopicSettings
from routemaster.util import turns
from tests.web.test_api import EVENT, ROOT_KEY, A, B, Case


class TopicCase(Case):
    """Client A publishes to `cats`, which keeps an hour."""

    def setUp(self) -> None:
        super().setUp()
        self.expect(204, "PUT", "/topics/cats", {"history": 3_600_000}, A)

    def publish(self, url: str = "https://localhost/1", **more: Any) -> str:
        answer = self.expect(204, "POST", "/topics/cats", EVENT | {"url": url, **more}, A)
        return answer.headers["routemaster-event"]

    def get(self, path: str, user: str = A) -> Any:
        return json.loads(self.expect(200, "GET", path, user=user).body)


class SettingsTests(TopicCase):
    """PUT and GET /topics/:name"""

    def test_claim(self) -> None:
        """A client that puts a free name owns the topic; root cannot create one."""
        self.assertEqual(self.get("/topics/cats")["publisher"], A)
        self.expect(403, "PUT", "/topics/cats", {}, B)
        self.expect(403, "POST", "/topics/cats", EVENT, B)
        self.expect(404, "PUT", "/topics/birds", {}, ROOT_KEY)
        self.expect(400, "PUT", "/topics/Birds", {}, A)

    def test_shown(self) -> None:
        """The settings, the first event kept and the last are shown; a put replaces all settings."""
        shown = self.get("/topics/cats", B)
        nothing = dict.fromkeys(("history_events", "max_data", "first", "last"))
        expected = {"name": "cats", "publisher": "alice", "events": 0, "history": 3_600_000, **nothing}
        self.assertEqual(shown, expected)
        first, last = self.publish(), self.publish()
        settings = {"history": 5, "history_events": 9, "max_data": 10}
        self.expect(204, "PUT", "/topics/cats", settings, ROOT_KEY)
        changed = {"events": 2, "first": first, "last": last, **settings}
        self.assertEqual(self.get("/topics/cats", B), expected | changed)
        self.expect(404, "GET", "/topics/birds", user=A)

    def test_subscribers(self) -> None:
        """Its publisher and root see who waits for how many events, others do not."""
        self.expect(204, "POST", "/subscription", {"topics": ["cats"]}, B)
        self.publish()
        for user in (A, ROOT_KEY):
            [backlog] = self.get("/topics/cats", user)["subscribers"]
            self.assertEqual((backlog["subscriber"], backlog["queued"]), ("bob", 1))
        self.assertNotIn("subscribers", self.get("/topics/cats", B))

    def test_bad_settings(self) -> None:
        """A setting out of its range is named, and nothing is changed."""
        for body in (
            {"history": -1}, {"history": 31_536_000_001}, {"history_events": 1.5}, {"max_data": MAX_DATA + 1},
            {"x": 1}, [], {"history": "1"},
        ):  # fmt: skip
            self.expect(400, "PUT", "/topics/cats", body, A)
        self.assertEqual(self.get("/topics/cats")["history"], 3_600_000)


class DataTests(TopicCase):
    """`max_data`"""

    def test_who_sets_it(self) -> None:
        """Above the configured limit only root sets it; its publisher may keep what root allowed."""
        self.assertIn("max_data", self.expect(403, "PUT", "/topics/cats", {"max_data": 5000}, A).error)
        self.expect(204, "PUT", "/topics/cats", {"max_data": 5000}, ROOT_KEY)
        self.expect(204, "PUT", "/topics/cats", {"max_data": 5000, "history": 7}, A)
        self.expect(403, "PUT", "/topics/cats", {"max_data": 5001}, A)

    def test_limit(self) -> None:
        """It is the most that an event's data has, below and above the configured limit, to the byte."""
        for most in (100, 5000, 200_000):
            self.expect(204, "PUT", "/topics/cats", {"max_data": most}, ROOT_KEY)
            self.publish(data="x" * (most - 2))
            answer = self.expect(400, "POST", "/topics/cats", EVENT | {"data": "x" * (most - 1)}, A)
            self.assertIn("data", answer.error)
        self.expect(204, "PUT", "/topics/cats", {}, ROOT_KEY)
        self.expect(400, "POST", "/topics/cats", EVENT | {"data": "x" * 5000}, A)

    def test_too_large(self) -> None:
        """A body that no event of the topic may have is answered 413."""
        self.expect(413, "POST", "/topics/cats", EVENT | {"data": "x" * 70_000}, A)
        self.expect(204, "PUT", "/topics/cats", {"max_data": 70_000}, ROOT_KEY)
        self.expect(413, "POST", "/topics/cats", EVENT | {"data": "x" * 140_000}, A)

    def test_dense(self) -> None:
        """An event with many values, alone or in an array, is checked in steps; others are answered between."""
        self.patch(turns, "STEP", -1.0)  # one step in each iteration
        self.expect(204, "PUT", "/topics/cats", {"max_data": MAX_DATA, "history": 60_000}, ROOT_KEY)
        data = [[], {}, 1, 1.5, "\u20ac", None] * 10_000
        for body in (EVENT | {"data": data}, [EVENT, EVENT | {"data": data}]):
            self.begin("POST", "/topics/cats", body, A)
            transport, steps = self.wire.transport, 0
            while self.clock.calls and not transport.value():
                self.expect(200, "GET", "/health", user=None)
                step = self.clock.calls.pop(0)
                step.called = 1
                step.func()
                steps += 1
            self.assertIn(b" 204 ", transport.value()[:20])
            self.assertGreaterEqual(steps, 60_000 // TOKENS)
            self.assertEqual(self.get("/topics/cats/events?max=100")["events"][-1]["data"], data)

    def test_other_process(self) -> None:
        """A change made through another process is in force within a few seconds."""
        self.publish(data="x" * 50)
        self.done(self.store.configure_topic("cats", A, TopicSettings(max_data=10)))
        self.clock.advance(6)
        self.expect(400, "POST", "/topics/cats", EVENT | {"data": "x" * 50}, A)


class EventTests(TopicCase):
    """GET /topics/:name/events and /topics/:name/events/:id"""

    def test_list(self) -> None:
        """The events kept are listed some at a time, as they are delivered, all of them or those of one URL."""
        ids = [self.publish(f"https://localhost/{number % 2}") for number in range(5)]
        first = self.get("/topics/cats/events?max=3")
        self.assertEqual([event["id"] for event in first["events"]], ids[:3])
        rest = self.get(f"/topics/cats/events?max=3&after={first['next']}")
        self.assertEqual(([event["id"] for event in rest["events"]], rest["next"]), (ids[3:], None))
        self.publish("https://localhost/2", data={"url": "https://localhost/1", "t": 1})
        some = self.get("/topics/cats/events?url=https://localhost/1", ROOT_KEY)
        self.assertEqual([event["id"] for event in some["events"]], ids[1::2])

    def test_who(self) -> None:
        """Another client than its publisher sees neither events nor where one is."""
        event = self.publish()
        self.expect(403, "GET", "/topics/cats/events", user=B)
        self.expect(403, "GET", f"/topics/cats/events/{event}", user=B)

    def test_bad_queries(self) -> None:
        """A parameter that is unknown or out of its range is named."""
        for query in ("max=0", "max=10001", "max=x", "after=5", "x=1", "max=1&max=1"):
            answer = self.expect(400, "GET", f"/topics/cats/events?{query}", user=A)
            self.assertIn(query.partition("=")[0], answer.error)

    def test_where(self) -> None:
        """For each subscriber one event is delivering, waits behind others, was skipped, or came before it."""
        early = self.publish()
        subscription = {"topics": ["cats"], "callback": "https://localhost/", "timeout": 0}
        self.expect(204, "POST", "/subscription", subscription, B)
        first, second = self.publish(), self.publish()
        self.clock.advance(1)

        def where(event: str) -> Any:
            found = self.get(f"/topics/cats/events/{event}")
            self.assertEqual(found["event"]["id"], event)
            [subscriber] = found["subscribers"]
            return subscriber

        self.assertEqual(where(early), {"subscriber": "bob", "state": "not subscribed"})
        self.assertEqual(where(second), {"subscriber": "bob", "state": "delivering", "ahead": 1})
        self.expect(200, "POST", "/subscription/skip", {"to": "next"}, B)
        self.assertEqual(where(first), {"subscriber": "bob", "state": "skipped"})

    def test_no_event(self) -> None:
        """An ID that no event of the topic has is answered 404, and what is no ID 400."""
        event = self.publish()
        us, _, n = event.partition("-")
        for other in (f"{us}-0", f"{us}-{int(n) + 1}", f"{int(us) - 1}-{n}"):
            self.expect(404, "GET", f"/topics/cats/events/{other}", user=A)
        self.expect(400, "GET", "/topics/cats/events/x", user=A)
