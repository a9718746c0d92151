"""Makes the parts of the bus from the configuration.

No part reads the configuration itself. `service` decides when parts start and stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import random
from time import time
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from twisted.logger import Logger

from routemaster import __version__
from routemaster.callback_policy import CallbackPolicy
from routemaster.config import Config
from routemaster.delivery.decision import Rules
from routemaster.delivery.worker import Worker
from routemaster.error_reporting import make_reporter
from routemaster.error_reporting.observer import RemoteReporter
from routemaster.errors import ConfigError
from routemaster.interfaces import Meter, MetricsService, Sender, Store
from routemaster.metrics.datadog import Datadog
from routemaster.metrics.printing import Printing
from routemaster.metrics.statsd import Statsd
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress
from routemaster.redis.cluster import Cluster
from routemaster.redis.connection import Connection
from routemaster.redis.wait_replicas import Replication
from routemaster.sender import TreqSender
from routemaster.store.autodrop import Autodrop
from routemaster.store.scripts import SCRIPTS, needed_rights
from routemaster.traces import AttemptTracer, Tracing
from routemaster.web.certificates import ensure_self_signed
from routemaster.web.http_server.body_reader import BODY, BodyBudget
from routemaster.web.http_server.limits import Limits as SiteLimits
from routemaster.web.http_server.places import Places
from routemaster.web.limits import BodyLimits
from routemaster.web.limits import Limits as ApiLimits

_log = Logger()


def certificate_files(config: Config, now: float) -> tuple[Path, Path]:
    """The paths of the certificate and its key: those configured, or a self-signed pair for localhost."""
    if config.certificate is not None and config.private_key is not None:
        return config.certificate, config.private_key
    certificate, key, made = ensure_self_signed(config.state_dir, now)
    note = "made a" if made else "using the"
    _log.info("{note} self-signed certificate {path}", note=note, path=str(certificate))
    return certificate, key


def sender(
    config: Config, reactor: Any, certificate: Path, loopback: Callable[[], bool | None]
) -> TreqSender:
    """`loopback`: see `TreqSender`. Raises ConfigError if ca_file or the client's certificate cannot be used."""
    # a subscriber on the same machine may use the generated self-signed pair too
    generated = [certificate] if config.certificate is None else []
    return TreqSender(
        reactor,
        user_agent=f"routemaster/{__version__}",
        acknowledge=config.acknowledge,
        connect_timeout=config.connect_timeout,
        timeout=config.timeout,
        verify=config.ssl_verify,
        ca_files=generated if config.ca_file is None else [*generated, config.ca_file],
        client_certificate=config.client_certificate,
        client_private_key=config.client_private_key,
        max_open=config.max_open_deliveries,
        policy=callback_policy(config),
        loopback=loopback,
    )


def callback_policy(config: Config) -> CallbackPolicy:
    """The rules on where callbacks may point."""
    return CallbackPolicy(config.callback_addresses == "public", config.allow_callbacks, config.deny_callbacks)


def connection(
    config: Config,
    reactor: Any,
    address: RedisAddress | ClusterAddress | SentinelAddress,
    on_up: Callable[[], None],
) -> Connection | Cluster:
    """A connection to one Redis, or to all nodes of a cluster; not started."""
    options: dict[str, Any] = {
        "reactor": reactor,
        "reply_timeout": config.redis_timeout,
        "scripts": SCRIPTS.values(),
        "rights": needed_rights(config.namespace),
        "on_up": on_up,
        "chance": random,
    }
    if isinstance(address, ClusterAddress):
        return Cluster(address, **options)
    return Connection(address, **options)


def replication(
    config: Config, reactor: Any, address: RedisAddress | ClusterAddress | SentinelAddress
) -> Replication | None:
    """What publications require of replicas, on a connection of its own; None if nothing is configured."""
    if not config.min_replicas:
        return None
    if isinstance(address, ClusterAddress):
        raise ConfigError("min_replicas is not supported with a Redis Cluster; set it to 0")
    connection = Connection(
        address,
        reactor=reactor,
        reply_timeout=config.redis_timeout + config.min_replicas_timeout / 1000,
        scripts=[SCRIPTS["publish"], SCRIPTS["claim"]],
        rights=needed_rights(config.namespace, waits=True),
        chance=random,
    )
    return Replication(connection, config.min_replicas, config.min_replicas_timeout)


