"""Counters and histograms of one process; every few seconds they are added to the totals in Redis.

A series is a metric name with its tags, written `name|tag=value,tag=value`: the
field of the hash in Redis. A histogram is a set of counters, one for each bucket
(how many observations fell into it, not below it), and a sum, in milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from routemaster.interfaces import Sample

MAX_SERIES: Final = 1000  #: of one metric in one process; further ones are counted with the tag value `other`
BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000, 600_000, 3_600_000)
"""Upper bounds of a histogram's buckets, in milliseconds; one more bucket has none."""
OWN_BUCKETS: Final[Mapping[str, tuple[int, ...]]] = {
    # one for each subscriber, so fewer; they reach beyond every value of the option `timeout`
    "delivery.duration": (10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 3_600_000),
}
"""The same, of histograms with bounds of their own."""


def series(name: str, tags: dict[str, str]) -> str:
    """The text of a name with its tags."""
    return f"{name}|{','.join(f'{tag}={value}' for tag, value in sorted(tags.items()))}" if tags else name


def bounds(name: str) -> tuple[int, ...]:
    """The upper bounds of a histogram's buckets, in milliseconds, without the last bucket's, which has none."""
    return OWN_BUCKETS.get(name, BUCKETS)


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """The name and the tags of a series."""
    name, _, rest = text.partition("|")
    pairs = (pair.partition("=") for pair in rest.split(",") if pair)
    return name, {tag: value for tag, _, value in pairs}


def tag_list(sample: Sample, app_name: str) -> list[str]:
    """The tags of a sample as `tag:value`, with the tag `app`."""
    return [f"{tag}:{value}" for tag, value in sorted({**sample.tags, "app": app_name}.items())]


class Histogram:
    """The observations of one series since the last `take`."""

    __slots__ = ("_bounds", "_counts", "_name", "_sum", "_tags")

    def __init__(self, name: str, tags: dict[str, str]) -> None:
        self._name, self._tags = name, tags
        self._bounds = bounds(name)
        self._counts, self._sum = [0] * (len(self._bounds) + 1), 0.0

    def observe(self, milliseconds: float) -> None:
        """Add an observation."""
        self._counts[bisect_left(self._bounds, milliseconds)] += 1
        self._sum += milliseconds

    def take(self) -> dict[str, int]:
        """The counters as they grew; a fraction of a millisecond stays for the next time."""
        if not any(self._counts):
            return {}
        name, tags = f"{self._name}.bucket", self._tags
        taken = {
            series(name, tags | {"le": str(bound)}): count
            for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True)
            if count
        }
        taken[series(f"{self._name}.sum", tags)] = whole = int(self._sum)
        self._counts, self._sum = [0] * len(self._counts), self._sum - whole
        return taken


class Meter:
    """Implements `interfaces.Meter`: keeps counts until `take`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._known: dict[str, set[str]] = {}
        self._histograms: dict[str, Histogram] = {}

    def count(self, name: str, by: int = 1, **tags: str) -> None:
        """Add to a counter; with 0, it exists from now on."""
        text = series(name, tags)
        if not self._has_room(name, text):
            text = series(name, dict.fromkeys(tags, "other"))
        self._counts[text] += by

    def histogram(self, name: str, **tags: str) -> Callable[[float], None]:
        """The function that adds an observation, in milliseconds, to the histogram with these tags."""
        text = series(name, tags)
        if not self._has_room(name, text):
            tags = dict.fromkeys(tags, "other")
            text = series(name, tags)
        if text not in self._histograms:
            self._histograms[text] = Histogram(name, tags)
        return self._histograms[text].observe

    def _has_room(self, name: str, text: str) -> bool:
        """Whether a metric may have this series, which it then has."""
        known = self._known.setdefault(name, set())
        if text not in known:
            if len(known) >= MAX_SERIES:
                return False
            known.add(text)
        return True

    def take(self) -> dict[str, int]:
        """Return the counts since the last `take`, and start again at zero."""
        taken, self._counts = self._counts, Counter()
        for histogram in self._histograms.values():
            taken.update(histogram.take())
        return dict(taken)

    def give_back(self, counts: dict[str, int]) -> None:
        """Add counts that were taken and could not be stored."""
        self._counts.update(counts)
