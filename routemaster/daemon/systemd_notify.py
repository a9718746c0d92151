"""What a service manager is told: systemd's notify protocol, datagrams on a Unix socket.

The bus says when it is ready, so that what depends on it starts then and not
before, and when it stops. The watchdog is fed by the reactor: a bus whose
reactor stands still is not fed, and is killed and started again.

Without `NOTIFY_SOCKET` nothing is sent. Nothing here raises or waits for
longer than `PATIENCE`: a bus that cannot tell is still a bus. The protocol is
three words of text, for which no library is needed; those that there are raise
whatever the socket raises, and read a clock of their own.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

PATIENCE = 0.2  #: seconds for a manager whose queue is full


class SystemdNotifier:
    """Tells the manager that started this process, if it wants to be told."""

    _log = Logger()

    def __init__(self, environment: Mapping[str, str], clock: Any) -> None:
        """`environment` as the manager made it; `clock` as the reactor, which feeds the watchdog."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._limit = _watchdog(environment)
        self._feeding = LoopingCall(self._send, b"WATCHDOG=1")
        self._feeding.clock = clock
        self._mute = False

    def ready(self) -> None:
        """The bus serves."""
        self._send(b"READY=1")

    def status(self, line: str) -> None:
        """How the bus fares, in one line."""
        self._send(b"STATUS=" + line.encode("utf-8", "replace").replace(b"\n", b" "))

    def stopping(self) -> None:
        """The bus has begun to stop."""
        self._send(b"STOPPING=1")

    def start_watchdog(self) -> None:
        """Feed the watchdog, if there is one, twice in the time that it waits."""
        if self._limit and self._address and not self._feeding.running:
            self._feeding.start(self._limit / 2)

    def stop_watchdog(self) -> None:
        """Feed it no more."""
        if self._feeding.running:
            self._feeding.stop()

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
                wire.settimeout(PATIENCE)
                wire.connect(self._address)
                wire.send(message)
        except OSError as error:
            if not self._mute:
                self._log.warn("the service manager cannot be told: {error}", error=error.strerror or str(error))
            self._mute = True
        else:
            self._mute = False


def _address(name: str) -> bytes:
    """A Unix socket's address as the kernel wants it; empty for none, and for kinds that are not of this host."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else b""


def _watchdog(environment: Mapping[str, str]) -> float:
    """Seconds after which a watchdog that was not fed bites; 0 for none, and for one that is not ours."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())):
        return 0.0
    return int(usec) / 1_000_000 if usec.isascii() and usec.isdigit() else 0.0
