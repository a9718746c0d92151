"""The configuration: its options, and the sources of their values.

- The line of an option in `Config` has its section, type and environment variables.
- `etc/routemaster.ini`, which is package data, has the defaults, and the help
  texts as comments.
- `load` defines the precedence: command line, environment, file, default.

An unknown option or an invalid value, in any source, is a `ConfigError` of one
line; only the value in force must also be usable on this machine. Secrets are
masked in every output, and a masked value is an error in a file, unless a source
with precedence gives the option.
"""

# ruff: noqa: RUF009 - `option` makes an attrs field, not a shared default

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from configparser import ConfigParser, DuplicateOptionError, DuplicateSectionError, ParsingError
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import field, fields, frozen

from routemaster.config_types import (
    ADDRESS,
    APP_NAME,
    ENDPOINT,
    MASK,
    NAMESPACE,
    NETWORKS,
    ORIGIN,
    PATH,
    PREFIX,
    REDIS_URL,
    ROOT_KEY,
    SECRET,
    SECRET_URL,
    TOKENS,
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

SHIPPED = Path(__file__).with_name("routemaster.ini")
REDIS_ENV_KEY = "REDIS_ENV_KEY"
# Kubernetes sets these variables in every pod of a namespace with a Service
# called routemaster or routemaster-*: they are no options.
SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_[A-Z]+(_\w+)?=.*)"
)

LARGEST = 2**40
HOUR = 3600


def option(section: str, type: OptionType, *variables: str) -> Any:
    """A field of `Config` for an option."""
    return field(metadata={"section": section, "type": type, "variables": variables})


