"""`twistd routemaster-console`: its command line, and its process.

The options are those of `config.OPTIONS`, and `--bus NAME=URL` for each bus. Faults in the
configuration end the process with a line for each and status 1, before anything is opened.

Signals: see `routemaster.process`; SIGHUP reads the certificate again and reopens the log. A
console that cannot start ends with status 1.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from routemaster.config import help_texts
from routemaster.console.config import OPTIONS, SHIPPED, ConsoleConfig, load
from routemaster.daemon.process_title import set_title
from routemaster.errors import ConfigError
from routemaster.process import Process
from routemaster.twistd_command import Command, reopen_log

_HELP = help_texts(SHIPPED)


class Options(Command):
    """The command line of `twistd routemaster-console`."""

    program = "routemaster-console"
    synopsis = "--bus NAME=URL [options]"
    longdesc = "Run pages that show one or several Routemaster buses. Keys are read from files or the environment."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        *([option.flag, None, None, _HELP[option.name]] for option in OPTIONS),
    ]

    config: ConsoleConfig

    def __init__(self) -> None:
        super().__init__()
        self._buses: list[str] = []

    def opt_bus(self, bus: str) -> None:
        """A bus to watch, as NAME=URL; once for each."""
        self._buses.append(bus)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; `--allow-control` alone means YES."""
        given = sys.argv[1:] if options is None else options
        super().parseOptions([f"{each}=YES" if each == "--allow-control" else each for each in given])

    def postOptions(self) -> None:
        """Load the configuration, and make twistd log through the log observer of the bus."""
        given = {option.name: self[option.flag] for option in OPTIONS if self[option.flag] is not None}
        if self._buses:
            given["buses"] = ",".join([*([given["buses"]] if given.get("buses") else []), *self._buses])
        try:
            self.config = load(given, os.environ, None if self["config"] is None else Path(self["config"]))
        except ConfigError as error:
            self.refuse(str(error))
        self.take(self.config)


def makeService(options: Options) -> Any:
    """The service for twistd to run."""
    from twisted.internet import reactor  # only the wiring imports the reactor

    try:
        from routemaster.console.service import ConsoleService
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        options.refuse("the console needs the extra console: pip install 'routemaster[console]'")
    clock: Any = reactor
    clock.seconds = monotonic  # timers do not depend on changes of the time of day
    set_title("routemaster: console")
    process = Process(reactor, "the console")
    try:
        console = ConsoleService(options.config, reactor, process.fail)
    except ConfigError as error:
        options.refuse(str(error))
    process.handle_signals(console, reopen_log)
    return console

