"""Samples for the history from the readings of one bus, and the columns of a chart from samples: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from routemaster.console.history_tables import BUS, COARSE, FINE_KEPT, SUBSCRIBER, TOPIC, Sample
from routemaster.console.model import Bus, Subscriber

SPANS: Final = {"15m": 900.0, "1h": 3600.0, "6h": 21600.0, "24h": 86400.0}
"""What a chart may show, in seconds."""
Column = list[float | int | None]


class Sampler:
    """Makes samples of each reading, or of fewer if there would be too many for the history."""

    def __init__(self, most: int) -> None:
        """`most`: samples that the history keeps; half of them may be fine ones of one bus."""
        self._most = most
        self._last: Bus | None = None
        self._next_at = 0.0

    def take(self, bus: Bus) -> list[Sample]:
        """The samples since the last ones that were made."""
        if not bus.reachable or bus.redis_up is False or bus.at is None:
            self._last = None  # the line has a gap
            return []
        if bus.at < self._next_at <= bus.at + FINE_KEPT:
            return []
        samples = between(self._last, bus)
        self._last = bus
        self._next_at = bus.at + FINE_KEPT * len(samples) / max(1, self._most / 2)
        return samples


def between(old: Bus | None, new: Bus) -> list[Sample]:
    """What was measured of a bus, and of those of its topics and subscribers where there is anything to tell."""
    at = new.at or 0.0
    before = {each.name: each for each in old.subscribers} if old else {}
    samples = []
    for each in new.subscribers:
        sample = _subscriber(new.name, at, before.get(each.name), each)
        if not each.shared and (sample.queued or sample.failures or sample.received or sample.sent):
            samples.append(sample)
    published = grown(old, new) if old else {}
    samples += [Sample(new.name, TOPIC, name, at, received=count) for name, count in published.items()]
    samples.append(Sample(
        new.name, BUS, "", at, new.queued, max(0.0, at - new.oldest) if new.oldest else 0.0,
        sum(each.failures > 0 for each in new.subscribers),
        sum(published.values()) if old else None,
        sum(each.sent or 0 for each in samples) if old else None,
    ))  # fmt: skip
    return samples


def grown(old: Bus, new: Bus) -> dict[str, int]:
    """How many events were published to each topic, without those to which none was; a new topic began at 0."""
    events = {each.name: each.events for each in old.topics}
    counts = {each.name: each.events - events.get(each.name, 0) for each in new.topics}
    return {name: count for name, count in counts.items() if count > 0}


def _subscriber(bus: str, at: float, old: Subscriber | None, new: Subscriber) -> Sample:
    received = sent = None
    if old is not None and old.sent <= new.sent:
        sent = new.sent - old.sent
        received = max(0, new.queued - old.queued + sent)
    age = max(0.0, at - new.oldest) if new.oldest else 0.0
    return Sample(bus, SUBSCRIBER, new.name, at, new.queued, age, new.failures, received, sent)


def columns(bus: Sequence[Sample], line: Iterable[Sample], coarse: bool) -> dict[str, Column]:
    """The columns of a chart, with a row for each sample of the bus, and a row without values where it has a gap.

    `line`: the samples of the bus itself, or of a topic or a subscriber, which has none while nothing happens.
    """
    found = {each.at: each for each in line}
    chart: dict[str, Column] = {name: [] for name in ("at", "queued", "age", "failures", "received", "sent")}
    spacing = COARSE if coarse else _usual_spacing(bus)
    before: float | None = None
    for each in bus:
        elapsed = spacing if before is None or coarse else each.at - before
        if before is not None and each.at - before > 3 * spacing:
            _add(chart, before + spacing, [None] * 5)
            elapsed = spacing
        _add(chart, each.at, _row(found.get(each.at), each, elapsed))
        before = each.at
    return chart


def _row(sample: Sample | None, of_bus: Sample, elapsed: float) -> Column:
    if sample is None:  # nothing happened, as far as the bus itself was measured
        rate = None if of_bus.received is None else 0.0
        return [0, 0.0, 0, rate, rate]
    rates = [
        None if count is None else round(count / max(elapsed, 0.001), 3)
        for count in (sample.received, sample.sent)
    ]
    return [sample.queued, None if sample.age is None else round(sample.age, 1), sample.failures, *rates]


def _add(chart: dict[str, Column], at: float, row: Column) -> None:
    for name, value in zip(chart, [round(at, 1), *row], strict=True):
        chart[name].append(value)


def _usual_spacing(samples: Sequence[Sample]) -> float:
    """The median of the times between samples, in seconds."""
    gaps = sorted(later.at - earlier.at for earlier, later in pairwise(samples))
    return gaps[len(gaps) // 2] if gaps else 1.0
