"""Which bus, with which token; and how errors end the program.

Exit status: 0 done, 1 wrong usage, 2 refused or failed, 3 the bus is unavailable (nothing was stored; try again
later), 4 the outcome is unknown (it may have been stored), 130 interrupted.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from routemaster_client.blocking import Client
from routemaster_client.errors import BusError, OutcomeUnknown, Unavailable

USAGE, FAILED, UNAVAILABLE, UNKNOWN, INTERRUPTED = 1, 2, 3, 4, 130
RC_FILE = ".rtmrc"
_ARGUMENT = re.compile(r"\bca_file\b")  # of the client; here it is an option


class Usage(click.ClickException):
    """The command line cannot be executed."""

    exit_code = USAGE


def on_bus(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the common options, and as its first argument a client of the bus that they name."""

    @click.option("-b", "--bus", metavar="DOMAIN|@NAME", envvar="RTM_BUS", show_envvar=True,
                  help="Host of the bus, with its port if that is not 443, or @ and a name from .rtmrc.")
    @click.option("-t", "--token", envvar="RTM_TOKEN", show_envvar=True, help="The token to use.")
    @click.option("--ca-file", envvar="RTM_CA_FILE", show_envvar=True, metavar="FILE",
                  help="PEM file with the certificate to trust.")
    @click.option("-v", "--verbose", is_flag=True, help="Show where an error comes from.")
    @wraps(command)
    def run(bus: str | None, token: str | None, ca_file: str | None, verbose: bool, **options: Any) -> None:
        try:
            with connect(bus, token, ca_file) as client:
                command(client, **options)
        except (BusError, OSError) as error:
            if verbose:
                traceback.print_exc()
            fail(error)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return run  # fmt: skip


def connect(bus: str | None, token: str | None, ca_file: str | None) -> Client:
    """A client from options and `.rtmrc`; an option is stronger."""
    if bus is None:
        raise Usage("no bus: give -b DOMAIN, or -b @NAME of .rtmrc, or set RTM_BUS")
    if bus.startswith("@"):
        known = _rc_file()
        entry = known.get(bus[1:])
        if not isinstance(entry, dict) or not entry.get("bus"):
            names = ", ".join(f"@{name}" for name in known) or "none"
            raise Usage(f"no bus named {bus} in {RC_FILE}: it has {names}")
        bus, token = str(entry["bus"]), token or entry.get("token")
        ca_file = ca_file or entry.get("ca_file")
    if not token:
        raise Usage("no token: give -t TOKEN, or token in .rtmrc, or set RTM_TOKEN")
    if ca_file is not None and not Path(ca_file).expanduser().is_file():
        raise Usage(f"the CA file {ca_file} does not exist")
    url = bus if "://" in bus else f"https://{bus}"
    return Client(url, str(token), ca_file=None if ca_file is None else str(Path(ca_file).expanduser()))


def fail(error: Exception) -> NoReturn:
    """End the program with an error's message and status."""
    click.echo(f"rtm: {_ARGUMENT.sub('--ca-file', str(error))}", err=True)
    kinds = {Unavailable: UNAVAILABLE, OutcomeUnknown: UNKNOWN}
    sys.exit(next((status for kind, status in kinds.items() if isinstance(error, kind)), FAILED))


def bus_names() -> list[str]:
    """The names in `.rtmrc`, for completion."""
    try:
        return [f"@{name}" for name in _rc_file()]
    except click.ClickException:
        return []


def _rc_file() -> dict[str, Any]:
    """What `.rtmrc` holds: of this folder, else of the home folder."""
    for path in (Path(RC_FILE), Path.home() / RC_FILE):
        if path.is_file():
            try:
                found: Any = yaml.safe_load(path.read_text("utf-8")) or {}  # type: ignore[no-untyped-call]
            except (yaml.YAMLError, UnicodeDecodeError):
                raise Usage(f"{path} is not YAML") from None
            if not isinstance(found, dict):
                raise Usage(f"{path} is invalid: expected NAME: with bus: and token: below")
            return found
    return {}
