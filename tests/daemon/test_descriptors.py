"""File descriptors for connections: the limit is raised, and else fewer connections are accepted."""

from __future__ import annotations

import resource
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon import descriptors
from routemaster.daemon.descriptors import OTHERS, for_deliveries, places

INFINITY = resource.RLIM_INFINITY


class _System:
    """A system with these limits, which allows no limit above `most`."""

    RLIMIT_NOFILE, RLIM_INFINITY = resource.RLIMIT_NOFILE, INFINITY

    def __init__(self, soft: int, hard: int, most: int = 1 << 30) -> None:
        self.limits, self.most = (soft, hard), most

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == self.RLIMIT_NOFILE
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == self.RLIMIT_NOFILE
        if limits[0] > self.most:
            raise ValueError("current limit exceeds maximum limit")
        assert limits[1] == self.limits[1]
        self.limits = limits


class DescriptorTests(SynchronousTestCase):
    """`places` and `for_deliveries`."""

    def test_deliveries(self) -> None:
        """A process that only delivers has its limit raised, too, and a warning if that is not enough."""
        needed = 5000 + OTHERS
        for soft, hard, after in ((1024, 1_048_576, needed), (65_536, 65_536, 65_536), (1024, 4096, 4096)):
            system: Any = _System(soft, hard)
            self.patch(descriptors, "resource", system)
            with capturedLogs() as events:
                for_deliveries(5000)
            self.assertEqual((system.limits[0], len(events)), (after, after < needed))

    def test_table(self) -> None:
        """The limit is raised to what is needed, not above the hard one; without enough, half are for clients."""
        needed = 10_000 + 500 + OTHERS
        for soft, hard, most, after, expected in (
            (1024, 1_048_576, 1 << 30, needed, 10_000),
            (1024, INFINITY, 1 << 30, needed, 10_000),
            (65_536, 65_536, 0, 65_536, 10_000),
            (INFINITY, INFINITY, 0, INFINITY, 10_000),
            (needed, needed, 0, needed, 10_000),
            (needed - 1, needed - 1, 1 << 30, needed - 1, (needed - 1) // 2),
            (1024, 4096, 1 << 30, 4096, 2048),
            (256, INFINITY, 10_240, 256, 128),
            (1024, 1024, 1 << 30, 1024, 512),
        ):
            system: Any = _System(soft, hard, most)
            self.patch(descriptors, "resource", system)
            with capturedLogs() as events:
                self.assertEqual(places(10_000, 500), expected, (soft, hard))
            self.assertEqual(system.limits, (after, hard), (soft, hard))
            self.assertEqual(len(events), expected != 10_000, (soft, hard))

    def test_here(self) -> None:
        """The limit of this process is really raised."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 10, hard))
        self.assertEqual(places(soft - OTHERS - 20, 20), soft - OTHERS - 20)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE)[0], soft)
