"""docs/console.rst and the systemd unit match the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import routemaster.console
from routemaster.console.config import OPTIONS, load
from routemaster.console.tap import Options
from tests.daemon.test_deploy import DEPLOY, ROOT, UNITS, directives

HOME = Path(routemaster.console.__file__).parent
TEXT = " ".join((ROOT / "docs" / "console.rst").read_text("utf-8").split())
UNIT = DEPLOY / "routemaster-console.service"
METRIC = re.compile(r"(?:bus|subscriber|redis|certificate|events)\.[a-z_.]+")
OF_BUSES = {"MONITOR_KEY", "ROOT_KEY", "MONITOR_KEY_NAME", "ROOT_KEY_NAME", "CA_FILE_NAME"}


def constants(path: Path) -> set[str]:
    """All texts in a module."""
    tree = ast.parse(path.read_text("utf-8"))
    return {
        each.value for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


class DocumentTests(SynchronousTestCase):
    """What the document says."""

    def test_options(self) -> None:
        """Every variable and option that is named exists."""
        known = {variable for option in OPTIONS for variable in option.environment}
        known |= {f"ROUTEMASTER_CONSOLE_{name}" for name in OF_BUSES}
        named = set(re.findall(r"ROUTEMASTER_CONSOLE_[A-Z][A-Z_]*[A-Z]", TEXT))
        self.assertGreater(len(named), 5)
        self.assertEqual(named - known, set())
        flags = set(re.findall(r"(?<=\s)--([a-z][a-z-]+)", TEXT.replace("``", " ")))
        others = {"bus", "config", "print-config", "no-healthcheck", "entrypoint"}
        self.assertEqual(flags - {option.flag for option in OPTIONS} - others, set())

    def test_metrics(self) -> None:
        """The metrics that are named are those that are sent."""
        sent = {text for text in constants(HOME / "statsd_push.py") if METRIC.fullmatch(text)}
        self.assertGreater(len(sent), 10)
        self.assertEqual(set(re.findall(rf"``({METRIC.pattern})``", TEXT)) - {"history.sqlite"}, sent)

    def test_log_lines(self) -> None:
        """Every log line at level warning and above is described."""
        found = []
        for path in sorted(HOME.glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                first = next((each for each in node.args if isinstance(each, ast.Constant)), None)
                called = ast.unparse(node)
                loud = re.search(r"_log\.(warn|error|critical|failure)", called)
                if loud and first is not None and "_log" in ast.unparse(node.func) + called.partition(",")[0]:
                    found.append(str(first.value))
        self.assertGreater(len(found), 5)
        for line in found:
            constant = max(re.split(r"\{.*?\}", line.partition(": {")[0]), key=len).strip(" ,:;")
            self.assertIn(constant, TEXT, line)


class UnitTests(SynchronousTestCase):
    """The unit of systemd."""

    def test_starts(self) -> None:
        """With a bus in its settings and a key among its credentials, the command line is valid."""
        credentials = Path(self.mktemp())
        credentials.mkdir()
        (credentials / "main-monitor-key").write_text("watcher--1")
        given = [value for name, value in directives(UNIT, "Service") if name == "Environment"]
        environment = {
            name: value.replace("%S", "/var/lib") for name, value in (each.split("=", 1) for each in given)
        }
        settings = {
            "ROUTEMASTER_CONSOLE_BUSES": "main=https://bus.example.com", "CREDENTIALS_DIRECTORY": str(credentials)
        }  # fmt: skip
        config = load({}, environment | settings, None)
        self.assertEqual(str(config.state_dir), "/var/lib/routemaster-console")
        command = dict(directives(UNIT, "Service"))["ExecStart"].split()
        self.assertEqual(command[1:], ["-n", "routemaster-console"])
        self.assertIn("bus=", Options().longOpt)

    def test_same_sandbox(self) -> None:
        """It has the sandbox of the bus's unit."""
        own = ("Exec", "Env", "Timeout", "LimitNOFILE", "State", "Working", "User", "IPAddressDeny")
        console, bus = (
            [pair for pair in directives(unit, "Service") if not pair[0].startswith(own)]
            for unit in (UNIT, UNITS[0])
        )
        self.assertEqual(console, bus)

    def test_exposure(self) -> None:
        """systemd-analyze security rates the exposure at most 2.2 of 10: it may reach all addresses."""
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("systemd-analyze is not here")
        done = subprocess.run(
            [program, "security", "--offline=true", "--no-pager", UNIT], text=True, capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"}, check=False,
        )  # fmt: skip
        found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
        if found is None:
            raise SkipTest(f"this systemd-analyze cannot: {done.stderr[:200]}")
        self.assertLessEqual(float(found[1]), 2.2)
