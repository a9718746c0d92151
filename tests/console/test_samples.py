"""Samples of readings, and the columns of charts."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.history_tables import BUS, FINE_KEPT, SUBSCRIBER, TOPIC, Sample
from routemaster.console.model import Topic
from routemaster.console.samples import Sampler, between, columns
from tests.console.made import NOW, bus, subscriber


class SampleTests(SynchronousTestCase):
    """What is measured."""

    def test_bus(self) -> None:
        """The bus's sample has what waits, how long, and what went in and out; a new topic began at 0."""
        old = bus(subscriber(sent=5), topics=(Topic("cats", "x", 10),))
        new = bus(
            subscriber(sent=9, queued=3, oldest=NOW - 2, failures=1),
            subscriber("b"),
            at=NOW + 5,
            topics=(Topic("cats", "x", 16), Topic("dogs", "x", 2)),
        )
        found = {(each.kind, each.name): each for each in between(old, new)}
        self.assertEqual(found[BUS, ""], Sample("main", BUS, "", NOW + 5, 3, 7.0, 1, 8, 4))
        self.assertEqual(found[SUBSCRIBER, "shop"], Sample("main", SUBSCRIBER, "shop", NOW + 5, 3, 7.0, 1, 7, 4))
        self.assertEqual([found[TOPIC, name].received for name in ("cats", "dogs")], [6, 2])
        self.assertEqual(len(found), 4)  # subscriber b has nothing to tell

    def test_first(self) -> None:
        """Of the first reading it is not known what went in and out."""
        [shop, whole] = between(None, bus(subscriber(sent=9, queued=1, oldest=NOW)))
        self.assertEqual((shop.received, shop.sent, whole.received, whole.sent), (None,) * 4)

    def test_gap(self) -> None:
        """While a bus is away or without Redis there are no samples, and afterwards no sums over the gap."""
        sampler = Sampler(1000)
        self.assertEqual(len(sampler.take(bus(subscriber(sent=1)))), 1)
        for away in ({"unreachable_since": NOW}, {"redis_up": False}, {"at": None}):
            self.assertEqual(sampler.take(bus(**away)), [])
        [whole] = sampler.take(bus(subscriber(sent=100), at=NOW + 60))
        self.assertEqual(whole.sent, None)

    def test_bounded(self) -> None:
        """With more busy subscribers than there is room for, there are fewer samples, and no event is lost."""
        readings = [
            bus(*(subscriber(f"s{each}", sent=number, queued=1) for each in range(100)), at=NOW + number)
            for number in range(1, 1000)
        ]
        sampler = Sampler(20_000)
        taken = [sampler.take(reading) for reading in readings]
        rows = sum(map(len, taken))
        self.assertLessEqual(rows, 20_000 / 2 * 1000 / FINE_KEPT + 202)
        totals = [each.sent or 0 for samples in taken for each in samples if each.kind == BUS]
        last = max(number for number, samples in enumerate(taken) if samples)
        self.assertEqual(sum(totals), 100 * last)

    def test_clock_set_back(self) -> None:
        """A time of day that is set back does not end the samples."""
        sampler = Sampler(10)
        sampler.take(bus(at=NOW))
        self.assertEqual(len(sampler.take(bus(at=NOW - 2 * FINE_KEPT))), 1)


class ColumnTests(SynchronousTestCase):
    """Charts."""

    def line(self, *times: float, kind: str = BUS) -> list[Sample]:
        """Samples of ten events in each."""
        return [Sample("main", kind, "", at, 1, 0.5, 0, 10, 20) for at in times]

    def test_rates(self) -> None:
        """Counts become events per second over the time since the sample before."""
        chart = columns(self.line(0, 5, 10, 20), self.line(0, 5, 10, 20), False)
        self.assertEqual(chart["at"], [0, 5, 10, 20])
        self.assertEqual(chart["received"], [2.0, 2.0, 2.0, 1.0])
        self.assertEqual(chart["sent"][1:3], [4.0, 4.0])
        self.assertEqual(chart["queued"], [1, 1, 1, 1])
        self.assertEqual(columns(self.line(0, 300), self.line(0, 300), True)["sent"], [0.067, 0.067])

    def test_gap(self) -> None:
        """Where the bus was not measured, the line has a gap."""
        bus_line = self.line(0, 5, 10, 100, 105)
        chart = columns(bus_line, bus_line, False)
        self.assertEqual(chart["at"], [0, 5, 10, 15, 100, 105])
        self.assertEqual(chart["queued"], [1, 1, 1, None, 1, 1])
        self.assertEqual(chart["received"][4], 2.0)

    def test_nothing_to_tell(self) -> None:
        """A subscriber without samples had nothing waiting while the bus was measured."""
        chart = columns(self.line(0, 5, 10), self.line(5, kind=SUBSCRIBER), False)
        self.assertEqual((chart["queued"], chart["received"]), ([0, 1, 0], [0.0, 2.0, 0.0]))
        first = [evolve(each, received=None) for each in self.line(0)]
        self.assertEqual(columns(first, [], False)["received"], [None])

    def test_empty(self) -> None:
        """Without samples a chart has its columns, empty."""
        self.assertEqual(set(map(tuple, columns([], [], False).values())), {()})
