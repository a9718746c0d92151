"""Snapshots of all metrics, and their export to the metrics service.

`flush` adds this process's counts to the totals in the store. `measure` returns
a `Snapshot` with totals, for `GET /metrics`. `export` runs every
`monitor_interval`: the process that holds the leader lock sends the gauges, and
what each counter grew by since the last successful export. If sending fails,
the next export includes the same growth. Each process sends the gauges in
SENT_BY_EACH itself.

The counters of queues are computed exactly from the cursors, not counted event
by event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.interfaces import Clock, MetricsService, Sample, Snapshot, Store
from routemaster.metrics.meter import Meter, parse_series
from routemaster.metrics.subscriber_totals import SubscriberTotals
from routemaster.model import StoreStats
from routemaster.store.autodrop import Autodrop
from routemaster.util.chunks import paced, paced_chunks
from routemaster.util.log_throttle import LogThrottle

LEADER_LOCK = "monitor"  #: its name in the store
CHUNK = 100  #: subscribers computed without a pause
PARSED = 1000  #: counters the same
SENT_BY_EACH = frozenset({"certificate.expires"})  #: gauges that each process sends: the leader may have none


class Monitor:
    """Measures, and exports."""

    _log = Logger()

    def __init__(
        self,
        store: Store,
        meter: Meter,
        autodrop: Autodrop,
        service: MetricsService | None,
        clock: Clock,
        process: str,
        interval: float,
        wall: Callable[[], float] | None = None,
        own_gauges: Callable[[], Iterable[Sample]] = tuple,
        own_tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`process` is unique among live processes; `interval` in seconds; without a service nothing is exported.

        `wall` returns the time of day, if `clock` is monotonic; `own_gauges` what only this process knows;
        `own_tags`: of what this process says about itself.
        """
        self._store, self._meter, self._autodrop = store, meter, autodrop
        self._service, self._clock, self._wall = service, clock, wall or clock.seconds
        self._process, self._interval = process, interval
        self._own_gauges, self._own_tags = own_gauges, own_tags
        self._throttle = LogThrottle()
        self._stopped = False
        self._sending: Deferred[None] | None = None
        if service is not None:
            meter.count("metrics.failures", 0)  # so that its growth from 0 to 1 is seen

    def stop(self) -> None:
        """End an export that is under way, and start no other."""
        self._stopped = True
        if self._sending is not None:
            self._sending.cancel()

    def _is_stopped(self) -> bool:
        return self._stopped

    async def flush(self) -> None:
        """Add the counts of this process to the totals; keeps those that were not stored, and raises the error."""
        taken = self._meter.take()
        if not taken:
            return
        try:
            await self._store.add_counts(taken)
        except (StoreUnavailable, StoreBroken) as error:
            if not getattr(error, "outcome_unknown", False):  # else they may be stored, and must not count twice
                self._meter.give_back(taken)
            raise

    async def measure(self) -> Snapshot:
        """All gauges, those of this process included, and totals; if Redis has no answer, what is known here."""
        try:
            gauges, derived = await self._collect()
            totals = (await self._store.counts()) | derived
        except (StoreUnavailable, StoreBroken):
            gauges, totals = [Sample("redis.up", 0, self._own_tags)], {}
        else:
            gauges.append(Sample("redis.up", 1, self._own_tags))
        return Snapshot([*gauges, *self._own_gauges()], await self._samples(totals))

    async def export(self) -> None:
        """Send a snapshot to the metrics service: of the bus, if this process holds the leader lock."""
        if self._service is None:
            return
        own = [gauge for gauge in self._own_gauges() if gauge.name in SENT_BY_EACH]
        if await self._store.elect_leader(LEADER_LOCK, self._process, 2 * self._interval + 5):
            await self._export_all(self._service, own)
        elif own and not self._is_stopped():
            await self._send(self._service, Snapshot(own, []))

    async def _export_all(self, service: MetricsService, own: list[Sample]) -> None:
        gauges, derived = await self._collect(self._is_stopped)
        if self._is_stopped():
            return
        totals = (await self._store.counts()) | derived
        reported = await self._store.reported()
        grown = {name: total - reported.get(name, 0) for name, total in totals.items()}
        # a total that shrank started again at zero: its subscription was created again
        grown = {name: totals[name] if by < 0 else by for name, by in grown.items() if by}
        snapshot = Snapshot([*gauges, *own], await self._samples(grown))
        if self._is_stopped():
            return
        if await self._send(service, snapshot) and grown:
            await self._store.set_reported({name: totals[name] for name in grown})

    async def _send(self, service: MetricsService, snapshot: Snapshot) -> bool:
        """Send it; whether that succeeded."""
        self._sending = Deferred.fromCoroutine(service.send(snapshot))
        try:
            await self._sending
        except CancelledError:
            return False
        except Exception as error:
            self._meter.count("metrics.failures")
            self._log_failure(str(error) or type(error).__name__)
            return False
        finally:
            self._sending = None
        if self._throttle.succeeded(self._clock.seconds()) is not None:
            self._log.info("sending metrics succeeds again")
        return True

    def _log_failure(self, reason: str) -> None:
        since = self._throttle.failed(self._clock.seconds(), reason)
        if since is not None and since.failures == 1:
            self._log.warn("sending metrics failed: {error}", error=reason)
        elif since is not None:
            line = "sending metrics failed, {failures} times since the last line: {error}"
            self._log.warn(line, failures=since.failures, error=reason)

    async def _collect(self, is_over: Callable[[], bool] = lambda: False) -> tuple[list[Sample], dict[str, int]]:
        """The gauges of the bus, and the counters of queues; incomplete if `is_over`."""
        began = self._wall()
        figures = await self._store.stats()
        now = self._wall()
        workers = await self._store.count_workers()
        totals = SubscriberTotals(now)
        async for infos in paced(self._store.each_subscription(), self._clock):
            if is_over():
                break
            for info in infos:
                totals.add(info)
        derived: dict[str, int] = {}
        async for names in paced_chunks(totals.names, CHUNK, self._clock):
            if is_over():
                break
            for name in names:
                derived.update(totals.counters(name))
        nodes = (sample for node in figures for sample in self._redis_gauges(node, began, now))
        return [*totals.gauges(), Sample("workers", workers, {}), *nodes], derived

    def _redis_gauges(self, figures: StoreStats, began: float, ended: float) -> list[Sample]:
        """The gauges of one node, which answered between these times; on a cluster they have the tag `node`."""
        marks, tags = self._autodrop.marks(figures), {"node": figures.node} if figures.node else {}
        gauges = [
            Sample("redis.bytes_used", figures.bytes_used, tags),
            Sample("redis.max_mem", marks.max_mem, tags),
            Sample("redis.low_mark", marks.low, tags),
            Sample("redis.high_mark", marks.high, tags),
            Sample("redis.autodrop_nearness", round(marks.nearness(figures.bytes_used), 3), tags),
            Sample("redis.used_cpu_user", figures.cpu_user_ms, tags),
            Sample("redis.used_cpu_sys", figures.cpu_sys_ms, tags),
        ]
        if figures.time is not None:
            # no more than is certain: the time that the reply took is no difference
            ahead = figures.time - min(max(figures.time, began), ended)
            gauges.append(Sample("redis.clock_offset", round(ahead, 3), tags))
        return gauges

    async def _samples(self, counts: Mapping[str, int]) -> list[Sample]:
        samples: list[Sample] = []
        async for texts in paced_chunks(sorted(counts), PARSED, self._clock):
            samples += [Sample(name, counts[text], tags) for text in texts for name, tags in [parse_series(text)]]
        return samples
