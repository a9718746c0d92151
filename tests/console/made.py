"""Values of the model for tests, and the answers of a bus from which they are read."""

from __future__ import annotations

import json
from typing import Any

from routemaster.console.model import Bus, Measured, RedisNode, Subscriber, Topic
from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.prometheus import exposition

NOW = 1_800_000_000.0


def subscriber(name: str = "shop", **fields: Any) -> Subscriber:
    """A subscriber, idle unless said otherwise."""
    values: dict[str, Any] = {
        "callback": "https://shop.example.com/events",
        "max_events": 100,
        "timeout": 500,
        "topics": ("cats",),
        "awaited": (),
        "sent": 0,
        "queued": 0,
        "oldest": None,
        "state": "idle",
        "failures": 0,
        "last_attempt": None,
        "last_success": None,
        "last_error": None,
        "next_attempt": None,
    }
    return Subscriber(name, **{**values, **fields})


def measured(**fields: Any) -> Measured:
    """The metrics of a bus that is well."""
    return Measured(True, "0.1.0", (RedisNode("", 10, 100, 80, 90, 0.0),), **fields)


def bus(*subscribers: Subscriber, **fields: Any) -> Bus:
    """A bus that was read at NOW."""
    values: dict[str, Any] = {
        "at": NOW,
        "redis_up": True,
        "subscribers": subscribers,
        "measured": measured(),
        "topics": (Topic("cats", "demo", 10),),
    }
    return Bus("main", "https://bus.example.com", **{**values, **fields})


def subscription_json(name: str = "shop", **fields: Any) -> dict[str, Any]:
    """An entry of `GET /subscriptions`; `events` and `health` are given in parts."""
    events = {"sent": 0, "queued": 0, "oldest": None, **fields.pop("events", {})}
    health = {
        "state": "idle",
        "failures": 0,
        "last_attempt": None,
        "last_success": None,
        "last_error": None,
        "next_attempt": None,
        **fields.pop("health", {}),
    }
    return {
        "subscriber": name,
        "callback": "https://shop.example.com/events",
        "uuid": None,
        "max_events": 100,
        "timeout": 500,
        "topics": ["cats"],
        "awaited": [],
        "events": events,
        "health": health,
        **fields,
    }


def encoded(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


def metrics(*counters: Sample, redis_up: int = 1, **tags: str) -> bytes:
    """What a bus answers to `GET /metrics`, made by the bus's own code."""
    gauges = [
        Sample("redis.up", redis_up, {}),
        Sample("build_info", 1, {"version": "0.1.0", "role": "all"}),
        Sample("redis.bytes_used", 10, tags),
        Sample("redis.max_mem", 100, tags),
        Sample("redis.low_mark", 80, tags),
        Sample("redis.high_mark", 90, tags),
        Sample("redis.autodrop_nearness", 0.25, tags),
        Sample("certificate.expires", 86400, {"file": "/c"}),
        Sample("certificate.expires", 3600, {"file": "/d"}),
    ]
    return exposition(Snapshot(gauges, counters), "routemaster")
