"""What happened between two readings of a bus: pure.

What lasts is recorded when it begins and when it ends: a bus that is unreachable, a
subscriber that fails, is paused or late. What is counted is recorded as it grows: events
dropped, expired, parked. That a subscriber is idle, waiting or delivering is no news.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from routemaster.console.model import ERROR, FAILING, GOOD, INFO, LATE, PAUSED, WARNING, Bus, Change, Subscriber

MOST: Final = 200  #: changes from one comparison; the rest is one line
CERTIFICATE: Final = 14 * 86400.0  #: seconds before the end from which it is a change
NEAR, FAR = 0.8, 0.6  #: of the way to autodrop: from where memory is a change, and below which that ends

KINDS: Final = {
    "unreachable": "bus unreachable", "reachable": "bus reachable again",
    "redis_down": "Redis unavailable", "redis_up": "Redis available again",
    "started": "processes started", "stopped": "processes stopped", "version": "other version",
    "certificate": "certificate expires", "memory": "memory near autodrop",
    "failing": "deliveries fail", "recovered": "deliveries succeed again",
    "late": "events wait too long", "caught_up": "caught up",
    "paused": "paused", "resumed": "resumed",
    "subscribed": "subscribed", "unsubscribed": "unsubscribed",
    "topic_created": "topic created", "topic_deleted": "topic deleted",
    "autodropped": "events dropped", "expired": "events expired", "parked": "events parked",
    "control": "changed through the console", "more": "further changes",
}  # fmt: skip
"""What each kind means."""


def between(old: Bus, new: Bus, at: float) -> list[Change]:
    """What happened from `old` to `new`, a reading of the same bus at the time `at`; at most MOST + 1."""
    found = list(_all(old, new, at))
    if len(found) <= MOST:
        return found
    rest = Change(at, new.name, "more", INFO, f"{len(found) - MOST:,} further changes at the same time")
    return [*found[:MOST], rest]


def _all(old: Bus, new: Bus, at: float) -> Iterator[Change]:
    yield from _reachability(old, new, at)
    if old.at is None or not new.reachable:
        return
    yield from _bus(old, new, at)
    if new.redis_up:  # else these are of the reading before
        yield from _lists(old, new, at)
        yield from _counters(old, new, at)


def _reachability(old: Bus, new: Bus, at: float) -> Iterator[Change]:
    if old.unreachable_since is None and new.unreachable_since is not None:
        yield Change(at, new.name, "unreachable", ERROR, f"{new.name} is unreachable: {new.error}")
    elif old.unreachable_since is not None and new.unreachable_since is None:
        gone = duration(at - old.unreachable_since)
        yield Change(at, new.name, "reachable", GOOD, f"{new.name} is reachable again after {gone}")


def _bus(old: Bus, new: Bus, at: float) -> Iterator[Change]:
    name = new.name
    if old.redis_up and new.redis_up is False:
        yield Change(at, name, "redis_down", ERROR, f"Redis of {name} is unavailable")
    elif old.redis_up is False and new.redis_up:
        yield Change(at, name, "redis_up", GOOD, f"Redis of {name} is available again")
    before, now = old.measured, new.measured
    if before is None or now is None or before is now:
        return
    if before.version and now.version and before.version != now.version:
        yield Change(at, name, "version", INFO, f"{name} runs version {now.version}, before {before.version}")
    if any(before.started.values()):
        yield from _processes(name, "stopped", "have been shut down cleanly", before.stopped, now.stopped, at)
        yield from _processes(name, "started", "have started", before.started, now.started, at)
    nearness = [max((node.nearness for node in each.redis), default=0.0) for each in (before, now)]
    if nearness[0] < NEAR <= nearness[1]:
        text = f"Redis of {name} has used {nearness[1]:.0%} of its memory between the marks: autodrop is near"
        yield Change(at, name, "memory", WARNING, text)
    elif nearness[0] >= FAR > nearness[1]:
        yield Change(at, name, "memory", GOOD, f"Redis of {name} has memory again")
    ends = [each.certificate_expires_in for each in (before, now)]
    if ends[0] is not None and ends[1] is not None and ends[0] >= CERTIFICATE > ends[1]:
        yield Change(at, name, "certificate", WARNING, f"the certificate of {name} expires in {duration(ends[1])}")


def _processes(
    name: str, kind: str, text: str, before: Mapping[str, int], now: Mapping[str, int], at: float
) -> Iterator[Change]:  # fmt: skip
    grown = {role: count - before.get(role, 0) for role, count in sorted(now.items())}
    roles = ", ".join(f"{count} {role}" for role, count in grown.items() if count > 0)
    if roles:
        yield Change(at, name, kind, INFO, f"processes of {name} {text}: {roles}")


def _lists(old: Bus, new: Bus, at: float) -> Iterator[Change]:
    topics = {each.name for each in old.topics}, {each.name for each in new.topics}
    for name in sorted(topics[1] - topics[0]):
        yield Change(at, new.name, "topic_created", INFO, f"topic {name} was created", topic=name)
    for name in sorted(topics[0] - topics[1]):
        yield Change(at, new.name, "topic_deleted", INFO, f"topic {name} was deleted", topic=name)
    before = {each.name: each for each in old.subscribers if not each.shared}
    now = {each.name: each for each in new.subscribers if not each.shared}
    # one whose name has come to be shared, or is not any more, was not subscribed or unsubscribed by that
    shared = {each.name for bus in (old, new) for each in bus.subscribers if each.shared}
    for name in sorted(now.keys() - before.keys() - shared):
        text = f"{name} has subscribed to {counted(len(now[name].topics), 'topic')}"
        yield Change(at, new.name, "subscribed", INFO, text, name)
        yield from _subscriber(None, now[name], new.name, at)
    for name in sorted(before.keys() - now.keys() - shared):
        text = f"{name} has unsubscribed"
        text += f"; {counted(before[name].queued, 'event')} waited" if before[name].queued else ""
        yield Change(at, new.name, "unsubscribed", WARNING if before[name].queued else INFO, text, name)
    for name, each in now.items():
        if name in before:
            yield from _subscriber(before[name], each, new.name, at)


def _subscriber(old: Subscriber | None, new: Subscriber, bus: str, at: float) -> Iterator[Change]:
    was, name = old.trouble if old else "", new.name
    if was == new.trouble:
        return
    waiting = counted(new.queued, "event")
    if was == PAUSED:
        yield Change(at, bus, "resumed", INFO, f"{name} was resumed; {waiting} waiting", name)
    elif was == FAILING and not new.failures:
        yield Change(at, bus, "recovered", GOOD, f"deliveries to {name} succeed again; {waiting} waiting", name)
    elif was == LATE and new.trouble != FAILING:
        yield Change(at, bus, "caught_up", GOOD, f"{name} has caught up; {waiting} waiting", name)
    if new.trouble == PAUSED:
        yield Change(at, bus, "paused", WARNING, f"{name} was paused; {waiting} waiting", name)
    elif new.trouble == FAILING and was != FAILING:
        text = f"deliveries to {name} fail: {new.last_error or 'no reason is known'}; {waiting} waiting"
        yield Change(at, bus, "failing", ERROR, text, name)
    elif new.trouble == LATE:
        waits = duration(at - (new.oldest or at))
        text = f"{name} is late: its oldest event waits for {waits}; {waiting} waiting"
        yield Change(at, bus, "late", WARNING, text, name)


_COUNTED: Final = {
    "autodropped": (ERROR, "autodrop took {count} from the queue of {name}: Redis's memory was low"),
    "expired": (WARNING, "{count} of {name} expired"),
    "parked": (WARNING, "{count} of {name} parked: its receiver refuses them"),
}


def _counters(old: Bus, new: Bus, at: float) -> Iterator[Change]:
    if old.measured is None or new.measured is None or old.measured is new.measured:
        return
    for kind, (severity, text) in _COUNTED.items():
        before = old.measured.lost.get(kind, {})
        for name, total in new.measured.lost.get(kind, {}).items():
            if total > before.get(name, 0):
                grown = counted(total - before.get(name, 0), "event")
                yield Change(at, new.name, kind, severity, text.format(count=grown, name=name), name)


def counted(number: int, word: str, plural: str = "") -> str:
    """A number with its word, which is plural unless the number is 1."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def duration(seconds: float) -> str:
    """A time span in words of at most two units, such as `2 h 5 min`."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"
