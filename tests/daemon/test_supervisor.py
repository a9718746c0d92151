"""Several real processes behind one port: killed, replaced, or unable to start."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from routemaster.testing.daemon import LOOPBACK, Daemon
from tests.system.test_system import SystemCase, free_port, until


class SupervisorTests(SystemCase):
    """The option `--processes`."""

    async def several(self, *options: str, count: int = 2) -> Daemon:
        """A bus with several processes, all ready."""
        daemon = self.daemon("--processes", str(count), "--log-level", "DEBUG", *options)
        await daemon.start()
        await daemon.line(f"all {count} processes are ready")
        return daemon

    def children(self, daemon: Daemon) -> set[int]:
        """The IDs of the running child processes, without Redis."""
        found = set()
        for each in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = each.read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(words[1]) == daemon.pid and words[0] != "Z":
                found.add(int(each.parent.name))
        return found - {daemon.redis_pid}

    async def test_killed_under_load(self) -> None:
        """Killed processes are started again; no event is lost, and order is kept."""
        daemon = await self.several("--lease-ttl", "1", "--sweep-interval", "0.5")
        sink, load = await self.under_load(daemon)
        for _ in range(3):
            await load.further(20)
            before = self.children(daemon)
            self.assertEqual(len(before), 2)
            os.kill(min(before), signal.SIGKILL)
            await until(lambda: len(self.children(daemon) - before) == 1, "another process")  # noqa: B023
        await load.further(20)
        self.assertEqual(len(re.findall(r"ended with SIGKILL; restart in", daemon.log)), 3)
        await self.settle(load, sink, faults=3)
        self.assertEqual(await daemon.stop(), 0)

    async def test_replaced_under_load(self) -> None:
        """SIGUSR2 replaces all processes: no publication fails, no event is lost or delivered twice."""
        daemon = await self.several()
        sink, load = await self.under_load(daemon)
        before = self.children(daemon)
        await load.further(20)
        daemon.signal("USR2")
        await daemon.line("all processes replaced")
        await load.further(20)
        self.assertEqual(self.children(daemon) & before, set())
        self.assertEqual(await self.settle(load, sink), 0)
        self.assertEqual((load.unknown, load.refused), (set(), set()))

    async def test_end(self) -> None:
        """SIGTERM stops the processes and then Redis, with status 0, and no process remains."""
        daemon = await self.several()
        children, redis = self.children(daemon), daemon.redis_pid
        self.assertEqual(len(children), 2)
        self.assertEqual(await daemon.stop(), 0)
        for each in (*children, redis):
            self.assertRaises(ProcessLookupError, os.kill, each, 0)
        self.assertEqual(daemon.log.count("Routemaster has stopped"), 3)

    async def test_parent_killed(self) -> None:
        """Child processes end when the parent is killed."""
        daemon = await self.several()
        children = self.children(daemon)
        await daemon.kill()
        left = [Path(f"/proc/{each}") for each in children]
        await until(lambda: not any(each.exists() for each in left), "the end of the children")

    async def test_never_ready(self) -> None:
        """If no process can start, the parent exits with status 1 and logs the reason."""
        certificate = self.place / "gone.crt"
        daemon = self.daemon("--processes", "2", "--ca-file", str(certificate))
        daemon.launch()
        self.assertEqual(await daemon.ended(), 1)
        (line,) = re.findall("CRITICAL.*cannot start: (.*)", daemon.log)
        self.assertIn("gone.crt", line)

    async def test_port_taken(self) -> None:
        """If the port is in use, the parent fails at once and starts no process."""
        first = await self.several()
        second = self.daemon(
            "--processes", "2", "--https", f"tcp:{first.port}:interface={LOOPBACK}", name="other"
        )
        second.launch()
        self.assertEqual(await second.ended(), 1)
        self.assertIn("cannot listen for HTTPS", second.log)

    async def test_worker_without_port(self) -> None:
        """With the role worker several processes run and listen on no port."""
        redis = self.redis()
        daemon = self.daemon("--processes", "2", "--redis-url", f"unix://{redis.socket_path}", "--role", "worker")
        daemon.launch()
        await daemon.line("all 2 processes are ready")
        self.assertNotIn("HTTPS on", daemon.log)
        self.assertEqual(await daemon.stop(), 0)

    async def test_hang_up(self) -> None:
        """After SIGHUP every process reloads the certificate and reopens its log."""
        log = self.place / "bus.log"
        port = free_port()
        daemon = self.daemon(
            "--processes", "2", "--log-file", str(log), "--https", f"tcp:{port}:interface={LOOPBACK}"
        )
        daemon.launch()
        await until(lambda: log.exists() and "all 2 processes are ready" in log.read_text(), "readiness")
        log.rename(self.place / "old.log")
        daemon.signal("HUP")
        await until(
            lambda: log.exists() and log.read_text().count("certificate reloaded") == 2, "two new lines"
        )
        self.assertEqual(await daemon.stop(), 0)
