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

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.delivery.forecast import batches, batches_due, step_of
from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.interfaces import Clock, MetricsService, Sample, Snapshot, Store
from routemaster.metrics.meter import Meter, parse_series, series
from routemaster.model import StoreStats, public_name
from routemaster.store.autodrop import Autodrop
from routemaster.util.chunks import paced, paced_chunks
from routemaster.util.log_throttle import LogThrottle

LEADER_LOCK = "monitor"  #: its name in the store
CHUNK = 100  #: subscribers computed without a pause
PARSED = 1000  #: counters the same
SENT_BY_EACH = frozenset({"certificate.expires"})  #: gauges that each process sends: the leader may have none


#: counters of events that left a queue without a delivery, and where `SubscriptionInfo` has them
_UNDELIVERED = {
    "events.autodropped": "dropped", "events.expired": "expired", "events.skipped": "skipped",
    "events.parked": "parked",
}  # fmt: skip


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
    ) -> None:
        """`process` is unique among live processes; `interval` in seconds; without a service nothing is exported.

        `wall` returns the time of day, if `clock` is monotonic; `own_gauges` what only this process knows.
        """
        self._store, self._meter, self._autodrop = store, meter, autodrop
        self._service, self._clock, self._wall = service, clock, wall or clock.seconds
        self._process, self._interval = process, interval
        self._own_gauges = own_gauges
        self._throttle = LogThrottle()
        self._stopped = False
        self._sending: Deferred[None] | None = None

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
            gauges, totals = [Sample("redis.up", 0, {})], {}
        else:
            gauges.append(Sample("redis.up", 1, {}))
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
        figures, now = await self._store.stats(), self._wall()
        queued, ready, removed = Counter[str](), Counter[str](), Counter[str]()
        undelivered = {name: Counter[str]() for name in _UNDELIVERED}
        failures, ages, states = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
        due = 0
        async for infos in paced(self._store.each_subscription(), self._clock):
            if is_over():
                break
            for info in infos:
                name = public_name(info.subscription.subscriber)  # tokens with the same public name are added up
                queued[name] += info.queued
                ready[name] += batches(info)
                removed[name] += info.added - info.queued
                for kind, counts in undelivered.items():
                    counts[name] += getattr(info, _UNDELIVERED[kind])
                due += batches_due(info, now)
                failures[name] = max(failures[name], info.health.failures)
                ages[name] = max(ages[name], round((now - info.oldest) * 1000) if info.oldest else 0)
                states[name, step_of(info, now).state.value] += 1
        gauges = [
            *(Sample("subscriber.queue.events", count, {"subscriber": name}) for name, count in queued.items()),
            *(Sample("subscriber.queue.batches", count, {"subscriber": name}) for name, count in ready.items()),
            *(Sample("subscriber.failures", count, {"subscriber": name}) for name, count in failures.items()),
            *(Sample("subscriber.oldest_seconds", ms / 1000, {"subscriber": name}) for name, ms in ages.items()),
            *(
                Sample("subscriber.state", count, {"subscriber": name, "state": state})
                for (name, state), count in states.items()
            ),
            Sample("jobs.count", due, {"queue": "main", "status": "instant"}),
            Sample("jobs.count", ready.total() - due, {"queue": "main", "status": "scheduled"}),
            *(sample for node in figures for sample in self._redis_gauges(node)),
        ]
        derived = {}
        async for names in paced_chunks(list(queued), CHUNK, self._clock):
            if is_over():
                break
            for name in names:
                derived[series("events.added", {"queue": name})] = removed[name] + queued[name]
                derived[series("events.removed", {"queue": name})] = removed[name]
                for kind, counts in undelivered.items():
                    derived[series(kind, {"queue": name})] = counts[name]
        return gauges, derived

    def _redis_gauges(self, figures: StoreStats) -> list[Sample]:
        """The gauges of one node; on a cluster they have the tag `node`."""
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

    async def _samples(self, counts: Mapping[str, int]) -> list[Sample]:
        samples: list[Sample] = []
        async for texts in paced_chunks(sorted(counts), PARSED, self._clock):
            samples += [Sample(name, counts[text], tags) for text in texts for name, tags in [parse_series(text)]]
        return samples
