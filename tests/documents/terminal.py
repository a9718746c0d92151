"""Terminals in which a reader types what the documents say: bash, in a home folder and a clone of one's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.system.test_system import free_port, until
from tests.test_docs import ROOT

#: ports of the documents: of the bus, of the receiver in `examples`, of the console
PORTS = ("17890", "17891", "17892")
#: what only a longer life of a reader needs
SHORTER = {"wait=10000": "wait=300"}
PATIENCE = 30.0  #: seconds for what ought to take one or two
#: a session of its own, so that Ctrl-C reaches all that runs in it, and nothing else
BASH = "import os, sys; os.setsid(); os.execvp('bash', ['bash', *sys.argv[1:]])"


class Terminal(ProcessProtocol):
    """A bash. It reads what is typed; or it runs one command, and is gone when that ends."""

    transport: Any = None

    def __init__(self) -> None:
        self.shown = ""
        self.status: int | None = None

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.shown += data.decode("utf-8", "replace")

    def processEnded(self, reason: Failure) -> None:
        how: Any = reason.value
        self.status = -how.signal if how.signal else how.exitCode

    async def type(self, line: str) -> str:
        """Type a line, and return what it has shown when it is done."""
        seen, mark = len(self.shown), "=== done ==="
        self.transport.write(f"{line}\necho '{mark}'\n".encode())
        await until(lambda: mark in self.shown[seen:] or self.status is not None, f"the end of {line}", PATIENCE)
        return self.shown[seen:].partition(mark)[0]

    async def shows(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Wait until it shows something; AssertionError with all that it shows, if it does not."""
        search = re.compile(pattern).search
        try:
            await until(lambda: search(self.shown, since) or self.status is not None, pattern, PATIENCE)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in:\n{self.shown}") from None
        found = search(self.shown, since)
        if found is None:
            raise AssertionError(f"no {pattern!r}, and status {self.status} in:\n{self.shown}")
        return found

    async def interrupt(self) -> None:
        """Ctrl-C, and wait for the end."""
        if self.status is None:
            os.killpg(self.transport.pid, signal.SIGINT)
            await until(lambda: self.status is not None, "the end after Ctrl-C", PATIENCE)

    async def end(self) -> None:
        """Be gone, for the clean-up."""
        if self.status is None:
            try:
                os.killpg(self.transport.pid, signal.SIGTERM)
            except ProcessLookupError:  # it has no session of its own yet
                self.transport.signalProcess("KILL")
            await until(lambda: self.status is not None, "the end", PATIENCE)


class TerminalCase(TestCase):
    """A clone with an installation in `venv`, as README says, a home folder, and ports that are free."""

    timeout = 300

    def setUp(self) -> None:
        for program in ("bash", "curl"):
            if shutil.which(program) is None:
                self.skipTest(f"{program} is not installed")
        # the path of a Unix socket is short: not below trial's own directory
        self.place = Path(tempfile.mkdtemp(prefix="rm-"))
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)
        self.home, self.clone = self.place / "home", self.place / "clone"
        self.home.mkdir()
        self.clone.mkdir()
        for name, target in (("venv", sys.prefix), ("examples", ROOT / "examples"), ("clients", ROOT / "clients")):
            (self.clone / name).symlink_to(target)
        self.ports = {port: str(free_port()) for port in PORTS}
        self.environment = {
            "HOME": str(self.home), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}", "COLUMNS": "200",
            "ROUTEMASTER_HTTPS": f"tcp:{self.ports['17890']}:interface=127.0.0.1",
            "ROUTEMASTER_PUBLIC_URL": f"https://localhost:{self.ports['17890']}",
            "ROUTEMASTER_CONSOLE_HTTPS": f"tcp:{self.ports['17892']}:interface=127.0.0.1",
        }  # fmt: skip

    def adapted(self, text: str) -> str:
        """What a document says, with the ports of this case, and waits that are shorter."""
        for before, after in (self.ports | SHORTER).items():
            text = text.replace(before, after)
        return text.replace("receiver.py --", f"receiver.py --port {self.ports['17891']} --")

    def terminal(self, command: str = "") -> Terminal:
        """One that reads what is typed; or, with a command, one that runs it until Ctrl-C."""
        made = Terminal()
        arguments = ["-c", self.adapted(command)] if command else ["-s"]
        program = [sys.executable, "-c", BASH, *arguments]
        reactor.spawnProcess(made, sys.executable, program, env=self.environment, path=str(self.clone))
        self.addCleanup(lambda: Deferred.fromCoroutine(made.end()))
        return made