@frozen(kw_only=True, repr=False)
class Config:
    """The value in force of every option; `etc/routemaster.ini` describes them.

    Times are in seconds if they are floats, in milliseconds if they are
    integers; sizes are in bytes; None: not set. `origins` has the source of each
    option; it is ignored when configurations are compared.
    """

    clients: tuple[str, ...] = option("clients", TOKENS)
    root_key: str | None = option("clients", optional(ROOT_KEY))

    https: str = option("server", ENDPOINT)
    http: str | None = option("server", optional(ENDPOINT))
    public_url: str = option("server", ORIGIN)
    certificate: Path | None = option("server", optional(PATH))
    private_key: Path | None = option("server", optional(PATH))
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = option("server", NETWORKS)
    max_body: int = option("server", integer(1, LARGEST))
    max_bulk_body: int = option("server", integer(1, LARGEST))
    max_event_data: int = option("server", integer(0, LARGEST))
    max_connections: int = option("server", integer(1, 10_000_000))

    state_dir: Path = option("store", PATH)
    redis_url: str | None = option("store", optional(REDIS_URL))
    namespace: str = option("store", NAMESPACE)
    redis_timeout: float = option("store", seconds(0.01, HOUR))
    min_replicas: int = option("store", integer(0, 100))
    min_replicas_timeout: int = option("store", integer(1, HOUR * 1000))
    redis_max_mem: int = option("store", integer(1, LARGEST))
    redis_min_free: int = option("store", integer(0, LARGEST))

    ssl_verify: bool = option("delivery", YES_OR_NO)
    ca_file: Path | None = option("delivery", optional(PATH))
    connect_timeout: float = option("delivery", seconds(0.01, HOUR))
    timeout: float = option("delivery", seconds(0.01, HOUR))
    retry_delay: int = option("delivery", integer(1, HOUR * 1000))
    max_backoff_ms: int = option(
        "delivery", integer(1, 24 * HOUR * 1000), "ROUTEMASTER_MAX_BACKOFF_MS", "MAX_BACKOFF_MS"
    )
    max_batch_body: int = option("delivery", integer(1, LARGEST))
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

    log_level: str = option("logging", one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    log_file: Path | None = option("logging", optional(PATH))
    log_format: str = option("logging", one_of("text", "json"))

    origins: Mapping[str, str] = field(eq=False)

    def __repr__(self) -> str:
        shown = (f"{option.name}={option.show(getattr(self, option.name))!r}" for option in OPTIONS)
        return f"Config({', '.join(shown)})"

    def describe(self) -> str:
        """The configuration in force as a file; a comment above each option has its source; secrets are masked."""
        lines = []
        for section, options in groupby(OPTIONS, lambda option: option.section):
            lines += [f"[{section}]"]
            for each in options:
                value = each.show(getattr(self, each.name))
                lines += [f"# {self.origins[each.name]}", f"{each.name} = {value}".rstrip()]
            lines += [""]
        return "\n".join(lines)


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
    underscores; `file` is the path from `--config`. Raises ConfigError, of one line.
    """
    layers = [
        _from_file(shipped, "default"),
        _from_file(file, str(file)) if file else {},
        _from_environment(environment),
        _from_arguments(arguments),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for each in OPTIONS:
        sources = [layer[each.name] for layer in layers if each.name in layer]
        if not sources:
            raise ConfigError(f"{each.name} is missing in {shipped}")
        *overridden, in_force = sources
        for raw in overridden:
            if not (each.secret and MASK in raw.text):
                each.check(raw)
        values[each.name] = each.parse(in_force)
        origins[each.name] = in_force.origin
    config = Config(origins=MappingProxyType(origins), **values)
    _check_combinations(config)
    return config


def help_texts(shipped: Path = SHIPPED) -> dict[str, str]:
    """For each option, by name, the comment above it in the shipped file."""
    found = re.findall(r"^((?:# .+\n)+)(\w+) *=", _read(shipped), re.MULTILINE)
    return {name: " ".join(line.removeprefix("# ") for line in above.splitlines()) for above, name in found}


def _check_combinations(config: Config) -> None:
    """Raise ConfigError if valid values of several options contradict each other."""

    def need(holds: bool, name: str, sentence: str) -> None:
        if not holds:
            raise ConfigError(f"{name} ({config.origins[name]}) {sentence}")

    need(config.root_key not in config.clients, "root_key", "must differ from the tokens in clients")
    pair = (config.certificate is None) == (config.private_key is None)
    need(pair, "certificate", "and private_key must be set together")
    served = not config.min_replicas or config.redis_url is not None
    need(served, "min_replicas", "requires redis_url, because the embedded Redis has no replicas")
    free, most = config.redis_min_free, config.redis_max_mem
    need(2 * free < most, "redis_min_free", f"is invalid: got {free}, not below half of redis_max_mem, {most}")
    if config.metric_collection_service == "datadog":
        for name in ("datadog_api_key", "datadog_app_key"):
            need(getattr(config, name) is not None, name, "is missing, but metric_collection_service is datadog")
    service = config.exception_service
    reachable = service == "print" or config.exception_service_url is not None
    need(reachable, "exception_service_url", f"is missing, but exception_service is {service}")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8") from None


def _from_file(file: Path, origin: str) -> dict[str, RawValue]:
    ini = ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        ini.read_string(_read(file))
    except (DuplicateOptionError, DuplicateSectionError) as error:
        name = getattr(error, "option", f"[{error.section}]")
        raise ConfigError(f"{file}, line {error.lineno}: duplicate {name}") from None
    except ParsingError as error:
        line = getattr(error, "lineno", None) or error.errors[0][0]
        raise ConfigError(f"{file}, line {line}: expected a [section] or NAME = VALUE") from None
    sections = {each.name: each.section for each in OPTIONS}
    layer = {}
    for section in ini.sections():
        if section not in sections.values():
            near = _nearest(section, sections.values())
            raise ConfigError(f"{file}: unknown section {section!r}{near}")
        for name, text in ini[section].items():
            if name not in sections:
                raise ConfigError(f"{file}: unknown option {name!r} in [{section}]{_nearest(name, sections)}")
            if sections[name] != section:
                raise ConfigError(f"{file}: {name} is in [{section}], expected in [{sections[name]}]")
            layer[name] = RawValue(text, origin)
    return layer


def _from_environment(environment: Mapping[str, str]) -> dict[str, RawValue]:
    known = {variable for each in OPTIONS for variable in each.environment}
    for name, text in environment.items():
        is_option = name.startswith(PREFIX) and not SERVICE_LINK.fullmatch(f"{name}={text}")
        if is_option and name not in known:
            raise ConfigError(f"environment: unknown option {name!r}{_nearest(name, known)}")
    layer = {}
    for each in OPTIONS:
        variables = [name for name in each.environment if name in environment]
        if each.name == "redis_url" and REDIS_ENV_KEY in environment:
            variables.append(_variable_named(environment))
        if len({environment[name] for name in variables}) > 1:
            raise ConfigError(f"{each.name}: {' and '.join(variables)} (environment) differ; set one of them")
        if variables:
            layer[each.name] = RawValue(environment[variables[0]], f"environment {variables[0]}")
    return layer


def _variable_named(environment: Mapping[str, str]) -> str:
    """The name of the variable with the Redis URL, which is the value of REDIS_ENV_KEY."""
    name = environment[REDIS_ENV_KEY]
    if name not in environment:
        # The value may be the URL itself, with a password.
        shown = repr(name) if re.fullmatch(r"[A-Za-z_]\w{0,63}", name) else f"({MASK})"
        raise ConfigError(f"redis_url: {REDIS_ENV_KEY} is invalid: got {shown}, expected the name of a variable")
    return name


def _from_arguments(arguments: Mapping[str, str]) -> dict[str, RawValue]:
    names = {each.flag: each.name for each in OPTIONS}
    layer = {}
    for argument, text in arguments.items():
        flag = argument.replace("_", "-")
        if flag not in names:
            raise ConfigError(f"command line: unknown option --{flag}{_nearest(flag, names)}")
        layer[names[flag]] = RawValue(text, "command line")
    return layer


def _nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion for the end of an error message; empty if no known name is similar."""
    names = set(known)
    near = {name.removeprefix(PREFIX)} & names or get_close_matches(name, names, n=1)
    return f"; did you mean {next(iter(near))}?" if near else ""
