"""Values as the pages show them."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console import formatting
from routemaster.console.model import Bucket, Change, RedisNode, Subscriber

NOW = 1_800_000_000.0
INF = float("inf")
DASH = formatting.UNKNOWN


def subscriber(**fields: Any) -> Subscriber:
    """A subscriber for whom nothing waits, but for the fields given."""
    usual: dict[str, Any] = {
        "name": "shop", "callback": "https://shop.example.com/", "max_events": 100, "timeout": 500,
        "topics": ("cats",), "awaited": (), "sent": 7, "queued": 0, "oldest": None, "state": "idle", "failures": 0,
        "last_attempt": NOW - 5, "last_success": NOW - 5, "last_error": None, "next_attempt": None,
    }  # fmt: skip
    return Subscriber(**usual | fields)


DETAILS = {
    "callback": "https://shop.example.com/", "max_events": 100, "timeout": 500, "max_bytes": None,
    "retention": None, "max_queued": None, "rate": None, "park_after": None, "start": "next",
    "missing_topics": "refuse", "signed": False,
}  # fmt: skip


class ValueTests(SynchronousTestCase):
    """Numbers, times and sizes."""

    def test_tables(self) -> None:
        """Each value is shown to as many digits as matter, and one that is not known as a dash."""
        for function, rows in {
            formatting.number: {None: DASH, 0: "0", 1234567: "1,234,567"},
            formatting.rate: {None: DASH, 0: "0/s", 0.04: "0.04/s", 0.96: "1.0/s", 12.3: "12.3/s", 432.9: "433/s"},
            formatting.span: {
                None: DASH, 0: "0 s", 0.0002: "1 ms", 0.25: "250 ms", 0.9999: "0 s", 59.9: "59 s", 60: "1 min",
                200: "3 min 20 s", 3600: "1 h", 3725: "1 h 2 min", 90000: "1 d 1 h", -5: "0 s",
            },
            formatting.milliseconds: {None: DASH, 0: "0 ms", 500: "500 ms", 90000: "1 min 30 s"},
            formatting.size: {
                None: DASH, 0: "0 bytes", 999: "999 bytes", 1500: "1.5 kB", 62_400_000: "62.4 MB", 10**8: "100 MB",
                999_999: "1.0 MB", 5 * 10**16: "50000 TB",
            },
            formatting.moment: {None: DASH, 0: "1970-01-01 00:00:00"},
            formatting.iso: {0: "1970-01-01T00:00:00Z"},
            formatting.received: {"1700000000500000-3": 1_700_000_000.5},
            formatting.sentence: {"no route": "No route.", "It ends.": "It ends.", "why?": "Why?"},
        }.items():  # fmt: skip
            for value, shown in rows.items():
                self.assertEqual(function(value), shown, (function.__name__, value))

    def test_relative(self) -> None:
        """How long ago, how old and how soon, with words for what never was and what is due."""
        for function, rows in {
            formatting.ago: {None: "never", NOW - 0.4: "just now", NOW + 3: "just now", NOW - 61: "1 min 1 s ago"},
            formatting.age: {None: DASH, NOW - 61.5: "1 min 1 s", NOW + 1: "0 s"},
            formatting.until: {None: DASH, NOW - 9: "now", NOW + 0.5: "now", NOW + 23: "in 23 s"},
        }.items():
            for value, shown in rows.items():
                self.assertEqual(function(value, NOW), shown, (function.__name__, value))

    def test_data(self) -> None:
        """The data of an event is shown as JSON, cut in a list and whole on its own page."""
        self.assertEqual(formatting.data({"a": "ü"}), '{"a": "ü"}')
        self.assertEqual(len(formatting.data("x" * 1000)), 400)
        self.assertTrue(formatting.data("x" * 1000).endswith("…"))
        self.assertIn("x" * 1000, formatting.pretty(["x" * 1000]))


class StateTests(SynchronousTestCase):
    """How a subscriber is."""

    def test_badges(self) -> None:
        """What is wrong comes before what it does now; a pause before failures, since nothing is tried."""
        for fields, word, tone in (
            ({}, "idle", "calm"),
            ({"state": "waiting"}, "waiting", "ok"),
            ({"state": "delivering"}, "delivering", "ok"),
            ({"state": "delivering", "failures": 3}, "failing x3", "bad"),
            ({"state": "backoff", "failures": 1200}, "failing x1,200", "bad"),
            ({"state": "backoff"}, "backoff", "bad"),
            ({"state": "paused", "failures": 3}, "paused", "watch"),
            ({"state": "waiting", "trouble": "late"}, "late", "watch"),
        ):
            badge = formatting.state(subscriber(**fields))
            self.assertEqual((badge.word, badge.tone), (word, tone), fields)
            self.assertTrue(badge.sign)

    def test_explained(self) -> None:
        """The state is told in a sentence with the figures that matter to it."""
        queue = {"queued": 1204, "oldest": NOW - 700}
        for fields, words in (
            ({}, "Every event has been acknowledged."),
            ({"state": "paused", **queue}, "Paused on request: nothing is delivered, and 1,204 events wait"),
            ({"state": "backoff", "failures": 3, "next_attempt": NOW + 9, **queue},
             "The last 3 attempts in a row failed. The last success was 5 s ago. The next attempt is due in 9 s."),
            ({"state": "backoff", "failures": 1, "last_success": None}, "No delivery has ever succeeded."),
            ({"state": "waiting", "trouble": "late", **queue}, "oldest of 1,204 events has waited 11 min 40 s"),
            ({"state": "waiting", "callback": None, **queue}, "1,204 events wait to be fetched."),
            ({"state": "waiting", **queue}, "1,204 events wait for the batch to fill."),
            ({"state": "delivering", **queue}, "Deliveries succeed; 1,204 events wait."),
        ):  # fmt: skip
            self.assertIn(words, formatting.explained(subscriber(**fields), NOW))

    def test_others(self) -> None:
        """Places of events, kinds of changes and the memory of Redis have a word, a sign and a tone."""
        self.assertEqual(formatting.place("dropped").tone, "bad")
        self.assertEqual(formatting.place("unheard of"), formatting.Badge("unheard of", "○", "calm"))
        badge = formatting.change(Change(NOW, "main", "redis_down", "error", "…"))
        self.assertEqual((badge.word, badge.tone), ("Redis unavailable", "bad"))
        self.assertEqual(formatting.kind("topic_created"), "topic created")
        tones = [formatting.memory(RedisNode("", 1, 2, 3, 4, nearness)) for nearness in (-2, 0.5, 0.6, 1.0)]
        self.assertEqual(tones, ["ok", "ok", "watch", "bad"])


class SettingsTests(SynchronousTestCase):
    """Settings in plain words."""

    def told(self, **fields: Any) -> str:
        return " ".join(f"{title}: {text}" for title, text in formatting.settings(DETAILS | fields))

    def test_subscription(self) -> None:
        """Each setting that is in force is told, with its unit; those at their default as what that means."""
        for fields, words in (
            ({}, "Delivered when 100 events are there, or the oldest has waited 500 ms; at most 100 events in"),
            ({"timeout": 0}, "Delivered as soon as one is there; at most 100 events in one batch."),
            ({"callback": None, "timeout": 0}, "Batches: Given out as soon as one is there"),
            ({"max_bytes": 8_388_608}, "in one batch, and at most 8.4 MB."),
            ({"rate": 50}, "Rate: At most 50 events a second"),
            ({}, "Old events: Wait without limit until they are acknowledged."),
            ({"retention": 86_400_000}, "Old events: Are not delivered any more after 1 d."),
            ({"retention": 60_000, "max_queued": 10}, "after 1 min, or when more than 10 events wait, the ol"),
            ({}, "An event that the receiver refuses blocks those behind it"),
            ({"park_after": 5}, "An event refused 5 times with 400, 413 or 422 is parked"),
            ({}, "Deliveries are not signed."),
            ({"signed": True}, "Deliveries are signed (Standard Webhooks)."),
            ({"start": "oldest"}, "begins with the oldest event that the topic keeps."),
            ({"start": 0}, "begins with events from 1970-01-01 00:00:00 UTC on."),
            ({"missing_topics": "await"}, "is joined when it comes into being."),
        ):  # fmt: skip
            self.assertIn(words, self.told(**fields))
        self.assertNotIn("Signatures", self.told(callback=None))

    def test_topic(self) -> None:
        """What a topic keeps is told with its limits."""
        settings = {"history": 0, "history_events": None, "max_data": None}
        for fields, words in (
            ({}, "Events are kept until every subscriber has them."),
            ({"history": 3_600_000, "history_events": 10},
             "Events are kept for 1 h, at most 10 events, though every subscriber has them."),
            ({"max_data": 4096}, "The data of one event may have 4.1 kB."),
        ):  # fmt: skip
            self.assertIn(words, formatting.kept(settings | fields))

    def test_histogram(self) -> None:
        """The bars go from the first bucket in use to the last; the highest is as wide as there is room."""
        buckets = [Bucket(0.1, 0), Bucket(0.25, 30), Bucket(2.5, 0), Bucket(60.0, 10), Bucket(INF, 0)]
        bars = formatting.histogram(buckets)
        self.assertEqual([bar.label for bar in bars], ["to 250 ms", "to 2.5 s", "to 1 min"])
        self.assertEqual([(bar.count, bar.share, bar.percent) for bar in bars],
                         [(30, 1.0, "75%"), (0, 0.0, "0%"), (10, 1 / 3, "25%")])  # fmt: skip
        self.assertEqual(formatting.histogram([Bucket(60.0, 0), Bucket(INF, 1)])[0].label, "over 1 min")
        self.assertEqual(formatting.histogram([Bucket(1.0, 0)]), [])
