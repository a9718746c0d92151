"""The checks of PromQL expressions find what is wrong."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.deploy.promql import Exposition, counted_twice, missing

TEXT = """
# TYPE routemaster_jobs gauge
routemaster_jobs{app="bus",status="instant"} 1
# TYPE routemaster_workers gauge
routemaster_workers{app="bus"} 1
# TYPE routemaster_events_added_total counter
routemaster_events_added_total{app="bus",subscriber="a"} 1
"""


class MissingTests(SynchronousTestCase):
    """`missing`."""

    def setUp(self) -> None:
        self.known = Exposition()
        self.known.add(TEXT)

    def test_present(self) -> None:
        """What the exposition has, and the labels that Prometheus adds, are not missing."""
        for expression in (
            'sum by (job, app) (max by (job, app, status) (routemaster_jobs{status=~"inst.*"}))',
            "routemaster_jobs / on (app, instance) group_left () routemaster_workers > 1",
            "max by (app, subscriber) (rate(routemaster_events_added_total[5m])) unless up{job='x'}",
            'routemaster_jobs{status!="scheduled"} > 2 * max by (app) (routemaster_workers)',
        ):
            self.assertEqual(missing(expression, self.known), [], expression)

    def test_absent(self) -> None:
        """Metrics, labels and values of labels that are not there are missing, wherever they stand."""
        for expression in (
            "routemaster_works", 'routemaster_jobs{status="late"}', 'routemaster_jobs{subscriber!="a"}',
            "max by (subscriber) (routemaster_jobs)", "sum by (status) (max by (app) (routemaster_jobs))",
            "routemaster_jobs / on (status) routemaster_workers", "rate(routemaster_events_added[5m])",
            "histogram_quantile(0.9, max by (le) (rate(routemaster_events_added_total[5m])))",
        ):  # fmt: skip
            self.assertNotEqual(missing(expression, self.known), [], expression)

    def test_counted_twice(self) -> None:
        """Adding up what each instance gives for the whole bus is found; what is of one process may be."""
        wrong = ["sum(routemaster_jobs)", "sum by (app) (rate(routemaster_events_added_total[5m]))",
                 "avg(routemaster_workers)", "1 - sum(routemaster_jobs or routemaster_leases)"]  # fmt: skip
        right = ["sum(max by (status) (routemaster_jobs))", "sum(routemaster_leases)", "max(routemaster_jobs)",
                 "sum(rate(process_cpu_seconds_total[1m]))"]  # fmt: skip
        self.assertEqual([len(counted_twice(each)) for each in wrong], [1, 1, 1, 1])
        self.assertEqual([counted_twice(each) for each in right], [[]] * 4)
