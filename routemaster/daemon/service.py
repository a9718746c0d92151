"""The one place that builds the parts and joins them; the order of start and stop.

Start: Redis, wake-ups, the worker and the periodic parts, the ports last.
With a Redis of its own the bus waits until it serves; one that is given by
URL may be away: after a moment the bus goes on, answers 503 until Redis comes,
and looks at everything when it does.

Stop: the ports first, so that nothing new comes in; then requests and attempts
under way finish side by side, the attempts under leases that are still renewed
and are given back one by one; then the periodic parts, the connections, and
Redis last. `MultiService` would stop all at once and wait for none.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from time import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, globalLogPublisher

from routemaster import __version__
from routemaster.config import Config
from routemaster.daemon import assembly
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.delivery.worker import Worker
from routemaster.errors import ConfigError, RoutemasterError, StoreUnavailable
from routemaster.metrics import prometheus
from routemaster.metrics.meter import Meter
from routemaster.metrics.monitor import Monitor
from routemaster.redis.address import ClusterAddress, RedisAddress, parse_address
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.redis.embedded import EmbeddedRedis
from routemaster.redis.pubsub import PubSub
from routemaster.redis.sentinel import SentinelAddress
from routemaster.redis.server_info import fact_lines
from routemaster.redis.wait_replicas import Replication
from routemaster.store.keys import Keys
from routemaster.store.redis_store import RedisStore
from routemaster.store.scripts import SCRIPTS
from routemaster.util.periodic import Periodic
from routemaster.web.api import Api
from routemaster.web.auth import Authenticator
from routemaster.web.certificates import ReloadableTLS
from routemaster.web.http_server.site import BusSite
from routemaster.web.redirect import RedirectResource

TOKEN_POLL = 0.5    #: seconds; a change of tokens is seen by every process within a second
TIDY_INTERVAL = 10  #: seconds between two rounds of trimming and repairing
AUTODROP_INTERVAL = 30  #: seconds from one look of autodrop to the next
HEAD_START = 1.0    #: seconds for a Redis by URL to answer before the ports open without it
DRAIN = 10.0        #: seconds for requests under way to finish when the bus stops
GARBAGE = 5_000     #: allocations from one round of Python's collector of cycles to the next


def _relieve_collector() -> None:
    """Have the collector of cycles look seldom, and not at what lives as long as the process.

    A full round stops the process, and takes the longer the more it holds:
    150 ms were measured beside 2,000 dead subscribers, every other second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)


class Role(Enum):
    """Which half of the bus a process runs."""

    ALL = "all"
    WEB = "web"
    WORKER = "worker"


