"""A process of the bus as its parent sees it: begun, ready, alive, over.

A child says how it fares in the words that a service manager would hear
(`notify`): `READY=1`, `STATUS=` and a reason, `WATCHDOG=1`. It has a datagram
socket for that in a folder that only this user may enter. One that says
nothing for `PATIENCE` stands still, and is killed.

A child never outlives its parent: the kernel sends it SIGTERM when that dies,
and it stops in good order.
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

PATIENCE = 30.0  #: seconds without a word from a child
_FIRST_FD = 3    #: of the descriptors that are handed on, as systemd does
_MANAGER = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
# Before anything of Twisted's is imported, which reads LISTEN_PID then; prctl 1: a signal when the parent dies.
_LAUNCH = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the parent was gone before its child began")
os.environ["LISTEN_PID"] = str(os.getpid())
from twisted.scripts.twistd import run
run()
"""


@frozen
class Plan:
    """How children are begun."""

    arguments: Sequence[str]      #: what follows `twistd`
    environment: Mapping[str, str]
    descriptors: Mapping[str, int]  #: name -> listening socket, to be found as `systemd:name=`
    folder: Path                  #: for their sockets


class _Ear(DatagramProtocol):
    """Hears what a child says of itself."""

    noisy = False

    def __init__(self, child: Child) -> None:
        self._child = child

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        for line in datagram.decode("utf-8", "replace").splitlines():
            self._child.said(*line.partition("=")[::2])


class Child(ProcessProtocol):
    """One process, from its beginning to its end."""

    _log = Logger()

    def __init__(self, number: int, serial: int, plan: Plan, reactor: Any) -> None:
        """`number` is for people, and stays that of a successor; `serial` is unique among all children."""
        self.number = number
        self.ready = False
        self.reason = ""  #: why it gives up, in its own words
        self.ending = ""  #: how it ended, once it has
        self.began = reactor.seconds()
        self._reactor = reactor
        self._waiting: list[Deferred[None]] = []
        address = str(plan.folder / f"{serial}")
        self._ear = reactor.listenUNIXDatagram(address, _Ear(self), mode=0o600)
        self._alarm = reactor.callLater(PATIENCE, self._stands_still)
        own = {name: value for name, value in plan.environment.items() if name not in _MANAGER}
        told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(round(PATIENCE * 500_000))}
        names = list(plan.descriptors)
        if names:
            told |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        inherited = {_FIRST_FD + place: plan.descriptors[name] for place, name in enumerate(names)}
        command = [sys.executable, "-c", _LAUNCH, str(os.getpid()), *plan.arguments]
        fds = {0: 0, 1: 1, 2: 2, **inherited}
        process = reactor.spawnProcess(self, sys.executable, command, {**own, **told}, childFDs=fds)
        self.pid = int(process.pid)

    def said(self, name: str, value: str) -> None:
        """Take a word of the child's."""
        self._alarm.reset(PATIENCE)
        if name == "READY":
            self.ready = True
            self._tell()
        elif name == "STATUS":
            self.reason = value

    def signal(self, which: signal.Signals) -> None:
        """Send a signal; harmless when the process has ended."""
        if not self.ending:
            os.kill(self.pid, which)

    def when_settled(self) -> Deferred[None]:
        """Fires when the child is ready, or has ended."""
        return succeed(None) if self.ready or self.ending else self._wait()

    async def ended(self) -> None:
        """Return when the process has ended."""
        while not self.ending:
            await self._wait()

    def processEnded(self, reason: Failure) -> None:
        """Twisted's call: the process is no more."""
        how: Any = reason.value
        self.ending = signal.Signals(how.signal).name if how.signal else f"status {how.exitCode}"
        if self._alarm.active():
            self._alarm.cancel()
        self._ear.stopListening()
        self._tell()

    def _stands_still(self) -> None:
        self._log.error(
            "process {number} ({pid}) has said nothing for {patience} s, and is killed",
            number=self.number, pid=self.pid, patience=round(PATIENCE),
        )  # fmt: skip
        self.signal(signal.SIGKILL)

    def _wait(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
