"""The answers of a bus become values of the model."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.reading import (
    BadAnswer,
    read_subscribers,
    read_topics,
    topic_rates,
    trouble_of,
    with_rates,
    with_trouble,
)
from tests.console.made import NOW, encoded, subscriber, subscription_json


class ReadingTests(SynchronousTestCase):
    """What is read, and what is refused."""

    def test_topics(self) -> None:
        """Topics are read with all their fields, by name."""
        body = encoded(
            [{"name": "dogs", "publisher": "x", "events": 3}, {"name": "cats", "publisher": "y", "events": 1}]
        )
        self.assertEqual(
            [(each.name, each.publisher, each.events) for each in read_topics(body)],
            [("cats", "y", 1), ("dogs", "x", 3)],
        )

    def test_subscribers(self) -> None:
        """Subscribers are read with all their fields; a field that a later version adds is ignored."""
        health = {"state": "backoff", "failures": 2, "last_error": "refused", "next_attempt": 5.5}
        body = encoded(
            [
                subscription_json("b", events={"queued": 3, "oldest": 4}, health=health, new=1),
                subscription_json("a", callback=None),
            ]
        )
        first, second = read_subscribers(body)
        self.assertEqual(first, subscriber("a", callback=None))
        self.assertEqual(second, subscriber("b", queued=3, oldest=4.0, **health))

    def test_shared_names(self) -> None:
        """Subscribers with the same public name are marked: the bus cannot be asked about one of them."""
        found = read_subscribers(encoded([subscription_json("a"), subscription_json("b"), subscription_json("a")]))
        self.assertEqual([(each.name, each.shared) for each in found], [("a", True), ("a", True), ("b", False)])

    def test_impossible_values(self) -> None:
        """A value that the API does not have is refused: pages, charts and the history could not take it."""
        for fields in (
            {"events": {"sent": 10**400}}, {"events": {"queued": float("nan")}}, {"events": {"queued": "3"}},
            {"events": {"sent": float("inf")}}, {"events": {"oldest": float("nan")}},
            {"events": {"oldest": 1e300}},
            {"callback": {"a": 1}}, {"callback": "x" * 10_001}, {"health": {"last_error": ["x"]}},
            {"subscriber": None}, {"subscriber": "x" * 10_001},
        ):  # fmt: skip
            error = self.assertRaises(BadAnswer, read_subscribers, encoded([subscription_json(**fields)]))
            self.assertLess(len(str(error)), 300)
        self.assertRaises(BadAnswer, read_topics, b'[{"name": "a", "publisher": "b", "events": 1e999}]')

    def test_half_pairs(self) -> None:
        """Halves of surrogate pairs, which cannot be written as UTF-8, become `?`; whole pairs stay."""
        for name in (b"\\ud800", b"\\uDFFF", b"\xed\xa0\x80"):
            body = b'[{"name": "a%b", "publisher": "\\ud83d\\ude00", "events": 1}]' % name
            [topic] = read_topics(body)
            self.assertEqual((topic.name, topic.publisher), ("a?", "\U0001f600"))

    def test_bad_answers(self) -> None:
        """Whatever else is answered is one error of one line."""
        for body in (
            b"<html>",
            b"",
            b"[" * 100_000,
            b"\xff",
            b"null",
            b"3",
            b'{"error": "x"}',
            b'["x"]',
            b"[{}]",
            b"[[]]",
            encoded([{**subscription_json(), "events": None}]),
            encoded([{**subscription_json(), "topics": 3}]),
            encoded([subscription_json(events={"oldest": float("inf")})]),
            encoded([subscription_json(events={"oldest": -1})]),
            encoded([subscription_json(events={"sent": "many"})]),
            encoded([subscription_json(events={"queued": None})]),
        ):
            error = self.assertRaises(BadAnswer, read_subscribers, body)
            self.assertEqual(len(str(error).splitlines()), 1, body[:50])
        self.assertRaises(BadAnswer, read_topics, encoded([{"name": "x"}]))


class RateTests(SynchronousTestCase):
    """Rates are differences of totals over the time between two readings."""

    def test_subscribers(self) -> None:
        """What went out is what was sent, what came in is that and what the queue grew by."""
        [found] = with_rates((subscriber(sent=30, queued=15),), {"shop": subscriber(sent=10, queued=5)}, 10.0)
        self.assertEqual((found.rate_in, found.rate_out), (3.0, 2.0))

    def test_no_rates(self) -> None:
        """Without a reading before, or after a new subscription with the same name, there is none."""
        now = (subscriber(sent=3),)
        self.assertEqual(with_rates(now, {"shop": subscriber()}, None), now)
        self.assertEqual(with_rates(now, {}, 5.0), now)
        self.assertEqual(with_rates(now, {"shop": subscriber(sent=4)}, 5.0), now)

    def test_expired_events(self) -> None:
        """A queue that shrinks without a delivery makes no negative rate."""
        [found] = with_rates((subscriber(queued=1),), {"shop": subscriber(queued=9)}, 2.0)
        self.assertEqual((found.rate_in, found.rate_out), (0.0, 0.0))

    def test_topics(self) -> None:
        """A topic's rate is what its total grew by; all events of a new topic are new."""
        before = {each.name: each for each in read_topics(encoded([{"name": "a", "publisher": "x", "events": 5}]))}
        now = read_topics(
            encoded([{"name": "a", "publisher": "x", "events": 25}, {"name": "b", "publisher": "x", "events": 4}])
        )
        self.assertEqual([each.rate for each in topic_rates(now, before, 2.0)], [10.0, 2.0])
        self.assertEqual([each.rate for each in topic_rates(now, before, None)], [None, None])


class TroubleTests(SynchronousTestCase):
    """Who is in trouble."""

    def test_trouble(self) -> None:
        """Paused, failing or late, in this order; an event may wait for `timeout` and the limit."""
        for fields, expected in (
            ({}, ""),
            ({"oldest": NOW - 300.4}, ""),
            ({"oldest": NOW - 300.6}, "late"),
            ({"oldest": NOW - 3000, "timeout": 3_600_000}, ""),
            ({"failures": 1, "state": "backoff", "oldest": NOW - 999}, "failing"),
            ({"failures": 1, "state": "paused"}, "paused"),
        ):
            self.assertEqual(trouble_of(subscriber(**fields), NOW, 300.0), expected, fields)

    def test_with_trouble(self) -> None:
        """Each subscriber has its own."""
        found = with_trouble((subscriber("a"), subscriber("b", failures=3)), NOW, 300)
        self.assertEqual([each.trouble for each in found], ["", "failing"])
