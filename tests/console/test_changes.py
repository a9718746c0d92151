"""What happened is found by comparing two readings."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.changes import KINDS, MOST, between, counted, duration
from routemaster.console.model import Bus, RedisNode, Topic
from tests.console.made import NOW, bus, measured, subscriber


class Case(SynchronousTestCase):
    """Compares."""

    def kinds(self, old: Bus, new: Bus) -> list[str]:
        """The kinds of what happened; each has words, and a text of one line."""
        found = between(old, new, NOW)
        for each in found:
            self.assertIn(each.kind, KINDS)
            self.assertEqual(len(each.text.splitlines()), 1)
            self.assertEqual((each.bus, each.at), ("main", NOW))
        return [each.kind for each in found]


class BusTests(Case):
    """Changes of the bus itself."""

    def test_nothing(self) -> None:
        """The same twice is nothing, and so is the first reading."""
        self.assertEqual(self.kinds(bus(subscriber()), bus(subscriber())), [])
        self.assertEqual(self.kinds(bus(at=None, topics=()), bus(subscriber(failures=1, trouble="failing"))), [])

    def test_unreachable(self) -> None:
        """A bus that goes away is recorded once, with the reason, and once when it is back, with the time."""
        gone = evolve(bus(subscriber()), unreachable_since=NOW - 65, error="connection refused")
        [change] = between(bus(subscriber()), gone, NOW)
        self.assertEqual((change.kind, change.severity), ("unreachable", "error"))
        self.assertIn("connection refused", change.text)
        self.assertEqual(self.kinds(gone, gone), [])
        [change] = between(gone, bus(subscriber()), NOW)
        self.assertEqual((change.kind, change.text), ("reachable", "main is reachable again after 1 min 5 s"))

    def test_never_reached(self) -> None:
        """A bus that was never reached is unreachable from the start."""
        self.assertEqual(self.kinds(bus(at=None), bus(at=None, unreachable_since=NOW)), ["unreachable"])

    def test_what_happened_meanwhile(self) -> None:
        """When a bus is back, what happened meanwhile is compared with the last reading."""
        gone = evolve(bus(subscriber()), unreachable_since=NOW, error="x")
        self.assertEqual(self.kinds(gone, bus()), ["reachable", "unsubscribed"])

    def test_redis(self) -> None:
        """Redis going and coming is recorded; lists that could not be read make no changes."""
        down = bus(redis_up=False, topics=())
        self.assertEqual(self.kinds(bus(subscriber()), down), ["redis_down"])
        self.assertEqual(self.kinds(down, evolve(down, redis_up=True)), ["redis_up"])

    def test_processes(self) -> None:
        """Processes that were shut down cleanly and those that started are recorded by role, each when counted."""
        first = bus(measured=measured(started={"web": 2, "worker": 1}, stopped={"web": 1}))
        down = bus(measured=measured(started={"web": 2, "worker": 1}, stopped={"web": 2, "worker": 1}))
        up = bus(measured=measured(started={"web": 3, "worker": 2}, stopped={"web": 2, "worker": 1}))
        for old, new, kind in ((first, down, "stopped"), (down, up, "started")):
            [change] = between(old, new, NOW)
            self.assertEqual((change.kind, change.severity), (kind, "info"))
            self.assertIn("1 web, 1 worker", change.text)
        self.assertEqual(self.kinds(bus(), up), [])  # nothing had been counted before

    def test_version(self) -> None:
        """Another version is recorded."""
        self.assertEqual(self.kinds(bus(), bus(measured=evolve(measured(), version="0.2.0"))), ["version"])

    def test_memory(self) -> None:
        """Memory is recorded when it comes near autodrop, and once when it is far from it again."""

        def at(nearness: float) -> Bus:
            node = RedisNode("", 1, 1, 1, 1, nearness)
            return bus(measured=evolve(measured(), redis=(RedisNode("b", 1, 1, 1, 1, 0), node)))

        self.assertEqual(self.kinds(at(0.79), at(0.81)), ["memory"])
        for before, after in ((0.81, 0.79), (0.79, 0.61), (0.1, 0.59), (0.9, 0.95)):
            self.assertEqual(self.kinds(at(before), at(after)), [])
        self.assertEqual(self.kinds(at(0.61), at(0.5)), ["memory"])

    def test_certificate(self) -> None:
        """A certificate that ends within two weeks is recorded once."""
        day = 86400

        def ending(seconds: float) -> Bus:
            return bus(measured=measured(certificate_expires_in=seconds))

        self.assertEqual(self.kinds(ending(14.1 * day), ending(13.9 * day)), ["certificate"])
        self.assertEqual(self.kinds(ending(13.9 * day), ending(13.8 * day)), [])

    def test_topics(self) -> None:
        """Topics created and deleted are recorded."""
        other = bus(topics=(Topic("dogs", "demo", 0),))
        self.assertEqual(self.kinds(bus(), other), ["topic_created", "topic_deleted"])

    def test_bounded(self) -> None:
        """Thousands of changes at once are a list of some, and a line that says how many more."""
        many = [subscriber(f"s{number}") for number in range(MOST + 50)]
        found = between(bus(), bus(*many), NOW)
        self.assertEqual(len(found), MOST + 1)
        self.assertEqual((found[-1].kind, found[-1].text), ("more", "50 further changes at the same time"))


class SubscriberTests(Case):
    """Changes of subscribers."""

    def pair(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        """The kinds of changes of one subscriber."""
        return self.kinds(bus(subscriber(**old)), bus(subscriber(**new)))

    def test_failing(self) -> None:
        """A failure is recorded when it begins, with its reason, and when it ends, and not in between."""
        failing = {
            "failures": 1,
            "state": "backoff",
            "last_error": "answered 500",
            "trouble": "failing",
            "queued": 1204,
        }
        [change] = between(bus(subscriber()), bus(subscriber(**failing)), NOW)
        self.assertEqual(change.text, "deliveries to shop fail: answered 500; 1,204 events waiting")
        self.assertEqual((change.subscriber, change.severity), ("shop", "error"))
        self.assertEqual(self.pair(failing, {**failing, "failures": 9, "last_error": "answered 502"}), [])
        self.assertEqual(self.pair(failing, {}), ["recovered"])

    def test_paused(self) -> None:
        """Pauses are recorded, also of one that fails, which goes on to fail afterwards."""
        failing, paused = (
            {"failures": 1, "trouble": "failing"},
            {"failures": 1, "state": "paused", "trouble": "paused"},
        )
        self.assertEqual(self.pair({}, paused), ["paused"])
        self.assertEqual(self.pair(failing, paused), ["paused"])
        self.assertEqual(self.pair(paused, failing), ["resumed", "failing"])
        self.assertEqual(self.pair(paused, {}), ["resumed"])

    def test_late(self) -> None:
        """Lateness is recorded with the age of the oldest event; that a late one fails is not its end."""
        late = {"oldest": NOW - 3700, "trouble": "late", "queued": 3}
        [change] = between(bus(subscriber()), bus(subscriber(**late)), NOW)
        self.assertEqual(change.text, "shop is late: its oldest event waits for 1 h 1 min; 3 events waiting")
        self.assertEqual(self.pair(late, {}), ["caught_up"])
        self.assertEqual(self.pair(late, {"failures": 1, "trouble": "failing"}), ["failing"])
        self.assertEqual(self.pair({"failures": 1, "trouble": "failing"}, late), ["recovered", "late"])

    def test_subscribed(self) -> None:
        """A new subscriber is recorded, and its trouble; one that left with events is a warning."""
        self.assertEqual(
            self.kinds(bus(), bus(subscriber(trouble="failing", failures=1))), ["subscribed", "failing"]
        )
        [change] = between(bus(subscriber(queued=7)), bus(), NOW)
        self.assertEqual((change.text, change.severity), ("shop has unsubscribed; 7 events waited", "warning"))

    def test_states_of_every_day(self) -> None:
        """That a subscriber is idle, waits or is delivered to is no news."""
        self.assertEqual(self.pair({"state": "idle"}, {"state": "delivering"}), [])
        self.assertEqual(self.pair({"state": "waiting"}, {"state": "idle"}), [])

    def test_shared_names(self) -> None:
        """Subscribers that share a name cannot be told apart: nothing is said of them."""
        two = bus(subscriber(shared=True), subscriber(shared=True))
        self.assertEqual(self.kinds(bus(subscriber()), two), [])
        self.assertEqual(self.kinds(two, bus(subscriber())), [])

    def test_counters(self) -> None:
        """Events dropped, expired and parked are recorded as they grow, by subscriber."""
        old = bus(measured=measured(lost={"expired": {"shop": 5}}))
        new = bus(
            measured=measured(lost={"expired": {"shop": 7}, "autodropped": {"crm": 1}, "parked": {"shop": 1}})
        )
        texts = [(each.kind, each.subscriber, each.text) for each in between(old, new, NOW)]
        self.assertEqual(
            [each[:2] for each in texts], [("autodropped", "crm"), ("expired", "shop"), ("parked", "shop")]
        )
        self.assertEqual(texts[1][2], "2 events of shop expired")
        self.assertEqual(self.kinds(new, new), [])


class WordTests(SynchronousTestCase):
    """Numbers in words."""

    def test_counted(self) -> None:
        """One is singular, all else plural, with separators."""
        self.assertEqual(
            [counted(each, "event") for each in (0, 1, 1204)], ["0 events", "1 event", "1,204 events"]
        )

    def test_duration(self) -> None:
        """At most two units, rounded, never negative."""
        for seconds, text in (
            (-5, "0 s"),
            (0.4, "0 s"),
            (59.6, "1 min"),
            (65, "1 min 5 s"),
            (3600, "1 h"),
            (3605, "1 h"),
            (90061, "1 d 1 h"),
            (86460, "1 d"),
        ):
            self.assertEqual(duration(seconds), text)
