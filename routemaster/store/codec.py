"""From what Redis answers to values, and back: pure, no call is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.interfaces import Membership
from routemaster.model import StoreStats, Subscription


def subscription(subscriber: str, meta: Mapping[bytes, bytes], stays: Mapping[str, Membership]) -> Subscription:
    """The subscription that a subscriber's meta describes, to those topics in which it wants to be."""
    return Subscription(
        subscriber=subscriber,
        topics=tuple(sorted(topic for topic, stay in stays.items() if stay.state == "on")),
        callback=meta[b"callback"].decode(),
        uuid=meta[b"uuid"].decode() or None,
        timeout=int(meta[b"timeout"]),
        max=int(meta[b"max"]),
    )


def figures(info: bytes, node: str) -> StoreStats:
    """What a node tells of itself, from its INFO."""
    told = {name: value for name, _, value in (line.partition(b":") for line in info.splitlines())}
    return StoreStats(
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


def stays(flat: Sequence[bytes]) -> dict[str, Membership]:
    """The stays in topics that a subscriber's `topics` holds."""
    found = {}
    for topic, stay in fields(flat).items():
        membership, version, state = stay.split()
        found[topic.decode()] = Membership(int(membership), state.decode(), int(version))
    return found
