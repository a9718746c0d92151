"""The console in one process: its parts, and the order in which they start and stop.

Start: the history, the pollers, the sending of metrics, the port last. A bus that is unreachable
prevents nothing. Stop, in reverse: the port and the streams first, then requests under way.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from time import time
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster import __version__
from routemaster.console.app import MAX_BODY, Console
from routemaster.console.bus_client import BusClient
from routemaster.console.changes import counted
from routemaster.console.config import ConsoleConfig
from routemaster.console.control import Control
from routemaster.console.history import History
from routemaster.console.live import Live
from routemaster.console.login import Login
from routemaster.console.model import Bus
from routemaster.console.own_token import ensure_login_token
from routemaster.console.pages import Pages, Watched
from routemaster.console.poller import Poll, Poller
from routemaster.console.rendering import Rendering
from routemaster.console.sessions import Sessions
from routemaster.console.state import State
from routemaster.console.statsd_push import Growth
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.errors import ConfigError, RoutemasterError
from routemaster.metrics.statsd import Statsd
from routemaster.util.garbage_collector import GarbageCollector
from routemaster.util.log_throttle import LogThrottle
from routemaster.util.periodic import Periodic
from routemaster.web.certificate_watch import CHECK_INTERVAL, CertificateWatch
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
from routemaster.web.failed_authentications import FailedAuthentications
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.places import Places
from routemaster.web.http_server.site import BusSite

DRAIN = 5.0  #: seconds for current requests to finish when the console stops


@frozen
class Part:
    """A step of the start, and its counterpart at the stop."""

    start: Callable[[], Any] = lambda: None
    stop: Callable[[], Any] = lambda: None


class ConsoleService(Service):
    """The console as a Twisted service."""

    name = "routemaster-console"
    _log = Logger()

    def __init__(self, config: ConsoleConfig, reactor: Any, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called if the console cannot start, after the reason was logged.

        Raises ConfigError if a file that the configuration names cannot be used.
        """
        self._config, self._reactor, self._on_failure = config, reactor, on_failure
        self._notifier = SystemdNotifier(os.environ, reactor)
        certificate, key = config.certificate, config.private_key
        if certificate is None or key is None:
            certificate, key, _ = ensure_self_signed(config.state_dir, time())
        self._tls = ReloadableTLS(certificate, key)
        self._certificates = CertificateWatch([self._tls], time)
        tokens = config.login_tokens
        if not tokens and config.user_header is None:
            tokens = (ensure_login_token(config.state_dir, secrets.token_hex(16)),)
            self._log.info("log in with the token in {path}", path=str(config.state_dir / "login-token"))
        self._build(tokens)
        self._started: list[Part] = []
        self._starting: Deferred[None] | None = None
        self._port: Any = None
        self._status = ""

    def _build(self, tokens: tuple[str, ...]) -> None:
        config, reactor = self._config, self._reactor
        rows = config.history_rows
        self._history = History(config.state_dir / "history.sqlite" if rows else None, rows, reactor)
        self._live = Live(reactor)
        buses = [
            Bus(name, url, control=config.allow_control and config.credentials[name].root_key is not None)
            for name, url in config.buses.items()
        ]
        self._state = State(buses, self._history, self._live, time, rows, deferToThread)
        self._watched = {bus.name: self._watch(bus) for bus in buses}
        proxies = TrustedProxies(config.trusted_proxies)
        sessions = Sessions(
            reactor, lambda: secrets.token_urlsafe(32), config.session_idle, config.session_lifetime
        )
        users = config.control_users
        login = Login(
            sessions, tokens, proxies, config.user_header, FailedAuthentications(reactor),
            lambda user: config.allow_control and (not users or user in users),
        )  # fmt: skip
        rendering = Rendering()
        pages = Pages(self._state, self._watched, self._history, rendering, deferToThread)
        self.console = Console(pages, login, self._live, self._state, rendering, time)
        limits = Limits(
            body_limit=lambda method, target: MAX_BODY, places=Places(config.max_connections, 0, proxies)
        )
        self._site = BusSite(self.console.app.resource(), reactor=reactor, limits=limits, wall=time)
        self._site.noisy = False
        self._statsd = None
        if config.metric_collection_service == "statsd":
            self._statsd = Statsd(reactor, config.app_name, *config.statsd_address)
            self._growth, self._throttle = Growth(), LogThrottle()

    def _watch(self, bus: Bus) -> Watched:
        """What watches one bus."""
        config, credentials = self._config, self._config.credentials[bus.name]
        ca_files = [file for file in (credentials.ca_file, config.ca_file) if file is not None]
        for file in ca_files:
            if not os.access(file, os.R_OK):
                raise ConfigError(f"bus {bus.name}: its CA file {file} cannot be read")
        client = BusClient(self._reactor, bus.url, ca_files, config.request_timeout, config.max_answer)
        poller = Poller(
            bus, client, credentials, Poll(config.poll_interval, config.late_after), self._reactor, time,
            deferToThread, self._publish,
        )  # fmt: skip
        control = None
        if bus.control and credentials.root_key is not None:
            control = Control(client, credentials.monitor_key, credentials.root_key, time)
        return Watched(client, credentials.monitor_key, poller, control)

    async def _publish(self, bus: Bus) -> None:
        """There is a new reading of a bus."""
        await self._state.publish(bus)
        buses = self._state.snapshot.buses
        away = [each.name for each in buses if each.unreachable_since is not None]
        status = f"watching {counted(len(buses), 'bus', 'buses')}"
        status += f", unreachable: {', '.join(away)}" if away else ""
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    # -- start and stop

    def startService(self) -> None:
        """Start in the background; a failure is logged in one line."""
        super().startService()
        self._notifier.start_watchdog()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._fail)

    def stopService(self) -> Deferred[None]:
        """Stop everything; fires when all has stopped."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def reload(self) -> None:
        """Read the certificate again."""
        self._certificates.reload()

    def skip_drain_delay(self) -> None:
        """There is no delay to skip."""

    def replace(self) -> None:
        """There are no child processes to replace."""

    async def _start(self) -> None:
        self._log.info("Routemaster console {version} starts", version=__version__)
        for part in self._parts():
            self._started.append(part)
            await maybeDeferred(part.start)
        self._notifier.ready()
        self._log.info("Routemaster console is ready, watching {buses}", buses=", ".join(self._config.buses))

    def _parts(self) -> list[Part]:
        check = Periodic("certificate check", self._certificates.check, CHECK_INTERVAL, self._reactor)
        parts = [Part(self._history.start, self._history.stop)]
        parts += [Part(each.poller.start, each.poller.stop) for each in self._watched.values()]
        parts.append(Part(check.start, check.stop))
        if self._statsd is not None:
            sending = Periodic("sending metrics", self._send_metrics, self._config.poll_interval, self._reactor)
            parts += [Part(stop=self._statsd.close), Part(sending.start, sending.stop)]
        collector = GarbageCollector(self._reactor)
        parts += [Part(collector.start, collector.stop), Part(self._listen, self._close)]
        return parts

    async def _send_metrics(self) -> None:
        if self._statsd is None:
            return
        try:
            await self._statsd.send(self._growth.snapshot(self._state.snapshot.buses, time()))
        except OSError as error:
            since = self._throttle.failed(self._reactor.seconds(), str(error))
            if since is not None:
                self._log.warn("sending metrics failed: {error}", error=str(error))
        else:
            if self._throttle.succeeded(self._reactor.seconds()) is not None:
                self._log.info("sending metrics succeeds again")

    async def _listen(self) -> None:
        endpoint = self._config.https
        try:
            listening = serverFromString(self._reactor, endpoint)
            self._port = await listening.listen(self._tls.wrap(self._site))
        except Exception as error:
            raise ConfigError(f"cannot listen for HTTPS on {endpoint}: {error}") from error
        host = self._port.getHost()
        address = f"{host.host}:{host.port}" if hasattr(host, "port") else str(getattr(host, "name", host))
        self._log.info("HTTPS on {address}", address=address)

    async def _close(self) -> None:
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        self._live.stop()
        await self._site.drain(DRAIN)

    def _fail(self, failure: Failure) -> None:
        if not self.running:
            return
        if failure.check(RoutemasterError, OSError):
            self._log.critical("cannot start: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("cannot start", failure)
        self._notifier.failed(f"cannot start: {failure.getErrorMessage()}")
        self._on_failure()

    async def _stop(self) -> None:
        self._log.info("Routemaster console stops")
        self._notifier.stopping()
        if self._starting is not None:
            await self._starting
        while self._started:
            part = self._started.pop()
            try:
                await maybeDeferred(part.stop)
            except Exception:
                self._log.failure("shutdown incomplete: stopping a part failed")
        self._notifier.stop_watchdog()
        self._log.info("Routemaster console has stopped")
