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
from typing import Any, NoReturn

from twisted.python import usage

from routemaster import __version__, logs
from routemaster.config import help_texts
from routemaster.console.config import OPTIONS, SHIPPED, ConsoleConfig, load
from routemaster.daemon.process_title import set_title
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.errors import ConfigError
from routemaster.process import Process

_HELP = help_texts(SHIPPED)


class Options(usage.Options):
    """The command line of `twistd routemaster-console`."""

    synopsis = "--bus NAME=URL [options]"
    longdesc = "Run pages that show one or several Routemaster buses. Keys are read from files or the environment."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        *([option.flag, None, None, _HELP[option.name]] for option in OPTIONS),
    ]
    optFlags = [["print-config", None, "Print the configuration in force, and where each value came from."]]

    config: ConsoleConfig

    def __init__(self) -> None:
        super().__init__()
        self._buses: list[str] = []

    def opt_bus(self, bus: str) -> None:
        """A bus to watch, as NAME=URL; once for each."""
        self._buses.append(bus)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse as Twisted does, but report an error in one line, without the help text.

        `--allow-control` alone means YES.
        """
        given = sys.argv[1:] if options is None else options
        try:
            super().parseOptions([f"{each}=YES" if each == "--allow-control" else each for each in given])
        except usage.UsageError as error:
            _refuse(f"{error}; `twistd routemaster-console --help` shows every option")

    def parseArgs(self, *surplus: str) -> None:
        """Accept no positional arguments. The error does not repeat them: one may be a misplaced secret."""
        if surplus:
            raise usage.UsageError("only options are allowed")

    def postOptions(self) -> None:
        """Load the configuration, and make twistd log through the log observer of the bus."""
        given = {option.name: self[option.flag] for option in OPTIONS if self[option.flag] is not None}
        if self._buses:
            given["buses"] = ",".join([*([given["buses"]] if given.get("buses") else []), *self._buses])
        try:
            self.config = load(given, os.environ, None if self["config"] is None else Path(self["config"]))
        except ConfigError as error:
            _refuse(str(error))
        if self["print-config"]:
            sys.stdout.write(self.config.describe())
            sys.exit(0)
        if self.parent is not None:
            self._set_twistd_options(self.parent)

    def _set_twistd_options(self, twistd: Any) -> None:
        for name in ("logfile", "syslog"):
            if twistd.get(name):
                _refuse(f"twistd's own --{name} is not used: give --log-file after the word routemaster-console")
        if twistd.get("nodaemon") and twistd.get("pidfile") == "twistd.pid":
            twistd["pidfile"] = ""  # in the foreground the process that started it has its ID
        if twistd.get("logger"):
            return
        _Log.config = self.config
        _Log.file = self.config.log_file or (None if twistd.get("nodaemon") else Path("twistd.log"))
        twistd["logger"] = f"{__name__}.observer"

    def opt_version(self) -> NoReturn:
        """Print the version of Routemaster."""
        sys.stdout.write(f"Routemaster {__version__}\n")
        sys.exit(0)


class _Log:
    """The settings of `observer`, which twistd finds by name and calls without arguments."""

    config: ConsoleConfig
    file: Path | None
    observer: logs.LogObserver | None = None


def observer() -> Any:
    """The log observer; called by twistd."""
    try:
        _Log.observer = logs.observer(_Log.file, _Log.config.log_level, _Log.config.log_format)
    except OSError as error:
        _refuse(f"log_file {_Log.file}: {error.strerror}")
    return _Log.observer


def _refuse(line: str) -> NoReturn:
    """End the process; `line` may be several, one for each fault."""
    SystemdNotifier(os.environ, None).failed(line)
    prefix = logs.stderr_prefix("CRITICAL")
    sys.exit("\n".join(f"{prefix}routemaster-console: {each}" for each in line.splitlines()))


def makeService(options: Options) -> Any:
    """The service for twistd to run."""
    from twisted.internet import reactor  # only the wiring imports the reactor

    try:
        from routemaster.console.service import ConsoleService
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        _refuse("the console needs the extra console: pip install 'routemaster[console]'")
    clock: Any = reactor
    clock.seconds = monotonic  # timers do not depend on changes of the time of day
    set_title("routemaster: console")
    process = Process(reactor, "the console")
    try:
        console = ConsoleService(options.config, reactor, process.fail)
    except ConfigError as error:
        _refuse(str(error))
    process.handle_signals(console, _reopen_log)
    return console


def _reopen_log() -> None:
    if _Log.observer is not None:
        _Log.observer.reopen()
