"""From what Redis answers to values, and back: pure, no call is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.interfaces import Stay
from routemaster.model import Cursor, EventID, Health, StoreFigures, Subscription, SubscriptionFacts


class Ledger:
    """Adds up what the topics know of one subscriber."""

    def __init__(self, subscriber: str, meta: Mapping[bytes, bytes], stays: Mapping[str, Stay]) -> None:
        self._subscriber, self._meta, self._stays = subscriber, meta, stays
        self._subscribed: dict[str, Stay] = {}
        self._sent, self._dropped = int(meta.get(b"sent", 0)), int(meta.get(b"dropped", 0))
        self._queued = 0
        self._oldest: int | None = None

    def add(self, topic: str, exists: bool, tail: EventID, cursor: Cursor, oldest: bytes) -> None:
        """`exists` is false for a topic that was deleted while it owed events."""
        stay = self._stays.get(topic)
        if stay is None or stay.membership != cursor.membership:
            return  # a stay that is over and about to be forgotten
        if exists and cursor.open:
            self._subscribed[topic] = stay
        self._sent += cursor.sent
        self._dropped += cursor.dropped
        self._queued += cursor.backlog(tail)
        if oldest:
            us = EventID.parse(oldest).us
            self._oldest = us if self._oldest is None else min(self._oldest, us)

    def facts(self) -> SubscriptionFacts:
        meta = self._meta
        return SubscriptionFacts(
            subscription=subscription(self._subscriber, meta, self._subscribed),
            sent=self._sent,
            queued=self._queued,
            oldest=None if self._oldest is None else self._oldest / 1e6,
            health=Health(
                failures=int(meta.get(b"failures", 0)),
                last_attempt=seconds(meta.get(b"last_attempt")),
                last_success=seconds(meta.get(b"last_success")),
                last_error=meta[b"last_error"].decode() if b"last_error" in meta else None,
                retry_at=seconds(meta.get(b"retry_at")),
            ),
            dropped=self._dropped,
        )


def subscription(subscriber: str, meta: Mapping[bytes, bytes], stays: Mapping[str, Stay]) -> Subscription:
    """The subscription that a subscriber's meta describes, to those topics in which it wants to be."""
    return Subscription(
        subscriber=subscriber,
        topics=tuple(sorted(topic for topic, stay in stays.items() if stay.state == "on")),
        callback=meta[b"callback"].decode(),
        uuid=meta[b"uuid"].decode() or None,
        timeout=int(meta[b"timeout"]),
        max=int(meta[b"max"]),
    )


def figures(info: bytes, node: str) -> StoreFigures:
    """What a node tells of itself, from its INFO."""
    told = {name: value for name, _, value in (line.partition(b":") for line in info.splitlines())}
    return StoreFigures(
        bytes_used=int(told[b"used_memory"]),
        max_memory=int(told[b"maxmemory"]),
        cpu_user_ms=float(told[b"used_cpu_user"]) * 1000,
        cpu_sys_ms=float(told[b"used_cpu_sys"]) * 1000,
        node=node,
    )


def seconds(us: bytes | None) -> float | None:
    """A moment in microseconds, as seconds."""
    return None if us is None else int(us) / 1e6


def fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash, from the flat list as which Redis answers it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def pairs(counts: Mapping[str, int]) -> list[bytes]:
    """A hash of counts, as the flat list of arguments that scripts take."""
    return [part for name, count in counts.items() for part in (name.encode(), b"%d" % count)]


def numbers(flat: Sequence[bytes]) -> dict[str, int]:
    """A hash of counts, from Redis's flat list."""
    return {name.decode(): int(count) for name, count in fields(flat).items()}


def stays(flat: Sequence[bytes]) -> dict[str, Stay]:
    """The stays in topics that a subscriber's `topics` holds."""
    found = {}
    for topic, stay in fields(flat).items():
        membership, version, state = stay.split()
        found[topic.decode()] = Stay(int(membership), state.decode(), int(version))
    return found
