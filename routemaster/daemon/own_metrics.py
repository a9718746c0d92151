"""What one process measures of itself: gauges for `GET /metrics`, the reactor's lag, lost log lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import time
from typing import Any

from routemaster import __version__
from routemaster.daemon.listeners import Listeners
from routemaster.delivery.worker import Worker
from routemaster.interfaces import Meter, Sample
from routemaster.metrics.reactor_lag import ReactorLag
from routemaster.pull.service import PullService
from routemaster.util.key_pair import ReloadablePair


class OwnMetrics:
    """See above."""

    def __init__(
        self, reactor: Any, meter: Meter, role: str, dropped: Callable[[], int], timeout: float = 0.0,
        number: int | None = None,
    ) -> None:  # fmt: skip
        """`dropped`: returns how many lines the log has lost since the start.

        `timeout`: the option; `number`: of this process among several on one port, which would otherwise
        take turns in one series.
        """
        self._meter, self._role, self._dropped, self._timeout = meter, role, dropped, timeout
        self.tags = {} if number is None else {"process": str(number)}  #: of all gauges of this process
        self._counted = 0
        self._lag = ReactorLag(reactor, meter.histogram("reactor.lag", role=role))

    def start(self) -> None:
        """Start to measure."""
        self._meter.count("log.dropped", 0)  # so that its growth from 0 to 1 is seen
        for status in ("start", "stop"):
            self.count_process(status, 0)
        self._lag.start()

    def stop(self) -> None:
        """Count the stop, and measure no more."""
        self.count_process("stop")
        self._lag.stop()

    def count_process(self, status: str, by: int = 1) -> None:
        """Count that this process has become ready (`start`) or was shut down (`stop`)."""
        for kind in ("web", "worker") if self._role == "all" else (self._role,):
            self._meter.count("process", by, status=status, type=kind)

    def count_dropped(self) -> None:
        """Count the log lines that were lost since the last call."""
        dropped = self._dropped()
        if dropped > self._counted:
            self._meter.count("log.dropped", dropped - self._counted)
            self._counted = dropped

    def gauges(
        self, listeners: Listeners | None, pull: PullService | None, worker: Worker | None,
        certificates: Iterable[ReloadablePair],
    ) -> list[Sample]:  # fmt: skip
        """What only this process knows."""
        gauges = [
            Sample("build_info", 1, {"version": __version__, "role": self._role}),
            Sample("delivery.timeout", self._timeout, {}),
        ]
        if listeners is not None:
            gauges.append(Sample("connections.open", listeners.live, {}))
        if pull is not None:
            gauges += Sample("polls.waiting", pull.waiting, {}), Sample("streams.open", pull.streams, {})
        if worker is not None:
            gauges.append(Sample("leases", worker.lease_count, {}))
        ends = {str(pair.certificate): pair.expires for pair in certificates}  # one file may have two uses
        for file, end in ends.items():
            gauges.append(Sample("certificate.expires", round(end - time()), {"file": file}))
        return [Sample(each.name, each.value, {**each.tags, **self.tags}) for each in gauges]
