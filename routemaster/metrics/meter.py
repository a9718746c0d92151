"""Counters and histograms of one process; every few seconds they are added to the totals in Redis.

A series is a metric name with its tags, written `name|tag=value,tag=value`: the
field of the hash in Redis. A histogram is a set of counters, one for each bucket,
and a sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

from routemaster.interfaces import Sample

MAX_SERIES: Final = 1000  #: of one metric in one process; further ones are counted with the tag value `other`
BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000, 600_000, 3_600_000)
"""Upper bounds of a histogram's buckets, in milliseconds; one more bucket has none."""


def series(name: str, tags: dict[str, str]) -> str:
    """The text of a name with its tags."""
    return f"{name}|{','.join(f'{tag}={value}' for tag, value in sorted(tags.items()))}" if tags else name


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """The name and the tags of a series."""
    name, _, rest = text.partition("|")
    pairs = (pair.partition("=") for pair in rest.split(",") if pair)
    return name, {tag: value for tag, _, value in pairs}


def tag_list(sample: Sample, app_name: str) -> list[str]:
    """The tags of a sample as `tag:value`, with the tag `app`."""
    return [f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": app_name}.items())]


class Meter:
    """Implements `interfaces.Meter`: keeps counts until `take`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._known: dict[str, set[str]] = {}

    def count(self, name: str, by: int = 1, **tags: str) -> None:
        """Add to a counter."""
        text = series(name, tags)
        known = self._known.setdefault(name, set())
        if text not in known:
            if len(known) >= MAX_SERIES:
                text = series(name, dict.fromkeys(tags, "other"))
            known.add(text)
        self._counts[text] += by

    def observe(self, name: str, milliseconds: float) -> None:
        """Add an observation to a histogram."""
        index = bisect_left(BUCKETS, milliseconds)
        bound = str(BUCKETS[index]) if index < len(BUCKETS) else "+Inf"
        self._counts[f"{name}.bucket|le={bound}"] += 1
        self._counts[f"{name}.sum"] += round(milliseconds)

    def take(self) -> dict[str, int]:
        """Return the counts since the last `take`, and start again at zero."""
        taken, self._counts = self._counts, Counter()
        return dict(taken)

    def give_back(self, counts: dict[str, int]) -> None:
        """Add counts that were taken and could not be stored."""
        self._counts.update(counts)
