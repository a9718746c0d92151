"""`twistd routemaster`: its command line, and its process.

The options are those of `config.OPTIONS`. Faults in the configuration end the
process with a line for each and status 1, before anything is opened.

Signals: SIGTERM and SIGINT shut the bus down, with status 0; repeated signals
change nothing, but SIGINT ends the wait for `drain_delay`, or prevents it. SIGHUP
reloads the certificate and reopens the log. SIGUSR2 replaces child processes one
by one, if there are several. SIGUSR1 is ignored. A bus that cannot start ends
with status 1.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from twisted.logger import Logger
from twisted.python import usage

from routemaster import __version__, logs
from routemaster.config import OPTIONS, Config, help_texts, load
from routemaster.daemon.assembly import check_tracing
from routemaster.daemon.process_title import own_number, set_title, title
from routemaster.daemon.service import Bus
from routemaster.daemon.supervisor import Supervisor
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.errors import ConfigError
from routemaster.process import Process

_HELP = help_texts()
_log = Logger()


class Options(usage.Options):
    """The command line of `twistd routemaster`."""

    synopsis = "[options]"
    longdesc = "Run the Routemaster event bus. Every option can also be set in the environment or in a file."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        *([option.flag, None, None, _HELP[option.name]] for option in OPTIONS),
    ]
    optFlags = [["print-config", None, "Print the configuration in force, and where each value came from."]]

    config: Config
    child_arguments: list[str]  #: of twistd for child processes

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse as Twisted does, but report an error in one line, without the help text."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _refuse(f"{error}; `twistd routemaster --help` shows every option")

    def parseArgs(self, *surplus: str) -> None:
        """Accept no positional arguments. The error does not repeat them: one may be a misplaced secret."""
        if surplus:
            raise usage.UsageError("only options are allowed")

    def postOptions(self) -> None:
        """Load the configuration, and make twistd log through the log observer of the bus."""
        given = {option.name: self[option.flag] for option in OPTIONS if self[option.flag] is not None}
        file = None if self["config"] is None else Path(self["config"])
        try:
            self.config = load(given, os.environ, file)
        except ConfigError as error:
            _refuse(str(error))
        self.child_arguments = ["-n", "routemaster", *(["--config", str(file.absolute())] if file else [])]
        for option in OPTIONS:
            if option.name in given:
                self.child_arguments += [f"--{option.flag}", given[option.name]]
        if self._logs_to_terminal():
            self.config = self.config.for_terminal()
        if self["print-config"]:
            sys.stdout.write(self.config.describe())
            sys.exit(0)
        if self.parent is not None:
            self._set_twistd_options(self.parent)

    def _logs_to_terminal(self) -> bool:
        """Whether the log goes to standard error, and that is a terminal."""
        twistd: Any = self.parent or {}
        in_foreground = bool(twistd.get("nodaemon")) and not twistd.get("logger")
        stream = sys.__stderr__
        return in_foreground and self.config.log_file is None and stream is not None and stream.isatty()

    def _set_twistd_options(self, twistd: Any) -> None:
        """Check and set twistd's own options for the log and the file of the process ID."""
        for name in ("logfile", "syslog"):
            if twistd.get(name):
                _refuse(f"twistd's own --{name} is not used: give --log-file after the word routemaster")
        if twistd.get("nodaemon") and twistd.get("pidfile") == "twistd.pid":
            twistd["pidfile"] = ""  # in the foreground the process that started it has its ID
        if twistd.get("logger"):
            return
        _Log.config = self.config
        # in the background standard error is closed
        _Log.file = self.config.log_file or (None if twistd.get("nodaemon") else Path("twistd.log"))
        if _Log.file is not None:
            self.child_arguments += ["--log-file", str(_Log.file.absolute())]
        twistd["logger"] = f"{__name__}.observer"

    def opt_version(self) -> NoReturn:
        """Print the version of Routemaster."""
        sys.stdout.write(f"Routemaster {__version__}\n")
        sys.exit(0)


class _Log:
    """The settings of `observer`, which twistd finds by name and calls without arguments."""

    config: Config
    file: Path | None
    observer: logs.LogObserver | None = None


def observer() -> Any:
    """The log observer; called by twistd."""
    config = _Log.config
    try:
        _Log.observer = logs.observer(_Log.file, config.log_level, config.log_format)
    except OSError as error:
        _refuse(f"log_file {_Log.file}: {error.strerror}")
    return _Log.observer


def _dropped() -> int:
    """The number of lines that the log has lost."""
    return 0 if _Log.observer is None else _Log.observer.dropped


def _reopen_log() -> None:
    if _Log.observer is not None:
        _Log.observer.reopen()


def _refuse(line: str) -> NoReturn:
    """End the process; `line` may be several, one for each fault."""
    SystemdNotifier(os.environ, None).failed(line)
    prefix = logs.stderr_prefix("CRITICAL")
    sys.exit("\n".join(f"{prefix}routemaster: {each}" for each in line.splitlines()))


def makeService(options: Options) -> Bus | Supervisor:
    """The service for twistd to run."""
    from twisted.internet import reactor  # only the wiring imports the reactor

    clock: Any = reactor
    clock.seconds = monotonic  # timers do not depend on changes of the time of day
    process = Process(reactor)
    try:
        bus: Bus | Supervisor
        check_tracing(options.config)
        if options.config.processes == 1:
            bus = Bus(options.config, reactor, process.fail, _dropped)
        else:
            bus = Supervisor(options.config, options.child_arguments, reactor, process.fail)
    except ConfigError as error:
        _refuse(str(error))
    process.handle_signals(bus, _reopen_log)
    set_title(title(options.config.role, options.config.processes, own_number(os.environ)))
    return bus
