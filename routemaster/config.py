"""The configuration: its options, and the precedence of the sources of their values.

- The line of an option in `Config` has its section, type and environment variables.
- `etc/routemaster.ini`, which is package data, has the defaults, and the help
  texts as comments.
- `load` defines the precedence: command line, environment, file, default.

An unknown option or an invalid value, in any source, is a fault; only the value in
force must also be usable on this machine. `load` finds all faults and raises one
`ConfigError` with a line for each. Secrets are masked in every output, and a masked
value is an error in a file, unless a source with precedence gives the option.
"""

# ruff: noqa: RUF009 - `option` makes an attrs field, not a shared default

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import evolve, field, fields, frozen

from routemaster import config_sources as sources
from routemaster.callback_policy import Rule, never_allowed
from routemaster.config_types import (
    ADDRESS,
    APP_NAME,
    CALLBACKS,
    CLIENTS,
    ENDPOINT,
    MASK,
    NAMESPACE,
    ORIGIN,
    PATH,
    PEERS,
    ROOT_KEY,
    SECRET,
    SECRET_URL,
    STATUSES,
    TOKENS,
    USER,
    YES_OR_NO,
    Option,
    OptionType,
    RawValue,
    integer,
    one_of,
    optional,
    seconds,
)
from routemaster.errors import ConfigError
from routemaster.redis.address import REDIS_URL
from routemaster.token_hash import digest, hashed, is_hash

SHIPPED = Path(__file__).with_name("routemaster.ini")

LARGEST = 2**40
HOUR = 3600


def option(section: str, type: OptionType, *variables: str) -> Any:
    """A field of `Config` for an option; `variables`: environment variables besides ROUTEMASTER_ and the name."""
    return field(metadata={"section": section, "type": type, "variables": variables})


