"""The process of the embedded redis-server: how it is spawned, and how it ends.

The server should not outlive the daemon: on Linux the kernel sends it SIGTERM
when the daemon dies, for whatever reason. It runs in a session of its own, so
that Ctrl-C in a terminal reaches only the daemon, which stops Redis last.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.util.parent_death import END_WITH_PARENT

STOP_TIMEOUT = 30.0  #: seconds from the first SIGTERM to SIGKILL
STOP_AGAIN = 0.5     #: seconds from one SIGTERM to the next
KEPT_OUTPUT = 2000   #: bytes of the server's output
_ENVIRONMENT = ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH")  # the daemon's other variables may hold secrets
# Runs between fork and redis-server: a session of its own.
_LAUNCHER = f"import os; os.setsid(){END_WITH_PARENT}os.execv(sys.argv[1], sys.argv[1:])"


class ServerProcess(ProcessProtocol):
    """A redis-server. Before `spawn` it is one that does not run."""

    log = Logger()
    transport: Any = None

    def __init__(self) -> None:
        self.output = b""  #: the end of what it has written
        self.ending = ""   #: how it ended; empty while it runs
        self._waiting: list[Deferred[None]] = []

    @property
    def pid(self) -> int | None:
        """Its process ID, None while it does not run."""
        return None if self.transport is None else self.transport.pid

    def spawn(self, reactor: Any, command: Sequence[str], directory: str, lock: int) -> None:
        """Start it with `lock`, a file descriptor that it inherits and holds until it ends."""
        arguments = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        reactor.spawnProcess(self, sys.executable, arguments, env=environment(), path=directory,
                             childFDs={0: "w", 1: "r", 2: "r", 3: lock})  # fmt: skip

    def ended(self) -> Deferred[None]:
        """Fires when it has ended, at once if it has."""
        if self.ending:
            return succeed(None)
        self._waiting.append(Deferred())
        return self._waiting[-1]

    async def stop(self, reactor: Any) -> None:
        """Send SIGTERM, repeatedly, because one between fork and exec is lost; SIGKILL after `STOP_TIMEOUT`."""
        limit = reactor.seconds() + STOP_TIMEOUT
        while self.transport is not None and not self.ending:
            signal = "TERM"
            if reactor.seconds() > limit:
                signal = "KILL"
                self.log.error("the embedded Redis did not stop in {s:g} s: it is killed", s=STOP_TIMEOUT)
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(signal)
            with suppress(TimeoutError):
                await self.ended().addTimeout(STOP_AGAIN, reactor)

    # -- called by Twisted

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output = (self.output + data)[-KEPT_OUTPUT:]

    def processEnded(self, reason: Failure) -> None:
        how: Any = reason.value
        self.ending = f"signal {how.signal}" if how.signal else f"exit status {how.exitCode}"
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)


def environment() -> dict[str, str]:
    """The variables that programs of Redis get."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def lock_file(path: Path) -> int | None:
    """A descriptor that holds an exclusive lock on the file; None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