def worker(
    config: Config, reactor: Any, process: str, store: Store, sender: Sender, meter: Meter, ordered_hints: bool,
    tracer: AttemptTracer | None,
) -> Worker:  # fmt: skip
    """`process` is unique among live processes."""
    rules = Rules(
        lease_ttl=config.lease_ttl,
        retry_delay=config.retry_delay / 1000,
        max_backoff=config.max_backoff_ms / 1000,
        max_batch_body=config.max_batch_body,
        event_bytes=config.max_event_data + 2048,  # topic, type, URL, times and ID
        max_outgoing_bodies=config.max_outgoing_bodies,
    )
    return Worker(process, store, sender, reactor, random, rules, meter, ordered_hints, tracer)


def autodrop(config: Config, store: Store) -> Autodrop:
    """The limit of memory is redis_max_mem if it is configured, else Redis's own."""
    configured = config.origins["redis_max_mem"] != "default"
    return Autodrop(store, config.redis_max_mem, config.redis_min_free, configured)


def metrics_service(config: Config, reactor: Any) -> MetricsService | None:
    """The metrics service that the configuration names; None for `none`."""
    if config.metric_collection_service == "print":
        return Printing(config.app_name, reactor)
    if config.metric_collection_service == "statsd":
        return Statsd(reactor, config.app_name, *config.statsd_address)
    if config.metric_collection_service == "datadog":
        return Datadog(
            reactor,
            config.app_name,
            config.datadog_api_key or "",
            config.datadog_app_key or "",
            config.monitor_interval,
            config.datadog_url,
            wall=time,
        )
    return None


def _exporting() -> Any:
    """The module with OpenTelemetry, which nothing imports without the option `tracing`; raises ConfigError."""
    try:
        return import_module("routemaster.tracing.exporting")
    except ImportError as error:
        raise ConfigError(
            f"tracing is otlp, but OpenTelemetry cannot be imported ({type(error).__name__}); "
            "pip install 'routemaster[otel]'"
        ) from None


def check_tracing(config: Config) -> None:
    """Raise ConfigError if traces are configured and cannot be exported."""
    if config.tracing != "none":
        _exporting().check(os.environ)


def tracing(config: Config, reactor: Any, process: str) -> Tracing | None:
    """The tracers of this process, with the thread that exports; None without the option."""
    if config.tracing == "none":
        return None
    exporting = _exporting()
    _log.info("traces are exported to {collector}", collector=exporting.collector(os.environ))
    resource = exporting.resource(config.app_name, __version__, process, os.environ)
    made: Tracing = exporting.Tracing(reactor, __version__, resource)
    return made


def reporter(config: Config, reactor: Any) -> RemoteReporter | None:
    """The error reporter that the configuration names; None for `print`.

    Raises ConfigError if that service cannot be used.
    """
    password = urlsplit(config.redis_url).password if config.redis_url else None
    sentinels = parse_qs(urlsplit(config.redis_url or "").query).get("sentinel_password", [None])[0]
    known = [
        config.root_key, config.sentinel_password, password and unquote(password), sentinels,
        config.datadog_api_key, config.datadog_app_key,
    ]  # fmt: skip
    return make_reporter(
        config.exception_service,
        config.exception_service_url,
        clock=reactor,
        app_name=config.app_name,
        version=__version__,
        secrets=[*config.clients, *config.clients.values(), *config.monitor_keys, *filter(None, known)],
    )


def site_limits(config: Config, is_large: Callable[[str], bool], places: Places) -> SiteLimits:
    """The limits of the HTTP server, the same for all sites of this process; `is_large`: see `BodyLimits`."""
    return SiteLimits(
        BodyLimits(config.max_body, config.max_bulk_body, is_large=is_large),
        bodies=BodyBudget(
            config.max_buffered_bodies, max(config.max_body, config.max_bulk_body), lambda: places.taken, BODY
        ),
        places=places,
        idle=config.keep_alive,
    )


def api_limits(config: Config) -> ApiLimits:
    """The limits of the API."""
    return ApiLimits(
        config.max_event_data, config.scaling_threshold, config.scaling_deadline / 1000, config.max_body,
        config.missing_topics, config.max_bulk_body, config.max_connections_per_address,
    )
