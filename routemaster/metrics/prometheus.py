"""Prometheus's text format, for `GET /metrics`: totals of the whole bus, the same from every process.

The text is written here and not by prometheus_client, which takes three times as long: half a
second for 2,000 subscribers, in which the reactor's thread has to share the processor.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client import Metric as Family
from prometheus_client.registry import CollectorRegistry

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.catalogue import METRICS, SECONDS, Metric
from routemaster.metrics.meter import bounds

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class _ProcessCollector(ProcessCollector):
    """Prometheus's metrics of the process, with labels."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__(registry=None)
        self._labels = dict(labels)

    def collect(self) -> Iterable[Family]:
        """Called by the registry."""
        for family in super().collect():
            family.samples = [sample._replace(labels=self._labels) for sample in family.samples]
            yield family


def exposition(snapshot: Snapshot, app_name: str, own_tags: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The snapshot in the text format, with the names of `catalogue`.

    `own_tags`: the labels of `process_*`, which are of this process alone.
    """
    registry = CollectorRegistry()
    registry.register(_ProcessCollector(own_tags))
    lines = "".join(_lines(snapshot, f'app="{app_name.translate(_ESCAPES)}"'))
    return lines.encode() + generate_latest(registry)


def _lines(snapshot: Snapshot, app: str) -> Iterator[str]:
    """Whole lines; `app`: the label that all samples have."""
    for name, samples in _by_name(snapshot.gauges):
        yield from _family(name, samples, app, _metric(name).counter)
    counters = dict(_by_name(snapshot.counters))
    histograms = [name.removesuffix(".sum") for name in counters if name.endswith(".sum")]
    buckets = {name: counters.pop(f"{name}.bucket", []) for name in histograms}
    sums = {name: counters.pop(f"{name}.sum") for name in histograms}
    for name, samples in counters.items():
        yield from _family(name, samples, app, True)
    for name in histograms:
        yield from _histogram(name, buckets[name], sums[name], app)


def _family(name: str, samples: Iterable[Sample], app: str, counter: bool) -> Iterator[str]:
    metric = _metric(name)
    text = _name(name, metric, "_total" if counter else "")
    yield _head(text, metric, "counter" if counter else "gauge")
    for sample in samples:
        yield f"{text}{{{_labels(app, metric, sample.tags)}}} {float(sample.value * metric.scale)!r}\n"


def _histogram(name: str, buckets: Iterable[Sample], sums: Iterable[Sample], app: str) -> Iterator[str]:
    """The series of a histogram; a bucket of an older version counts in the next one that there is now."""
    metric, limits = _metric(name), bounds(name)
    text = _name(name, metric, "_seconds")
    limit_texts = [*(str(limit / 1000) for limit in limits), "+Inf"]
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(limit_texts))
    for sample in buckets:
        others = {tag: value for tag, value in sample.tags.items() if tag != "le"}
        counts[_labels(app, metric, others)][bisect_left(limits, float(sample.tags["le"]))] += sample.value
    yield _head(text, metric, "histogram")
    for sample in sums:
        labels = _labels(app, metric, sample.tags)
        below = list(accumulate(counts[labels]))
        for limit, count in zip(limit_texts, below, strict=True):
            yield f'{text}_bucket{{{labels},le="{limit}"}} {count!r}\n'
        yield f"{text}_count{{{labels}}} {below[-1]!r}\n{text}_sum{{{labels}}} {sample.value * SECONDS!r}\n"


def _by_name(samples: Iterable[Sample]) -> list[tuple[str, list[Sample]]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.name].append(sample)
    return sorted(found.items())


def _metric(name: str) -> Metric:
    """What is known about a metric; the totals in Redis may be those of another version of the bus."""
    return METRICS.get(name) or Metric(f"routemaster.{name}")


def _head(text: str, metric: Metric, kind: str) -> str:
    return f"# HELP {text} {metric.help}\n# TYPE {text} {kind}\n"


def _labels(app: str, metric: Metric, tags: Mapping[str, str]) -> str:
    labels = [f'{metric.label(tag)}="{tags[tag].translate(_ESCAPES)}"' for tag in sorted(tags)]
    return ",".join([app, *labels])


def _name(name: str, metric: Metric, end: str) -> str:
    return f"routemaster_{metric.name or name.replace('.', '_')}{end}"
