"""`routemaster-admin doctor`: each check prints one line with its result and what to do.

The checks are functions of facts. `examination` collects the facts in the order
of their dependencies, and skips a check whose precondition failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from routemaster.callback_policy import CallbackPolicy, listens_on_loopback, on_loopback
from routemaster.cli.api_client import SELF_MADE, Bus, BusError
from routemaster.cli.certificates import certificate, client_certificate
from routemaster.cli.findings import Finding, Verdict
from routemaster.cli.redis import (
    Redis,
    RedisError,
    SentinelReply,
    Server,
    address,
    examine,
    primaries,
    query_sentinels,
)
from routemaster.cli.round_trip import round_trip
from routemaster.cli.session import NO_CREDENTIALS
from routemaster.cli.tables import size
from routemaster.config import Config
from routemaster.errors import ConfigError
from routemaster.redis.address import ClusterAddress, RedisAddress, SentinelAddress

OLDEST_REDIS = (6, 2)
MAX_SKEW = 1.0   #: seconds


def examination(config: Config, bus: Bus, file: Path | None) -> Iterator[Finding]:
    """Run all checks; `file` is the argument of --config."""
    yield configuration(config, file)
    yield callbacks(config)
    yield from redis_findings(config)
    presented: bytes | None = None
    alive = daemon(bus)
    yield alive
    if alive.verdict is Verdict.OK:
        yield pulse(bus, config)
        with suppress(BusError):
            presented = bus.certificate()
    yield certificate(config, presented, time.time())
    if config.client_certificate is not None:
        yield client_certificate(config, time.time())
    yield loopback(bus, config, alive)


# Redis


def redis_findings(config: Config) -> Iterator[Finding]:
    """Check the server, the sentinels and their master, or each primary of a Redis Cluster."""
    try:
        where = address(config)
        if isinstance(where, SentinelAddress):
            replies = query_sentinels(where)
            yield sentinels(replies)
            newest = max(replies, key=lambda each: each.epoch).master
            nodes = [] if newest is None else [newest]
        elif isinstance(where, ClusterAddress):
            nodes = primaries(where)
            yield Finding("redis", Verdict.OK, f"a cluster of {len(nodes)} primaries, all slots assigned")
        else:
            nodes = [where]
    except (RedisError, ConfigError) as error:
        yield Finding("redis", Verdict.FAIL, str(error), "check the state of Redis, and redis_url")
        return
    for node in nodes:
        yield from server_findings(config, node)


def server_findings(config: Config, where: RedisAddress) -> Iterator[Finding]:
    """Check one server."""
    began = time.monotonic()
    try:
        with Redis(where) as redis:
            server = examine(redis)
    except RedisError as error:
        todo = "check that Redis runs, and redis_url"
        if config.redis_url is None:
            todo = "the daemon runs this Redis: start the daemon, and run doctor as its user with its state_dir"
        yield Finding("redis", Verdict.FAIL, str(error), todo)
        return
    took = time.monotonic() - began
    if server.role == "slave":
        yield Finding(
            "redis", Verdict.FAIL, f"{where.label} is a read-only replica", "point redis_url to the primary"
        )
    else:
        kind = "embedded, at" if config.redis_url is None else "at"
        yield Finding("redis", Verdict.OK, f"{kind} {where.label}, {took * 1000:.1f} ms")
    yield version(server)
    yield policy(server)
    yield durability(server)
    given = config.origins["redis_max_mem"] != "default"
    yield memory(server, config.redis_max_mem, config.redis_min_free, given)
    yield clock(server)


def sentinels(replies: Sequence[SentinelReply]) -> Finding:
    """Which master the sentinels report; one that does not reply is missing from the quorum."""
    failed = [each.error for each in replies if each.master is None]
    newest = max(replies, key=lambda each: each.epoch)
    if newest.master is None:
        todo = "check that they run, and redis_url: hosts, name of the service, sentinel_password"
        return Finding("sentinels", Verdict.FAIL, f"no sentinel reports a master: {failed[0]}", todo)
    others = [each.label for each in replies if each.master not in (None, newest.master)]
    found = f"{len(replies) - len(failed)} of {len(replies)} reply, the master is {newest.master.label}"
    if failed:
        return Finding("sentinels", Verdict.WARN, f"{found}; {failed[0]}", "check that all sentinels run")
    if others:
        found += f"; {', '.join(others)} reported another"
        return Finding("sentinels", Verdict.WARN, found, "run doctor again: a failover may be in progress")
    return Finding("sentinels", Verdict.OK, found)


def version(server: Server) -> Finding:
    """The Lua scripts need Redis 6.2 or later."""
    oldest = ".".join(map(str, OLDEST_REDIS))
    if server.version is None:
        return Finding("version", Verdict.WARN, "unknown", f"check that Redis is {oldest} or later")
    numbers = tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_REDIS:
        return Finding("version", Verdict.FAIL, f"Redis {server.version}", f"{oldest} or later is required")
    return Finding("version", Verdict.OK, f"Redis {server.version}")


def policy(server: Server) -> Finding:
    """A Redis that evicts keys deletes events, subscriptions and tokens."""
    if server.policy == "noeviction":
        return Finding("policy", Verdict.OK, "maxmemory-policy noeviction: a full Redis loses nothing")
    if server.policy is None:
        return Finding("policy", Verdict.WARN, "maxmemory-policy unknown", "check that it is noeviction")
    found = f"maxmemory-policy {server.policy}: a full Redis silently deletes events, subscriptions and tokens"
    return Finding("policy", Verdict.FAIL, found, "set it to noeviction")


def durability(server: Server) -> Finding:
    """What a crash of Redis loses."""
    if server.appendonly is None:
        return Finding("durability", Verdict.WARN, "unknown", "check that appendonly is yes")
    if server.appendonly != "yes":
        found = "appendonly no: a crash of Redis loses all writes since the last snapshot"
        return Finding("durability", Verdict.WARN, found, "set appendonly yes")
    found = f"appendonly yes, appendfsync {server.appendfsync or 'unknown'}"
    if server.appendfsync == "no":
        return Finding("durability", Verdict.WARN, found, "set appendfsync everysec, or always")
    return Finding("durability", Verdict.OK, found)


def memory(server: Server, most: int, free: int, given: bool) -> Finding:
    """Memory in use against autodrop's marks, which follow maxmemory unless redis_max_mem is `given`."""
    if server.used is None:
        return Finding("memory", Verdict.WARN, "unknown", "monitor the memory of Redis by other means")
    if server.limit and not given:
        most, free = server.limit, min(free, server.limit // 10)
    high, low = most - free, most - 2 * free
    found = f"{size(server.used)} in use, events are dropped above {size(high)}"
    more = "find the subscriber with the largest backlog (routemaster-admin subscriptions), or add memory"
    if server.used > high:
        return Finding("memory", Verdict.FAIL, found, more)
    if server.limit and server.limit < high:
        found += f", but Redis refuses writes above its maxmemory of {size(server.limit)}"
        return Finding("memory", Verdict.WARN, found, "raise maxmemory, or lower redis_max_mem below it")
    if server.used > (low + high) // 2:
        return Finding("memory", Verdict.WARN, found, more)
    return Finding("memory", Verdict.OK, found)


def clock(server: Server) -> Finding:
    """Ages and deadlines compare the clocks of Redis and of this host."""
    found = f"Redis is {abs(server.skew):.3f} s {'ahead of' if server.skew > 0 else 'behind'} this host"
    if abs(server.skew) - server.took / 2 > MAX_SKEW:
        return Finding("clock", Verdict.WARN, found, "synchronise both clocks (NTP)")
    return Finding("clock", Verdict.OK, found)


# The daemon


def configuration(config: Config, file: Path | None) -> Finding:
    """Where the configuration was loaded from."""
    origins = set(config.origins.values())
    variables = sorted(each.removeprefix("environment ") for each in origins if each.startswith("environment "))
    sources = ([str(file)] if file else []) + variables
    found = f"from {', '.join(sources)}" if sources else "defaults only"
    return Finding("configuration", Verdict.OK, found)


def callbacks(config: Config) -> Finding:
    """Where callbacks may point; whether others may have the bus connect to this host's loopback."""
    policy = CallbackPolicy(config.callback_addresses == "public", config.allow_callbacks, config.deny_callbacks)
    alone = listens_on_loopback(config.https, config.http)
    loopback = not policy.refusal("127.0.0.1", [ip_address("127.0.0.1")], alone)
    places = ["public", *([] if policy.public else ["private"]), *(["loopback"] if loopback else [])]
    found = f"may point to {', '.join(places)} addresses"
    for name, rules in (("allow_callbacks", policy.allow), ("deny_callbacks", policy.deny)):
        if rules:
            found += f"; {name} has {len(rules)}"
    host = urlsplit(config.public_url).hostname or ""
    if loopback and (config.trusted_proxies or not (host == "localhost" or on_loopback(host))):
        todo = "unless all clients are trusted, add 127.0.0.0/8 and ::1 to deny_callbacks"
        return Finding("callbacks", Verdict.WARN, f"{found}, and other hosts reach the bus by a proxy", todo)
    return Finding("callbacks", Verdict.OK, found)


def daemon(bus: Bus) -> Finding:
    """Whether the daemon answers over TLS with a trusted certificate."""
    began = time.monotonic()
    try:
        bus.want("GET", "/health", statuses=(200,))
    except BusError as error:
        return Finding("daemon", Verdict.FAIL, str(error))
    return Finding("daemon", Verdict.OK, f"{bus.url} answers, {(time.monotonic() - began) * 1000:.1f} ms")


def pulse(bus: Bus, config: Config) -> Finding:
    """Whether the daemon can use its Redis."""
    who = config.root_key or next(iter(config.clients), None)
    if who is None:
        return Finding("pulse", Verdict.SKIP, f"skipped: {NO_CREDENTIALS}")
    try:
        bus.want("GET", "/pulse", who, statuses=(204,))
    except BusError as error:
        return Finding("pulse", Verdict.FAIL, str(error))
    return Finding("pulse", Verdict.OK, "the daemon can use its Redis")


def loopback(bus: Bus, config: Config, alive: Finding) -> Finding:
    """Publish an event and receive it, or say why this is skipped."""
    why = ""
    if alive.verdict is not Verdict.OK:
        why = "the daemon does not answer"
    elif config.root_key is None:
        why = "no root key is given (--root-key-file or ROUTEMASTER_ROOT_KEY), which a temporary client needs"
    elif config.certificate is not None:
        why = "the daemon has a configured certificate, and would not trust a receiver on this host"
    if why or config.root_key is None:
        return Finding("round trip", Verdict.SKIP, f"skipped: {why}")
    certificate, key = (config.state_dir / name for name in SELF_MADE)
    trip = round_trip(bus, config.root_key, certificate, key)
    found = trip.problem or f"an event was delivered after {(trip.latency or 0) * 1000:.1f} ms"
    if trip.left:
        found += f"; not removed: {', '.join(trip.left)}"
        todo = "run doctor again in 5 minutes to remove it"
        return Finding("round trip", Verdict.FAIL, found, todo)
    if trip.refused:
        return Finding("round trip", Verdict.SKIP, f"skipped: {found}")
    return Finding("round trip", Verdict.FAIL if trip.problem else Verdict.OK, found)
