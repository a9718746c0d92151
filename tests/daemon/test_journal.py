"""A bus under systemd: what the journal gets, and what `systemctl status` shows."""

from __future__ import annotations

import re
import socket

from twisted.internet import reactor

from routemaster.testing.daemon import LOOPBACK, RUN, Daemon
from tests.system.test_system import SystemCase, until

#: says of its standard error that it is the journal
_AS_JOURNAL = f"import os; s = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{{s.st_dev}}:{{s.st_ino}}'; {RUN}"


class JournalTests(SystemCase):
    """Standard error is the journal, and there is a service manager."""

    def setUp(self) -> None:
        super().setUp()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(str(self.place / "notify"))
        self.manager.setblocking(False)
        self.said: list[str] = []

    def bus(self, *options: str, name: str = "bus", **environment: str) -> Daemon:
        given = {"NOTIFY_SOCKET": str(self.place / "notify"), "METRIC_COLLECTION_SERVICE": "none", **environment}
        daemon = Daemon(reactor, self.place / name, "--ca-file", str(self.ca), *options, environment=given,
                        program=_AS_JOURNAL)  # fmt: skip
        self.addCleanup(daemon.end)
        return daemon

    def status(self) -> str:
        """What `systemctl status` shows now."""
        while True:
            try:
                self.said += re.findall("^STATUS=(.*)$", self.manager.recv(10_000).decode(), re.MULTILINE)
            except BlockingIOError:
                return self.said[-1] if self.said else ""

    def assert_for_journal(self, log: str) -> None:
        """Each line has a priority and no time."""
        lines = log.splitlines()
        self.assertGreater(len(lines), 5)
        for line in lines:
            self.assertRegex(line, r"^<[2-7]>(\w+ [\w.]+ |    )")
            self.assertNotRegex(line, r"^.{0,30}\d\d:\d\d:\d\d")

    async def test_one_process(self) -> None:
        """Lines have priorities and no time; the status follows the bus from its start to its stop."""
        redis = self.redis()
        daemon = self.bus("--redis-url", redis.url, "--clients", "demo")
        await daemon.start()
        await until(lambda: self.status().startswith("Serves "), "the first status")
        self.assertEqual(self.said[0], "Starting")
        fails = f"https://{LOOPBACK}:1/"
        client = self.client(daemon)
        await self.make_topics(client, "cats")
        await self.ok(client.subscribe(fails, "cats", uuid="u", timeout=0))
        await self.ok(client.publish("cats", 1))
        await until(lambda: self.status().endswith("delivers to 1 subscriber, 1 of them failing"), "a failure")
        redis.kill()
        unavailable = "Redis is unavailable: requests are answered 503 and deliveries pause"
        await until(lambda: self.status() == unavailable, "no Redis")
        await daemon.stop()
        self.assertEqual(self.status(), "Stopping: what is under way is finished first")
        self.assert_for_journal(daemon.log)
        self.assertRegex(daemon.log, r"(?m)^<6>INFO routemaster\.\S+ Routemaster is ready$")
        self.assertRegex(daemon.log, r"(?m)^<4>WARNING routemaster\.\S+ failed to deliver 1 events")

    async def test_several_processes(self) -> None:
        """The parent's status adds up what its children report, and their lines have priorities too."""
        daemon = self.bus("--processes", "2")
        await daemon.start()
        await daemon.line("all 2 processes are ready")
        await until(lambda: self.status().startswith("2 of 2 processes are ready; serves "), "both")
        client = self.client(daemon)
        await self.make_topics(client, "cats")
        await until(lambda: "serves 1 connection and delivers to 0 subscribers" in self.status(), "a connection")
        await daemon.stop()
        self.assert_for_journal(daemon.log)

    async def test_fault(self) -> None:
        """A fault of the configuration has the priority of a critical line, and is the status."""
        daemon = self.bus("--max-body", "x")
        daemon.launch()
        self.assertEqual(await daemon.ended(), 1)
        self.assertRegex(daemon.log, "^<2>routemaster: max_body is invalid")
        self.assertIn("max_body is invalid", self.status())

    async def test_log_file(self) -> None:
        """What goes to a file has the time and no priority, whatever standard error is."""
        file = self.place / "log"
        file.touch()
        daemon = self.bus("--log-file", str(file))
        daemon.launch()
        await until(lambda: "Routemaster is ready" in file.read_text(), "a bus that is ready")
        for line in file.read_text().splitlines():
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\S+Z INFO ")
