"""The sources of options: a file, the environment, the command line.

Each function returns the texts of one source by the name of the option, and adds a
line to `faults` for everything in the source that is no option, and so no typing
error is ignored.

The original Routemaster, in Ruby, reads variables that have another name here, or
that this bus does not need. Such a variable is a fault whose line says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from configparser import ConfigParser, DuplicateOptionError, DuplicateSectionError, ParsingError
from difflib import get_close_matches
from pathlib import Path

from routemaster.config_types import CONSOLE_PREFIX, MASK, PREFIX, Option, RawValue, quoted
from routemaster.errors import ConfigError

REDIS_ENV_KEY = "REDIS_ENV_KEY"
# Kubernetes sets these variables in every pod of a namespace with a Service
# called routemaster or routemaster-*: they are no options.
SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_[A-Z]+(_\w+)?=.*)"
)

_REDIS_URL = "use ROUTEMASTER_REDIS_URL"
_PROCESSES = "use ROUTEMASTER_PROCESSES, the number of processes"
_NOTHING = "nothing replaces it: remove it"
#: Variables of the original: what replaces each. Those of the platform (PORT, RACK_ENV) are ignored.
ORIGINAL = {
    "ROUTEMASTER_ACQUIRE_TIMEOUT": _NOTHING,
    "ROUTEMASTER_AMQP_URL": _REDIS_URL,
    "ROUTEMASTER_BACKOFF_LIMIT": "use ROUTEMASTER_MAX_BACKOFF_MS, in milliseconds",
    "ROUTEMASTER_HP_DAMAGE_RATE": _NOTHING,
    "ROUTEMASTER_HP_HEAL_RATE": _NOTHING,
    "ROUTEMASTER_REDIS_URLS": _REDIS_URL,
    "ROUTEMASTER_WORKER_THREADS": "use ROUTEMASTER_MAX_OPEN_DELIVERIES, the deliveries at once in a worker",
    "PUMA_BOOT_TIMEOUT": _NOTHING,
    "PUMA_THREADS": _NOTHING,
    "PUMA_TIMEOUT": _NOTHING,
    "PUMA_WORKERS": _PROCESSES,
    "UNICORN_WEB_TIMEOUT": _NOTHING,
    "UNICORN_WEB_WORKERS": _PROCESSES,
}


def read(file: Path) -> str:
    """The text of a file; raises ConfigError, of one line."""
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8") from None


def from_file(file: Path, origin: str, options: Sequence[Option], faults: list[str]) -> dict[str, RawValue]:
    """The options of a file; nothing if it cannot be parsed."""
    try:
        ini = _parsed(file)
    except ConfigError as error:
        faults.append(str(error))
        return {}
    sections = {each.name: each.section for each in options}
    layer = {}
    for section in ini.sections():
        if section not in sections.values():
            faults.append(f"{file}: unknown section {section!r}{_nearest(section, sections.values())}")
            continue
        for name, text in ini[section].items():
            if name not in sections:
                faults.append(f"{file}: unknown option {name!r} in [{section}]{_nearest(name, sections)}")
            elif sections[name] != section:
                faults.append(f"{file}: {name} is in [{section}], expected in [{sections[name]}]")
            else:
                layer[name] = RawValue(text, origin)
    return layer


def _parsed(file: Path) -> ConfigParser:
    ini = ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        ini.read_string(read(file))
    except (DuplicateOptionError, DuplicateSectionError) as error:
        name = getattr(error, "option", f"[{error.section}]")
        raise ConfigError(f"{file}, line {error.lineno}: duplicate {name}") from None
    except ParsingError as error:
        line = getattr(error, "lineno", None) or error.errors[0][0]
        raise ConfigError(f"{file}, line {line}: expected a [section] or NAME = VALUE") from None
    return ini


def from_environment(
    environment: Mapping[str, str], options: Sequence[Option], faults: list[str], prefix: str = PREFIX
) -> dict[str, RawValue]:
    """The options of the environment; an empty variable counts as not set.

    Variables without the prefix belong to other programs, and so do those of the console for the bus.
    """
    given = {name: text for name, text in environment.items() if text.strip()}
    if prefix == PREFIX:
        given = {name: text for name, text in given.items() if not name.startswith(CONSOLE_PREFIX)}
    redis = given.get(REDIS_ENV_KEY)
    known = {variable for each in options for variable in each.environment}
    expected = {*known, redis}
    for name, text in given.items():
        if prefix == PREFIX and name in ORIGINAL:
            faults.append(f"environment: {name} is an option of the original Routemaster; {ORIGINAL[name]}")
        elif name.startswith(prefix) and name not in expected and not SERVICE_LINK.fullmatch(f"{name}={text}"):
            faults.append(f"environment: unknown option {name!r}{_nearest(name, known)}")
    layer = {}
    for each in options:
        variables = [name for name in each.environment if name in given]
        if each.name == "redis_url" and redis is not None:
            if redis in given:
                variables.append(redis)
            else:
                faults.append(_no_such_variable(redis))
        if len({given[name] for name in variables}) > 1:
            faults.append(f"{each.name}: {' and '.join(variables)} (environment) differ; set one of them")
        if variables:
            layer[each.name] = RawValue(given[variables[0]], f"environment {variables[0]}")
    return layer


def _no_such_variable(name: str) -> str:
    """The fault of REDIS_ENV_KEY, whose value may be the Redis URL itself, with a password."""
    shown = repr(name) if re.fullmatch(r"[\"']?[A-Za-z_]\w{0,63}[\"']?", name) else f"({MASK})"
    hint = "a value in quotes; remove the quotes" if quoted(name) else "expected the name of a set variable"
    return f"redis_url: {REDIS_ENV_KEY} is invalid: got {shown}, {hint}"


def from_arguments(
    arguments: Mapping[str, str], options: Sequence[Option], faults: list[str]
) -> dict[str, RawValue]:
    """The options of the command line; an empty one means none."""
    names = {each.flag: each.name for each in options}
    layer = {}
    for argument, text in arguments.items():
        flag = argument.replace("_", "-")
        if flag in names:
            layer[names[flag]] = RawValue(text, "command line")
        else:
            faults.append(f"command line: unknown option --{flag}{_nearest(flag, names)}")
    return layer


def _nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion for the end of an error message; empty if no known name differs by about one letter in five."""
    names = set(known)
    if (own := name.removeprefix(PREFIX)) in names:
        return f"; did you mean {own}?"
    # without the prefix, which makes all alike; of two variables for one option the one that has it
    by_own = {each.removeprefix(PREFIX): each for each in sorted(names, key=lambda each: each.startswith(PREFIX))}
    near = get_close_matches(own, by_own, n=1, cutoff=0.8)
    return f"; did you mean {by_own[near[0]]}?" if near else ""
