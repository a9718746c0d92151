"""Adds up what is known about subscribers, by the public names that metrics show.

Tokens with the same public name are one subscriber here: counts are added, and of
what cannot be added the worst counts, so that no alert misses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from routemaster.delivery.forecast import batches, batches_due, step_of
from routemaster.interfaces import Sample
from routemaster.metrics.meter import series
from routemaster.model import SubscriptionInfo, public_name

#: counters of events that left a queue without a delivery, and where `SubscriptionInfo` has them
_UNDELIVERED: Final = {
    "events.autodropped": "dropped", "events.expired": "expired", "events.skipped": "skipped",
    "events.parked": "parked",
}  # fmt: skip


class SubscriberTotals:
    """The totals of all subscriptions at one time, `now`, in seconds since the epoch."""

    def __init__(self, now: float) -> None:
        self._now, self._due = now, 0
        self._queued, self._ready, self._removed = Counter[str](), Counter[str](), Counter[str]()
        self._undelivered = {name: Counter[str]() for name in _UNDELIVERED}
        self._failures, self._ages = dict[str, int](), dict[str, float]()
        self._overdue = dict[str, float]()
        self._successes, self._states = dict[str, float](), Counter[tuple[str, str]]()

    @property
    def names(self) -> list[str]:
        """The public names of the subscribers."""
        return list(self._queued)

    def add(self, info: SubscriptionInfo) -> None:
        """Add one subscription."""
        name, now, health = public_name(info.subscription.subscriber), self._now, info.health
        self._queued[name] += info.queued
        self._ready[name] += batches(info)
        self._removed[name] += info.added - info.queued
        for kind, counts in self._undelivered.items():
            counts[name] += getattr(info, _UNDELIVERED[kind])
        self._due += batches_due(info, now)
        self._failures[name] = max(self._failures.get(name, 0), health.failures)
        age = max(0.0, round(now - info.oldest, 3)) if info.oldest else 0.0
        self._ages[name] = max(self._ages.get(name, 0.0), age)
        overdue = max(0.0, round(age - info.subscription.timeout / 1000, 3))
        self._overdue[name] = max(self._overdue.get(name, 0.0), overdue)
        success = round(health.last_success or 0.0, 3)
        self._successes[name] = min(self._successes.get(name, success), success)
        self._states[name, step_of(info, now).state.value] += 1

    def gauges(self) -> Iterable[Sample]:
        """The gauges of all subscribers, and the deliveries over all of them."""
        for metric, values in (
            ("subscriber.queue.events", self._queued),
            ("subscriber.queue.batches", self._ready),
            ("subscriber.failures", self._failures),
            ("subscriber.oldest_seconds", self._ages),
            ("subscriber.overdue_seconds", self._overdue),
            ("subscriber.last_success", self._successes),
        ):
            for name, value in values.items():
                yield Sample(metric, value, {"subscriber": name})
        for (name, state), count in self._states.items():
            yield Sample("subscriber.state", count, {"subscriber": name, "state": state})
        yield Sample("jobs.count", self._due, {"queue": "main", "status": "instant"})
        yield Sample("jobs.count", self._ready.total() - self._due, {"queue": "main", "status": "scheduled"})

    def counters(self, name: str) -> Iterable[tuple[str, int]]:
        """The series of one subscriber's queue, with their totals."""
        yield series("events.added", {"queue": name}), self._removed[name] + self._queued[name]
        yield series("events.removed", {"queue": name}), self._removed[name]
        for kind, counts in self._undelivered.items():
            yield series(kind, {"queue": name}), counts[name]
