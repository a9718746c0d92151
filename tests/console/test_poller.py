"""One bus is read again and again, whatever it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console import poller
from routemaster.console.bus_client import BusError
from routemaster.console.credentials import Credentials, Key
from routemaster.console.model import Bus
from routemaster.console.poller import Poll, Poller
from tests.console.made import NOW, metrics, subscription_json
from tests.console.scripted import WATCHER, ScriptedBus


class PollerTests(SynchronousTestCase):
    """Readings of a scripted bus."""

    def setUp(self) -> None:
        self.clock, self.bus = Clock(), ScriptedBus()
        self.readings: list[Bus] = []
        self.poller = Poller(
            Bus("main", "https://bus.example.com"),
            self.bus.client,
            Credentials(WATCHER),
            Poll(5.0, 300.0),
            self.clock,
            lambda: NOW + self.clock.seconds(),
            maybeDeferred,
            lambda bus: succeed(self.readings.append(bus)),
        )
        logs = capturedLogs()
        self.logs: list[Any] = logs.__enter__()
        self.addCleanup(logs.__exit__, None, None, None)

    def start(self) -> None:
        """Read now and every five seconds, until the end of the test."""
        self.poller.start()
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.poller.stop())))

    def warnings(self) -> list[str]:
        return [each["error"] for each in self.logs if each.get("error")]

    def test_reading(self) -> None:
        """A reading has topics, subscribers, metrics and the time; the next one has rates."""
        self.start()
        [first] = self.readings
        self.assertEqual((first.at, first.reachable, first.redis_up, first.version), (NOW, True, True, "0.1.0"))
        self.assertEqual([each.name for each in first.subscribers], ["shop"])
        self.assertEqual((first.received, first.certificate_expires), (None, NOW + 3600))
        self.bus.answers["topics"][0]["events"] = 30
        self.bus.answers["subscriptions"] = [subscription_json(events={"sent": 10, "queued": 5, "oldest": NOW})]
        self.clock.advance(5)
        second = self.readings[1]
        self.assertEqual((second.received, second.sent, second.queued), (4.0, 2.0, 5))

    def test_goes_away_and_comes_back(self) -> None:
        """A bus that is away keeps what was read, with reason and since when; it is read on, and is back."""
        self.start()
        self.bus.answers["metrics"] = BusError("connection refused")
        self.clock.pump([5, 5])
        self.assertEqual([each.reachable for each in self.readings], [True, False, False])
        away = self.readings[-1]
        self.assertEqual((away.unreachable_since, away.error, away.at), (NOW + 5, "connection refused", NOW))
        self.assertEqual([each.name for each in away.subscribers], ["shop"])
        self.bus.answers["metrics"] = metrics()
        self.clock.advance(5)
        back = self.readings[-1]
        self.assertEqual((back.reachable, back.error, back.unreachable_since), (True, "", None))
        self.assertEqual(back.received, None)  # the rates of a gap would be averages over it
        self.assertEqual(self.warnings(), ["connection refused"])  # once, not with every reading

    def test_another_reason(self) -> None:
        """A new reason is logged; the time since when stays."""
        self.bus.answers["topics"] = BusError("one")
        self.start()
        self.bus.answers["topics"] = BusError("two")
        self.clock.advance(5)
        self.assertEqual(self.warnings(), ["one", "two"])
        self.assertEqual(self.readings[-1].unreachable_since, NOW)

    def test_redis_down(self) -> None:
        """503 means that only Redis is away: the bus is reachable, and its lists are those of before."""
        self.start()
        self.bus.answers["topics"] = BusError("answered 503: Redis is unavailable", 503)
        self.clock.advance(5)
        found = self.readings[-1]
        self.assertEqual((found.reachable, found.redis_up, len(found.subscribers)), (True, False, 1))
        self.assertIn("Redis is unavailable", found.error)

    def test_nonsense(self) -> None:
        """An answer that is none of a bus makes the bus unreachable, and no error of the console."""
        self.start()
        for path, answer in (("subscriptions", b"<html>"), ("topics", {"a": 1}), ("metrics", b"nothing")):
            before, self.bus.answers[path] = self.bus.answers[path], answer
            self.clock.advance(5)
            self.assertFalse(self.readings[-1].reachable, path)
            self.bus.answers[path] = before
        self.clock.advance(5)
        self.assertTrue(self.readings[-1].reachable)

    def test_slow_bus(self) -> None:
        """A bus that takes long is read less often: the pause is ten times as long as the reading."""
        self.start()
        self.bus.held = Deferred()
        self.clock.advance(5)
        self.clock.advance(3)
        asked = len(self.bus.asked)
        held, self.bus.held = self.bus.held, None
        held.callback(None)
        self.assertEqual(len(self.readings), 2)
        self.clock.pump([1] * 26)
        self.assertEqual(len(self.readings), 2)
        self.clock.pump([1] * 2)
        self.assertEqual(len(self.readings), 3)
        self.assertEqual(self.bus.asked[asked:].count("topics"), 1)

    def test_bus_that_hangs(self) -> None:
        """A bus that gave no answer in time is asked again soon, so that it is seen when it is back."""
        self.start()
        self.bus.held = held = Deferred()
        self.clock.pump([5, 10])
        self.bus.held = None
        held.errback(BusError("no answer within 10 s"))
        self.assertEqual([each.reachable for each in self.readings], [True, False])
        self.clock.advance(5)
        self.assertEqual([each.reachable for each in self.readings], [True, False, True])

    def test_refused_key(self) -> None:
        """A key that is refused is shown again only after a while, or when it was replaced."""
        file = Path(self.mktemp())
        file.write_text("wrong")
        self.poller._key = Key("test", "wrong", file)
        self.bus.keys = self.poller._key
        answer, self.bus.answers["metrics"] = self.bus.answers["metrics"], BusError("answered 401: x", 401)
        self.start()
        self.clock.pump([5] * 5)
        self.assertEqual(self.bus.asked.count("metrics"), 1)
        self.clock.advance(5)
        self.assertEqual(self.bus.asked.count("metrics"), 2)
        self.bus.answers["metrics"] = answer
        file.write_text("right")
        self.clock.advance(5)
        self.assertTrue(self.readings[-1].reachable)

    def test_slow_metrics(self) -> None:
        """The metrics are asked for less often than the lists if they alone take long; the last ones stay."""
        self.start()
        self.assertEqual(self.bus.asked.count("metrics"), 1)
        self.poller._measure_at = 12.0
        self.clock.pump([5, 5])
        self.assertEqual((self.bus.asked.count("metrics"), self.bus.asked.count("topics")), (1, 3))
        self.assertEqual(self.readings[-1].version, "0.1.0")
        self.clock.advance(5)
        self.assertEqual(self.bus.asked.count("metrics"), 2)

    def test_stop(self) -> None:
        """It stops during a reading, which it gives up at once, and closes the connections."""
        self.bus.held = Deferred()
        self.poller.start()
        self.successResultOf(Deferred.fromCoroutine(self.poller.stop()))
        self.assertEqual(self.readings, [])
        self.assertTrue(self.bus.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_own_fault(self) -> None:
        """If the reading itself fails, the figures of the past do not look as if they were of now."""
        self.start()

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a fault")

        self.patch(poller, "read_metrics", fail)
        self.clock.advance(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIn("cannot be read", self.readings[-1].error)
        self.assertFalse(self.readings[-1].reachable)

    def test_refresh(self) -> None:
        """After a change it reads at once, also a slow bus; who waits for that waits for two seconds at most."""
        self.start()
        self.poller._poll_at = 1000.0
        self.successResultOf(self.poller.refresh())
        self.assertEqual(len(self.readings), 2)
        self.bus.held = held = Deferred()
        waiting = self.poller.refresh()
        self.clock.advance(1.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.successResultOf(waiting)
        self.bus.held = None
        held.callback(None)
        self.assertEqual(len(self.readings), 3)

    def test_refresh_during_a_reading(self) -> None:
        """A reading that had begun before the change does not count: the next one follows at once."""
        self.bus.held = held = Deferred()
        self.start()
        waiting = self.poller.refresh()
        self.bus.held = again = Deferred()
        held.callback(None)
        self.clock.advance(0)
        self.assertNoResult(waiting)
        self.bus.held = None
        again.callback(None)
        self.clock.advance(0)
        self.successResultOf(waiting)
        self.assertEqual(len(self.readings), 2)
