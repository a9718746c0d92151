"""Prometheus's text format, for `GET /metrics`: totals of the whole bus, the same from every process."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics import catalogue
from routemaster.metrics.catalogue import METRICS, SECONDS
from routemaster.metrics.meter import bounds

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()


def exposition(snapshot: Snapshot, app_name: str) -> bytes:
    """The snapshot in the text format, with the names of `catalogue`."""
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot, app_name))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot, app_name: str) -> None:
        self._snapshot, self._app = snapshot, app_name

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for name, samples in sorted(_by_name(self._snapshot.gauges).items()):
            yield self._family(name, samples, counter=_metric(name).counter)
        counters = _by_name(self._snapshot.counters)
        histograms = {name.removesuffix(".sum") for name in counters if name.endswith(".sum")}
        for name, samples in sorted(counters.items()):
            if name.rpartition(".")[0] not in histograms:
                yield self._family(name, samples, counter=True)
        for name in sorted(histograms):
            yield self._histogram(name, counters[f"{name}.bucket"], counters[f"{name}.sum"])

    def _family(self, name: str, samples: Sequence[Sample], counter: bool) -> Metric:
        metric, tags = _metric(name), _tags(samples)
        kind = CounterMetricFamily if counter else GaugeMetricFamily
        labels = ["app", *map(metric.label, tags)]
        family = kind(_name(metric.name or name), metric.help, labels=labels)
        for sample in samples:
            family.add_metric([self._app, *_values(sample.tags, tags)], sample.value * metric.scale)
        return family

    def _histogram(self, name: str, buckets: Sequence[Sample], sums: Sequence[Sample]) -> Metric:
        """The series of a histogram; a bucket of an older version counts in the next one that there is now."""
        metric, tags = _metric(name), _tags(sums)
        limits = bounds(name)
        texts = [*(str(limit / 1000) for limit in limits), "+Inf"]
        counts: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * len(texts))
        for sample in buckets:
            counts[_values(sample.tags, tags)][bisect_left(limits, float(sample.tags["le"]))] += sample.value
        labels = ["app", *map(metric.label, tags)]
        family = HistogramMetricFamily(f"{_name(metric.name or name)}_seconds", metric.help, labels=labels)
        for sample in sums:
            values = _values(sample.tags, tags)
            cumulative = list(zip(texts, accumulate(counts[values]), strict=True))
            family.add_metric([self._app, *values], cumulative, sample.value * SECONDS)
        return family


def _by_name(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.name].append(sample)
    return found


def _metric(name: str) -> catalogue.Metric:
    """What is known about a metric; the totals in Redis may be those of another version of the bus."""
    return METRICS.get(name) or catalogue.Metric(f"routemaster.{name}")


def _tags(samples: Iterable[Sample]) -> list[str]:
    return sorted({tag for sample in samples for tag in sample.tags})


def _values(tags: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in names)


def _name(name: str) -> str:
    return f"routemaster_{name.replace('.', '_')}"
