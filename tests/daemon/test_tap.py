"""The command line of twistd routemaster, its signals and its exit status."""

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

from routemaster import __version__, process, tap
from routemaster.config import OPTIONS
from routemaster.process import Process
from routemaster.tap import Options


class OptionsTests(SynchronousTestCase):
    """The options of `twistd routemaster`."""

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
        """The error message; SystemExit with a string prints it, and the status is 1."""
        status = self.assertRaises(SystemExit, self.parse, *arguments, **twistd).code
        self.assertIsInstance(status, str)
        self.assertNotIn("\n", status)
        self.assertTrue(status.startswith("routemaster: "))
        return status

    def test_plugin(self) -> None:
        """twistd finds the plugin `routemaster`."""
        (maker,) = [each for each in getPlugins(IServiceMaker) if each.tapname == "routemaster"]
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, tap.makeService)

    def test_every_option(self) -> None:
        """Every option of the configuration is a long option with its help text."""
        known = {long: text for long, _, _, text in Options.optParameters}
        for option in OPTIONS:
            self.assertTrue(known[option.flag.removeprefix("--")])

    def test_given(self) -> None:
        """Options on the command line are in force."""
        options = self.parse("--role", "web", "--redis-url", "redis://h", "--clients", "a,b", "--timeout", "7")
        config = options.config
        self.assertEqual((config.role, tuple(config.clients), config.timeout), ("web", ("a", "b"), 7))

    def test_refusals(self) -> None:
        """An unknown option, an invalid value or an argument is an error of one line that names it."""
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

    def test_several_faults(self) -> None:
        """Each fault of the configuration is a line of its own."""
        arguments = ("--timeout", "soon", "--role", "worker", "--grace", "x")
        status = self.assertRaises(SystemExit, self.parse, *arguments).code
        self.assertEqual(
            [line.split()[:2] for line in str(status).splitlines()],
            [["routemaster:", name] for name in ("timeout", "grace", "role")],
        )

    def test_role_in_the_environment(self) -> None:
        """The role and the number of processes are options like others."""
        self.patch(os, "environ", {**os.environ, "ROUTEMASTER_ROLE": "web", "ROUTEMASTER_PROCESSES": "3"})
        config = self.parse("--redis-url", "redis://h").config
        self.assertEqual((config.role, config.processes), ("web", 3))

    def test_metrics_on_a_terminal(self) -> None:
        """In the foreground, with the log on a terminal, no metrics are printed unless they are requested."""
        self.patch(sys, "__stderr__", SimpleNamespace(isatty=lambda: True))
        for arguments, twistd, expected in [
            ((), {"nodaemon": 1}, "none"),
            (("--metric-collection-service", "print"), {"nodaemon": 1}, "print"),
            (("--log-file", "/tmp/own.log"), {"nodaemon": 1}, "print"),
            ((), {"nodaemon": 0}, "print"),
            ((), {"nodaemon": 1, "logger": "a.b"}, "print"),
        ]:
            self.assertEqual(self.parse(*arguments, **twistd).config.metric_collection_service, expected)
        self.patch(sys, "__stderr__", SimpleNamespace(isatty=lambda: False))
        self.assertEqual(self.parse(nodaemon=1).config.metric_collection_service, "print")

    def test_surplus_unquoted(self) -> None:
        """The error for an argument does not show it: it may be a misplaced secret."""
        self.assertNotIn("canary", self.refusal("--root-key", "x", "canary"))

    def test_twistd_log(self) -> None:
        """twistd's options --logfile and --syslog are errors; its option --logger is kept."""
        self.assertIn("--log-file", self.refusal(logfile="x"))
        self.assertIn("--log-file", self.refusal(syslog=1))
        self.assertEqual(self.parse(logger="a.b").parent["logger"], "a.b")

    def test_log_in_the_background(self) -> None:
        """In the background the log is written to a file, because standard error is closed."""
        for arguments, foreground, file in (
            ((), 1, []),
            ((), 0, ["--log-file", str(Path("twistd.log").absolute())]),
            (("--log-file", "/tmp/own.log"), 0, ["--log-file", "/tmp/own.log"]),
        ):
            options = self.parse(*arguments, nodaemon=foreground, pidfile="twistd.pid")
            self.assertEqual(options.child_arguments[-2:], file or ["-n", "routemaster"])

    def test_process_id(self) -> None:
        """In the foreground there is no file with the process ID, unless an option names it."""
        self.assertEqual(self.parse(nodaemon=1, pidfile="twistd.pid").parent["pidfile"], "")
        self.assertEqual(self.parse(nodaemon=1, pidfile="own.pid").parent["pidfile"], "own.pid")
        self.assertEqual(self.parse(nodaemon=0, pidfile="twistd.pid").parent["pidfile"], "twistd.pid")

    def test_print_config(self) -> None:
        """--print-config prints the configuration with secrets masked, and exits with status 0."""
        arguments = ("--print-config", "--root-key", "canary", "--timeout", "9")
        ended = self.assertRaises(SystemExit, self.parse, *arguments)
        self.assertEqual(ended.code, 0)
        self.assertIn("timeout = 9\n", self.out.getvalue())
        self.assertNotIn("canary", self.out.getvalue())

    def test_version(self) -> None:
        """--version prints the version of the bus."""
        self.assertEqual(self.assertRaises(SystemExit, self.parse, "--version").code, 0)
        self.assertEqual(self.out.getvalue(), f"Routemaster {__version__}\n")


