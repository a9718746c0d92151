"""A child process of the supervisor, from its start to its end.

A child reports its state to the parent with systemd's notify protocol:
`READY=1`, `WATCHDOG=1`, why it does not start, and figures for the status. The parent listens on a
datagram socket for each child, in a directory that only this user can enter. A
child that sends nothing for `WATCHDOG_TIMEOUT` is blocked, and is killed.

A child does not outlive its parent: the kernel sends it SIGTERM when the
parent dies, and it shuts down as usual.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.daemon.process_title import NUMBER_VARIABLE
from routemaster.daemon.status import VARIABLE as FIGURES_VARIABLE
from routemaster.daemon.status import Figures
from routemaster.util.parent_death import END_WITH_PARENT

WATCHDOG_TIMEOUT = 30.0  #: seconds without a datagram from a child
_FIRST_FD = 3  #: the first file descriptor passed on, as with systemd
_SYSTEMD_VARIABLES = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip
# LISTEN_PID is set before Twisted is imported, which reads it then.
_LAUNCH = END_WITH_PARENT + """
os.environ["LISTEN_PID"] = str(os.getpid())
from twisted.scripts.twistd import run
run()
"""


@frozen
class ChildSettings:
    """How child processes are started."""

    arguments: Sequence[str]      #: of twistd
    environment: Mapping[str, str]
    descriptors: Mapping[str, int]  #: name -> listening socket, for the endpoint `systemd:name=`
    folder: Path  #: for the datagram sockets


class _NotifySocket(DatagramProtocol):
    """Receives the datagrams of a child."""

    noisy = False

    def __init__(self, child: ChildProcess) -> None:
        self._child = child

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        for line in datagram.decode("utf-8", "replace").splitlines():
            self._child.notified(*line.partition("=")[::2])


class ChildProcess(ProcessProtocol):
    """One child process."""

    _log = Logger()

    def __init__(self, number: int, serial: int, settings: ChildSettings, reactor: Any) -> None:
        """`number` is for the log, and its successor has the same; `serial` is unique among all children."""
        self.number = number
        self.ready = False
        self.reason = ""  #: of a failure, as the child reports it
        self.figures: Figures | None = None  #: how it goes, as the child reports it
        self.ending = ""  #: a signal or a status; empty while it runs
        self.started = reactor.seconds()
        self._reactor = reactor
        self._waiting: list[Deferred[None]] = []
        address = str(settings.folder / f"{serial}")
        self._socket = reactor.listenUNIXDatagram(address, _NotifySocket(self), mode=0o600)
        self._watchdog = reactor.callLater(WATCHDOG_TIMEOUT, self._kill_blocked)
        inherited = {name: value for name, value in settings.environment.items() if name not in _SYSTEMD_VARIABLES}
        added = {
            NUMBER_VARIABLE: str(number),
            "NOTIFY_SOCKET": address,
            "WATCHDOG_USEC": str(round(WATCHDOG_TIMEOUT * 500_000)),
        }
        names = list(settings.descriptors)
        if names:
            added |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        sockets = {_FIRST_FD + index: settings.descriptors[name] for index, name in enumerate(names)}
        command = [sys.executable, "-c", _LAUNCH, str(os.getpid()), *settings.arguments]
        fds = {0: 0, 1: 1, 2: 2, **sockets}
        process = reactor.spawnProcess(self, sys.executable, command, {**inherited, **added}, childFDs=fds)
        self.pid = int(process.pid)

    def notified(self, name: str, value: str) -> None:
        """Handle one `NAME=VALUE` of the child."""
        self._watchdog.reset(WATCHDOG_TIMEOUT)
        if name == "READY":
            self.ready = True
            self._wake_waiters()
        elif name == "X_FAILURE":
            self.reason = value
        elif name == FIGURES_VARIABLE:
            self.figures = Figures.parse(value)

    def signal(self, which: signal.Signals) -> None:
        """Send a signal; does nothing if the process has ended."""
        if not self.ending:
            os.kill(self.pid, which)

    def when_ready_or_ended(self) -> Deferred[None]:
        """Fires when the child is ready, or has ended."""
        return succeed(None) if self.ready or self.ending else self._wait()

    async def ended(self) -> None:
        """Return when the process has ended."""
        while not self.ending:
            await self._wait()

    def processEnded(self, reason: Failure) -> None:
        """Called by Twisted when the process has ended."""
        end: Any = reason.value
        self.ending = signal.Signals(end.signal).name if end.signal else f"status {end.exitCode}"
        if self._watchdog.active():
            self._watchdog.cancel()
        self._socket.stopListening()
        self._wake_waiters()

    def _kill_blocked(self) -> None:
        self._log.error(
            "process {number} ({pid}) is blocked: no watchdog message for {timeout} s; it is killed",
            number=self.number, pid=self.pid, timeout=round(WATCHDOG_TIMEOUT),
        )  # fmt: skip
        self.signal(signal.SIGKILL)

    def _wait(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _wake_waiters(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