@frozen(kw_only=True, repr=False)
class Config:
    """The value in force of every option; `etc/routemaster.ini` describes them.

    Times are in seconds if they are floats, in milliseconds if they are
    integers; sizes are in bytes; None: not set. `origins` has the source of each
    option; it is ignored when configurations are compared.
    """

    role: str = option("daemon", one_of("all", "web", "worker"))
    processes: int = option("daemon", integer(1, 64))

    clients: Mapping[str, str] = option("clients", CLIENTS)
    root_key: str | None = option("clients", optional(ROOT_KEY))
    monitor_keys: tuple[str, ...] = option("clients", TOKENS)
    hash_tokens: bool = option("clients", YES_OR_NO)

    https: str = option("server", ENDPOINT)
    http: str | None = option("server", optional(ENDPOINT))
    public_url: str = option("server", ORIGIN)
    certificate: Path | None = option("server", optional(PATH))
    private_key: Path | None = option("server", optional(PATH))
    trusted_proxies: tuple[IPv4Network | IPv6Network | str, ...] = option("server", PEERS)
    max_body: int = option("server", integer(1, LARGEST))
    max_bulk_body: int = option("server", integer(1, LARGEST))
    max_buffered_bodies: int = option("server", integer(1, LARGEST))
    max_event_data: int = option("server", integer(0, LARGEST))
    max_topics: int = option("server", integer(1, LARGEST))
    missing_topics: str = option("server", one_of("refuse", "await"))
    max_connections: int = option("server", integer(1, 10_000_000))
    max_connections_per_address: int = option("server", integer(0, 10_000_000))
    keep_alive: float = option("server", seconds(1, HOUR))
    drain_delay: float = option("server", seconds(0, HOUR))

    state_dir: Path = option("store", PATH)
    redis_url: str | None = option("store", optional(REDIS_URL))
    sentinel_username: str | None = option("store", optional(USER))
    sentinel_password: str | None = option("store", optional(SECRET))
    namespace: str = option("store", NAMESPACE)
    redis_timeout: float = option("store", seconds(0.01, HOUR))
    min_replicas: int = option("store", integer(0, 100))
    min_replicas_timeout: int = option("store", integer(1, HOUR * 1000))
    redis_max_mem: int = option("store", integer(1, LARGEST))
    redis_min_free: int = option("store", integer(0, LARGEST))

    callback_addresses: str = option("delivery", one_of("internal", "public"))
    allow_callbacks: tuple[Rule, ...] = option("delivery", CALLBACKS)
    deny_callbacks: tuple[Rule, ...] = option("delivery", CALLBACKS)
    ssl_verify: bool = option("delivery", YES_OR_NO)
    ca_file: Path | None = option("delivery", optional(PATH))
    client_certificate: Path | None = option("delivery", optional(PATH))
    client_private_key: Path | None = option("delivery", optional(PATH))
    acknowledge: tuple[int, ...] = option("delivery", STATUSES)
    connect_timeout: float = option("delivery", seconds(0.01, HOUR))
    timeout: float = option("delivery", seconds(0.01, HOUR))
    retry_delay: int = option("delivery", integer(1, HOUR * 1000))
    max_backoff_ms: int = option("delivery", integer(1, 24 * HOUR * 1000), "MAX_BACKOFF_MS")
    max_batch_body: int = option("delivery", integer(1, LARGEST))
    max_outgoing_bodies: int = option("delivery", integer(1024 * 1024, LARGEST))
    max_open_deliveries: int = option("delivery", integer(1, 1_000_000))
    lease_ttl: float = option("delivery", seconds(0.1, HOUR))
    sweep_interval: float = option("delivery", seconds(0.01, HOUR))
    grace: float = option("delivery", seconds(0, HOUR))

    scaling_threshold: int = option("scaling", integer(0, LARGEST))
    scaling_deadline: int = option("scaling", integer(0, 24 * HOUR * 1000))

    monitor_interval: float = option("metrics", seconds(0.01, 24 * HOUR))
    counter_flush_interval: float = option("metrics", seconds(0.01, 24 * HOUR))
    app_name: str = option("metrics", APP_NAME)
    metric_collection_service: str = option(
        "metrics", one_of("print", "datadog", "statsd", "none"), "METRIC_COLLECTION_SERVICE"
    )
    statsd_address: tuple[str, int] = option("metrics", ADDRESS)
    datadog_url: str = option("metrics", ORIGIN)
    datadog_api_key: str | None = option("metrics", optional(SECRET), "DATADOG_API_KEY")
    datadog_app_key: str | None = option("metrics", optional(SECRET), "DATADOG_APP_KEY")

    exception_service: str = option(
        "exceptions", one_of("print", "sentry", "honeybadger", "new_relic"), "EXCEPTION_SERVICE"
    )
    exception_service_url: str | None = option("exceptions", optional(SECRET_URL), "EXCEPTION_SERVICE_URL")

    tracing: str = option("tracing", one_of("none", "otlp"))

    log_level: str = option("logging", one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    log_file: Path | None = option("logging", optional(PATH))
    log_format: str = option("logging", one_of("text", "json"))

    origins: Mapping[str, str] = field(eq=False)

    def __repr__(self) -> str:
        shown = (f"{option.name}={option.show(getattr(self, option.name))!r}" for option in OPTIONS)
        return f"Config({', '.join(shown)})"

    def for_terminal(self) -> Config:
        """The configuration if the log goes to a terminal: unless metrics are requested, there are none."""
        if self.origins["metric_collection_service"] != "default":
            return self
        origins = {**self.origins, "metric_collection_service": "default, if the log goes to a terminal"}
        return evolve(self, metric_collection_service="none", origins=MappingProxyType(origins))

    def describe(self) -> str:
        """See the function of the same name."""
        return describe(OPTIONS, self)


OPTIONS = tuple(Option(each.name, **each.metadata) for each in fields(Config) if each.metadata)


def load(
    arguments: Mapping[str, str],
    environment: Mapping[str, str],
    file: Path | None,
    *,
    shipped: Path = SHIPPED,
) -> Config:
    """The configuration in force.

    `arguments` has the options of the command line by name, with dashes or
    underscores; `file` is the path from `--config`. Raises ConfigError with a line for each fault.
    """
    faults: list[str] = []
    layers = [
        sources.from_file(shipped, "default", OPTIONS, faults),
        sources.from_file(file, str(file), OPTIONS, faults) if file else {},
        sources.from_environment(environment, OPTIONS, faults),
        sources.from_arguments(arguments, OPTIONS, faults),
    ]
    values, origins = resolve(OPTIONS, layers, shipped, faults)
    faults += _contradictions(values, origins)
    if faults:
        raise ConfigError("\n".join(faults))
    return Config(origins=MappingProxyType(origins), **values)


def resolve(
    options: Iterable[Option], layers: Sequence[Mapping[str, RawValue]], shipped: Path, faults: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Value and origin of each option, without the invalid ones, for which `faults` gets a line each.

    Of the `layers`, later ones win; the first one is the file `shipped`.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for each in options:
        texts = [layer[each.name] for layer in layers if each.name in layer]
        if not texts:
            faults.append(f"{each.name} is missing in {shipped}")
            continue
        *overridden, in_force = texts
        origins[each.name] = in_force.origin
        try:
            for raw in overridden:
                if not (each.secret and MASK in raw.text):
                    each.parse(raw, in_force=False)
            values[each.name] = each.parse(in_force)
        except ConfigError as error:
            faults.append(str(error))
    return values, origins


def describe(options: Iterable[Option], config: Any) -> str:
    """A configuration in force as a file; a comment above each option has its source; secrets are masked."""
    lines = []
    for section, members in groupby(options, lambda option: option.section):
        lines += [f"[{section}]"]
        for each in members:
            value = each.show(getattr(config, each.name))
            lines += [f"# {config.origins[each.name]}", f"{each.name} = {value}".rstrip()]
        lines += [""]
    return "\n".join(lines)


def help_texts(shipped: Path = SHIPPED) -> dict[str, str]:
    """For each option, by name, the comment above it in the shipped file."""
    found = re.findall(r"^((?:# .+\n)+)(\w+) *=", sources.read(shipped), re.MULTILINE)
    return {name: " ".join(line.removeprefix("# ") for line in above.splitlines()) for above, name in found}


def _missing(option: str, when: str) -> Callable[..., str]:
    """A rule: with that value of `option`, the other option must be set."""
    wrong = f"is missing, but {option} is {when}"
    return lambda value, chosen: wrong if chosen == when and value is None else ""


def _together(*names: str) -> tuple[tuple[str, ...], Callable[..., str]]:
    """Two options, and the rule that both are set or none."""
    wrong = f"and {names[1]} must be set together"
    return names, lambda one, other: wrong if (one is None) != (other is None) else ""


def _common(some: Iterable[str], *others: str | None) -> bool:
    """Whether a token or a key is the same as one of others, given itself or as its hash."""
    return not {digest(each) for each in others if each}.isdisjoint(map(digest, some))


def _plain(option: str, exposed: Callable[[Any], bool]) -> tuple[tuple[str, ...], Callable[..., str]]:
    """A rule: with `hash_tokens`, the option has only hashes; `exposed`: whether its value has anything else."""
    wrong = (
        "must be given as a hash, because hash_tokens is YES: sha256: and the 64 digits that sha256sum prints of "
        "the key, or NAME--sha256: and those of the whole token"
    )
    return (option, "hash_tokens"), lambda value, hashes: wrong if hashes and exposed(value) else ""


#: Options, and a rule on their values: it returns what is wrong with the first one, or an empty text.
_RULES: tuple[tuple[tuple[str, ...], Callable[..., str]], ...] = (
    (
        ("root_key", "clients"),
        lambda key, clients: "must differ from the tokens in clients" if _common(clients, key) else "",
    ),
    (
        ("monitor_keys", "clients", "root_key"),
        lambda keys, clients, root: "must differ from root_key and the tokens in clients"
        if _common(keys, root, *clients) else "",
    ),
    # a token without secret part is its own hash
    _plain("clients", lambda clients: any(hashed(each) != each for each in {*clients, *clients.values()})),
    _plain("root_key", lambda key: key is not None and not is_hash(key)),
    _plain("monitor_keys", lambda keys: not all(map(is_hash, keys))),
    (
        ("max_buffered_bodies", "max_bulk_body", "max_body"),
        lambda most, *bodies: f"is invalid: got {most}, less than one body of {max(bodies)} bytes"
        if most < max(bodies) else "",
    ),
    _together("certificate", "private_key"),
    _together("client_certificate", "client_private_key"),
    (
        ("role", "redis_url"),
        lambda role, url: f"is {role}, which requires redis_url: all processes of a bus use the same Redis"
        if role != "all" and url is None else "",
    ),
    (
        ("min_replicas", "redis_url"),
        lambda replicas, url: "requires redis_url, because the embedded Redis has no replicas"
        if replicas and url is None else "",
    ),
    (
        ("redis_min_free", "redis_max_mem"),
        lambda free, most: f"is invalid: got {free}, not below half of redis_max_mem, {most}"
        if 2 * free >= most else "",
    ),
    (
        ("allow_callbacks",),
        lambda rules: next((f"is invalid: got {rule}, which is never allowed: {kind}"
                            for rule in rules if (kind := never_allowed(rule))), ""),
    ),
    (("datadog_api_key", "metric_collection_service"), _missing("metric_collection_service", "datadog")),
    (("datadog_app_key", "metric_collection_service"), _missing("metric_collection_service", "datadog")),
    *(
        (("exception_service_url", "exception_service"), _missing("exception_service", service))
        for service in ("sentry", "honeybadger", "new_relic")
    ),
)  # fmt: skip


def _contradictions(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """A line for each rule that the values break; `values` lacks the options that are invalid."""
    found = []
    for names, rule in _RULES:
        if all(name in values for name in names):
            wrong = rule(*(values[name] for name in names))
            if wrong:
                found.append(f"{names[0]} ({origins[names[0]]}) {wrong}")
    return found
