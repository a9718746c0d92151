"""Files for operators match the code, and a restart behind systemd's socket loses no connection."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from configparser import ConfigParser
from http.client import HTTPSConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import routemaster
from routemaster.config import OPTIONS, load
from routemaster.metrics.catalogue import METRICS
from routemaster.tap import Options

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "operations.rst"
UNITS = [DEPLOY / "routemaster.service", DEPLOY / "routemaster-worker@.service"]
METRIC_PREFIXES = (
    "authentication|events|redis|jobs|subscriber|delivery|latency|metrics|publications|connections|polls|streams|"
    "certificate|http|reactor|log"
)
VARIABLE = re.compile(r"\b(?:ROUTEMASTER|METRIC|DATADOG|EXCEPTION|MAX)_[A-Z_]+\b")
PATIENCE = 30.0  #: seconds


def directives(unit: Path, section: str) -> list[tuple[str, str]]:
    """The directives in a section of a unit, in order; names may repeat."""
    found, here = [], ""
    for line in unit.read_text("utf-8").splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        elif here == section and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((name, value))
    return found


#: programs apart from the bus, with documents of their own
APART = {"testing", "cli", "client", "receiver", "console"}


def modules(*without: str) -> Iterator[ast.Module]:
    """The bus's own modules, without these modules or packages."""
    home = Path(routemaster.__file__).parent
    for path in sorted(home.rglob("*.py")):
        if APART.union(without).isdisjoint(path.relative_to(home).with_suffix("").parts):
            yield ast.parse(path.read_text("utf-8"), str(path))


def metric_names() -> set[str]:
    """The names of metrics in the code."""
    name = re.compile(rf"({METRIC_PREFIXES})\.[a-z0-9_.]+|process|leases|workers|build_info")
    files = {"redis.log", "redis.pid", "redis.sock"}
    return {
        node.value
        for tree in modules("catalogue", "tracing")  # attributes of spans have names of their own
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and name.fullmatch(node.value)
    } - files


def complaints() -> Iterator[str]:
    """The formats of all log lines at level warning and above in the code."""
    for tree in modules():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            loud = node.func.attr in ("warn", "error", "critical", "failure", "failuresHandled")
            first = node.args[0]
            if loud and "log" in ast.unparse(node.func.value) and isinstance(first, ast.Constant):
                yield first.value


class OperationsTests(SynchronousTestCase):
    """docs/operations.rst matches the code."""

    def setUp(self) -> None:
        self.text = " ".join(OPERATIONS.read_text("utf-8").split())

    def test_metrics(self) -> None:
        """Every metric is documented."""
        names = metric_names()
        self.assertGreater(len(names), 20)
        self.assertEqual({name for name in names if f"``{name}``" not in self.text}, set())

    def test_no_other_metrics(self) -> None:
        """Every documented metric exists."""
        named = set(re.findall(rf"``((?:{METRIC_PREFIXES})\.[a-z0-9_.]+)``", self.text))
        self.assertEqual(named - metric_names() - {"redis.log", "events.oldest"}, set())

    def test_meanings_of_metrics(self) -> None:
        """Every metric has a help text for Prometheus, and no other name has; special names are documented."""
        self.assertEqual(metric_names(), METRICS.keys())
        names = {f"routemaster_{each.name}" for each in METRICS.values() if each.name}
        documented = set(re.findall(r"``(routemaster_[a-z0-9_]+)``", self.text))
        self.assertEqual({name for name in names if {name, f"{name}_total"}.isdisjoint(documented)}, set())

    def test_log_lines(self) -> None:
        """Every log line at level warning and above is documented."""
        formats = list(complaints())
        self.assertGreater(len(formats), 20)
        for each in formats:
            constant = max(re.split(r"\{.*?\}", each.partition(": {")[0]), key=len).strip(" ,:;'(")
            self.assertIn(constant[:24].rstrip(), self.text, each)

    def test_options(self) -> None:
        """Every documented variable and option exists."""
        known = {variable for option in OPTIONS for variable in option.environment}
        self.assertEqual(set(VARIABLE.findall(self.text)) - known, set())

    def test_commands(self) -> None:
        """Every documented subcommand of routemaster-admin exists."""
        from routemaster.cli.command_line import parser

        help_text = parser().format_help()
        for command in set(re.findall(r"routemaster-admin ([a-z]+)", self.text)):
            self.assertIn(command, help_text)


