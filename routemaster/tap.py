"""`twistd routemaster`: its options, made from the table of the configuration, and its process.

Whatever is wrong with the configuration ends the start with one line and
status 1, before anything is opened.

Signals: SIGTERM and SIGINT stop the bus in good order, however often they
come, and the status is 0. SIGHUP reads the certificate again and reopens the
log. SIGUSR2 replaces processes one by one, if there are several. SIGUSR1 means
nothing here, and does nothing. A bus that cannot start ends with status 1.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from twisted.logger import Logger
from twisted.python import usage

from routemaster import __version__, logs
from routemaster.config import OPTIONS, Config, help_texts, load
from routemaster.daemon.service import Bus, Role
from routemaster.daemon.supervisor import Order, Supervisor
from routemaster.daemon.systemd_notify import SystemdNotifier
from routemaster.errors import ConfigError

MOST_PROCESSES = 64
_HELP = help_texts()
_log = Logger()


class Options(usage.Options):
    """The command line of `twistd routemaster`."""

    synopsis = "[options]"
    longdesc = "Run the Routemaster event bus. Every option can also be set in the environment or in a file."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        ["role", None, "all", "Which part of the bus to run: all, web or worker."],
        ["processes", None, "1", "How many processes of that role to run behind one port, 1 to 64."],
        *([option.flag.removeprefix("--"), None, None, _HELP[option.name]] for option in OPTIONS),
    ]
    optFlags = [["print-config", None, "Print the configuration in force, and where each value came from."]]

    config: Config
    role: Role
    processes: int
    for_children: list[str]  #: the arguments of twistd with which processes are begun, if there are several

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As Twisted does, but one line says what is wrong, and no page of help buries it."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _refuse(f"{error}; `twistd routemaster --help` shows every option")

    def parseArgs(self, *surplus: str) -> None:
        """There are options only; what is surplus is not repeated, it may be a slip with a secret."""
        if surplus:
            raise usage.UsageError("only options are allowed")

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
        count = self["processes"]
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MOST_PROCESSES):
            _refuse(f"processes {count!r} is not allowed: 1 to {MOST_PROCESSES} are")
        self.processes = int(count)
        self.for_children = ["-n", "routemaster", *(["--config", str(file.absolute())] if file else [])]
        for option in OPTIONS:
            if option.name in given:
                self.for_children += [f"--{option.flag.removeprefix('--')}", given[option.name]]
        if self["print-config"]:
            sys.stdout.write(self.config.describe())
            sys.exit(0)
        if self.parent is not None:
            self._take_over(self.parent)

    def _take_over(self, twistd: Any) -> None:
        """Settle what twistd's own options say about the log and the process ID."""
        for name in ("logfile", "syslog"):
            if twistd.get(name):
                _refuse(f"twistd's own --{name} is not used: give --log-file after the word routemaster")
        if twistd.get("nodaemon") and twistd.get("pidfile") == "twistd.pid":
            twistd["pidfile"] = ""  # in the foreground whoever started it knows its ID
        if twistd.get("logger"):
            return
        _Log.config = self.config
        # in the background nobody reads standard error
        _Log.file = self.config.log_file or (None if twistd.get("nodaemon") else Path("twistd.log"))
        if _Log.file is not None:
            self.for_children += ["--log-file", str(_Log.file.absolute())]
        twistd["logger"] = f"{__name__}.observer"

    def opt_version(self) -> NoReturn:
        """Print the version of Routemaster."""
        sys.stdout.write(f"Routemaster {__version__}\n")
        sys.exit(0)


class _Log:
    """twistd finds its observer by name, so what it is made of has to be found by name too."""

    config: Config
    file: Path | None
    observer: logs.LogObserver | None = None


def observer() -> Any:
    """The observer through which twistd logs; called by twistd."""
    config = _Log.config
    try:
        _Log.observer = logs.observer(_Log.file, config.log_level, config.log_format)
    except OSError as error:
        _refuse(f"log_file {_Log.file}: {error.strerror}")
    return _Log.observer


def _refuse(line: str) -> NoReturn:
    SystemdNotifier(os.environ, None).status(line)
    sys.exit(f"routemaster: {line}")


def makeService(options: Options) -> Bus | Supervisor:
    """The service for twistd to run."""
    from twisted.internet import reactor  # the wiring is where the reactor comes in

    clock: Any = reactor
    clock.seconds = monotonic  # no timer comes early or late because the time of day was set
    process = Process(reactor)
    try:
        bus: Bus | Supervisor
        if options.processes == 1:
            bus = Bus(options.config, options.role, reactor, process.fail)
        else:
            order = Order(options.config, options.role, options.processes, options.for_children)
            bus = Supervisor(order, reactor, process.fail)
    except ConfigError as error:
        _refuse(str(error))
    process.govern(bus)
    return bus


class Process:
    """How the process of a bus ends, and what it does on a signal."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ending = False

    def govern(self, bus: Bus | Supervisor) -> None:
        """Take the signals over: now, again when the reactor has brought handlers of its own, and to the end."""

        def reload() -> None:
            if _Log.observer is not None:
                _Log.observer.reopen()
            bus.reload()

        def nothing() -> None:
            """Ends nobody, as the system's own answer to the signal would."""

        for number, action in {
            signal.SIGTERM: lambda: self._asked_to_stop("SIGTERM"),
            signal.SIGINT: lambda: self._asked_to_stop("SIGINT"),
            signal.SIGHUP: reload,
            signal.SIGUSR1: nothing,
            signal.SIGUSR2: bus.replace,
        }.items():
            self._on(number, action)
            self._reactor.callWhenRunning(self._on, number, action)
            # nobody is left to call, and Python, ending, would bring back the deadly default
            self._reactor.addSystemEventTrigger("after", "shutdown", signal.signal, number, signal.SIG_IGN)

    def _on(self, number: signal.Signals, action: Callable[[], None]) -> None:
        # a handler may run between any two instructions: all it does is to have the reactor call
        signal.signal(number, lambda _number, _frame: self._reactor.callFromThread(action))

    def _asked_to_stop(self, name: str) -> None:
        if self._ending:
            _log.info("{name} again: the bus is stopping already", name=name)
        else:
            _log.info("{name}: the bus is asked to stop", name=name)
            self._end()

    def fail(self) -> None:
        """Stop, and end with status 1. twistd knows no status of its own: the exit is bent when it has done."""
        atexit.register(_exit_with_failure)
        if not self._ending:
            self._reactor.callWhenRunning(self._reactor.callLater, 0, self._end)

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._reactor.stop()


def _exit_with_failure() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