class FakeReactor:
    """A reactor that records calls, and runs them when the test says so."""

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
    """Signals and the exit status."""

    def setUp(self) -> None:
        self.installed: dict[int, Any] = {}
        self.patch(signal, "signal", self.installed.__setitem__)
        self.at_exit: list[Any] = []
        self.patch(process.atexit, "register", self.at_exit.append)
        self.reactor = FakeReactor()
        self.reloads = self.replacements = self.skipped = 0
        self.process = Process(self.reactor)
        bus: Any = SimpleNamespace(reload=self.reload, replace=self.replace, skip_drain_delay=self.skip_delay)
        self.process.handle_signals(bus)

    def reload(self) -> None:
        self.reloads += 1

    def replace(self) -> None:
        self.replacements += 1

    def skip_delay(self) -> None:
        self.skipped += 1

    def send(self, number: int) -> None:
        self.installed[number](number, None)
        self.reactor.turn(self.reactor.later)

    def test_stop_once(self) -> None:
        """Repeated SIGTERM and SIGINT stop the reactor once, outside the signal handler."""
        self.installed[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            self.send(number)
        self.assertEqual(self.reactor.stops, 1)
        self.assertEqual(self.at_exit, [], "the status stays 0")

    def test_interrupt(self) -> None:
        """SIGINT skips `drain_delay`, also when the bus stops already; SIGTERM does not."""
        self.send(signal.SIGTERM)
        self.assertEqual(self.skipped, 0)
        self.send(signal.SIGINT)
        self.assertEqual((self.skipped, self.reactor.stops), (1, 1))

    def test_again_when_running(self) -> None:
        """The handlers are installed before the reactor runs, and again after it has installed its own."""
        before = dict(self.installed)
        self.installed.clear()
        self.reactor.turn(self.reactor.starting)
        self.assertEqual(self.installed.keys(), before.keys())

    def test_ignored_after_stop(self) -> None:
        """After the stop signals are ignored: at exit Python would restore the default actions."""
        self.reactor.turn(self.reactor.ending)
        self.assertEqual(set(self.installed.values()), {signal.SIG_IGN})

    def test_reload(self) -> None:
        """SIGHUP reloads, SIGUSR2 replaces, SIGUSR1 does nothing."""
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            self.send(number)
        self.assertEqual((self.reloads, self.replacements, self.reactor.stops), (1, 1, 0))

    def test_failure(self) -> None:
        """A bus that cannot start stops the reactor when it runs, and the exit status is 1."""
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
