"""Upgrades from the last release, whose code is in tests/data: its data, and its processes under load.

`.ci/release` keeps the code. docs/operations.rst, "Upgrade", says what users may rely on.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor

import routemaster
from chaos.fleet import STARTS
from chaos.plan import Plan, Report
from chaos.release import ROOT, Release
from chaos.run import run
from chaos.version_change import EARLIER
from routemaster.testing.daemon import Daemon
from routemaster.testing.redis_server import servers
from tests.system.furnished import OPTIONS, Furnished, lacking
from tests.system.test_system import SystemCase

#: two web processes on one listening socket, as under systemd, and two workers; each exchanged once
UPGRADE = Plan(
    seed=0, faults=(EARLIER,), kills=4, events=1500, rate=300, bulk=4, shared=True,
    roles=("web", "web", "worker", "worker"), subscribers=4,
)  # fmt: skip


class DataTests(SystemCase):
    """This version on the data that the last release has written."""

    timeout = 240

    def setUp(self) -> None:
        super().setUp()
        self.release = Release.unpack(self.place / "release")

    def old_daemon(self, *options: str, **environment: str) -> Daemon:
        daemon = self.daemon(*OPTIONS, *options, **environment)
        daemon.environment |= self.release.environment()
        return daemon

    async def test_each_redis(self) -> None:
        """Every answer about what was stored is the same, and every subscription continues where it was."""
        for binary in servers():
            redis = ("--redis-url", self.redis("--appendonly", "yes", binary=binary).url)
            bus = Furnished(self)
            before = await self.begin(bus, *redis)
            new = self.daemon(*OPTIONS, *redis, "--role", "web")
            await new.start()
            self.assertEqual(lacking(before, await bus.answers(new)), [])
            self.assertEqual(await new.stop(), 0)
            await self.go_on(bus, *redis)

    async def begin(self, bus: Furnished, *redis: str) -> dict[str, Any]:
        """Fill Redis by the last release; what it answers then."""
        await self.fill(bus, *redis)
        quiet = self.old_daemon(*redis, "--role", "web")
        await quiet.start()
        before = await bus.answers(quiet)
        self.assertEqual(await quiet.stop(), 0)
        return before

    async def fill(self, bus: Furnished, *redis: str) -> None:
        old = self.old_daemon(*redis)
        await old.start()
        self.assertIn(f"Routemaster {self.release.version} starts", old.log)
        await bus.fill(old)
        self.assertEqual(await old.stop(), 0)

    async def go_on(self, bus: Furnished, *redis: str) -> None:
        new = self.daemon(*OPTIONS, *redis)
        await new.start()
        self.assertIn(f"Routemaster {routemaster.__version__} starts", new.log)
        await bus.goes_on(new)
        self.assertEqual(await new.stop(), 0)
        self.assertNotIn("Traceback", new.log)

    async def test_embedded(self) -> None:
        """The same with the embedded Redis; the self-made certificate stays."""
        bus = Furnished(self)
        await self.fill(bus)
        certificate = (self.place / "bus" / "localhost.crt").read_bytes()
        await self.go_on(bus)
        self.assertEqual((self.place / "bus" / "localhost.crt").read_bytes(), certificate)


class InstallationTests(SystemCase):
    """A bus of several processes on one host, whose installation is replaced while it runs."""

    async def test_replaced(self) -> None:
        """SIGUSR2 exchanges all processes: no publish fails, nothing is lost or comes twice."""
        release, installed = Release.unpack(self.place / "release"), self.place / "installed"
        installed.symlink_to(release.folder)
        daemon = self.daemon("--processes", "2", PYTHONPATH=str(installed))
        await daemon.start()
        sink, load = await self.under_load(daemon)
        await load.further(20)
        new = self.place / "new"
        new.symlink_to(ROOT)
        new.replace(installed)
        daemon.signal("USR2")
        await daemon.line("all processes replaced")
        await load.further(20)
        self.assertEqual(await self.settle(load, sink), 0)
        self.assertEqual((load.unknown, load.refused), (set(), set()))
        started = STARTS.findall(daemon.log)
        self.assertEqual(Counter(started), {release.version: 3, routemaster.__version__: 2})  # the parent stays
        self.assertEqual(await daemon.stop(), 0)


class RollingTests(SystemCase):
    """Processes of the last release are exchanged for those of this version, one by one, under load."""

    timeout = 300

    async def roll(self, **changes: Any) -> Report:
        seed = int(os.environ.get("ROUTEMASTER_TEST_SEED", "0")) or random.randrange(1 << 30)
        report = await run(reactor, evolve(UPGRADE, seed=seed, **changes))
        self.assertTrue(report.good, report.summary())
        old = Release.unpack(Path(self.mktemp())).version
        exchanges = report.plan.kills
        there, back = exchanges - exchanges // 8 * 4, exchanges // 8 * 4
        self.assertEqual(report.figures["versions"], {old: 4 + back, routemaster.__version__: there})
        return report

    async def test_there_and_back(self) -> None:
        """All are upgraded, then downgraded: no publish fails, nothing is lost, reordered or delivered twice."""
        report = await self.roll(kills=8, events=2500)
        failed = {name: report.figures[name] for name in ("refused", "unknown", "reasons")}
        self.assertEqual(failed, {"refused": 0, "unknown": 0, "reasons": {}})
        if not report.figures["leases_lost"]:  # as they may be where other programs take the machine
            self.assertEqual((report.verdict.repeats, report.verdict.overlaps), (0, 0))

    async def test_decisions(self) -> None:
        """While subscribers pause, rewind, skip, park, leave and pull, the books of both versions balance."""
        await self.roll(operations=True, subscribers=2, rate=200)
