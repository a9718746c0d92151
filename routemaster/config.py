"""The configuration: which options exist, and which source wins.

Three facts, each in one place:

- *what an option is* (section, kind, environment variables): its line in `Config`;
- *what it is worth by default, and what it is for*: `etc/routemaster.ini`,
  shipped as package data, whose comments are the help texts too;
- *which source wins*: `load`, where a later layer beats an earlier one.

Whatever is unknown or ill-formed, in any layer, winning or not, is a
`ConfigError` of one line; only what wins has to be of use here. Secrets are masked in every text made here, and a
masked value never passes for a real one: a file that holds it is refused,
unless a stronger source gives the option.
"""

# ruff: noqa: RUF009 - `option` makes an attrs field, not a shared default

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from configparser import ConfigParser, DuplicateOptionError, DuplicateSectionError, ParsingError
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

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
    REDIS_URL,
    ROOT_KEY,
    SECRET,
    SECRET_URL,
    TOKENS,
    YES_OR_NO,
    Kind,
    NoHome,
    one_of,
    perhaps,
    same,
    seconds,
    whole,
)
from routemaster.errors import ConfigError

SHIPPED = Path(__file__).with_name("routemaster.ini")
PREFIX = "ROUTEMASTER_"
REDIS_ENV_KEY = "REDIS_ENV_KEY"
# Kubernetes puts such variables into every pod that lives beside a Service
# called routemaster or routemaster-*: they are not meant for us.
SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_[A-Z]+(_\w+)?=.*)"
)

LARGEST = 2**40
HOUR = 3600


class _Useless(ConfigError):
    """A value is well-formed, and of no use on this machine."""


class Given(NamedTuple):
    """What one source says about one option."""

    text: str
    origin: str


@frozen
class Option:
    """What is known of an option, apart from its default and its help text.

    `variables` are those of the environment that the contract names; none: ROUTEMASTER_ and the name.
    """

    name: str
    section: str
    kind: Kind
    variables: tuple[str, ...]

    @property
    def environment(self) -> tuple[str, ...]:
        """The variables of the environment, any one of which gives the option."""
        return self.variables or (PREFIX + self.name.upper(),)

    @property
    def flag(self) -> str:
        """The long option of the command line, without the leading dashes."""
        return self.name.replace("_", "-")

    @property
    def secret(self) -> bool:
        """Whether its value is masked, all or in part, wherever it is shown."""
        return self.kind.mask is not same

    def check(self, given: Given) -> None:
        """Raise ConfigError if what is given is ill-formed; as `parse`, but it need not be of use here."""
        with suppress(_Useless):
            self.parse(given)

    def parse(self, given: Given) -> Any:
        """The value given, or ConfigError; of an ill-formed secret nothing is safe to show."""
        text = given.text.strip()
        subject = f"{self.name}: {MASK if self.secret else text[:100]!r} ({given.origin})"
        if self.secret and MASK in text:
            raise ConfigError(f"{subject} is a masked secret; give the secret itself")
        try:
            return self.kind.parse(text)
        except NoHome:
            raise _Useless(f"{subject}: there is no home directory to put for ~; give a path without it") from None
        except ValueError:
            raise ConfigError(f"{subject} is not allowed; give {self.kind.allowed}") from None

    def show(self, value: Any) -> str:
        """The value as an ini file holds it, secrets masked."""
        return self.kind.mask(self.kind.write(value))


def option(section: str, kind: Kind, *variables: str) -> Any:
    """A field of `Config` that is an option."""
    return field(metadata={"section": section, "kind": kind, "variables": variables})


