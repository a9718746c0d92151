"""Sends what the console reads of the buses to statsd, for a bus without a metrics service.

Names and units are those of the bus's own metrics, with the tag `bus`; counters are what
grew since the reading before. What the bus counts only for itself is left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from routemaster.console.model import Bus
from routemaster.interfaces import Sample, Snapshot

_NODE = {
    "redis.bytes_used": "used", "redis.max_mem": "max", "redis.low_mark": "low", "redis.high_mark": "high",
    "redis.autodrop_nearness": "nearness",
}  # fmt: skip
_LOST = {"events.autodropped": "autodropped", "events.expired": "expired", "events.parked": "parked"}


class Growth:
    """What the buses' totals grew by since the last time."""

    def __init__(self) -> None:
        self._sent: dict[str, Bus] = {}  # by the name of the bus: its reading that was sent last

    def snapshot(self, buses: Iterable[Bus], now: float) -> Snapshot:
        """What to send at a time of day."""
        gauges, counters = list[Sample](), list[Sample]()
        for bus in buses:
            tags = {"bus": bus.name}
            gauges.append(Sample("bus.reachable", int(bus.reachable), tags))
            if not bus.reachable:
                continue
            gauges.append(Sample("redis.up", int(bool(bus.redis_up)), tags))
            gauges += _gauges(bus, now)
            old = self._sent.get(bus.name)
            if old is not None and old is not bus and bus.redis_up:
                counters += _counters(old, bus)
            self._sent[bus.name] = bus
        return Snapshot(gauges, counters)


def _gauges(bus: Bus, now: float) -> Iterator[Sample]:
    for node in bus.redis:
        tags = {"bus": bus.name, **({"node": node.node} if node.node else {})}
        for name, part in _NODE.items():
            yield Sample(name, getattr(node, part), tags)
    if bus.certificate_expires is not None:
        yield Sample("certificate.expires", round(bus.certificate_expires - now), {"bus": bus.name})
    if not bus.redis_up:
        return
    for each in bus.subscribers:
        if each.shared:
            continue
        tags = {"bus": bus.name, "subscriber": each.name}
        yield Sample("subscriber.queue.events", each.queued, tags)
        yield Sample("subscriber.failures", each.failures, tags)
        age = round(max(0.0, now - each.oldest), 3) if each.oldest else 0
        yield Sample("subscriber.oldest_seconds", age, tags)
        yield Sample("subscriber.state", 1, tags | {"state": each.state})


def _counters(old: Bus, new: Bus) -> Iterator[Sample]:
    events = {each.name: each.events for each in old.topics}
    for topic in new.topics:
        if (grown := topic.events - events.get(topic.name, 0)) > 0:
            yield Sample("events.published", grown, {"bus": new.name, "topic": topic.name})
    before = {each.name: each for each in old.subscribers if not each.shared}
    for each in new.subscribers:
        if (was := before.get(each.name)) is not None and (grown := each.sent - was.sent) > 0:
            yield Sample("events.acknowledged", grown, {"bus": new.name, "queue": each.name})
    if old.measured is None or new.measured is None or old.measured is new.measured:
        return
    for name, kind in _LOST.items():
        was_lost = old.measured.lost.get(kind, {})
        for subscriber, total in new.measured.lost.get(kind, {}).items():
            if (grown := total - was_lost.get(subscriber, 0)) > 0:
                yield Sample(name, grown, {"bus": new.name, "queue": subscriber})
