"""`--processes N`: one host's work done by N processes, which one parent keeps going.

The parent binds the ports and never accepts: each child inherits the listening
sockets and accepts for itself, so no byte of a request passes through the
parent, and a child that dies takes no connection with it but its own. The
embedded Redis, if there is one, is the parent's. Children are the daemon itself
with the role that was asked for; they find each other through Redis, as
processes on several hosts do.

A child that ends is started again: at once if it had run for a while, else
with a growing pause. One that never becomes ready, however often it is tried,
stops the parent with the reason that it gave. SIGUSR2 replaces the children one by
one by new processes, which read code and configuration afresh; the port stays
open all the while.

Stop: SIGTERM to all children, which finish what is under way; then the
sockets, and Redis last.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger, globalLogPublisher

from routemaster import __version__
from routemaster.config import Config
from routemaster.daemon import assembly
from routemaster.daemon.child_process import Child, Plan
from routemaster.daemon.service import DRAIN, Role, bind
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.delivery.backoff import pause
from routemaster.errors import RoutemasterError
from routemaster.redis.embedded import EmbeddedRedis

FRUITLESS = 5        #: starts in a row after which a process that never became ready is given up
STEADY = 10.0        #: seconds after which a process that ends is started again at once
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  #: seconds before others are
MARGIN = 5.0         #: seconds that a child may need to stop beyond what it waits for
_DOMAINS = {socket.AF_INET: "INET", socket.AF_INET6: "INET6", socket.AF_UNIX: "UNIX"}


@frozen
class Order:
    """What was asked for on the command line."""

    config: Config
    role: Role
    processes: int
    arguments: Sequence[str]  #: with which a child is begun, but for what its parent decides


class Supervisor(Service):
    """N processes as one service of Twisted's."""

    name = "routemaster"
    _log = Logger()

    def __init__(self, order: Order, reactor: Any, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called if the bus cannot go on, after it has said why.

        Raises ConfigError if a file that the configuration names cannot be used.
        """
        self._order, self._config, self._reactor, self._on_failure = order, order.config, reactor, on_failure
        assembly.certificate_files(order.config, time())  # made once, not by each child
        self._notifier = SystemdNotifier(os.environ, reactor)
        self._embedded: EmbeddedRedis | None = None
        self._reporter = assembly.reporter(order.config, reactor)
        self._folder: Path | None = None
        self._ports: dict[str, Any] = {}
        self._children: dict[int, Child] = {}
        self._serial = 0
        self._keeping: list[Deferred[None]] = []
        self._pauses: set[Deferred[None]] = set()
        self._starting: Deferred[None] | None = None
        self._replacing: Deferred[None] | None = None
        self._stopping = self._given_up = False

    def startService(self) -> None:
        """Start in the background; if that fails, say why in one line."""
        super().startService()
        self._notifier.start_watchdog()
        globalLogPublisher.addObserver(self._reporter)  # type: ignore[arg-type]  # zope's interface
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(lambda failure: self._give_up(failure.getErrorMessage(), failure))

    async def _start(self) -> None:
        config, count = self._config, self._order.processes
        self._log.info(
            "Routemaster {version} starts {count} processes, role {role}",
            version=__version__, count=count, role=self._order.role.value,
        )  # fmt: skip
        overrides: list[str] = []
        if config.redis_url is None:
            self._embedded = EmbeddedRedis(self._reactor, config.state_dir)
            address = await self._embedded.start()
            overrides += ["--redis-url", f"unix://{quote(address.path)}"]
        if self._order.role is not Role.WORKER:
            for name, endpoint in (("https", config.https), ("http", config.http)):
                if endpoint is not None:
                    overrides += [f"--{name}", await self._bind(name, endpoint)]
        if self._stopping:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="routemaster-"))
        self._plan = Plan(
            [*self._order.arguments, "--role", self._order.role.value, *overrides],
            os.environ,
            {name: port.fileno() for name, port in self._ports.items()},
            self._folder,
        )
        for number in range(1, count + 1):
            self._begin(number)
        self._keeping = [self._keep(number) for number in self._children]
        await DeferredList([child.when_settled() for child in self._children.values()])
        while not self._stopping and not all(child.ready for child in self._children.values()):
            await self._sleep(FIRST_PAUSE)
        if not self._stopping:
            self._notifier.ready()
            self._log.info("all {count} processes are ready", count=count)

    async def _bind(self, name: str, endpoint: str) -> str:
        """Bind a port, from which only children accept; how they name it."""
        factory = Factory()
        factory.noisy = False
        port = await bind(self._reactor, endpoint, factory, name.upper())
        port.stopReading()  # before the reactor has had a chance to accept
        self._ports[name] = port
        return f"systemd:domain={_DOMAINS[port.socket.family]}:name={name}"

    def _give_up(self, reason: str, failure: Any = None) -> None:
        if self._stopping or self._given_up:
            return
        self._given_up = True
        if failure is None or failure.check(RoutemasterError, OSError):
            self._log.critical("cannot start: {reason}", reason=reason)
        else:
            self._log.failure("cannot start", failure)
        self._notifier.status(f"cannot start: {reason}")
        self._on_failure()

    # -- children

    def _begin(self, number: int) -> Child:
        self._serial += 1
        child = Child(number, self._serial, self._plan, self._reactor)
        self._children[number] = child
        return child

    def _keep(self, number: int) -> Deferred[None]:
        keeping = Deferred.fromCoroutine(self._keep_going(number))
        keeping.addErrback(lambda failure: self._log.failure("a process is kept going no more", failure))
        return keeping

    async def _keep_going(self, number: int) -> None:
        """Whenever the process of this number ends, start another."""
        failures = fruitless = 0
        while True:
            child = self._children[number]
            await child.ended()
            if self._is_stopping():
                return None
            if self._children[number] is not child:
                continue  # it was replaced
            fruitless = 0 if child.ready else fruitless + 1
            if fruitless == FRUITLESS:
                reason = child.reason or f"process {number} ended {fruitless} times with {child.ending}"
                return self._give_up(reason)
            steady = child.ready and self._reactor.seconds() - child.began > STEADY
            failures = 0 if steady else failures + 1
            wait = pause(failures, FIRST_PAUSE, LONGEST_PAUSE, 0.5) if failures else 0.0
            say = self._log.info if child.ending == "status 0" else self._log.error
            say(
                "process {number} ({pid}) ended with {ending}, and is started again in {wait} s",
                number=number, pid=child.pid, ending=child.ending, wait=round(wait, 1),
            )  # fmt: skip
            await self._sleep(wait)
            if self._is_stopping():
                return None
            self._begin(number)

    def _is_stopping(self) -> bool:
        return self._stopping  # asked again after an await, it may have become true

    async def _sleep(self, seconds: float) -> None:
        """Rest, or end early at the stop."""
        resting = deferLater(self._reactor, seconds, lambda: None)
        self._pauses.add(resting)
        try:
            await resting
        except CancelledError:
            pass
        finally:
            self._pauses.discard(resting)

    # -- in between

    def reload(self) -> None:
        """Have each process read the certificate again and open its log anew."""
        _signal_all(self._children.values(), signal.SIGHUP)

    def replace(self) -> None:
        """Replace the processes by new ones, one after another; the old one goes when the new one is ready."""
        if self._replacing is None and not self._stopping:
            self._replacing = Deferred.fromCoroutine(self._replace_all())
            self._replacing.addErrback(lambda failure: self._log.failure("the replacing ended", failure))
            self._replacing.addBoth(self._replaced)

    def _replaced(self, _result: object) -> None:
        self._replacing = None

    async def _replace_all(self) -> None:
        for number, old in list(self._children.items()):
            new = self._begin(number)
            await new.when_settled()
            if self._is_stopping():
                old.signal(signal.SIGTERM)  # the stop knows of the new one only
                return await old.ended()
            if not new.ready:
                self._children[number] = old
                reason = new.reason or f"it ended with {new.ending}"
                line = "the processes are not replaced, the new one does not start: {reason}"
                self._log.error(line, reason=reason)
                return None
            old.signal(signal.SIGTERM)
            await old.ended()
            self._log.info(
                "process {number} ({old}) is replaced by {new}", number=number, old=old.pid, new=new.pid
            )
        self._log.info("all processes are replaced")
        return None

    # -- stop

    def stopService(self) -> Deferred[None]:
        """Stop all processes, then what they share; fires when all is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._log.info("Routemaster stops its processes")
        self._notifier.stopping()
        self._stopping = True
        for resting in list(self._pauses):
            resting.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await self._starting
        children = list(self._children.values())
        _signal_all(children, signal.SIGTERM)
        patience = max(self._config.grace, DRAIN) + MARGIN
        late = self._reactor.callLater(patience, _signal_all, children, signal.SIGKILL)
        await DeferredList([Deferred.fromCoroutine(child.ended()) for child in children])
        if late.active():
            late.cancel()
        await DeferredList([*self._keeping, *([self._replacing] if self._replacing else [])])
        for port in self._ports.values():
            closing = port.stopListening()
            if closing is not None:
                await closing
        if self._embedded is not None:
            await self._embedded.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._log.info("Routemaster has stopped")
        self._notifier.stop_watchdog()
        globalLogPublisher.removeObserver(self._reporter)  # type: ignore[arg-type]
        await self._reporter.stop()


def _signal_all(children: Iterable[Child], which: signal.Signals) -> None:
    for child in children:
        child.signal(which)
