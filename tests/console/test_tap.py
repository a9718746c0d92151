"""The command line of `twistd routemaster-console`."""

from __future__ import annotations

import os
import sys
from io import StringIO

from twisted.trial.unittest import SynchronousTestCase

from routemaster import __version__
from routemaster.console.tap import Options


class OptionsTests(SynchronousTestCase):
    """Parsing."""

    def setUp(self) -> None:
        self.patch(os, "environ", {"ROUTEMASTER_CONSOLE_MONITOR_KEY": "watcher--1"})
        self.out = StringIO()
        self.patch(sys, "stdout", self.out)

    def parsed(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(arguments)
        return options

    def refused(self, *arguments: str) -> str:
        """The message with which the process ends."""
        return str(self.assertRaises(SystemExit, self.parsed, *arguments).code)

    def test_buses(self) -> None:
        """--bus is given once for each bus, beside --buses."""
        found = self.parsed("--bus", "a=https://a", "--bus", "b=https://b", "--buses", "c=https://c").config.buses
        self.assertEqual(dict(found), {"c": "https://c", "a": "https://a", "b": "https://b"})
        self.assertIn("--bus", str(Options()))

    def test_faults(self) -> None:
        """Every fault is a line with the program's name; twistd's own too."""
        for arguments, lines in (
            (("--bus", "a=http://a", "--poll-interval", "x"), 2), (("--nonsense",), 1), ((), 1), (("extra",), 1),
        ):  # fmt: skip
            found = self.refused(*arguments).splitlines()
            self.assertEqual(len(found), lines, found)
            for line in found:
                self.assertTrue(line.startswith("routemaster-console: "), line)

    def test_allow_control(self) -> None:
        """--allow-control alone is YES."""
        os.environ["ROUTEMASTER_CONSOLE_ROOT_KEY"] = "root--1"
        for arguments, allowed in ((("--allow-control",), True), (("--allow-control=NO",), False), ((), False)):
            options = self.parsed("--bus", "a=https://a", *arguments)
            self.assertEqual(options.config.allow_control, allowed, arguments)

    def test_misplaced_secret(self) -> None:
        """What is no option is not repeated: it may be a key."""
        self.assertNotIn("s3cret", self.refused("--bus", "a=https://a", "s3cret"))

    def test_print_config(self) -> None:
        """--print-config shows what is in force, and ends with status 0."""
        self.assertEqual(self.refused("--bus", "a=https://a", "--print-config"), "0")
        self.assertIn("\nbuses = a=https://a\n", self.out.getvalue())
        self.assertNotIn("watcher--1", self.out.getvalue())

    def test_version(self) -> None:
        """--version is the bus's."""
        self.assertRaises(SystemExit, self.parsed, "--version")
        self.assertEqual(self.out.getvalue(), f"Routemaster {__version__}\n")

    def test_log_of_twistd(self) -> None:
        """twistd's own options for the log are refused, and in the foreground there is no pid file."""
        options = Options()
        options.parent = {"logfile": "x"}
        self.assertRaises(SystemExit, options.parseOptions, ["--bus", "a=https://a"])
        options = Options()
        options.parent = {"nodaemon": True, "pidfile": "twistd.pid"}
        options.parseOptions(["--bus", "a=https://a"])
        self.assertEqual(options.parent["pidfile"], "")
        self.assertEqual(options.parent["logger"], "routemaster.twistd_command.observer")
