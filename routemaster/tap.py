"""`twistd routemaster`: its options, made from the table of the configuration, and its service.

Whatever is wrong with the configuration ends the start with one line and
status 1, before anything is opened.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from twisted.python import usage

from routemaster import __version__, logs
from routemaster.config import OPTIONS, Config, help_texts, load
from routemaster.errors import ConfigError
from routemaster.service import Bus, Role

_HELP = help_texts()


class Options(usage.Options):
    """The command line of `twistd routemaster`."""

    synopsis = "[options]"
    longdesc = "Run the Routemaster event bus. Every option can also be set in the environment or in a file."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        ["role", None, "all", "Which part of the bus to run: all, web or worker."],
        *([option.flag.removeprefix("--"), None, None, _HELP[option.name]] for option in OPTIONS),
    ]
    optFlags = [["print-config", None, "Print the configuration in force, and where each value came from."]]

    config: Config
    role: Role

    def postOptions(self) -> None:
        """Load the configuration, and have twistd log through the bus's observer."""
        given = {
            option.name: self[option.flag.removeprefix("--")]
            for option in OPTIONS
            if self[option.flag.removeprefix("--")] is not None
        }
        file = None if self["config"] is None else Path(self["config"])
        try:
            self.config = load(given, os.environ, file)
        except ConfigError as error:
            _refuse(str(error))
        try:
            self.role = Role(self["role"])
        except ValueError:
            _refuse(f"role {self['role']!r} is not allowed: all, web and worker are")
        if self["print-config"]:
            sys.stdout.write(self.config.describe())
            sys.exit(0)
        _Log.config = self.config
        if self.parent is not None:
            self.parent["logger"] = f"{__name__}.observer"
            if self.parent.get("nodaemon") and self.parent.get("pidfile") == "twistd.pid":
                self.parent["pidfile"] = ""  # in the foreground whoever started it knows its ID

    def opt_version(self) -> NoReturn:
        """Print the version of Routemaster."""
        sys.stdout.write(f"Routemaster {__version__}\n")
        sys.exit(0)


class _Log:
    """twistd finds its observer by name, so what it is made of has to be found by name too."""

    config: Config
    observer: logs.LogObserver | None = None


def observer() -> Any:
    """The observer through which twistd logs; called by twistd."""
    config = _Log.config
    try:
        _Log.observer = logs.observer(config.log_file, config.log_level, config.log_format)
    except OSError as error:
        _refuse(f"log_file {config.log_file}: {error.strerror}")
    return _Log.observer


def _reopen_log() -> None:
    if _Log.observer is not None:
        _Log.observer.reopen()


def _refuse(line: str) -> NoReturn:
    sys.exit(f"routemaster: {line}")


def makeService(options: Options) -> Bus:
    """The service for twistd to run."""
    from twisted.internet import reactor  # the wiring is where the reactor comes in

    try:
        return Bus(options.config, options.role, reactor, _reopen_log)
    except ConfigError as error:
        _refuse(str(error))
