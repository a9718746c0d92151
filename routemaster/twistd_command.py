"""The command line of a twistd plugin, and the log of its process; for the bus, and for the console.

Every option can also be set in the environment or in a file; what is in force is `config`. Faults
end the process with a line for each and status 1, before anything is opened.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from twisted.python import usage

from routemaster import __version__, logs
from routemaster.daemon.systemd_notify import SystemdNotifier


class Settings(Protocol):
    """What is needed of a configuration."""

    @property
    def log_file(self) -> Path | None: ...

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> str: ...

    def describe(self) -> str:
        """The text of `--print-config`."""


class Command(usage.Options):
    """The command line; a subclass names its options, and loads its configuration in `postOptions`."""

    program: ClassVar[str]  #: the word after `twistd`
    optFlags = [["print-config", None, "Print the configuration in force, and where each value came from."]]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse as Twisted does, but report an error in one line, without the help text."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            self.refuse(f"{error}; `twistd {self.program} --help` shows every option")

    def parseArgs(self, *surplus: str) -> None:
        """Accept no positional arguments. The error does not repeat them: one may be a misplaced secret."""
        if surplus:
            raise usage.UsageError("only options are allowed")

    def opt_version(self) -> NoReturn:
        """Print the version of Routemaster."""
        sys.stdout.write(f"Routemaster {__version__}\n")
        sys.exit(0)

    @classmethod
    def refuse(cls, faults: str) -> NoReturn:
        """End the process; `faults`: one a line."""
        SystemdNotifier(os.environ, None).failed(faults)
        prefix = logs.stderr_prefix("CRITICAL")
        sys.exit("\n".join(f"{prefix}{cls.program}: {fault}" for fault in faults.splitlines()))

    def take(self, config: Settings) -> Path | None:
        """Print the configuration and end, if that is asked for; else have twistd log as it says.

        Returns the file of the log; None: standard error, or what twistd was told.
        """
        if self["print-config"]:
            sys.stdout.write(config.describe())
            sys.exit(0)
        return None if self.parent is None else self._set_twistd_options(self.parent, config)

    def _set_twistd_options(self, twistd: Any, config: Settings) -> Path | None:
        """Check and set twistd's own options for the log and the file of the process ID."""
        for name in ("logfile", "syslog"):
            if twistd.get(name):
                self.refuse(f"twistd's own --{name} is not used: give --log-file after the word {self.program}")
        if twistd.get("nodaemon") and twistd.get("pidfile") == "twistd.pid":
            twistd["pidfile"] = ""  # in the foreground the process that started it has its ID
        if twistd.get("logger"):
            return None
        # in the background standard error is closed
        file = config.log_file or (None if twistd.get("nodaemon") else Path("twistd.log"))
        _Log.command, _Log.config, _Log.file = self, config, file
        twistd["logger"] = f"{__name__}.observer"
        return file


class _Log:
    """The settings of `observer`, which twistd finds by name and calls without arguments."""

    command: Command
    config: Settings
    file: Path | None
    observer: logs.LogObserver | None = None


def observer() -> Any:
    """The log observer; called by twistd."""
    try:
        _Log.observer = logs.observer(_Log.file, _Log.config.log_level, _Log.config.log_format)
    except OSError as error:
        _Log.command.refuse(f"log_file {_Log.file}: {error.strerror}")
    return _Log.observer


def dropped_lines() -> int:
    """The number of lines that the log has lost."""
    return 0 if _Log.observer is None else _Log.observer.dropped


def reopen_log() -> None:
    """Open the log's file again, which may have been moved."""
    if _Log.observer is not None:
        _Log.observer.reopen()
