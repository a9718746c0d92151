"""The bus in one process: which parts it has, and the order in which they start and stop.

Start: Redis, wake-ups, the worker and the periodic tasks, the ports last. The
bus waits until an embedded Redis is ready. A Redis given by URL may be
unavailable: after `CONNECT_WAIT` the bus opens its ports without it, answers
503, and reads everything again when the connection is made. Only then it is ready.

Stop, in reverse: the ports first, after `drain_delay`, so that no new work arrives; then current
requests and delivery attempts finish at the same time, under leases that are
still renewed and are then released; then the periodic tasks, the connections,
and Redis last. `MultiService` stops all its children at once and cannot do that.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import random
from time import time
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from routemaster import __version__
from routemaster.config import Config
from routemaster.daemon import assembly, descriptors, freed_memory
from routemaster.daemon.lifecycle import DaemonService, Part
from routemaster.daemon.listeners import Listeners, loopback_alone
from routemaster.daemon.own_metrics import OwnMetrics
from routemaster.daemon.process_title import own_number
from routemaster.daemon.redis_settings import log_settings
from routemaster.daemon.status import Figures, StatusReport, sentence
from routemaster.delivery.worker import Worker
from routemaster.errors import StoreUnavailable
from routemaster.hints import TokensChanged, TopicConfigured, decode
from routemaster.metrics import prometheus
from routemaster.metrics.meter import Meter
from routemaster.metrics.monitor import Monitor
from routemaster.pull.service import PullService
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress, parse
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.redis.embedded import EmbeddedRedis
from routemaster.redis.pubsub import PubSub
from routemaster.store.keys import Keys
from routemaster.store.redis_store import RedisStore
from routemaster.util.garbage_collector import GarbageCollector
from routemaster.util.periodic import Periodic
from routemaster.web.api import Api
from routemaster.web.api_tokens import warn_about_tokens
from routemaster.web.auth import Authenticator
from routemaster.web.certificate_watch import CHECK_INTERVAL, CertificateWatch
from routemaster.web.certificates import ReloadableTLS
from routemaster.web.data_limits import DataLimits

TOKEN_POLL = 0.5        #: seconds; every process applies a change of tokens within a second
SETTINGS_POLL = 60      #: seconds; a hint announces changes of topics' settings before that
CLEAN_UP_INTERVAL = 10  #: seconds between two runs of trimming and repairing
AUTODROP_INTERVAL = 30  #: seconds between two runs of autodrop
CONNECT_WAIT = 1.0      #: seconds for a Redis given by URL to answer before the ports open without it


class Bus(DaemonService):
    """Routemaster as a Twisted service."""

    _worker: Worker | None = None     #: with the roles all and worker
    _pull: PullService | None = None  #: with the roles all and web

    def __init__(
        self, config: Config, reactor: Any, on_failure: Callable[[], None], dropped: Callable[[], int] = lambda: 0
    ) -> None:
        """`on_failure` is called if the bus cannot start, after the reason was logged.

        `dropped` returns how many lines the log has lost since the start.
        Raises ConfigError if a file that the configuration names cannot be used.
        """
        certificate, key = assembly.certificate_files(config, time())
        self._meter, self._metrics_service = Meter(), assembly.metrics_service(config, reactor)
        self._tls = None if config.role == "worker" else ReloadableTLS(certificate, key)
        self._listeners = None if self._tls is None else Listeners(config, self._tls, reactor, self._meter)
        self._sender = assembly.sender(config, reactor, certificate, loopback_alone(config, self._listeners))
        self._certificates = CertificateWatch([self._tls, self._sender.client_certificate], time)
        self._process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        number = own_number(os.environ)
        self._own_metrics = OwnMetrics(reactor, self._meter, config.role, dropped, config.timeout, number)
        self._started: list[Part] = []
        self._hinted: list[Worker | PullService] = []  #: what takes hints
        self._delay: Deferred[None] | None = None
        self._skips_delay = self._ready = False  #: ready: the start has ended
        super().__init__(config, reactor, on_failure)

    # -- start

    async def _start(self) -> None:
        self._log.info("Routemaster {version} starts, role {role}", version=__version__, role=self._config.role)
        self._build(await self._redis_address())
        for part in self._parts():
            await self._start_part(part)
        self._own_metrics.count_process("start")
        for connection in self._connections():
            await connection.when_connected()
        await self._authenticator.read()
        self._ready = True
        self._notifier.ready()
        self._log.info("Routemaster is ready")

    async def _start_part(self, part: Part) -> None:
        self._started.append(part)  # before its start, so that a stop during the start reaches it
        await maybeDeferred(part.start)
        if self._stopping:  # not every Deferred passes a cancellation on
            raise CancelledError

    async def _redis_address(self) -> RedisAddress | ClusterAddress | SentinelAddress:
        """The address of Redis; an embedded one is started."""
        url = self._config.redis_url
        if url is None:
            embedded = EmbeddedRedis(self._reactor, self._config.state_dir)
            self._started.append(Part(stop=embedded.stop))
            return await embedded.start()
        return parse(url, self._config.sentinel_username, self._config.sentinel_password)

    def _build(self, address: RedisAddress | ClusterAddress | SentinelAddress) -> None:
        """Make all parts; none is started."""
        config, reactor = self._config, self._reactor
        self._connection = assembly.connection(config, reactor, address, self._on_connected)
        self._publishing = None if self._tls is None else assembly.replication(config, reactor, address)
        tracing = self._tracing = assembly.tracing(config, reactor, self._process)
        self._store = RedisStore(
            self._connection, config.namespace, config.lease_ttl, self._publishing, config.max_topics,
            bool(tracing),
        )  # fmt: skip
        self._authenticator = Authenticator(
            config.clients, config.root_key, self._store, config.monitor_keys, config.hash_tokens
        )
        autodrop = assembly.autodrop(config, self._store)
        self._monitor = Monitor(
            self._store, self._meter, autodrop, self._metrics_service, reactor, self._process,
            config.monitor_interval, time,
            lambda: self._own_metrics.gauges(self._listeners, self._pull, self._worker, self._certificates.pairs),
            self._own_metrics.tags,
        )  # fmt: skip
        self._wakeups = PubSub(
            self._connection.address, Keys(config.namespace).wakeups, reactor=reactor,
            on_message=self._on_wakeup, on_up=self._on_wakeups_up, chance=random, purpose="wake-ups",
        )  # fmt: skip
        self._data_limits = DataLimits(self._store, reactor, config.max_event_data)
        self._token_poll = Periodic("token poll", self._authenticator.poll, TOKEN_POLL, reactor)
        self._hastened = [self._token_poll]  #: tasks that run at once when wake-ups may have been missed
        self._periodic: list[Periodic | GarbageCollector] = [
            self._token_poll,
            Periodic("counter flush", self._flush_counters, config.counter_flush_interval, reactor),
            Periodic("metrics export", self._monitor.export, config.monitor_interval, reactor),
            Periodic("certificate check", self._certificates.check, CHECK_INTERVAL, reactor),
            GarbageCollector(reactor), freed_memory.task(reactor),
        ]
        if self._listeners is not None:
            self._settings_poll = Periodic("topic settings", self._data_limits.poll, SETTINGS_POLL, reactor)
            for tasks in (self._periodic, self._hastened):
                tasks.append(self._settings_poll)
        ordered_hints = not isinstance(address, ClusterAddress)
        if self._tls is not None:
            pull = PullService(self._store, reactor, config.max_batch_body, ordered_hints, bool(tracing))
            self._pull = pull
            self._hinted.append(pull)
            sweep = Periodic("reconciliation of polls", pull.sweep, config.sweep_interval, reactor)
            self._hastened.append(sweep)
            self._periodic.append(sweep)
        if config.role == "worker":
            descriptors.for_deliveries(config.max_open_deliveries)
        if config.role != "web":
            self._worker = worker = assembly.worker(
                config, reactor, self._process, self._store, self._sender, self._meter, ordered_hints,
                tracing.attempts if tracing else None,
            )  # fmt: skip
            self._hinted.append(worker)
            interval = min(config.sweep_interval, config.lease_ttl / 3)
            reconciliation = Periodic("reconciliation", worker.reconcile, interval, reactor)
            self._hastened.append(reconciliation)
            self._periodic += [
                reconciliation,
                Periodic("lease expiry", worker.tick, config.lease_ttl / 20, reactor),
                Periodic("clean-up", self._store.clean_up, CLEAN_UP_INTERVAL, reactor),
                Periodic("autodrop", autodrop.run, AUTODROP_INTERVAL, reactor),
            ]

    def _parts(self) -> list[Part]:
        """In the order of the start."""
        status = StatusReport(self._notifier, self._reactor, self._figures, partial(sentence, self._config.role))
        return [
            *(Part(connection.start, connection.stop) for connection in self._connections()),
            Part(start=self._wait_for_redis),
            Part(self._wakeups.start, self._wakeups.stop),
            Part(self._own_metrics.start, self._close_metrics),
            *(Part(task.start, task.stop) for task in self._periodic),
            Part(stop=self._monitor.stop),
            *([Part(stop=self._tracing.stop)] if self._tracing else []),
            Part(stop=self._sender.close),
            Part(self._open_ports, self._finish_work),
            Part(status.start, status.stop),
        ]

    def _connections(self) -> list[Connection | Cluster]:
        """All that publishing and delivering require."""
        return [self._connection, *([self._publishing.connection] if self._publishing else [])]

    async def _wait_for_redis(self) -> None:
        connected = self._connection.when_connected()
        if self._config.redis_url is not None:
            connected.addTimeout(CONNECT_WAIT, self._reactor)
            connected.addErrback(lambda failure: failure.trap(TimeoutError))
        await connected
        if self._connection.connected:
            await self._store.refuse_part_of_a_move()

    async def _open_ports(self) -> None:
        if self._listeners is not None:
            if self._connection.connected:
                await self._authenticator.read()  # else the first requests would be answered 503
            api = Api(
                self._store, self._authenticator, self._reactor, assembly.api_limits(self._config), self._meter,
                self._exposition, self._is_ready, wall=time, exposed=self._listeners.exposed, pull=self._pull,
                data_limits=self._data_limits, sender=self._sender, proxies=self._listeners.proxies,
                tracer=self._tracing.requests if self._tracing else None,
            )  # fmt: skip
            await self._listeners.open(api.app.resource(), self._data_limits.is_large)
            warn_about_tokens(self._authenticator, self._listeners.exposed())

    # -- events and requests

    def _on_connected(self) -> None:
        """Redis is connected again: it may have been restarted or replaced, and may lack its last writes."""
        self._store.distrust()
        for each in self._hinted:
            each.reload_all()
        self._read_all()
        logging = Deferred.fromCoroutine(log_settings(self._connection.nodes))
        logging.addErrback(lambda failure: self._log.failure("reading Redis's settings failed", failure))

    def _on_wakeups_up(self) -> None:
        for each in self._hinted:
            each.hints_missed()
        self._read_all()

    def _read_all(self) -> None:
        """Wake-ups may have been missed: run what reads the store at once."""
        self._authenticator.distrust()
        for task in self._hastened:
            task.hasten()

    def _on_wakeup(self, message: bytes) -> None:
        hint = decode(message)
        if isinstance(hint, TokensChanged):
            if not hint.logged:
                self._authenticator.distrust()
            self._token_poll.hasten()
        elif isinstance(hint, TopicConfigured) and self._listeners is not None:
            self._settings_poll.hasten()
        elif hint is not None:
            for each in self._hinted:
                each.on_hint(hint)

    async def _flush_counters(self) -> None:
        self._own_metrics.count_dropped()
        await self._monitor.flush()

    async def _exposition(self) -> bytes:
        snapshot = await self._monitor.measure()
        # with 2,000 subscribers this takes 50 ms, which would delay events in the reactor's thread
        return await deferToThread(prometheus.exposition, snapshot, self._config.app_name, self._own_metrics.tags)

    def _is_ready(self) -> bool:
        return self._ready and not self._stopping and all(each.connected for each in self._connections())

    def _figures(self) -> Figures:
        """How it goes, for the service manager."""
        connections = self._listeners.live if self._listeners else 0
        return Figures(self._is_ready(), *(self._worker.counts if self._worker else (0, 0)), connections)

    def replace(self) -> None:
        """Log that there are no child processes to replace."""
        self._log.warn("SIGUSR2 is ignored: it replaces child processes, which only the option --processes starts")

    def reload(self) -> None:
        """Read the certificates again; of one that cannot be used, log that and keep the current one."""
        self._certificates.reload()

    # -- stop

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self._stop_parts()
        if self._starting is not None:
            await self._starting
            await self._stop_parts()  # those that were started while the start was being cancelled

    async def _stop_parts(self) -> None:
        while self._started:
            part = self._started.pop()
            try:
                await maybeDeferred(part.stop)
            except Exception:
                self._log.failure("shutdown incomplete: stopping a part failed")

    async def _finish_work(self) -> None:
        """Close the ports; then wait for current requests and attempts, at most DRAIN and grace seconds."""
        work = []
        if self._listeners is not None:
            await self._delay_drain()
            await self._listeners.close()
            work += self._listeners.drains()
        if self._pull is not None:
            work.append(self._pull.stop())
        if self._worker is not None:
            work.append(self._worker.stop(self._config.grace))
        for succeeded, failure in await DeferredList(map(Deferred.fromCoroutine, work), consumeErrors=True):
            if not succeeded:
                self._log.failure("shutdown incomplete: finishing current work failed", failure)

    def skip_drain_delay(self) -> None:
        """Close the ports without `drain_delay` when the service stops, or now if it stops already."""
        self._skips_delay = True
        if self._delay is not None:
            self._delay.cancel()

    async def _delay_drain(self) -> None:
        """Serve everything for `drain_delay` seconds more; /health/ready answers 503 already."""
        seconds = self._config.drain_delay
        if seconds and not self._skips_delay and not self._failed:
            self._log.info("the ports close in {seconds} s (drain_delay)", seconds=seconds)
            self._delay = deferLater(self._reactor, seconds, lambda: None)
            with suppress(CancelledError):
                await self._delay
            self._delay = None

    async def _close_metrics(self) -> None:
        self._own_metrics.stop()
        with suppress(StoreUnavailable):
            await self._flush_counters()
        if self._metrics_service is not None:
            await self._metrics_service.close()
