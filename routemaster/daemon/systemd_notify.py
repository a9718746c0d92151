"""systemd's notify protocol, sd_notify(3): datagrams on a Unix socket.

The bus reports when it is ready, so that dependent units start only then, and
when it stops. The reactor sends the watchdog messages: if the reactor is
blocked, systemd kills and restarts the bus.

Without `NOTIFY_SOCKET` nothing is sent. No method raises, or waits longer than
`TIMEOUT`: the bus runs also if the manager does not read. No library is used:
the existing ones raise the errors of the socket, and use a clock of their own.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

TIMEOUT = 0.2  #: seconds to wait if the manager's queue is full


class SystemdNotifier:
    """Sends messages to the manager that started this process, if it listens."""

    _log = Logger()

    def __init__(self, environment: Mapping[str, str], clock: Any) -> None:
        """`environment`: that of the process; `clock`: the reactor, which sends the watchdog messages."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_timeout = _watchdog_timeout(environment)
        self._watchdog = LoopingCall(self._send, b"WATCHDOG=1")
        self._watchdog.clock = clock
        self._failed = False  #: the last message could not be sent

    def ready(self) -> None:
        """Report that the bus is ready."""
        self._send(b"READY=1")

    @property
    def listens(self) -> bool:
        """Whether there is a manager to notify."""
        return bool(self._address)

    def status(self, line: str, **more: str) -> None:
        """Report a state in one line of text; `more`: variables of the bus, whose names begin with `X_`."""
        texts = {"STATUS": line, **more}
        message = "\n".join(f"{name}={' '.join(text.splitlines())}" for name, text in texts.items())
        self._send(message.encode("utf-8", "replace"))

    def failed(self, reason: str) -> None:
        """Report why this process cannot start."""
        self.status(reason, X_FAILURE=reason)

    def stopping(self) -> None:
        """Report that the bus is stopping."""
        self._send(b"STOPPING=1")

    def start_watchdog(self) -> None:
        """Send a watchdog message twice in each timeout, if the manager has set one."""
        if self._watchdog_timeout and self._address and not self._watchdog.running:
            self._watchdog.start(self._watchdog_timeout / 2)

    def stop_watchdog(self) -> None:
        """Send no more watchdog messages."""
        if self._watchdog.running:
            self._watchdog.stop()

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
                notify_socket.settimeout(TIMEOUT)
                notify_socket.connect(self._address)
                notify_socket.send(message)
        except OSError as error:
            if not self._failed:
                self._log.warn("notifying the service manager failed: {error}", error=error.strerror or str(error))
            self._failed = True
        else:
            self._failed = False


def _address(name: str) -> bytes:
    """The address of a Unix socket for connect(2); empty for none, and for other kinds of sockets."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else b""


def _watchdog_timeout(environment: Mapping[str, str]) -> float:
    """Seconds without a message after which the manager kills this process; 0 for no watchdog."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())):
        return 0.0
    return int(usec) / 1_000_000 if usec.isascii() and usec.isdigit() else 0.0
