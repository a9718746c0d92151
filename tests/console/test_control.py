"""Changes of a subscription: each says how many events it concerns, and then does what it said."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.bus_client import BusError
from routemaster.console.control import ACTIONS, Control
from tests.console.made import NOW, subscription_json
from tests.console.scripted import ROOT, WATCHER, ScriptedBus

_T = TypeVar("_T")


class Case(SynchronousTestCase):
    """The subscriber shop of topics cats and dogs, for whom 30 of 100 and 4 of 10 events wait."""

    def setUp(self) -> None:
        self.bus = ScriptedBus()
        self.control = Control(self.bus.client, WATCHER, ROOT, lambda: NOW)
        info = subscription_json(topics=["cats", "dogs"], events={"queued": 34, "parked": 3})
        self.bus.answers |= {
            "subscriptions/shop": info,
            "subscriptions/shop/parked": {"events": [{}] * 2, "next": "cats/2-2"},
            "subscriptions/shop/parked?cats/2-2": {"events": [{}], "next": None},
            "topics/cats": self.topic("1-51", "9-100", 30),
            "topics/dogs": self.topic("1-1", "9-10", 4),
        }

    def topic(self, first: str | None, last: str | None, queued: int) -> dict[str, Any]:
        others = {"subscriber": "crm", "queued": 7, "oldest": None}
        return {"first": first, "last": last, "subscribers": [others, {"subscriber": "shop", "queued": queued}]}

    def result(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def events(self, action: str, **form: list[str]) -> int | None:
        """How many events the question names."""
        question = self.result(self.control.ask(action, "shop", form))
        self.assertEqual(question.problem, "")
        return question.events


class QuestionTests(Case):
    """Counting."""

    def test_every_action(self) -> None:
        """Each question names the subscriber and how many events it concerns."""
        expected = {
            "pause": 34,
            "resume": 34,
            "retry": 34,
            "rewind": 26,
            "skip": 34,
            "unsubscribe": 37,
            "parked-retry": 3,
            "parked-delete": 3,
        }
        for action in ACTIONS:
            question = self.result(self.control.ask(action, "shop", {}))
            self.assertEqual(question.events, expected[action], action)
            self.assertIn(f"{expected[action]} events", question.text)
            self.assertIn("shop", question.text)
        self.assertEqual(self.bus.sent, [])

    def test_some_topics(self) -> None:
        """Of some topics only these are counted; a topic that it has not is ignored."""
        self.assertEqual(self.events("rewind", topics=["cats"]), 20)
        self.assertEqual(self.events("skip", topics=["dogs"]), 4)
        self.assertEqual(self.events("skip", topics=["dogs", "birds"]), 4)

    def test_chosen_topics_are_gone(self) -> None:
        """If none of the chosen topics is there any more, nothing is done: none chosen would mean all."""
        for action in ("rewind", "skip"):
            question, notice = self.result(self.control.do(action, "shop", {"topics": ["birds"]}, "34"))
            self.assertIn("the chosen topics", question.problem)
            self.assertEqual((question.events, notice), (None, ""))
        self.assertEqual(self.bus.sent, [])

    def test_invalid_target(self) -> None:
        """Where to that is neither a word of the question nor a time is not taken for the default."""
        for to in ("nxt", "", "oldest"):
            question, _ = self.result(self.control.do("skip", "shop", {"to": [to]}, "34"))
            self.assertIn(f"{to!r}, expected next or time", question.problem)
        self.assertEqual(self.bus.sent, [])

    def test_time(self) -> None:
        """Up to a time, or from one on, the event that was accepted next after it decides."""
        time = {"to": ["time"], "time": ["2027-01-15T08:00"]}
        after = f"{1_800_000_000_000_000 - 0}-0"
        for topic, found in (("cats", [{"id": "1-61"}]), ("dogs", [{"id": "1-8"}])):
            self.bus.answers[f"topics/{topic}/events?{after}"] = {"events": found, "next": None}
        self.assertEqual(self.events("rewind", **time), 10)  # 61 to 70 of cats; of dogs 7 and later wait already
        self.assertEqual(self.events("skip", **time), 1)  # 7 of dogs
        for topic in ("cats", "dogs"):
            self.bus.answers[f"topics/{topic}/events?{after}"] = {"events": [], "next": None}
        self.assertEqual((self.events("rewind", **time), self.events("skip", **time)), (0, 34))

    def test_invalid_time(self) -> None:
        """A time that is none, or is to come, is a problem in the question, and nothing can be done with it."""
        for time, problem in (
            ("", "is invalid"),
            ("tomorrow", "is invalid"),
            ("2099-01-01T00:00", "in the future"),
        ):
            form = {"to": ["time"], "time": [time]}
            question = self.result(self.control.ask("skip", "shop", form))
            self.assertIn(problem, question.problem)
            self.assertEqual(question.events, None)
            self.assertEqual(self.result(self.control.do("skip", "shop", form, "34"))[1], "")
        self.assertEqual(self.bus.sent, [])

    def test_empty_topic(self) -> None:
        """A topic that keeps nothing has nothing to deliver again."""
        for last in (None, "9-100"):  # nothing was ever published; all is acknowledged, and there is no history
            self.bus.answers["topics/cats"] = self.topic(None, last, 0)
            self.assertEqual((self.events("rewind"), self.events("skip", topics=["cats"])), (6, 0))

    def test_unknown_number(self) -> None:
        """Where several subscribers have the name, the number is unknown, and the question says so."""
        self.bus.answers["topics/cats"]["subscribers"].append({"subscriber": "shop", "queued": 1})
        question = self.result(self.control.ask("rewind", "shop", {}))
        self.assertEqual(question.events, None)
        self.assertIn("An unknown number of events", question.text)

    def test_pulled(self) -> None:
        """A subscriber that pulls has nothing that could be tried again."""
        self.bus.answers["subscriptions/shop"]["callback"] = None
        for action in ("retry", "parked-retry"):
            self.assertIn("pulls", self.result(self.control.ask(action, "shop", {})).problem)
        self.assertEqual(self.result(self.control.ask("pause", "shop", {})).problem, "")

    def test_unknown_subscriber(self) -> None:
        """A subscriber that the bus does not know is the bus's error."""
        self.failureResultOf(Deferred.fromCoroutine(self.control.ask("pause", "nobody", {})), BusError)


