"""What a process measures of itself."""

from __future__ import annotations

from time import time
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon.own_metrics import OwnMetrics
from routemaster.metrics.meter import Meter
from routemaster.metrics.reactor_lag import INTERVAL
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed


class OwnMetricsTests(SynchronousTestCase):
    """`OwnMetrics`."""

    def setUp(self) -> None:
        self.clock, self.meter, self.lost = Clock(), Meter(), 0
        self.metrics = OwnMetrics(self.clock, self.meter, "web", lambda: self.lost)

    def test_dropped_lines(self) -> None:
        """The counter of lost log lines begins with 0, and each lost line is counted once."""
        self.metrics.start()
        began = {f"process|status={each},type=web": 0 for each in ("start", "stop")}
        self.assertEqual(self.meter.take(), {"log.dropped": 0, **began})
        for self.lost, counted in ((0, {}), (3, {"log.dropped": 3}), (3, {}), (5, {"log.dropped": 2})):
            self.metrics.count_dropped()
            self.assertEqual(self.meter.take(), counted)
        self.metrics.stop()

    def test_reactor_lag(self) -> None:
        """The lag of the reactor is measured from start to stop."""
        self.metrics.start()
        self.clock.advance(INTERVAL)
        self.metrics.stop()
        self.assertEqual(self.meter.take()["reactor.lag.bucket|le=1,role=web"], 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gauges(self) -> None:
        """Without ports, deliveries and certificates there are version, role and the option timeout."""
        metrics = OwnMetrics(self.clock, self.meter, "web", lambda: 0, 20.0)
        info, timeout = metrics.gauges(None, None, None, [])
        self.assertEqual((info.name, info.value, info.tags["role"]), ("build_info", 1, "web"))
        self.assertEqual((timeout.name, timeout.value, timeout.tags), ("delivery.timeout", 20.0, {}))

    def test_one_of_several_processes(self) -> None:
        """Of several processes on one port each has series of its own."""
        metrics = OwnMetrics(self.clock, self.meter, "web", lambda: 0, number=3)
        self.assertEqual({each.tags["process"] for each in metrics.gauges(None, None, None, [])}, {"3"})
        self.assertEqual(metrics.tags, {"process": "3"})

    def test_process(self) -> None:
        """A process of the role all counts as one that serves and as one that delivers."""
        for role in ("web", "all"):
            OwnMetrics(self.clock, self.meter, role, lambda: 0).count_process("start")
        counted = {"process|status=start,type=web": 2, "process|status=start,type=worker": 1}
        self.assertEqual(self.meter.take(), counted)

    def test_pull_gauges(self) -> None:
        """Where clients pull, the polls that wait and the streams that are open are gauges."""
        pull: Any = SimpleNamespace(waiting=3, streams=2)
        _, _, *samples = self.metrics.gauges(None, pull, None, [])
        self.assertEqual({each.name: each.value for each in samples}, {"polls.waiting": 3, "streams.open": 2})

    def test_certificates(self) -> None:
        """Of each certificate there are the seconds until it expires, once for each file."""
        pairs = [ReloadableTLS(*ensure_self_signed(self.mktemp(), time() - age * 86400)[:2]) for age in (0, 100)]
        _, _, *samples = self.metrics.gauges(None, None, None, [*pairs, pairs[0]])
        self.assertEqual([sample.tags["file"] for sample in samples], [str(pair.certificate) for pair in pairs])
        self.assertEqual([round(sample.value / 86400) for sample in samples], [397, 297])
