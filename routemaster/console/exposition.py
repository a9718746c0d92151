"""What the console takes from `GET /metrics`, the Prometheus text format.

A bus with 5,000 subscribers writes a hundred thousand lines. The few that are wanted are
picked by their beginning, those with value 0 are left out where they say nothing, and only
the rest goes to prometheus_client's parser. Call these functions in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from routemaster.console.model import Bucket, Measured, RedisNode
from routemaster.console.reading import MOST, BadAnswer

_LOST = {f"routemaster_events_{kind}_total": kind for kind in ("autodropped", "expired", "parked")}
_NODE = {
    "routemaster_redis_used_bytes": "used",
    "routemaster_redis_max_memory_bytes": "max",
    "routemaster_redis_low_mark_bytes": "low",
    "routemaster_redis_high_mark_bytes": "high",
    "routemaster_redis_autodrop_nearness": "nearness",
}
_ONCE = (
    "routemaster_redis_up", "routemaster_build_info", "routemaster_certificate_expires_seconds",
    "routemaster_process_total", *_NODE,
)  # fmt: skip
_WANTED = tuple(f"{name}{{" for name in _ONCE)
_IF_NOT_ZERO = tuple(f"{name}{{" for name in _LOST)
LATENCY = "routemaster_delivery_duration_seconds"


def read_metrics(body: bytes) -> Measured:
    """What is wanted of all; raises BadAnswer if it is no exposition of a bus."""
    lines = body.decode("utf-8", "replace").split("\n")
    picked = [line for line in lines if line.startswith(_WANTED)]
    picked += [line for line in lines if line.startswith(_IF_NOT_ZERO) and not line.endswith(" 0.0")]
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for name, labels, value in _samples(picked):
        found.setdefault(name, []).append((labels, value))
    if "routemaster_redis_up" not in found:
        raise BadAnswer("the metrics are not those of a bus: is this the URL of a bus?")
    nodes: dict[str, dict[str, float]] = {}
    for name, part in _NODE.items():
        for labels, value in found.get(name, ()):
            nodes.setdefault(labels.get("node", ""), {})[part] = value
    expires = [value for _, value in found.get("routemaster_certificate_expires_seconds", ())]
    lost: dict[str, dict[str, int]] = {}
    for name, kind in _LOST.items():
        for labels, value in found.get(name, ()):
            lost.setdefault(kind, {})[labels.get("subscriber", "")] = int(value)
    return Measured(
        redis_up=found["routemaster_redis_up"][0][1] == 1,
        version=next((labels.get("version", "") for labels, _ in found.get("routemaster_build_info", ())), ""),
        redis=tuple(RedisNode(node, **parts) for node, parts in sorted(nodes.items()) if len(parts) == len(_NODE)),
        certificate_expires_in=min(expires, default=None),
        lost=lost,
        started=_processes(found, "start"),
        stopped=_processes(found, "stop"),
    )


def _processes(found: Mapping[str, list[tuple[Mapping[str, str], float]]], status: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for labels, value in found.get("routemaster_process_total", ()):
        if labels.get("status") == status:
            kind = labels.get("type", "")
            counts[kind] = counts.get(kind, 0) + int(value)
    return counts


def latency(body: bytes, subscriber: str) -> list[Bucket]:
    """The histogram of the duration of attempts to deliver to a subscriber; empty if there were none."""
    mark = f'subscriber="{subscriber}"'
    start = f"{LATENCY}_bucket{{"
    lines = [
        line for line in body.decode("utf-8", "replace").split("\n") if line.startswith(start) and mark in line
    ]
    below: dict[float, float] = {}
    for _, labels, value in _samples(lines):
        try:
            limit = inf if labels["le"] == "+Inf" else float(labels["le"])
        except (KeyError, ValueError):
            continue
        below[limit] = below.get(limit, 0) + value
    buckets, before = [], 0
    for limit, count in sorted(below.items()):
        buckets.append(Bucket(limit, int(count) - before))
        before = int(count)
    return buckets


def _samples(lines: Iterable[str]) -> Iterable[tuple[str, Mapping[str, str], float]]:
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                each: Any = sample
                if abs(each.value) <= MOST:  # one that is no number, or infinite, is not known
                    yield each.name, each.labels, each.value
    except (ValueError, KeyError, IndexError) as error:
        raise BadAnswer(f"the metrics are not in Prometheus's text format: {error}") from None
