"""The command line and the process: one line for what is wrong, and an end in good order."""

from __future__ import annotations

import os
import signal
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from routemaster import __version__, tap
from routemaster.config import OPTIONS
from routemaster.daemon.service import Role
from routemaster.tap import Options, Process


class OptionsTests(SynchronousTestCase):
    """What `twistd routemaster` accepts."""

    def setUp(self) -> None:
        for name in [name for name in os.environ if name.startswith("ROUTEMASTER_")]:
            self.patch(os, "environ", {k: v for k, v in os.environ.items() if k != name})
        self.out = StringIO()
        self.patch(sys, "stdout", self.out)

    def parse(self, *arguments: str, **twistd: Any) -> Options:
        options = Options()
        options.parent = twistd  # type: ignore[assignment]
        options.parseOptions(list(arguments))
        return options

    def refusal(self, *arguments: str, **twistd: Any) -> str:
        """The line with which the start ends; a string as status is printed, and counts as 1."""
        status = self.assertRaises(SystemExit, self.parse, *arguments, **twistd).code
        self.assertIsInstance(status, str)
        self.assertNotIn("\n", status)
        self.assertTrue(status.startswith("routemaster: "))
        return status

    def test_plugin(self) -> None:
        """twistd finds the bus by its name."""
        (maker,) = [each for each in getPlugins(IServiceMaker) if each.tapname == "routemaster"]
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, tap.makeService)

    def test_every_option(self) -> None:
        """Every option of the configuration is a long option with its help text."""
        known = {long: text for long, _, _, text in Options.optParameters}
        for option in OPTIONS:
            self.assertTrue(known[option.flag.removeprefix("--")])

    def test_given(self) -> None:
        """What is given is in force."""
        options = self.parse("--role", "web", "--clients", "a,b", "--timeout", "7")
        config = options.config
        self.assertEqual((options.role, tuple(config.clients), config.timeout), (Role.WEB, ("a", "b"), 7))

    def test_refusals(self) -> None:
        """What is unknown, ill-formed or too much ends the start with one line that names it."""
        for arguments, named in {
            ("--no-such-option", "1"): "--no-such-option",
            ("--timeout",): "--timeout",
            ("--timeout", "soon"): "timeout is invalid: got 'soon'",
            ("--role", "king"): "role is invalid: got 'king'",
            ("--processes", "0"): "processes is invalid: got '0'",
            ("--processes", "65"): "processes is invalid: got '65'",
            ("--processes", "-1"): "processes is invalid: got '-1'",
            ("--processes", "two"): "processes is invalid: got 'two'",
            ("--config", "/nowhere"): "/nowhere",
            ("surplus",): "only options",
        }.items():
            self.assertIn(named, self.refusal(*arguments))

    def test_surplus_unquoted(self) -> None:
        """A word too much is not repeated: it may be a secret that slipped."""
        self.assertNotIn("canary", self.refusal("--root-key", "x", "canary"))

    def test_twistd_log(self) -> None:
        """twistd's own log options, which would be ignored, are refused; its own observer is respected."""
        self.assertIn("--log-file", self.refusal(logfile="x"))
        self.assertIn("--log-file", self.refusal(syslog=1))
        self.assertEqual(self.parse(logger="a.b").parent["logger"], "a.b")

    def test_log_in_the_background(self) -> None:
        """In the background, where nobody reads standard error, the log goes to a file all the same."""
        self.parse(nodaemon=1, pidfile="twistd.pid")
        self.assertIsNone(tap._Log.file)
        self.parse(nodaemon=0, pidfile="twistd.pid")
        self.assertEqual(tap._Log.file, Path("twistd.log"))
        self.parse("--log-file", "/tmp/own.log", nodaemon=0, pidfile="twistd.pid")
        self.assertEqual(tap._Log.file, Path("/tmp/own.log"))

    def test_process_id(self) -> None:
        """In the foreground no file with the process ID is left about, unless it was asked for."""
        self.assertEqual(self.parse(nodaemon=1, pidfile="twistd.pid").parent["pidfile"], "")
        self.assertEqual(self.parse(nodaemon=1, pidfile="own.pid").parent["pidfile"], "own.pid")
        self.assertEqual(self.parse(nodaemon=0, pidfile="twistd.pid").parent["pidfile"], "twistd.pid")

    def test_print_config(self) -> None:
        """--print-config prints, with secrets masked, and starts nothing: status 0."""
        arguments = ("--print-config", "--root-key", "canary", "--timeout", "9")
        ended = self.assertRaises(SystemExit, self.parse, *arguments)
        self.assertEqual(ended.code, 0)
        self.assertIn("timeout = 9\n", self.out.getvalue())
        self.assertNotIn("canary", self.out.getvalue())

    def test_version(self) -> None:
        """--version tells that of the bus."""
        self.assertEqual(self.assertRaises(SystemExit, self.parse, "--version").code, 0)
        self.assertEqual(self.out.getvalue(), f"Routemaster {__version__}\n")


