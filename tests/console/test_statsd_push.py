"""What the console sends to statsd."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.model import Bus, Topic
from routemaster.console.statsd_push import Growth
from routemaster.interfaces import Sample
from tests.console.made import NOW, bus, measured, subscriber


class GrowthTests(SynchronousTestCase):
    """Gauges and counters."""

    def setUp(self) -> None:
        self.growth = Growth()

    def sent(self, *buses: Bus) -> tuple[dict[str, float], dict[str, float]]:
        """Gauges and counters, by name and tags."""
        snapshot = self.growth.snapshot(buses, NOW)

        def named(samples: list[Sample]) -> dict[str, float]:
            return {" ".join([each.name, *sorted(each.tags.values())]): each.value for each in samples}

        return named(list(snapshot.gauges)), named(list(snapshot.counters))

    def test_gauges(self) -> None:
        """Queue, failures, age and state of each subscriber, memory and certificate, with the tag of the bus."""
        gauges, counters = self.sent(
            bus(subscriber(queued=3, failures=2, oldest=NOW - 5, state="backoff"), certificate_expires=NOW + 60)
        )
        self.assertEqual(
            gauges,
            {
                "bus.reachable main": 1,
                "redis.up main": 1,
                "redis.bytes_used main": 10,
                "redis.max_mem main": 100,
                "redis.low_mark main": 80,
                "redis.high_mark main": 90,
                "redis.autodrop_nearness main": 0,
                "certificate.expires main": 60,
                "subscriber.queue.events main shop": 3,
                "subscriber.failures main shop": 2,
                "subscriber.oldest_seconds main shop": 5,
                "subscriber.state backoff main shop": 1,
            },
        )
        self.assertEqual(counters, {})

    def test_counters(self) -> None:
        """Counters are what grew since the last time: nothing twice, and nothing of before."""
        first = bus(
            subscriber(sent=100), topics=(Topic("cats", "x", 10),), measured=measured(lost={"parked": {"shop": 1}})
        )
        then = bus(
            subscriber(sent=107),
            topics=(Topic("cats", "x", 12), Topic("new", "x", 3)),
            measured=measured(lost={"parked": {"shop": 3}, "expired": {"shop": 1}}),
        )
        self.sent(first)
        expected = {
            "events.published cats main": 2,
            "events.published main new": 3,
            "events.acknowledged main shop": 7,
            "events.parked main shop": 2,
            "events.expired main shop": 1,
        }
        self.assertEqual(self.sent(then)[1], expected)
        self.assertEqual(self.sent(then)[1], {})

    def test_gap(self) -> None:
        """A bus that is away is said to be, and nothing else; what it did meanwhile is counted when it is back."""
        self.sent(bus(subscriber(sent=1)))
        self.assertEqual(
            self.sent(bus(subscriber(sent=1), unreachable_since=NOW)), ({"bus.reachable main": 0}, {})
        )
        self.assertEqual(self.sent(bus(subscriber(sent=5)))[1], {"events.acknowledged main shop": 4})

    def test_redis_down(self) -> None:
        """Without Redis, lists of before are not sent as if they were of now."""
        gauges, counters = self.sent(bus(subscriber(queued=3), redis_up=False))
        self.assertEqual(gauges["redis.up main"], 0)
        self.assertEqual([name for name in gauges if name.startswith("subscriber")], [])
        self.assertEqual(counters, {})
