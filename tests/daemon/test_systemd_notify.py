"""Messages to the service manager, on a real socket, and errors while sending."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon import systemd_notify
from routemaster.daemon.systemd_notify import SystemdNotifier


class ManagerTests(SynchronousTestCase):
    """With a manager that reads its socket."""

    def setUp(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.path = str(self.place / "notify")
        self.clock = Clock()

    def listen(self, name: str) -> None:
        """Listen on a socket with this address."""
        self.manager.bind("\0" + name[1:] if name.startswith("@") else name)
        self.manager.setblocking(False)

    def heard(self) -> list[bytes]:
        """The messages since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.manager.recv(1000))
            except BlockingIOError:
                return messages

    def notifier(self, **environment: str) -> SystemdNotifier:
        """A notifier with this environment."""
        made = SystemdNotifier({"NOTIFY_SOCKET": self.path, **environment}, self.clock)
        self.addCleanup(made.stop_watchdog)
        return made

    def warnings(self) -> list[str]:
        """The log lines from now on."""
        lines: list[str] = []

        def gather(event: dict[str, object]) -> None:
            if str(event.get("log_namespace")).startswith("routemaster.daemon.systemd_notify"):
                lines.append(str(event["error"]))

        globalLogPublisher.addObserver(gather)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, gather)
        return lines

    def test_ready_and_stopping(self) -> None:
        """Each message is sent at once in a datagram of its own."""
        self.listen(self.path)
        notifier = self.notifier()
        self.assertEqual(self.heard(), [])
        notifier.ready()
        self.assertEqual(self.heard(), [b"READY=1"])
        notifier.stopping()
        self.assertEqual(self.heard(), [b"STOPPING=1"])

    def test_abstract(self) -> None:
        """An address that starts with @ is an abstract socket."""
        if sys.platform != "linux":
            return
        self.listen(f"@{self.path}")
        SystemdNotifier({"NOTIFY_SOCKET": f"@{self.path}"}, self.clock).ready()
        self.assertEqual(self.heard(), [b"READY=1"])
        self.assertFalse(os.path.exists(self.path))

    def test_watchdog(self) -> None:
        """Watchdog messages are sent at once, then after each half of the timeout, until the stop."""
        self.listen(self.path)
        notifier = self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
        notifier.start_watchdog()
        notifier.start_watchdog()
        self.assertEqual(self.heard(), [b"WATCHDOG=1"])
        self.clock.advance(14.9)
        self.assertEqual(self.heard(), [])
        self.clock.advance(0.1)
        self.assertEqual(self.heard(), [b"WATCHDOG=1"])
        self.clock.pump([15] * 4)
        self.assertEqual(len(self.heard()), 4)
        notifier.stop_watchdog()
        notifier.stop_watchdog()
        self.clock.pump([15] * 4)
        self.assertEqual((self.heard(), self.clock.getDelayedCalls()), ([], []))

    def test_nobody_asked(self) -> None:
        """Without a Unix socket nothing is sent, and no timer runs."""
        for name in ("", "vsock:2:1234", "relative"):
            notifier = SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}, self.clock)
            notifier.ready()
            notifier.start_watchdog()
            notifier.stopping()
            notifier.stop_watchdog()
        SystemdNotifier({}, self.clock).ready()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_process_is_watched(self) -> None:
        """A watchdog of another process, or with an invalid timeout, gets no messages."""
        self.listen(self.path)
        for environment in (
            {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
            {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-5"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "²"}, {},
        ):  # fmt: skip
            self.notifier(**environment).start_watchdog()
        self.assertEqual((self.heard(), self.clock.getDelayedCalls()), ([], []))

    def test_manager_gone(self) -> None:
        """A failure to send does not raise, and is logged once until a message is sent again."""
        warnings = self.warnings()
        notifier = self.notifier(WATCHDOG_USEC="2000000")
        notifier.ready()
        notifier.start_watchdog()
        self.clock.pump([1] * 5)
        self.assertEqual(warnings, ["No such file or directory"])
        self.listen(self.path)
        self.clock.advance(1)
        self.assertEqual(self.heard(), [b"WATCHDOG=1"])
        os.unlink(self.path)
        self.clock.pump([1] * 5)
        self.assertEqual(len(warnings), 2)

    def test_no_socket_to_be_had(self) -> None:
        """Invalid addresses, and too long ones, do not raise."""
        self.warnings()
        for name in ("/" + "x" * 200, "@" + "x" * 200, "/a\0b", "/", "@"):
            SystemdNotifier({"NOTIFY_SOCKET": name}, self.clock).ready()

    def test_manager_that_does_not_read(self) -> None:
        """A full queue of the manager delays the bus by at most TIMEOUT; later messages arrive."""
        self.patch(systemd_notify, "TIMEOUT", 0.01)
        self.listen(self.path)
        warnings = self.warnings()
        notifier = self.notifier()
        for _ in range(2000):
            notifier.ready()
            if warnings:
                break
        self.assertEqual(len(warnings), 1)
        self.heard()
        notifier.stopping()
        self.assertEqual(self.heard(), [b"STOPPING=1"])
