"""Converts Redis's replies to values, and values to arguments. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.interfaces import LogEntry, Membership, Position
from routemaster.model import Cursor, EventID, OldSecret, StoreStats, Subscription, TopicSettings
from routemaster.redis.server_info import parse_info
from routemaster.traces import Traced, trace_of

OPTIONAL = ("max_bytes", "retention", "max_queued", "rate", "park_after", "start")
"""Fields of a subscription that may be absent: whole numbers."""


def subscription(
    subscriber: str, meta: Mapping[bytes, bytes], memberships: Mapping[str, Membership]
) -> Subscription:
    """The subscription in a subscriber's `meta` hash, to the topics whose membership is `on`."""
    return Subscription(
        subscriber=subscriber,
        topics=tuple(sorted(topic for topic, membership in memberships.items() if membership.state == "on")),
        callback=meta[b"callback"].decode() or None,
        uuid=meta[b"uuid"].decode() or None,
        timeout=int(meta[b"timeout"]),
        max=int(meta[b"max"]),
        awaits=bool(meta.get(b"awaits")),
        secret=meta.get(b"secret", b"").decode() or None,
        old_secrets=_old_secrets(meta.get(b"old_secrets", b"")),
        **{name: int(meta[name.encode()]) for name in OPTIONAL if meta.get(name.encode())},
    )


def settings(subscription: Subscription) -> list[bytes]:
    """The fields of a subscription in `meta` but callback, uuid and secret, flat; empty text: absent."""
    values = {name: getattr(subscription, name) for name in ("timeout", "max", *OPTIONAL)}
    numbers = [part for name, value in values.items() for part in (name.encode(), _number(value))]
    return [*numbers, b"awaits", b"await" if subscription.awaits else b""]


def _old_secrets(text: bytes) -> tuple[OldSecret, ...]:
    """From the form that `configure.lua` writes: `<secret> <until>` for each."""
    words = text.decode().split()
    return tuple(OldSecret(secret, int(until)) for secret, until in zip(words[::2], words[1::2], strict=True))


def parked_member(topic: str, event: EventID) -> bytes:
    """A parked event in the sorted sets, where those of one microsecond stand in the order of their names.

    So their numbers are of one length.
    """
    return b"%b %d-%016d" % (topic.encode(), *event)


def _number(value: int | None) -> bytes:
    return b"" if value is None else b"%d" % value


def topic_settings(history: bytes | None, history_events: bytes | None, max_data: bytes | None) -> TopicSettings:
    """A topic's settings, from its `meta`."""
    return TopicSettings(
        int(history or 0),
        int(history_events) if history_events else None,
        int(max_data) if max_data else None,
    )


def figures(info: bytes, time: Sequence[bytes], node: str) -> StoreStats:
    """The figures of a node, from its replies to INFO and TIME."""
    fields = parse_info(info)
    return StoreStats(
        bytes_used=int(fields["used_memory"]),
        max_memory=int(fields["maxmemory"]),
        cpu_user_ms=float(fields["used_cpu_user"]) * 1000,
        cpu_sys_ms=float(fields["used_cpu_sys"]) * 1000,
        node=node,
        time=int(time[0]) + int(time[1]) / 1e6,
    )


def entries(flat: Sequence[bytes]) -> list[LogEntry]:
    """The events of a log, from the flat list in a reply."""
    return list(zip(EventID.parse_all(flat[::2]), flat[1::2], strict=True))


def traced_entries(flat: Sequence[bytes]) -> list[LogEntry]:
    """The same, from a list that has a trace context, or empty text, after each fragment."""
    fragments = (
        Traced.of(fragment, trace) if trace else fragment
        for fragment, trace in zip(flat[1::3], flat[2::3], strict=True)
    )
    return list(zip(EventID.parse_all(flat[::3]), fragments, strict=True))


def traced(fragments: Sequence[bytes]) -> list[bytes]:
    """The arguments of a script for fragments and their trace contexts."""
    return [part for fragment in fragments for part in (fragment, trace_of(fragment))]


def seconds(us: bytes | None) -> float | None:
    """A time in microseconds, in seconds."""
    return None if us is None else int(us) / 1e6


def fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash, from the flat list in a reply."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def pairs(counts: Mapping[str, int]) -> list[bytes]:
    """A hash of counts, as the flat list of arguments of a script."""
    return [part for name, count in counts.items() for part in (name.encode(), b"%d" % count)]


def numbers(counts: Mapping[bytes, bytes]) -> dict[str, int]:
    """A hash of counts."""
    return {name.decode(): int(count) for name, count in counts.items()}


def memberships(flat: Sequence[bytes]) -> dict[str, Membership]:
    """The memberships by topic, from a subscriber's `topics` hash."""
    found = {}
    for topic, text in fields(flat).items():
        membership, version, state = text.split()
        found[topic.decode()] = Membership(int(membership), state.decode(), int(version))
    return found


def position(cursor: bytes, tail: bytes) -> Position:
    """A position in a topic, from a cursor and the log's tail; empty or None: absent."""
    return Position(Cursor.parse(cursor) if cursor else None, EventID.parse(tail) if tail else None)
