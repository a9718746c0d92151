"""What the console takes from a bus's metrics, as the bus itself writes them."""

from __future__ import annotations

from math import inf

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.exposition import latency, read_metrics
from routemaster.console.model import Bucket, RedisNode
from routemaster.console.reading import BadAnswer
from routemaster.interfaces import Sample
from tests.console.made import metrics

ODD = 'a"b\\c\nd'  #: a label that must be escaped


class MetricsTests(SynchronousTestCase):
    """What is read."""

    def test_all(self) -> None:
        """Version, memory, the certificate that ends first, and processes by role."""
        found = read_metrics(
            metrics(
                Sample("process", 3, {"status": "start", "type": "web"}),
                Sample("process", 2, {"status": "stop", "type": "web"}),
                Sample("process", 1, {"status": "start", "type": "worker", "process": "1"}),
            )
        )
        self.assertEqual((found.redis_up, found.version, found.certificate_expires_in), (True, "0.1.0", 3600.0))
        self.assertEqual(found.redis, (RedisNode("", 10, 100, 80, 90, 0.25),))
        self.assertEqual((found.started, found.stopped), ({"web": 3, "worker": 1}, {"web": 2}))

    def test_cluster(self) -> None:
        """Each node of a cluster is one entry."""
        self.assertEqual(
            [each.node for each in read_metrics(metrics(node="10.0.0.1:6379")).redis], ["10.0.0.1:6379"]
        )

    def test_lost_events(self) -> None:
        """Events lost are read by subscriber, those without any are left out, and odd names are read in full."""
        found = read_metrics(
            metrics(
                Sample("events.autodropped", 4, {"queue": ODD}),
                Sample("events.autodropped", 0, {"queue": "b"}),
                Sample("events.parked", 2_000_000_000, {"queue": "c"}),
            )
        )
        self.assertEqual(found.lost, {"autodropped": {ODD: 4}, "parked": {"c": 2_000_000_000}})

    def test_redis_down(self) -> None:
        """Without Redis there is little, and it says so."""
        self.assertFalse(read_metrics(b'routemaster_redis_up{app="x"} 0.0\n').redis_up)

    def test_not_a_bus(self) -> None:
        """Anything else is refused in one line."""
        for body in (
            b"",
            b"<html>",
            b"\xff\xfe",
            b"routemaster_redis_up{",
            b'routemaster_redis_up{app="x"} zero\n',
            b'node_load1{a="b"} 1\n',
        ):
            error = self.assertRaises(BadAnswer, read_metrics, body)
            self.assertEqual(len(str(error).splitlines()), 1)


    def test_no_numbers(self) -> None:
        """What is not a number, or infinite, is not known; the rest is read."""
        body = metrics().replace(b" 86400.0", b" -Inf").replace(b" 3600.0", b" NaN").replace(b" 0.25", b" +Inf")
        found = read_metrics(body)
        self.assertEqual((found.redis_up, found.certificate_expires_in, found.redis), (True, None, ()))


class LatencyTests(SynchronousTestCase):
    """The histogram of one subscriber."""

    def test_buckets(self) -> None:
        """Each bucket has what fell into it alone, and no other subscriber's."""
        samples = [
            Sample("delivery.duration.bucket", 3, {"queue": "shop", "le": "10"}),
            Sample("delivery.duration.bucket", 2, {"queue": "shop", "le": "100"}),
            Sample("delivery.duration.bucket", 1, {"queue": "shop", "le": "+Inf"}),
            Sample("delivery.duration.sum", 9000, {"queue": "shop"}),
            Sample("delivery.duration.bucket", 7, {"queue": "workshop", "le": "10"}),
            Sample("delivery.duration.sum", 9, {"queue": "workshop"}),
        ]
        found = latency(metrics(*samples), "shop")
        self.assertEqual([each for each in found if each.count], [Bucket(0.01, 3), Bucket(0.1, 2), Bucket(inf, 1)])
        self.assertEqual(len(found), 13)
        self.assertEqual(latency(metrics(*samples), "nobody"), [])
