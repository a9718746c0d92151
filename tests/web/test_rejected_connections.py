"""Rejected connections are counted by reason, and an attack costs the log a line a minute for each."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.metrics.meter import Meter
from routemaster.web.rejected_connections import RejectedConnections


class RejectedConnectionsTests(SynchronousTestCase):
    """Reasons as `Places` gives them."""

    def test_flood(self) -> None:
        """1,000 connections a second for 2 minutes are counted, and cost 2 lines for each reason."""
        clock, meter = Clock(), Meter()
        rejected = RejectedConnections(meter, clock)
        self.assertEqual(set(meter.take().values()), {0})
        with capturedLogs() as events:
            for _ in range(120):
                for number in range(1000):
                    rejected("address", bytes([192, 0, 2, number % 256]))
                rejected("stranger", b"\xff" * 8)
                rejected("total", b"")
                clock.advance(1)
        self.assertEqual(meter.take(), {
            "connections.rejected|reason=address": 120_000, "connections.rejected|reason=stranger": 120,
            "connections.rejected|reason=total": 120,
        })  # fmt: skip
        lines = [event["log_format"].format(**event) for event in events]
        self.assertEqual(len(lines), 6)
        self.assertIn("rejected 60000 connections since the last line, the last from 192.0.2.0: as many", lines[3])
        self.assertIn("ffff:ffff:ffff:ffff::/64", lines[1])
        self.assertIn("a Unix socket", lines[2])
