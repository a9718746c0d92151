"""The limits of what clients send, in numbers; those that are options are in `config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

MAX_BULK: Final = 1000   #: events in one request
MAX_TOKEN: Final = 64    #: characters
MAX_DATA: Final = 1024 * 1024  #: bytes of an event's data, whatever a topic's settings allow
YEAR_MS: Final = 31_536_000_000
MAX_TIMESTAMP: Final = 2**53 - 1  #: milliseconds since the epoch
MAX_PLACE: Final = 2**53 // 1000 - 1  #: milliseconds since the epoch: in microseconds a double holds it


@frozen
class Range:
    """What an integer may be."""

    unit: str
    least: int
    most: int


#: the integers in bodies and queries, by field
RANGES: Final[Mapping[str, Range]] = {
    "timeout": Range("milliseconds", 0, 3_600_000),
    "max": Range("events", 1, 10_000),
    "max_bytes": Range("bytes", 1024, 8_388_608),
    "retention": Range("milliseconds", 1000, YEAR_MS),
    "max_queued": Range("events", 1, 1_000_000_000),
    "rate": Range("events a second", 1, 1_000_000),
    "park_after": Range("attempts", 1, 1000),
    "history": Range("milliseconds", 0, YEAR_MS),
    "history_events": Range("events", 0, 1_000_000_000),
    "max_data": Range("bytes", 0, MAX_DATA),
    "wait": Range("milliseconds", 0, 60_000),
}
