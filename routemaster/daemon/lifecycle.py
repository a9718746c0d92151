"""The start and the stop of a daemon, which a bus in one process and a supervisor of several share."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure

from routemaster.config import Config
from routemaster.daemon import assembly
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.errors import RoutemasterError


@frozen
class Part:
    """A step of the start, and its counterpart at the stop; each may return an awaitable."""

    start: Callable[[], Any] = lambda: None
    stop: Callable[[], Any] = lambda: None


class DaemonService(Service):
    """A Twisted service that starts in the background and stops in a given order.

    Subclasses implement `_start` and `_stop`.
    """

    name = "routemaster"
    _log = Logger()

    def __init__(self, config: Config, reactor: Any, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called once if the service cannot start, after the reason was logged.

        Raises ConfigError if the exception service cannot be used.
        """
        self._config, self._reactor, self._on_failure = config, reactor, on_failure
        self._notifier = SystemdNotifier(os.environ, reactor)
        self._reporter = assembly.reporter(config, reactor)
        self._starting: Deferred[None] | None = None
        self._stopping = self._failed = False

    @abstractmethod
    async def _start(self) -> None:
        """Start all parts."""

    @abstractmethod
    async def _stop(self) -> None:
        """Stop all parts."""

    def startService(self) -> None:
        """Start in the background; a failure is logged in one line."""
        super().startService()
        self._notifier.start_watchdog()
        self._notifier.status("Starting")
        if self._reporter is not None:
            globalLogPublisher.addObserver(self._reporter)  # type: ignore[arg-type]  # zope's interface
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(lambda failure: self._fail(failure.getErrorMessage(), failure))

    def skip_drain_delay(self) -> None:
        """Close the ports without `drain_delay` when the service stops, or now if it stops already."""

    def stopService(self) -> Deferred[None]:
        """Stop everything; fires when all has stopped."""
        super().stopService()
        return Deferred.fromCoroutine(self._shut_down())

    def _fail(self, reason: str, failure: Failure | None = None) -> None:
        """Log why the service cannot start, and call `on_failure`; nothing after a stop, which causes errors."""
        if self._stopping or self._failed:
            return
        self._failed = True
        if failure is None or failure.check(RoutemasterError, OSError):
            self._log.critical("cannot start: {reason}", reason=reason)
        else:
            self._log.failure("cannot start", failure)
        self._notifier.failed(f"cannot start: {reason}")
        self._on_failure()

    def _is_stopping(self) -> bool:
        return self._stopping  # a call, because mypy does not expect that an await may change the attribute

    async def _shut_down(self) -> None:
        self._log.info("Routemaster stops")
        self._notifier.stopping()
        self._notifier.status("Stopping: what is under way is finished first")
        self._stopping = True
        await self._stop()
        self._log.info("Routemaster has stopped")
        self._notifier.stop_watchdog()
        if self._reporter is not None:
            globalLogPublisher.removeObserver(self._reporter)  # type: ignore[arg-type]
            await self._reporter.stop()