class ActionTests(Case):
    """Doing."""

    def test_every_action(self) -> None:
        """Each sends one request, with the root key, and the notice says what was done."""
        requests = {
            "pause": ("POST", "/pause", None),
            "resume": ("POST", "/resume", None),
            "retry": ("POST", "/retry", None),
            "rewind": ("POST", "/rewind", {"to": "oldest"}),
            "skip": ("POST", "/skip", {"to": "next"}),
            "unsubscribe": ("DELETE", "", None),
            "parked-retry": ("POST", "/parked/retry", None),
            "parked-delete": ("DELETE", "/parked", None),
        }
        for action in ACTIONS:
            method, path, body = requests[action]
            answer = {"events": 25} if action in ("rewind", "skip") else None
            self.bus.answers[f"{method} subscriptions/shop{path}"] = answer
            _, notice = self.result(self.control.do(action, "shop", {}, "1000"))
            self.assertEqual(self.bus.sent.pop(), (method, "root", f"subscriptions/shop{path}", body))
            self.assertEqual(self.bus.sent, [])
            self.assertIn("shop", notice)
            self.assertIn("25 events" if answer else "", notice)

    def test_fields(self) -> None:
        """Time and topics of the form are what the bus is asked for."""
        self.bus.answers["POST subscriptions/shop/rewind"] = {"events": 1}
        after = "1800000000000000-0"
        self.bus.answers[f"topics/dogs/events?{after}"] = {"events": [], "next": None}
        form = {"to": ["time"], "time": ["2027-01-15T08:00"], "topics": ["dogs"]}
        _, notice = self.result(self.control.do("rewind", "shop", form, ""))
        self.assertEqual(self.bus.sent[0][3], {"to": 1_800_000_000_000, "topics": ["dogs"]})
        self.assertEqual(notice, "1 event will be delivered to shop again.")

    def test_many_more(self) -> None:
        """A loss that concerns many more events than were shown is asked about again; others are not."""
        self.bus.answers["subscriptions/shop"]["events"]["queued"] = 500
        for answer in ("POST subscriptions/shop/skip", "POST subscriptions/shop/pause"):
            self.bus.answers[answer] = {"events": 500}
        for expected in ("34", "", "nonsense", "9" * 40):
            question, notice = self.result(self.control.do("skip", "shop", {}, expected))
            self.assertEqual((notice, question.events), ("", 500))
            self.assertIn("more events than you were shown: 500", question.problem)
        self.assertEqual(self.bus.sent, [])
        self.assertNotEqual(self.result(self.control.do("skip", "shop", {}, "455"))[1], "")
        self.assertNotEqual(self.result(self.control.do("pause", "shop", {}, "34"))[1], "")

    def test_refused(self) -> None:
        """What the bus refuses is the question again, with its reason; so is an unknown outcome."""
        self.bus.answers["POST subscriptions/shop/pause"] = BusError("answered 503: Redis", 503)
        question, notice = self.result(self.control.do("pause", "shop", {}, ""))
        self.assertEqual((question.problem, notice), ("answered 503: Redis", ""))
        self.bus.answers["POST subscriptions/shop/pause"] = BusError("no answer within 10 s", unknown=True)
        question, _ = self.result(self.control.do("pause", "shop", {}, ""))
        self.assertEqual(question.problem, "no answer within 10 s; whether it was done is not known")
