"""The console's configuration: its options, and where the keys of the buses come from.

The options work as those of the bus do (`routemaster.config`), with the prefix
`ROUTEMASTER_CONSOLE_` in the environment and `etc/routemaster-console.ini` as the
source of defaults. `load` finds all faults and raises one ConfigError with a line each.
"""

# ruff: noqa: RUF009 - `option` makes an attrs field, not a shared default

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import field, fields, frozen

from routemaster import config_sources as sources
from routemaster.config import HOUR, LARGEST, describe, option, resolve
from routemaster.config_types import (
    ADDRESS,
    APP_NAME,
    CONSOLE_PREFIX,
    ENDPOINT,
    PATH,
    PEERS,
    TOKENS,
    YES_OR_NO,
    Option,
    OptionType,
    comma_separated,
    integer,
    matching,
    one_of,
    optional,
    parse_origin,
    seconds,
)
from routemaster.console.credentials import Credentials, find_credentials
from routemaster.errors import ConfigError

SHIPPED = Path(__file__).with_name("routemaster-console.ini")

BUS_NAME = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"


def parse_buses(text: str) -> dict[str, str]:
    """The URL of each bus by its name, from `NAME=URL,...`; raises ValueError."""
    found: dict[str, str] = {}
    for item in text.split(",") if text else ():
        name, _, url = item.strip().partition("=")
        if not re.fullmatch(BUS_NAME, name) or name in found:
            raise ValueError
        found[name] = parse_origin(url)
    return found


def write_buses(buses: Mapping[str, str]) -> str:
    """The inverse of parse_buses."""
    return ",".join(f"{name}={url}" for name, url in buses.items())


BUSES = OptionType(
    "NAME=URL, or several separated by commas, each name once, 1 to 32 of a-z, 0-9 and '-', "
    "and an https:// URL of a host and perhaps a port, without a path",
    parse_buses, write_buses,
)  # fmt: skip
HEADER = matching("[A-Za-z0-9-]{1,64}", "the name of a header: 1 to 64 letters, digits, '-'")
USERS = comma_separated(matching("[!-+.-~-]{1,64}", "a user's name of 1 to 64 printable characters"))


@frozen(kw_only=True, repr=False)
class ConsoleConfig:
    """The value in force of every option; `etc/routemaster-console.ini` describes them.

    Times are in seconds; sizes are in bytes; None: not set. `origins` has the source of each option.
    """

    buses: Mapping[str, str] = option("buses", BUSES)
    credentials_dir: Path | None = option("buses", optional(PATH))
    ca_file: Path | None = option("buses", optional(PATH))
    poll_interval: float = option("buses", seconds(0.1, HOUR))
    request_timeout: float = option("buses", seconds(0.1, HOUR))
    max_answer: int = option("buses", integer(1024, LARGEST))
    late_after: float = option("buses", seconds(1, 365 * 24 * HOUR))

    https: str = option("server", ENDPOINT)
    certificate: Path | None = option("server", optional(PATH))
    private_key: Path | None = option("server", optional(PATH))
    state_dir: Path = option("server", PATH)
    max_connections: int = option("server", integer(1, 1_000_000))

    login_tokens: tuple[str, ...] = option("login", TOKENS)
    trusted_proxies: tuple[IPv4Network | IPv6Network | str, ...] = option("login", PEERS)
    user_header: str | None = option("login", optional(HEADER))
    session_idle: float = option("login", seconds(1, 365 * 24 * HOUR))
    session_lifetime: float = option("login", seconds(1, 365 * 24 * HOUR))
    allow_control: bool = option("login", YES_OR_NO)
    control_users: tuple[str, ...] = option("login", USERS)

    history_rows: int = option("history", integer(0, 1_000_000_000))

    metric_collection_service: str = option("metrics", one_of("statsd", "none"))
    statsd_address: tuple[str, int] = option("metrics", ADDRESS)
    app_name: str = option("metrics", APP_NAME)

    log_level: str = option("logging", one_of("DEBUG", "INFO", "WARNING", "ERROR"))
    log_file: Path | None = option("logging", optional(PATH))
    log_format: str = option("logging", one_of("text", "json"))

    credentials: Mapping[str, Credentials] = field()  #: by the name of the bus
    origins: Mapping[str, str] = field(eq=False)

    def __repr__(self) -> str:
        shown = (f"{option.name}={option.show(getattr(self, option.name))!r}" for option in OPTIONS)
        return f"ConsoleConfig({', '.join(shown)})"

    def describe(self) -> str:
        """The configuration in force as a file, and as comments which keys were found; secrets are masked."""
        keys = [f"# bus {name}: {each.describe()}" for name, each in self.credentials.items()]
        return "\n".join([describe(OPTIONS, self), *keys, ""])


