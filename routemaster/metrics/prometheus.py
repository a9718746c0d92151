"""Prometheus's text format, for `GET /metrics`: totals of the whole bus, the same from every process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from routemaster.interfaces import Sample, Snapshot
from routemaster.metrics.meter import BUCKETS

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()


def exposition(snapshot: Snapshot, app_name: str) -> bytes:
    """The snapshot in the text format; `.` in metric names becomes `_`."""
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
        yield from self._families(self._snapshot.gauges, GaugeMetricFamily)
        histograms = {s.name.removesuffix(".sum") for s in self._snapshot.counters if s.name.endswith(".sum")}
        plain = [s for s in self._snapshot.counters if s.name.rpartition(".")[0] not in histograms]
        yield from self._families(plain, CounterMetricFamily)
        for name in sorted(histograms):
            yield self._histogram(name)

    def _families(self, samples: Iterable[Sample], family: type) -> Iterable[Metric]:
        by_name: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_name[sample.name].append(sample)
        for name, group in sorted(by_name.items()):
            labels = sorted({tag for sample in group for tag in sample.tags})
            metric = family(_name(name), f"routemaster.{name}", labels=["app", *labels])
            for sample in group:
                metric.add_metric([self._app, *(sample.tags.get(label, "") for label in labels)], sample.value)
            yield metric

    def _histogram(self, name: str) -> Metric:
        counts = {s.tags["le"]: s.value for s in self._snapshot.counters if s.name == f"{name}.bucket"}
        total = sum(s.value for s in self._snapshot.counters if s.name == f"{name}.sum")
        buckets, below = [], 0.0
        for bound in (*map(str, BUCKETS), "+Inf"):
            below += counts.get(bound, 0)
            buckets.append((bound, below))
        metric = HistogramMetricFamily(_name(name), f"routemaster.{name}, in milliseconds", labels=["app"])
        metric.add_metric([self._app], buckets, total)
        return metric


def _name(name: str) -> str:
    return f"routemaster_{name.replace('.', '_')}"
