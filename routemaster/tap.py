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
from pathlib import Path
from time import monotonic
from typing import Any

from routemaster.config import OPTIONS, Config, help_texts, load
from routemaster.daemon.assembly import check_tracing
from routemaster.daemon.process_title import own_number, set_title, title
from routemaster.daemon.service import Bus
from routemaster.daemon.supervisor import Supervisor
from routemaster.errors import ConfigError
from routemaster.process import Process
from routemaster.twistd_command import Command, dropped_lines, reopen_log

_HELP = help_texts()


class Options(Command):
    """The command line of `twistd routemaster`."""

    program = "routemaster"
    synopsis = "[options]"
    longdesc = "Run the Routemaster event bus. Every option can also be set in the environment or in a file."
    optParameters = [
        ["config", "c", None, "Configuration file, stronger than the shipped one."],
        *([option.flag, None, None, _HELP[option.name]] for option in OPTIONS),
    ]

    config: Config
    child_arguments: list[str]  #: of twistd for child processes

    def postOptions(self) -> None:
        """Load the configuration, and make twistd log through the log observer of the bus."""
        given = {option.name: self[option.flag] for option in OPTIONS if self[option.flag] is not None}
        file = None if self["config"] is None else Path(self["config"])
        try:
            self.config = load(given, os.environ, file)
        except ConfigError as error:
            self.refuse(str(error))
        self.child_arguments = ["-n", "routemaster", *(["--config", str(file.absolute())] if file else [])]
        for option in OPTIONS:
            if option.name in given:
                self.child_arguments += [f"--{option.flag}", given[option.name]]
        if self._logs_to_terminal():
            self.config = self.config.for_terminal()
        if (log := self.take(self.config)) is not None:
            self.child_arguments += ["--log-file", str(log.absolute())]

    def _logs_to_terminal(self) -> bool:
        """Whether the log goes to standard error, and that is a terminal."""
        twistd: Any = self.parent or {}
        in_foreground = bool(twistd.get("nodaemon")) and not twistd.get("logger")
        stream = sys.__stderr__
        return in_foreground and self.config.log_file is None and stream is not None and stream.isatty()


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
            bus = Bus(options.config, reactor, process.fail, dropped_lines)
        else:
            bus = Supervisor(options.config, options.child_arguments, reactor, process.fail)
    except ConfigError as error:
        options.refuse(str(error))
    process.handle_signals(bus, reopen_log)
    set_title(title(options.config.role, options.config.processes, own_number(os.environ)))
    return bus