OPTIONS = tuple(
    Option(each.name, **each.metadata, prefix=CONSOLE_PREFIX) for each in fields(ConsoleConfig) if each.metadata
)


def load(
    arguments: Mapping[str, str],
    environment: Mapping[str, str],
    file: Path | None,
    *,
    shipped: Path = SHIPPED,
) -> ConsoleConfig:
    """The configuration in force; see `routemaster.config.load`. Raises ConfigError with a line for each fault."""
    faults: list[str] = []
    own, of_buses = _divide(environment)
    layers = [
        sources.from_file(shipped, "default", OPTIONS, faults),
        sources.from_file(file, str(file), OPTIONS, faults) if file else {},
        sources.from_environment(own, OPTIONS, faults, CONSOLE_PREFIX),
        sources.from_arguments(arguments, OPTIONS, faults),
    ]
    values, origins = resolve(OPTIONS, layers, shipped, faults)
    credentials: dict[str, Credentials] = {}
    if "buses" in values and "credentials_dir" in values:
        directory = values["credentials_dir"]
        if directory is None and environment.get("CREDENTIALS_DIRECTORY"):
            directory = values["credentials_dir"] = Path(environment["CREDENTIALS_DIRECTORY"])
            origins["credentials_dir"] = "environment CREDENTIALS_DIRECTORY"
        needs_root = bool(values.get("allow_control"))
        credentials = find_credentials(values["buses"], of_buses, directory, needs_root, faults)
        if "login_tokens" in values:
            values["login_tokens"] += _tokens_in(directory, faults)
    faults += _contradictions(values, origins)
    if faults:
        raise ConfigError("\n".join(faults))
    return ConsoleConfig(credentials=MappingProxyType(credentials), origins=MappingProxyType(origins), **values)


def _divide(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables of options, and those that have something of one bus, without the prefix."""
    pattern = re.compile(f"{CONSOLE_PREFIX}((?:MONITOR_KEY|ROOT_KEY)(?:_[A-Z0-9_]+)?|CA_FILE_[A-Z0-9_]+)")
    own, of_buses = {}, {}
    for name, text in environment.items():
        found = pattern.fullmatch(name)
        if found is None:
            own[name] = text
        elif text.strip():
            of_buses[found[1]] = text.strip()
    return own, of_buses


def _tokens_in(directory: Path | None, faults: list[str]) -> tuple[str, ...]:
    """The tokens in the file `login-tokens`, one a line or by commas."""
    path = None if directory is None else directory / "login-tokens"
    if path is None or not path.exists():
        return ()
    try:
        text = ",".join(line.strip() for line in sources.read(path).splitlines() if line.strip())
        parsed: tuple[str, ...] = TOKENS.parse(text)
    except ConfigError as error:
        faults.append(str(error))
    except ValueError as error:
        problem = getattr(error, "problem", "")
        faults.append(f"{path}: expected {TOKENS.expected}{f' ({problem})' if problem else ''}")
    else:
        return parsed
    return ()


def _contradictions(values: Mapping[str, Any], origins: Mapping[str, str]) -> Sequence[str]:
    """A line for each rule that the values break; `values` lacks the options that are invalid."""
    found = []

    def rule(names: Sequence[str], broken: Any, wrong: str) -> None:
        if all(name in values for name in names) and broken(*(values[name] for name in names)):
            found.append(f"{names[0]} ({origins[names[0]]}) {wrong}")

    rule(["buses"], lambda buses: not buses, "is empty: expected at least one bus, as --bus NAME=URL")
    rule(["certificate", "private_key"], lambda one, other: (one is None) != (other is None),
         "and private_key must be set together")  # fmt: skip
    rule(["user_header", "trusted_proxies"], lambda header, proxies: header is not None and not proxies,
         "requires trusted_proxies: the header is believed from them alone")  # fmt: skip
    rule(["control_users", "allow_control"], lambda users, allowed: users and not allowed,
         "requires allow_control = YES")  # fmt: skip
    rule(["session_idle", "session_lifetime"], lambda idle, life: idle > life,
         "is longer than session_lifetime")  # fmt: skip
    return found
