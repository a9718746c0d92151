"""Reads a subscriber's oldest events from a store as a courier does, but without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from routemaster.delivery.batch import Limits, oldest_entries
from routemaster.delivery.log_cache import Entry
from routemaster.interfaces import Position
from routemaster.model import EventID, Span


@frozen
class Reading:
    """What a read found."""

    entries: Sequence[Entry]  #: topic, ID, fragment
    positions: Mapping[str, Position]


class _Logs:
    """Stands for the cache of logs."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def read(self, starts: Mapping[str, EventID], most: int) -> dict[str, Sequence[Entry]]:
        logs = await self._store.read(starts, most)
        return {topic: [(topic, *entry) for entry in entries] for topic, entries in logs.items()}


async def read(
    store: Any, subscriber: str, after: Mapping[str, EventID | None], most: int, most_bytes: int
) -> Reading:
    """The oldest events that wait in some topics, the keys of `after`; an ID there skips the events up to it."""
    positions = (await store.positions(subscriber, list(after))).by_topic
    logs = []
    for topic, start in after.items():
        cursor, tail = positions[topic].cursor, positions[topic].tail
        if cursor is not None and tail is not None:
            logs.append((topic, [_behind(span, start) for span in cursor.spans], tail))
    entries, _ = await oldest_entries(_Logs(store), logs, Limits(most, most_bytes))  # type: ignore[arg-type]
    return Reading(entries, {topic: positions[topic] for topic in after})


def _behind(span: Span, start: EventID | None) -> Span:
    return span if start is None or start.n <= span.after.n else Span(start, span.until)
