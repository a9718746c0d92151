"""`--processes N`: a parent process that supervises N child processes on one host.

The parent binds the ports and never accepts a connection: each child inherits
the listening sockets and accepts by itself. So no request passes through the
parent, and a child that crashes breaks only its own connections. The parent
runs the embedded Redis, if no other is configured. Children run the same
daemon with the same role; they share work through Redis, as processes on
several hosts do.

A child that ends is started again: at once if it ran for `STEADY` seconds, else
after a growing pause. If a child ends `MAX_FAILED_STARTS` times in a row without
becoming ready, the parent stops with the child's reason. SIGUSR2 replaces the
children one by one with new processes, which load code and configuration again;
the ports stay open.

Stop: SIGTERM to all children, which finish their current work; then the
sockets are closed, and Redis stops last. SIGINT has them close their ports
without `drain_delay`: a process that is replaced, whose port stays open, needs none.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from routemaster import __version__
from routemaster.config import Config
from routemaster.daemon import assembly
from routemaster.daemon.child_process import ChildProcess, ChildSettings
from routemaster.daemon.lifecycle import DaemonService
from routemaster.daemon.listeners import DRAIN, bind
from routemaster.daemon.status import Figures, StatusReport, sentence, total
from routemaster.redis.embedded import EmbeddedRedis
from routemaster.util.backoff import backoff

MAX_FAILED_STARTS = 5  #: of a process in a row, before the parent stops
STEADY = 10.0          #: seconds of running after which a process that ends is started again at once
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  #: seconds before other processes are started again
MARGIN = 5.0           #: seconds a child may take to stop, beyond the time for current work
_DOMAINS = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}


class Supervisor(DaemonService):
    """N processes as one Twisted service."""

    def __init__(
        self, config: Config, arguments: Sequence[str], reactor: Any, on_failure: Callable[[], None]
    ) -> None:
        """`arguments`: of twistd for a child, without those that the parent adds.

        `on_failure` is called if the processes cannot run, after the reason was logged.

        Raises ConfigError if a file that the configuration names cannot be used.
        """
        super().__init__(config, reactor, on_failure)
        self._arguments = arguments
        assembly.certificate_files(config, time())  # made once, not by each child
        self._embedded: EmbeddedRedis | None = None
        self._folder: Path | None = None
        self._ports: dict[str, Any] = {}
        self._children: dict[int, ChildProcess] = {}
        self._serial = 0
        self._skips_delay = False
        self._supervision: list[Deferred[None]] = []
        self._pauses: set[Deferred[None]] = set()
        self._replacing: Deferred[None] | None = None
        self._status = StatusReport(self._notifier, reactor, self._figures, self._sentence)

    async def _start(self) -> None:
        config, count = self._config, self._config.processes
        self._log.info(
            "Routemaster {version} starts {count} processes, role {role}",
            version=__version__, count=count, role=config.role,
        )  # fmt: skip
        overrides = ["--role", config.role, "--processes", "1"]
        if config.redis_url is None:
            self._embedded = EmbeddedRedis(self._reactor, config.state_dir)
            address = await self._embedded.start()
            overrides += ["--redis-url", f"unix://{quote(address.path)}"]
        if config.role != "worker":
            for name, endpoint in (("https", config.https), ("http", config.http)):
                if endpoint is not None:
                    overrides += [f"--{name}", await self._bind(name, endpoint)]
        if self._stopping:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="routemaster-"))
        self._child_settings = ChildSettings(
            [*self._arguments, *overrides],
            os.environ,
            {name: port.fileno() for name, port in self._ports.items()},
            self._folder,
        )
        for number in range(1, count + 1):
            self._launch(number)
        self._supervision = [self._supervise(number) for number in self._children]
        await DeferredList([child.when_ready_or_ended() for child in self._children.values()])
        while not self._stopping and not all(child.ready for child in self._children.values()):
            await self._sleep(FIRST_PAUSE)
        if not self._stopping:
            self._notifier.ready()
            self._status.start()
            self._log.info("all {count} processes are ready", count=count)

    async def _bind(self, name: str, endpoint: str) -> str:
        """Bind a port on which only children accept; returns the endpoint description for them."""
        factory = Factory()
        factory.noisy = False
        port = await bind(self._reactor, endpoint, factory, name.upper())
        port.stopReading()  # before the reactor accepts a connection
        self._ports[name] = port
        return f"systemd:domain={_DOMAINS[port.socket.family]}:name={name}"

    # -- children

    def _figures(self) -> Figures:
        """How it goes: what the children report, added up."""
        return total(child.figures for child in self._children.values() if child.figures and not child.ending)

    def _sentence(self, figures: Figures) -> str:
        ready = sum(child.ready and not child.ending for child in self._children.values())
        before = f"{ready} of {len(self._children)} processes are ready; "
        return sentence(self._config.role, figures, before)

    def _launch(self, number: int) -> ChildProcess:
        self._serial += 1
        child = ChildProcess(number, self._serial, self._child_settings, self._reactor)
        self._children[number] = child
        return child

    def _supervise(self, number: int) -> Deferred[None]:
        supervision = Deferred.fromCoroutine(self._restart_whenever_ended(number))
        return supervision.addErrback(
            lambda failure: self._log.failure("process {number} is no longer supervised", failure, number=number)
        )

    async def _restart_whenever_ended(self, number: int) -> None:
        failures = failed_starts = 0
        while True:
            child = self._children[number]
            await child.ended()
            if self._is_stopping():
                return None
            if self._children[number] is not child:
                continue  # SIGUSR2 replaced it
            failed_starts = 0 if child.ready else failed_starts + 1
            if failed_starts == MAX_FAILED_STARTS:
                reason = child.reason or f"process {number} ended {failed_starts} times with {child.ending}"
                return self._fail(reason)
            steady = child.ready and self._reactor.seconds() - child.started > STEADY
            failures = 0 if steady else failures + 1
            wait = backoff(failures, FIRST_PAUSE, LONGEST_PAUSE, 0.5) if failures else 0.0
            log = self._log.info if child.ending == "status 0" else self._log.error
            log(
                "process {number} ({pid}) ended with {ending}; restart in {wait} s",
                number=number, pid=child.pid, ending=child.ending, wait=round(wait, 1),
            )  # fmt: skip
            await self._sleep(wait)
            if self._is_stopping():
                return None
            self._launch(number)

    async def _sleep(self, seconds: float) -> None:
        """Wait; returns early when the service stops."""
        waiting = deferLater(self._reactor, seconds, lambda: None)
        self._pauses.add(waiting)
        with suppress(CancelledError):
            await waiting
        self._pauses.discard(waiting)

    # -- signals

    def reload(self) -> None:
        """Send SIGHUP to each process: it reloads the certificate and reopens its log."""
        _signal_all(self._children.values(), signal.SIGHUP)

    def replace(self) -> None:
        """Replace the processes one by one: an old one is stopped when its successor is ready."""
        if self._replacing is None and not self._stopping:
            self._replacing = replacing = Deferred.fromCoroutine(self._replace_all())
            replacing.addErrback(lambda failure: self._log.failure("replacing the processes failed", failure))
            replacing.addBoth(lambda _: setattr(self, "_replacing", None))

    async def _replace_all(self) -> None:
        for number, old in list(self._children.items()):
            new = self._launch(number)
            await new.when_ready_or_ended()
            if self._is_stopping():
                old.signal(signal.SIGINT)  # the stop only signals the new one
                return await old.ended()
            if not new.ready:
                self._children[number] = old
                reason = new.reason or f"it ended with {new.ending}"
                self._log.error("processes not replaced: the new process does not start: {reason}", reason=reason)
                return None
            old.signal(signal.SIGINT)
            await old.ended()
            self._log.info(
                "process {number} ({old}) replaced by {new}", number=number, old=old.pid, new=new.pid
            )
        self._log.info("all processes replaced")
        return None

    # -- stop

    def skip_drain_delay(self) -> None:
        """Have the processes close their ports without `drain_delay`."""
        self._skips_delay = True
        if self._stopping:
            _signal_all(self._children.values(), signal.SIGINT)

    async def _stop(self) -> None:
        self._status.stop()
        for waiting in list(self._pauses):
            waiting.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await self._starting
        children = list(self._children.values())
        _signal_all(children, signal.SIGINT if self._skips_delay else signal.SIGTERM)
        timeout = self._config.drain_delay + max(self._config.grace, DRAIN) + MARGIN
        kill = self._reactor.callLater(timeout, _signal_all, children, signal.SIGKILL)
        await DeferredList([Deferred.fromCoroutine(child.ended()) for child in children])
        if kill.active():
            kill.cancel()
        await DeferredList([*self._supervision, *([self._replacing] if self._replacing else [])])
        for port in self._ports.values():
            await maybeDeferred(port.stopListening)
        if self._embedded is not None:
            await self._embedded.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _signal_all(children: Iterable[ChildProcess], which: signal.Signals) -> None:
    for child in children:
        child.signal(which)