class UnitTests(SynchronousTestCase):
    """The units of systemd."""

    def test_options(self) -> None:
        """The units set existing options to valid values."""
        for unit in UNITS:
            given = [value for name, value in directives(unit, "Service") if name == "Environment"]
            environment = dict(each.partition("=")[::2] for each in given)
            ours = {name: value for name, value in environment.items() if name != "ROLE"}
            config = load({}, {name: value.replace("%S", "/var/lib") for name, value in ours.items()}, None)
            self.assertEqual(str(config.state_dir), "/var/lib/routemaster")

    def test_command(self) -> None:
        """The command line is valid, and runs twistd in the foreground."""
        for unit, role in zip(UNITS, ("all", "worker"), strict=True):
            command = dict(directives(unit, "Service"))["ExecStart"].replace("${ROLE}", "all").split()
            self.assertEqual(command[1:3], ["-n", "routemaster"])
            options = Options()
            options.parseOptions([*command[3:], "--redis-url", "redis://h"])
            self.assertEqual(options.config.role, role)

    def test_time_to_stop(self) -> None:
        """systemd's stop timeout is longer than the shutdown may take; the start may wait for Redis forever."""
        config = load({}, {}, None)
        longest = config.drain_delay + config.grace
        for unit, redis in zip(UNITS, (30, 0), strict=True):
            service = dict(directives(unit, "Service"))
            self.assertGreater(int(service["TimeoutStopSec"]), longest + redis)
            self.assertEqual(service["TimeoutStartSec"], "infinity")
            self.assertEqual((service["KillMode"], service["Type"]), ("mixed", "notify"))

    def test_descriptors(self) -> None:
        """The limit of file descriptors is enough for all connections that the options allow."""
        config = load({}, {}, None)
        for unit in UNITS:
            limit = int(dict(directives(unit, "Service"))["LimitNOFILE"])
            self.assertGreater(limit, config.max_connections + config.max_open_deliveries + 1000)

    def test_same_sandbox(self) -> None:
        """The unit for workers has the same sandbox."""
        one, other = (
            [pair for pair in directives(unit, "Service") if not pair[0].startswith(("Exec", "Env", "Timeout"))]
            for unit in UNITS
        )
        self.assertEqual(one, other)

    def test_exposure(self) -> None:
        """systemd-analyze security rates the exposure at most 2.0 of 10."""
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("systemd-analyze is not here")
        for unit in UNITS:
            done = subprocess.run([program, "security", "--offline=true", "--no-pager", unit], text=True,
                                  capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"}, check=False)
            found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
            if found is None:
                raise SkipTest(f"this systemd-analyze cannot: {done.stderr[:200]}")
            self.assertLessEqual(float(found[1]), 2.0)

    def test_socket(self) -> None:
        """The socket unit is well-formed, and of the family that the endpoint names."""
        ini = ConfigParser(interpolation=None)
        ini.optionxform = str  # type: ignore[assignment,method-assign]
        ini.read(DEPLOY / "routemaster.socket")
        self.assertRegex(ini["Socket"]["ListenStream"], r"^\d+(\.\d+){3}:\d+$")
        self.assertIn("domain=INET:", dict(directives(UNITS[0], "Service"))["Environment"] + UNITS[0].read_text())


#: does what systemd does between fork and exec
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="routemaster.socket")
twistd = "from twisted.scripts.twistd import run; run()"
os.execv(sys.executable, [sys.executable, "-c", twistd, *sys.argv[2:]])
"""


class RestartTests(SynchronousTestCase):
    """A bus with an inherited port and a notify socket, as systemd starts it."""

    def setUp(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="rm"))
        self.addCleanup(shutil.rmtree, self.place)
        self.port = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.addCleanup(self.port.close)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(str(self.place / "notify"))
        self.manager.settimeout(PATIENCE)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a bus, and wait for READY=1."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.place),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NOTIFY_SOCKET": str(self.place / "notify"),
            "WATCHDOG_USEC": "1000000",
            "ROUTEMASTER_HTTPS": "systemd:domain=INET:index=0",
            "ROUTEMASTER_STATE_DIR": str(self.place / "state"),
            "ROUTEMASTER_LOG_FILE": str(self.place / "log"),
            "METRIC_COLLECTION_SERVICE": "none",
        }
        child = subprocess.Popen([sys.executable, "-c", _ACTIVATE, str(self.port.fileno()), "-n", "routemaster"],
                                 env=environment, cwd=self.place, pass_fds=[self.port.fileno()],
                                 stderr=subprocess.DEVNULL)  # fmt: skip
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        try:
            self.hear(b"READY=1")
        except TimeoutError:
            log = self.place / "log"
            self.fail(f"not ready: {log.read_text('utf-8') if log.exists() else 'no log'}")
        return child

    def hear(self, wanted: bytes) -> list[bytes]:
        """All messages up to one that contains the word."""
        said = [self.manager.recv(100)]
        while said[-1] != wanted:
            said.append(self.manager.recv(100))
        return said

    def publish_until(self, enough: Event, statuses: list[Any]) -> None:
        """Publish repeatedly, each time over a new connection; record the results."""
        trust = ssl.create_default_context(cafile=str(self.place / "state" / "localhost.crt"))
        body = json.dumps({"type": "noop", "url": "https://a.example/1"})
        while not enough.is_set():
            connection = HTTPSConnection("localhost", self.port.getsockname()[1], timeout=PATIENCE, context=trust)
            try:
                headers = {"Authorization": "Basic ZGVtbzo=", "Connection": "close"}
                connection.request("POST", "/topics/cats", body, headers)
                statuses.append(connection.getresponse().status)
            except OSError as error:
                statuses.append(error)
            finally:
                connection.close()

    def test_restart_under_load(self) -> None:
        """During a restart under load no connection is refused or reset: all responses are 204."""
        bus = self.start()
        self.assertIn(b"WATCHDOG=1", self.hear(b"WATCHDOG=1"))
        enough, statuses = Event(), []
        clients = [Thread(target=self.publish_until, args=(enough, statuses)) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            for _ in range(2):
                self.more_than(len(statuses) + 20, statuses)
                bus.send_signal(signal.SIGTERM)
                self.hear(b"STOPPING=1")
                self.assertEqual(bus.wait(PATIENCE), 0)
                bus = self.start()
            self.more_than(len(statuses) + 20, statuses)
        finally:
            enough.set()
            for client in clients:
                client.join()
        bus.send_signal(signal.SIGTERM)
        self.assertEqual(bus.wait(PATIENCE), 0)
        self.assertEqual([status for status in statuses if status != 204], [])

    def more_than(self, number: int, statuses: list[Any]) -> None:
        """Wait for this number of responses."""
        limit = time.monotonic() + PATIENCE
        while len(statuses) < number and time.monotonic() < limit:
            time.sleep(0.01)
        self.assertGreaterEqual(len(statuses), number, statuses[-3:])
