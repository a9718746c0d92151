"""What the process of a daemon does at signals, and its exit status; of the bus, and of the console.

SIGTERM and SIGINT stop it with status 0; repeated signals change nothing. SIGHUP
reloads what can be reloaded, and reopens the log. SIGUSR1 is ignored.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger

_log = Logger()


class Service(Protocol):
    """What the signals act on."""

    def reload(self) -> None:
        """SIGHUP."""

    def skip_drain_delay(self) -> None:
        """SIGINT, before the stop."""

    def replace(self) -> None:
        """SIGUSR2."""


class Process:
    """The signals and the exit status of the process."""

    def __init__(self, reactor: Any, what: str = "the bus") -> None:
        """`what`: runs in the process, for the log."""
        self._reactor, self._what = reactor, what
        self._stopping = False

    def handle_signals(self, service: Service, reopen_log: Callable[[], None] = lambda: None) -> None:
        """Install signal handlers now, and again when the reactor has installed its own."""

        def reload() -> None:
            reopen_log()
            service.reload()

        def interrupt() -> None:
            service.skip_drain_delay()
            self._stop_on_signal("SIGINT")

        def ignore() -> None:
            """The default action of the operating system would end the process."""

        for number, action in {
            signal.SIGTERM: lambda: self._stop_on_signal("SIGTERM"),
            signal.SIGINT: interrupt,
            signal.SIGHUP: reload,
            signal.SIGUSR1: ignore,
            signal.SIGUSR2: service.replace,
        }.items():
            self._install(number, action)
            self._reactor.callWhenRunning(self._install, number, action)
            # when the reactor has stopped, Python would restore the default action, which ends the process
            self._reactor.addSystemEventTrigger("after", "shutdown", signal.signal, number, signal.SIG_IGN)

    def _install(self, number: signal.Signals, action: Callable[[], None]) -> None:
        # a handler may run between any two instructions, so it only schedules the call
        signal.signal(number, lambda _number, _frame: self._reactor.callFromThread(action))

    def _stop_on_signal(self, name: str) -> None:
        if self._stopping:
            _log.info("{name} ignored: {what} is already stopping", name=name, what=self._what)
        else:
            _log.info("{name}: {what} stops", name=name, what=self._what)
            self._end()

    def fail(self) -> None:
        """Stop, and exit with status 1. twistd has no exit status of its own, so `atexit` sets it."""
        atexit.register(_exit_with_failure)
        if not self._stopping:
            self._reactor.callWhenRunning(self._reactor.callLater, 0, self._end)

    def _end(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()


def _exit_with_failure() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
