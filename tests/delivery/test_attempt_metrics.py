"""The metrics of attempts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.attempt_metrics import AttemptMetrics
from routemaster.metrics.meter import Meter


class AttemptMetricsTests(SynchronousTestCase):
    """`AttemptMetrics`."""

    def setUp(self) -> None:
        self.meter = Meter()
        self.metrics = AttemptMetrics(self.meter, "svc")

    def counters(self) -> dict[str, int]:
        """What was counted, the histograms left out."""
        return {name: count for name, count in self.meter.take().items()
                if "queue=" in name and not name.startswith("delivery.duration.")}  # fmt: skip

    def test_attempts_by_status(self) -> None:
        """Events, batches, milliseconds and their squares are counted by status."""
        self.metrics.attempt(3, 100.0, 101.0, 101.020, False)
        self.assertEqual(
            self.counters(),
            {"delivery.events|queue=svc,status=failure": 3, "delivery.batches|queue=svc,status=failure": 1,
             "delivery.time|queue=svc,status=failure": 20, "delivery.time2|queue=svc,status=failure": 400},
        )  # fmt: skip

    def test_latency_of_first_and_last_attempt(self) -> None:
        """A batch's wait is counted once it is acknowledged: for its first attempt and for its last."""
        self.metrics.attempt(3, 100.0, 100.5, 100.6, False)
        self.metrics.attempt(4, 100.0, 102.0, 102.1, True)
        counts = self.counters()
        self.assertEqual(counts["latency.batches.count|queue=svc"], 1)
        self.assertEqual(counts["latency.batches.first_attempt|queue=svc"], 500)
        self.assertEqual(counts["latency.batches.last_attempt|queue=svc"], 2000)
        self.metrics.attempt(1, 103.0, 103.1, 103.2, True)
        counts = self.counters()
        self.assertEqual(counts["latency.batches.first_attempt|queue=svc"], 100)

    def test_histograms(self) -> None:
        """Waits for the first attempt and the acknowledgement are observed, and durations by subscriber."""
        self.metrics.attempt(1, 100.0, 100.5, 100.6, False)
        self.metrics.attempt(1, 100.0, 102.0, 102.1, True)
        counts = self.meter.take()
        self.assertEqual(counts["latency.first_attempt.sum"], 500)
        self.assertEqual(counts["latency.acknowledged.sum"], 2100)
        self.assertEqual(counts["delivery.duration.sum|queue=svc"], 200)
        self.assertEqual(counts["delivery.duration.bucket|le=100,queue=svc"], 2)

    def test_clocks_apart(self) -> None:
        """A store clock ahead of the worker's gives no negative latency."""
        self.metrics.attempt(1, 100.0, 99.0, 99.5, True)
        self.assertEqual(self.counters()["latency.batches.first_attempt|queue=svc"], 0)
