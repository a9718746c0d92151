"""The keys with which the console speaks to the buses, and the certificates that it trusts them by.

Keys are never given on the command line, where every user of the machine can read
them. For the bus NAME they come from

- the files `NAME-monitor-key`, `NAME-root-key` and `NAME-ca.pem` in `credentials_dir`: a
  Secret that Kubernetes mounts, or what systemd's LoadCredential= gives a service;
- the variables ROUTEMASTER_CONSOLE_MONITOR_KEY_NAME, ..._ROOT_KEY_NAME and ..._CA_FILE_NAME,
  the name in capitals and with `_` for `-`; without `_NAME` a key is that of every bus
  which has no other.

A file is read again when the bus refuses the key, so that keys can be replaced without a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from routemaster.config_types import quoted

_KEY = re.compile("[ -9;-~]{1,128}")
EXPECTED = "1 to 128 printable ASCII characters without ':'"


@frozen
class Key:
    """One key, from a file or from the environment."""

    origin: str  #: for messages
    text: str = field(repr=False)
    file: Path | None = None

    def read(self) -> str:
        """The key as it is now: the file's content, if that can be read and is a key."""
        if self.file is not None:
            try:
                text = self.file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return self.text
            if _KEY.fullmatch(text):
                return text
        return self.text


@frozen
class Credentials:
    """What the console needs for one bus."""

    monitor_key: Key
    root_key: Key | None = None
    ca_file: Path | None = None

    def describe(self) -> str:
        """Where the keys are from, without them."""
        root = self.root_key.origin if self.root_key else "none"
        return f"monitor key from {self.monitor_key.origin}, root key from {root}" + (
            f", CA certificates in {self.ca_file}" if self.ca_file else ""
        )


def find_credentials(
    buses: Mapping[str, str], variables: Mapping[str, str], directory: Path | None, needs_root: bool,
    faults: list[str],
) -> dict[str, Credentials]:  # fmt: skip
    """The credentials of each bus by its name.

    Args:
        variables: those of the environment that hold keys and files, without their prefix.
        directory: where files with keys are.
        needs_root: whether at least one bus must have a root key.
        faults: gets a line for everything that is missing, invalid or without a bus.
    """
    found: dict[str, Credentials] = {}
    for name in buses:
        monitor = _key("MONITOR_KEY", name, variables, directory, faults)
        root = _key("ROOT_KEY", name, variables, directory, faults)
        if monitor is None:
            places = f"set ROUTEMASTER_CONSOLE_MONITOR_KEY_{_variable(name)}"
            places += f", or write it to {directory / f'{name}-monitor-key'}" if directory else ""
            faults.append(f"bus {name} has no monitor key: {places}")
        else:
            found[name] = Credentials(monitor, root, _ca_file(name, variables, directory))
    for variable in variables:
        kind = re.match("MONITOR_KEY|ROOT_KEY|CA_FILE", variable)
        name = variable[kind.end() :].lstrip("_") if kind else ""
        if name and name not in map(_variable, buses):
            faults.append(f"environment: ROUTEMASTER_CONSOLE_{variable} is for a bus that is not in buses")
    if needs_root and len(found) == len(buses) and not any(each.root_key for each in found.values()):
        faults.append("allow_control is YES, but no bus has a root key")
    return found


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _key(
    kind: str, name: str, variables: Mapping[str, str], directory: Path | None, faults: list[str]
) -> Key | None:
    """The key of a bus; a file is stronger than its variable, that stronger than the variable for all."""
    file = None if directory is None else directory / f"{name}-{kind.lower().replace('_', '-')}"
    if file is not None and file.exists():
        try:
            text = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'is not UTF-8'}")
            return None
        return _checked(text, str(file), file, faults)
    for variable in (f"{kind}_{_variable(name)}", kind):
        if variable in variables:
            return _checked(variables[variable], f"environment ROUTEMASTER_CONSOLE_{variable}", None, faults)
    return None


def _checked(text: str, origin: str, file: Path | None, faults: list[str]) -> Key:
    key = Key(origin, text, file)
    if quoted(text):
        line = f"{origin} is invalid: a value in quotes; remove the quotes"
    elif not _KEY.fullmatch(text):
        line = f"{origin} is invalid: expected a key of {EXPECTED}"
    else:
        return key
    if line not in faults:
        faults.append(line)
    return key


def _ca_file(name: str, variables: Mapping[str, str], directory: Path | None) -> Path | None:
    file = None if directory is None else directory / f"{name}-ca.pem"
    if file is not None and file.exists():
        return file
    variable = variables.get(f"CA_FILE_{_variable(name)}")
    return Path(variable).expanduser() if variable else None
