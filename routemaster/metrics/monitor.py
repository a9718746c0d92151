"""Measuring: what is counted here goes to the totals of all, and one process tells the metrics service.

`flush` adds this process's counts to the totals in the store. `measure` makes
one `Snapshot` of everything, with totals, for whoever asks (`GET /metrics`).
`tell` is for every `monitor_interval`: the process that holds the office of
monitor tells the adapter what there is now, and by how much each counter has
grown since it was last told. What could not be told is told with the next.

What queues have gained and lost is not counted event by event: it follows
from the cursors, exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from twisted.logger import Logger

from routemaster.delivery.forecast import batches, batches_due
from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, MetricsService, Sample, Snapshot, Store
from routemaster.metrics.meter import Meter, parse_series, series
from routemaster.model import StoreStats, public_name
from routemaster.store.autodrop import Autodrop
from routemaster.util.chunks import paced, paced_chunks
from routemaster.util.log_throttle import LogThrottle

OFFICE = "monitor"
AT_ONCE = 100  #: subscribers whose figures are worked out in one go


class Monitor:
    """Measures, and tells."""

    _log = Logger()

    def __init__(
        self,
        store: Store,
        meter: Meter,
        autodrop: Autodrop,
        adapter: MetricsService | None,
        clock: Clock,
        process: str,
        interval: float,
        wall: Callable[[], float] | None = None,
    ) -> None:
        """`process` is unique among live processes; `interval` in seconds; no adapter: nobody is told.

        `wall` tells the time of day, if the clock's is another.
        """
        self._store, self._meter, self._autodrop = store, meter, autodrop
        self._adapter, self._clock, self._wall = adapter, clock, wall or clock.seconds
        self._process, self._interval = process, interval
        self._throttle = LogThrottle()

    async def flush(self) -> None:
        """Add what was counted here to the totals; what the store refuses is kept for the next time."""
        taken = self._meter.take()
        if not taken:
            return
        try:
            await self._store.add_counts(taken)
        except StoreUnavailable as error:
            if not error.outcome_unknown:  # else it may be in, and counting twice is worse than not at all
                self._meter.give_back(taken)
            raise

    async def measure(self) -> Snapshot:
        """Everything, counters as totals since the beginning."""
        gauges, derived = await self._look()
        return Snapshot(gauges, _samples((await self._store.counts()) | derived))

    async def tell(self) -> None:
        """Tell the adapter, if this process is the one to do so."""
        if self._adapter is None:
            return
        if not await self._store.elect_leader(OFFICE, self._process, 2 * self._interval + 5):
            return
        gauges, derived = await self._look()
        totals = (await self._store.counts()) | derived
        told = await self._store.reported()
        grown = {name: total - told.get(name, 0) for name, total in totals.items()}
        # a total that shrank began anew: its subscription was made again
        grown = {name: totals[name] if by < 0 else by for name, by in grown.items() if by}
        try:
            await self._adapter.tell(Snapshot(gauges, _samples(grown)))
        except Exception as error:
            self._meter.count("metrics.failures")
            self._failed(str(error) or type(error).__name__)
            return
        if self._throttle.succeeded(self._clock.seconds()) is not None:
            self._log.info("metrics are told again")
        if grown:
            await self._store.set_reported({name: totals[name] for name in grown})

    def _failed(self, reason: str) -> None:
        since = self._throttle.failed(self._clock.seconds(), reason)
        if since is not None and since.failures == 1:
            self._log.warn("metrics could not be told: {error}", error=reason)
        elif since is not None:
            line = "metrics could not be told, {failures} times since the last line: {error}"
            self._log.warn(line, failures=since.failures, error=reason)

    async def _look(self) -> tuple[list[Sample], dict[str, int]]:
        figures, now = await self._store.stats(), self._wall()
        queued, ready, removed, dropped = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        due = 0
        async for facts in paced(self._store.each_subscription(), self._clock):
            for fact in facts:
                name = public_name(fact.subscription.subscriber)  # tokens that share one are added up
                queued[name] += fact.queued
                ready[name] += batches(fact)
                removed[name] += fact.sent + fact.dropped
                dropped[name] += fact.dropped
                due += batches_due(fact, now)
        gauges = [
            *(Sample("subscriber.queue.events", count, {"subscriber": name}) for name, count in queued.items()),
            *(Sample("subscriber.queue.batches", count, {"subscriber": name}) for name, count in ready.items()),
            Sample("jobs.count", due, {"queue": "main", "status": "instant"}),
            Sample("jobs.count", ready.total() - due, {"queue": "main", "status": "scheduled"}),
            *(sample for node in figures for sample in self._of_redis(node)),
        ]
        derived = {}
        async for names in paced_chunks(list(queued), AT_ONCE, self._clock):
            for name in names:
                derived[series("events.added", {"queue": name})] = removed[name] + queued[name]
                derived[series("events.removed", {"queue": name})] = removed[name]
                derived[series("events.autodropped", {"queue": name})] = dropped[name]
        return gauges, derived

    def _of_redis(self, figures: StoreStats) -> list[Sample]:
        """What there is to say of one node; on a cluster each says who it is."""
        marks, tags = self._autodrop.marks(figures), {"node": figures.node} if figures.node else {}
        return [
            Sample("redis.bytes_used", figures.bytes_used, tags),
            Sample("redis.max_mem", marks.max_mem, tags),
            Sample("redis.low_mark", marks.low, tags),
            Sample("redis.high_mark", marks.high, tags),
            Sample("redis.autodrop_nearness", round(marks.nearness(figures.bytes_used), 3), tags),
            Sample("redis.used_cpu_user", figures.cpu_user_ms, tags),
            Sample("redis.used_cpu_sys", figures.cpu_sys_ms, tags),
        ]


def _samples(counts: Mapping[str, int]) -> list[Sample]:
    samples = []
    for text, count in sorted(counts.items()):
        name, tags = parse_series(text)
        samples.append(Sample(name, count, tags))
    return samples