class Bus(Service):
    """Routemaster as a service of Twisted's."""

    name = "routemaster"
    _log = Logger()

    def __init__(self, config: Config, role: Role, reactor: Any, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called if the bus cannot start, after it has said why.

        Raises ConfigError if a file that the configuration names cannot be used.
        """
        self._config, self._role, self._reactor, self._on_failure = config, role, reactor, on_failure
        certificate, key = assembly.certificate_files(config, time())
        self._tls = None if role is Role.WORKER else ReloadableTLS(certificate, key)
        self._sender = None if role is Role.WEB else assembly.sender(config, reactor, certificate)
        self._process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._meter, self._adapter = Meter(), assembly.adapter(config, reactor)
        self._reporter = assembly.reporter(config, reactor)
        self._notifier = SystemdNotifier(os.environ, reactor)
        self._undo: list[Callable[[], Any]] = []  #: in the order of starting
        self._starting: Deferred[None] | None = None
        self._stopping = False
        self._sites: list[BusSite] = []
        self.ports: list[Any] = []

    # -- start

    def startService(self) -> None:
        """Start in the background; if that fails, say why in one line."""
        super().startService()
        self._notifier.start_watchdog()
        globalLogPublisher.addObserver(self._reporter)  # type: ignore[arg-type]  # zope's interface
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._give_up)

    def _give_up(self, failure: Any) -> None:
        if self._stopping:
            return  # told to stop while starting: whatever that broke is no news
        if failure.check(RoutemasterError, OSError):
            self._log.critical("cannot start: {reason}", reason=failure.getErrorMessage())
        else:
            self._log.failure("cannot start", failure)
        self._notifier.status(f"cannot start: {failure.getErrorMessage()}")
        self._on_failure()

    async def _start(self) -> None:
        config, reactor = self._config, self._reactor
        self._log.info("Routemaster {version} starts, role {role}", version=__version__, role=self._role.value)
        address = await self._redis()
        keys = Keys(config.namespace)
        hasty: list[Periodic] = []
        worker: Worker | None = None

        def look() -> None:
            for part in hasty:
                part.hasten()

        def connected() -> None:
            # to a Redis that was restarted or replaced, and may lack what it had confirmed
            store.distrust()
            if worker is not None:
                worker.distrust()
            look()
            self._background(self._describe(connection))

        connection = assembly.connection(config, reactor, address, connected)
        publishing = self._publishing(address)
        store = RedisStore(connection, config.namespace, config.lease_ttl, publishing)
        doorkeeper = Authenticator(config.clients, config.root_key, store)
        autodrop = assembly.autodrop(config, store)
        monitor = Monitor(
            store, self._meter, autodrop, self._adapter, reactor, self._process, config.monitor_interval, time
        )
        tokens = Periodic("reading tokens", doorkeeper.poll, TOKEN_POLL, reactor)
        parts = [
            tokens,
            Periodic("adding up counters", monitor.flush, config.counter_flush_interval, reactor),
            Periodic("metrics export", monitor.export, config.monitor_interval, reactor),
        ]
        hasty.append(tokens)
        connection.start()
        self._undo.append(connection.stop)
        if publishing is not None:
            publishing.connection.start()
            self._undo.append(publishing.connection.stop)
        up = connection.when_connected()
        if config.redis_url is not None:
            up.addTimeout(HEAD_START, reactor).addErrback(lambda failure: failure.trap(TimeoutError))
        await up
        self._go_on()

        if self._sender is not None:
            worker = assembly.worker(config, reactor, self._process, store, self._sender, self._meter)
            sweep = Periodic("the sweep", worker.sweep, min(config.sweep_interval, config.lease_ttl / 3), reactor)
            hasty.append(sweep)
            parts += [
                sweep,
                Periodic("lease expiry", worker.expire, config.lease_ttl / 20, reactor),
                Periodic("tidying", store.clean_up, TIDY_INTERVAL, reactor),
                Periodic("autodrop", autodrop.run, AUTODROP_INTERVAL, reactor),
            ]

        def hear(message: bytes) -> None:
            if message == b"k":
                tokens.hasten()
            elif worker is not None:
                worker.hear(message)

        wakeups = PubSub(connection.address, keys.wakeups, reactor=reactor, on_message=hear, on_up=look)
        wakeups.start()
        self._undo.append(wakeups.stop)
        self._undo.append(lambda: self._close_metrics(monitor))
        for part in parts:
            part.start()
            self._undo.append(part.stop)
        if self._sender is not None:
            self._undo.append(self._sender.close)
        self._undo.append(lambda: self._finish(worker))
        if self._tls is not None:

            async def exposition() -> bytes:
                snapshot = await monitor.measure()
                # beside 2,000 subscribers this takes 50 ms, for which events should not wait
                return await deferToThread(prometheus.exposition, snapshot, config.app_name)

            def ready() -> bool:
                connected = publishing is None or publishing.connection.connected
                return connection.connected and connected and not self._stopping

            limits = assembly.api_limits(config)
            api = Api(store, doorkeeper, reactor, limits, self._meter, exposition, ready, wall=time)
            await self._open_ports(api)
        self._count_processes("start")
        _relieve_collector()
        self._notifier.ready()
        self._log.info("Routemaster is ready")

    def _go_on(self) -> None:
        """To be asked after waiting: not everything that one waits for passes a cancellation on."""
        if self._stopping:
            raise CancelledError

    async def _redis(self) -> RedisAddress | ClusterAddress | SentinelAddress:
        config = self._config
        if config.redis_url is not None:
            if "+sentinel://" in config.redis_url:
                return SentinelAddress.parse(config.redis_url)
            return parse_address(config.redis_url)
        embedded = EmbeddedRedis(self._reactor, config.state_dir)
        self._undo.append(embedded.stop)
        return await embedded.start()

    def _publishing(self, address: RedisAddress | ClusterAddress | SentinelAddress) -> Replication | None:
        """What publishing demands of replicas, on a connection of its own; None: nothing."""
        config = self._config
        if self._tls is None or not config.min_replicas:
            return None
        if isinstance(address, ClusterAddress):
            raise ConfigError("min_replicas is not supported with a Redis Cluster; set it to 0")
        connection = Connection(
            address,
            reactor=self._reactor,
            reply_timeout=config.redis_timeout + config.min_replicas_timeout / 1000,
            scripts=[SCRIPTS["publish"]],
        )
        return Replication(connection, config.min_replicas, config.min_replicas_timeout)

    def _count_processes(self, status: str) -> None:
        kinds = ("web", "worker") if self._role is Role.ALL else (self._role.value,)
        for kind in kinds:
            self._meter.count("process", status=status, type=kind)

    async def _close_metrics(self, monitor: Monitor) -> None:
        self._count_processes("stop")
        with suppress(StoreUnavailable):
            await monitor.flush()
        if self._adapter is not None:
            await self._adapter.close()

    async def _open_ports(self, api: Api) -> None:
        config = self._config
        limits = assembly.site_limits(config)
        resource = api.app.resource()
        assert self._tls is not None  # noqa: S101  # for the type: the caller has asked
        site = BusSite(resource, reactor=self._reactor, limits=limits, wall=time)
        site.noisy = False
        await self._listen(config.https, self._tls.wrap(site), site, "HTTPS")
        if config.http is not None:
            redirect = RedirectResource(config.public_url, resource, config.trusted_proxies)
            plain = BusSite(redirect, reactor=self._reactor, limits=limits, wall=time)
            plain.noisy = False
            await self._listen(config.http, plain, plain, "plain HTTP")

    async def _listen(self, endpoint: str, factory: Any, site: BusSite, what: str) -> None:
        port = await bind(self._reactor, endpoint, factory, what)
        self.ports.append(port)
        self._sites.append(site)
        self._log.info("{what} on {address}", what=what, address=_label(port.getHost()))
        self._go_on()

    async def _describe(self, connection: Connection | Cluster) -> None:
        try:
            facts = {name: await node.describe() for name, node in connection.nodes.items()}
        except StoreUnavailable:
            return  # it went again; the next connection tells
        for level, line in fact_lines(facts):
            getattr(self._log, level)("{line}", line=line)

    def _background(self, work: Any) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda failure: self._log.failure("a step failed", failure))

    # -- in between

    def replace(self) -> None:
        """Say that there is nothing to be replaced: only a parent of several processes can."""
        self._log.warn("SIGUSR2 replaces processes one by one, where the option --processes asks for several")

    def reload(self) -> None:
        """Read the certificate again; if it cannot be used that is told, and the old one kept."""
        if self._tls is not None:
            try:
                self._tls.reload()
            except ConfigError as error:
                self._log.error("the old certificate is kept: {error}", error=error)
            else:
                days = self._tls.days_left(time())
                self._log.info("the certificate is read again; it is good for {days} days", days=int(days))

    # -- stop

    def stopService(self) -> Deferred[None]:
        """Undo the start, last things first; fires when all is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._log.info("Routemaster stops")
        self._notifier.stopping()
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
        await self._undo_all()
        if self._starting is not None:
            await self._starting
            await self._undo_all()  # what it began while it was being cancelled
        self._log.info("Routemaster has stopped")
        self._notifier.stop_watchdog()
        globalLogPublisher.removeObserver(self._reporter)  # type: ignore[arg-type]
        await self._reporter.stop()

    async def _undo_all(self) -> None:
        while self._undo:
            undo = self._undo.pop()
            try:
                await _maybe(undo())
            except Exception:
                self._log.failure("a part did not stop in good order")

    async def _finish(self, worker: Worker | None) -> None:
        """Close the ports, then let what is under way finish: no longer than the longest of it may take."""
        for port in self.ports:
            await _maybe(port.stopListening())
        ends = [site.drain(DRAIN) for site in self._sites]
        if worker is not None:
            ends.append(worker.stop(self._config.grace))
        finishing = [Deferred.fromCoroutine(end) for end in ends]
        for ended, failure in await DeferredList(finishing, consumeErrors=True):
            if not ended:
                self._log.failure("something did not finish in good order", failure)


async def bind(reactor: Any, endpoint: str, factory: Any, what: str) -> Any:
    """Listen on an endpoint; the port. Raises ConfigError."""
    try:
        return await serverFromString(reactor, endpoint).listen(factory)
    except LookupError as error:
        raise ConfigError(f"cannot listen for {what} on {endpoint}: systemd gave no such socket") from error
    except Exception as error:
        raise ConfigError(f"cannot listen for {what} on {endpoint}: {error}") from error


async def _maybe(result: Any) -> None:
    if result is not None:
        await result


def _label(address: Any) -> str:
    """An address of Twisted's as an operator writes it."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return str(getattr(address, "name", address))