class FakeReactor:
    """A reactor that runs when a test says so, and notes what is asked of it."""

    def __init__(self) -> None:
        self.starting: list[Any] = []
        self.ending: list[Any] = []
        self.later: list[Any] = []
        self.stops = 0

    def callWhenRunning(self, call: Any, *args: Any) -> None:
        self.starting.append((call, args))

    def addSystemEventTrigger(self, phase: str, event: str, call: Any, *args: Any) -> None:
        assert (phase, event) == ("after", "shutdown")
        self.ending.append((call, args))

    def callFromThread(self, call: Any) -> None:
        self.later.append((call, ()))

    def callLater(self, delay: float, call: Any) -> None:
        self.later.append((call, ()))

    def stop(self) -> None:
        self.stops += 1

    def turn(self, calls: list[Any]) -> None:
        todo, calls[:] = calls[:], []
        for call, args in todo:
            call(*args)


class ProcessTests(SynchronousTestCase):
    """Signals, and the status."""

    def setUp(self) -> None:
        self.installed: dict[int, Any] = {}
        self.patch(signal, "signal", self.installed.__setitem__)
        self.at_exit: list[Any] = []
        self.patch(tap.atexit, "register", self.at_exit.append)
        self.reactor = FakeReactor()
        self.reloads = self.replacements = 0
        self.process = Process(self.reactor)
        self.process.handle_signals(SimpleNamespace(reload=self.reload, replace=self.replace))  # type: ignore[arg-type]

    def reload(self) -> None:
        self.reloads += 1

    def replace(self) -> None:
        self.replacements += 1

    def send(self, number: int) -> None:
        self.installed[number](number, None)
        self.reactor.turn(self.reactor.later)

    def test_stop_once(self) -> None:
        """However often TERM and INT come, the reactor is stopped once, and not from within the handler."""
        self.installed[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            self.send(number)
        self.assertEqual(self.reactor.stops, 1)
        self.assertEqual(self.at_exit, [], "the status stays 0")

    def test_again_when_running(self) -> None:
        """The handlers are there before the reactor runs, and replace those that it brings."""
        before = dict(self.installed)
        self.installed.clear()
        self.reactor.turn(self.reactor.starting)
        self.assertEqual(self.installed.keys(), before.keys())

    def test_deaf_at_the_end(self) -> None:
        """When all has stopped signals are ignored: Python, ending, would bring back the deadly defaults."""
        self.reactor.turn(self.reactor.ending)
        self.assertEqual(set(self.installed.values()), {signal.SIG_IGN})

    def test_reload(self) -> None:
        """HUP reloads, USR2 replaces, USR1 does nothing."""
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            self.send(number)
        self.assertEqual((self.reloads, self.replacements, self.reactor.stops), (1, 1, 0))

    def test_failure(self) -> None:
        """A bus that cannot start stops the reactor once it runs, and bends the status when all is done."""
        self.process.fail()
        self.assertEqual(len(self.at_exit), 1)
        self.assertEqual(self.reactor.stops, 0)
        self.reactor.turn(self.reactor.starting)
        self.reactor.turn(self.reactor.later)
        self.assertEqual(self.reactor.stops, 1)
        left: list[int] = []
        self.patch(os, "_exit", left.append)
        self.at_exit[0]()
        self.assertEqual(left, [1])
