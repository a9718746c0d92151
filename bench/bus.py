"""A bus started as in operation, for benchmarks: starting, loading and measuring it."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from load import Result, run

HERE = Path(__file__).parent
URL = "https://www.example.com/things/%07d"


def free_port() -> int:
    """An unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Bus:
    """A running daemon and what a client needs to talk to it; of another checkout if its Python is named."""

    def __init__(
        self, *options: str, clients: int = 1, python: str = sys.executable, customize: str = ""
    ) -> None:  # fmt: skip
        """`customize`: Python that the daemon runs before it starts (a `sitecustomize`)."""
        self._python, self._checkout = python, HERE.parent
        if python != sys.executable:
            find = [python, "-c", "import routemaster; print(routemaster.__path__[0])"]
            self._checkout = Path(subprocess.check_output(find, cwd="/", text=True, env={}).strip()).parent
        self.tokens = [f"client{number}" for number in range(clients)]
        self._folder = tempfile.TemporaryDirectory()
        self.state = Path(self._folder.name)
        (self.state / "sitecustomize.py").write_text(customize)
        self.port = free_port()
        self._children: list[subprocess.Popen[Any]] = []
        self.log = (self.state / "log").open("w+")
        self._options = options
        self.start()
        self._await()

    def start(self) -> None:
        """Begin the daemon, and return at once."""
        # another checkout may not have the option
        unlimited = ("--max-connections-per-address", "0") if self._python == sys.executable else ()
        self.process = subprocess.Popen(
            [
                str(Path(self._python).with_name("twistd")), "-n", "routemaster",
                "--state-dir", str(self.state), "--https", f"tcp:{self.port}:interface=127.0.0.1:backlog=1024",
                "--log-level", "WARNING", *unlimited, *self._options,
            ],
            cwd=self._checkout, stdout=self.log, stderr=self.log,
            env={
                **os.environ, "ROUTEMASTER_CLIENTS": ",".join(self.tokens),
                "PYTHONPATH": f"{self._checkout}:{self.state}",
            },
        )  # fmt: skip

    def stop(self) -> None:
        """Stop the daemon with SIGTERM."""
        self.process.terminate()
        self.process.wait()

    def _await(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if self.call("GET", "/pulse") == 204:
                    return
            except OSError:
                time.sleep(0.05)
        self.log.seek(0)
        raise SystemExit(f"the bus did not start:\n{self.log.read()}")

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        self.stop()
        self._folder.cleanup()

    def call(self, method: str, path: str, body: object = None, client: int = 0, read: bool = False) -> Any:
        """One request on a connection of its own: the status, or the answer's JSON."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=unverified(), timeout=30)
        credential = base64.b64encode(f"{self.tokens[client]}:".encode()).decode()
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Authorization": f"Basic {credential}"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return json.loads(text) if read else answer.status

    def request(self, events: int = 1, topic: str = "things", data: object = None, client: int = 0) -> bytes:
        """A whole raw request that publishes so many events."""
        one = {"type": "update", "url": URL % 42, "timestamp": 1234567890123, "data": data}
        body = json.dumps(one if events == 1 else [one] * events).encode()
        credential = base64.b64encode(f"{self.tokens[client]}:".encode())
        return (
            b"POST /topics/%b HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n"
            b"Authorization: Basic %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        ) % (topic.encode(), credential, len(body), body)

    def sink(self, limit: int = 0) -> int:
        """The port of a subscriber in a process of its own; it may read only so many bytes a second."""
        pair = [str(self.state / f"localhost.{kind}") for kind in ("crt", "key")]
        command = [sys.executable, str(HERE / "sink.py"), *pair, str(limit)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._children.append(child)
        assert child.stdout is not None
        return int(child.stdout.readline())

    def subscribe(
        self, port: int, client: int = 0, topics: Sequence[str] = ("things",), **options: object
    ) -> None:
        body = {"topics": topics, "callback": f"https://localhost:{port}/events", **options}
        assert self.call("POST", "/subscription", body, client) == 204

    def queued(self) -> int:
        return sum(one["events"]["queued"] for one in self.call("GET", "/subscriptions", read=True))

    def load(self, requests: Sequence[bytes], seconds: float, connections: int = 16) -> Result:
        """Load from a process of its own, as clients would."""
        result = run("127.0.0.1", self.port, requests, connections=connections, seconds=seconds)
        assert set(result.statuses) == {204}, result.statuses
        return result

    def pids(self) -> list[int]:
        """The daemon and its Redis."""
        return [self.process.pid, int((self.state / "redis" / "redis.pid").read_text())]


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def seen(port: int) -> dict[str, Any]:
    """The counts of a sink."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=unverified())
    connection.request("GET", "/")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory; VmHWM is the most that it was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def play(doc: str | None, figures: Sequence[Callable[[bool], None]]) -> None:
    """The command line of a benchmark: measure the figures that are named, or all, each by its function's name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds each: to see that it works")
    parser.add_argument("figures", nargs="*", help="which ones; all if none is named")
    options = parser.parse_args()
    known = {figure.__name__: figure for figure in figures}
    for name in options.figures or known:
        print(f"{name}: {known[name].__doc__}", flush=True)
        known[name](options.quick)