@frozen(kw_only=True, repr=False)
class Config:
    """Every option with its value in force; `etc/routemaster.ini` says what each one means.

    Times are in seconds if they are floats, in milliseconds if they are
    integers; sizes are in bytes. None: not given. `origins` tells for each
    option which source gave it; two configurations are equal if their values are.
    """

    clients: tuple[str, ...] = option("clients", TOKENS)
    root_key: str | None = option("clients", perhaps(ROOT_KEY))

    https: str = option("server", ENDPOINT)
    http: str | None = option("server", perhaps(ENDPOINT))
    public_url: str = option("server", ORIGIN)
    certificate: Path | None = option("server", perhaps(PATH))
    private_key: Path | None = option("server", perhaps(PATH))
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = option("server", NETWORKS)
    max_body: int = option("server", whole(1, LARGEST))
    max_bulk_body: int = option("server", whole(1, LARGEST))
    max_event_data: int = option("server", whole(0, LARGEST))
    max_connections: int = option("server", whole(1, 10_000_000))

    state_dir: Path = option("store", PATH)
    redis_url: str | None = option("store", perhaps(REDIS_URL))
    namespace: str = option("store", NAMESPACE)
    redis_timeout: float = option("store", seconds(0.01, HOUR))
    min_replicas: int = option("store", whole(0, 100))
    min_replicas_timeout: int = option("store", whole(1, HOUR * 1000))
    redis_max_mem: int = option("store", whole(1, LARGEST))
    redis_min_free: int = option("store", whole(0, LARGEST))

    ssl_verify: bool = option("delivery", YES_OR_NO)
    ca_file: Path | None = option("delivery", perhaps(PATH))
    connect_timeout: float = option("delivery", seconds(0.01, HOUR))
    timeout: float = option("delivery", seconds(0.01, HOUR))
    retry_delay: int = option("delivery", whole(1, HOUR * 1000))
    max_backoff_ms: int = option(
        "delivery", whole(1, 24 * HOUR * 1000), "ROUTEMASTER_MAX_BACKOFF_MS", "MAX_BACKOFF_MS"
    )
    max_batch_body: int = option("delivery", whole(1, LARGEST))
    max_open_deliveries: int = option("delivery", whole(1, 1_000_000))
    lease_ttl: float = option("delivery", seconds(0.1, HOUR))
    sweep_interval: float = option("delivery", seconds(0.01, HOUR))
    grace: float = option("delivery", seconds(0, HOUR))

    scaling_threshold: int = option("scaling", whole(0, LARGEST))
    scaling_deadline: int = option("scaling", whole(0, 24 * HOUR * 1000))

    monitor_interval: float = option("metrics", seconds(0.01, 24 * HOUR))
    counter_flush_interval: float = option("metrics", seconds(0.01, 24 * HOUR))
    app_name: str = option("metrics", APP_NAME)
    metric_collection_service: str = option(
        "metrics", one_of("print", "datadog", "statsd", "none"), "METRIC_COLLECTION_SERVICE"
    )
    statsd_address: tuple[str, int] = option("metrics", ADDRESS)
    datadog_url: str = option("metrics", ORIGIN)
    datadog_api_key: str | None = option("metrics", perhaps(SECRET), "DATADOG_API_KEY")
    datadog_app_key: str | None = option("metrics", perhaps(SECRET), "DATADOG_APP_KEY")

    exception_service: str = option(
        "exceptions", one_of("print", "sentry", "honeybadger", "new_relic"), "EXCEPTION_SERVICE"
    )
    exception_service_url: str | None = option("exceptions", perhaps(SECRET_URL), "EXCEPTION_SERVICE_URL")

    log_level: str = option("logging", one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    log_file: Path | None = option("logging", perhaps(PATH))
    log_format: str = option("logging", one_of("text", "json"))

    origins: Mapping[str, str] = field(eq=False)

    def __repr__(self) -> str:
        shown = (f"{option.name}={option.show(getattr(self, option.name))!r}" for option in OPTIONS)
        return f"Config({', '.join(shown)})"

    def describe(self) -> str:
        """What is in force as a config file, each option under a comment with its origin, secrets masked."""
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

    `arguments` holds what the command line gives, by option name, with dashes
    or underscores; `file` is the one that `--config` names. Raises ConfigError,
    one line, if any source holds what is unknown, ill-formed or contradictory.
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
            raise ConfigError(f"{each.name}: {shipped} gives no default")
        *beaten, winner = sources
        for given in beaten:
            if not (each.secret and MASK in given.text):
                each.check(given)
        values[each.name] = each.parse(winner)
        origins[each.name] = winner.origin
    config = Config(origins=MappingProxyType(origins), **values)
    _check_together(config)
    return config


def help_texts(shipped: Path = SHIPPED) -> dict[str, str]:
    """For each option, by name, the sentence above it in the shipped file."""
    found = re.findall(r"^((?:# .+\n)+)(\w+) *=", _read(shipped), re.MULTILINE)
    return {name: " ".join(line.removeprefix("# ") for line in above.splitlines()) for above, name in found}


def _check_together(config: Config) -> None:
    """Raise ConfigError if options that are well-formed one by one contradict each other."""

    def need(holds: bool, name: str, sentence: str) -> None:
        if not holds:
            raise ConfigError(f"{name} ({config.origins[name]}): {sentence}")

    need(config.root_key not in config.clients, "root_key", "must not be the token of a client too")
    pair = (config.certificate is None) == (config.private_key is None)
    need(pair, "certificate", "certificate and private_key are given together, or neither is")
    served = not config.min_replicas or config.redis_url is not None
    need(served, "min_replicas", "the daemon's own Redis has no replicas; give redis_url")
    free, most = config.redis_min_free, config.redis_max_mem
    need(2 * free < most, "redis_min_free", f"{free} is not below half of redis_max_mem, {most}")
    if config.metric_collection_service == "datadog":
        for name in ("datadog_api_key", "datadog_app_key"):
            need(getattr(config, name) is not None, name, "needed when metric_collection_service is datadog")
    service = config.exception_service
    reachable = service == "print" or config.exception_service_url is not None
    need(reachable, "exception_service_url", f"needed when exception_service is {service}")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8") from None


def _from_file(file: Path, origin: str) -> dict[str, Given]:
    ini = ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        ini.read_string(_read(file))
    except (DuplicateOptionError, DuplicateSectionError) as error:
        name = getattr(error, "option", f"[{error.section}]")
        raise ConfigError(f"{file}, line {error.lineno}: {name} is there twice") from None
    except ParsingError as error:
        line = getattr(error, "lineno", None) or error.errors[0][0]
        raise ConfigError(f"{file}, line {line}: is neither a [section] nor NAME = VALUE") from None
    sections = {each.name: each.section for each in OPTIONS}
    layer = {}
    for section in ini.sections():
        if section not in sections.values():
            near = _nearest(section, sections.values())
            raise ConfigError(f"{file}: there is no section {section!r}{near}")
        for name, text in ini[section].items():
            if name not in sections:
                raise ConfigError(f"{file}: [{section}] has no option {name!r}{_nearest(name, sections)}")
            if sections[name] != section:
                raise ConfigError(f"{file}: {name} belongs to [{sections[name]}], not to [{section}]")
            layer[name] = Given(text, origin)
    return layer


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    known = {variable for each in OPTIONS for variable in each.environment}
    for name, text in environment.items():
        ours = name.startswith(PREFIX) and not SERVICE_LINK.fullmatch(f"{name}={text}")
        if ours and name not in known:
            raise ConfigError(f"environment: there is no option {name!r}{_nearest(name, known)}")
    layer = {}
    for each in OPTIONS:
        variables = [name for name in each.environment if name in environment]
        if each.name == "redis_url" and REDIS_ENV_KEY in environment:
            variables.append(_variable_named(environment))
        if len({environment[name] for name in variables}) > 1:
            raise ConfigError(f"{each.name}: {' and '.join(variables)} (environment) differ; give one")
        if variables:
            layer[each.name] = Given(environment[variables[0]], f"environment {variables[0]}")
    return layer


def _variable_named(environment: Mapping[str, str]) -> str:
    """The variable which holds the Redis URL, by the word of REDIS_ENV_KEY."""
    name = environment[REDIS_ENV_KEY]
    if name not in environment:
        # Who puts the URL itself here would see its password in the error.
        shown = repr(name) if re.fullmatch(r"[A-Za-z_]\w{0,63}", name) else f"({MASK})"
        raise ConfigError(f"redis_url: {REDIS_ENV_KEY} names {shown}; give the name of a set variable")
    return name


def _from_arguments(arguments: Mapping[str, str]) -> dict[str, Given]:
    names = {each.flag: each.name for each in OPTIONS}
    layer = {}
    for argument, text in arguments.items():
        flag = argument.replace("_", "-")
        if flag not in names:
            raise ConfigError(f"command line: there is no option --{flag}{_nearest(flag, names)}")
        layer[names[flag]] = Given(text, "command line")
    return layer


def _nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to end an error with; nothing if no name known is near."""
    names = set(known)
    near = {name.removeprefix(PREFIX)} & names or get_close_matches(name, names, n=1)
    return f"; did you mean {next(iter(near))}?" if near else ""
