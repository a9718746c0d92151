"""A real bus in a process of its own, for tests, where the server is installed (`routemaster`, extra `embedded`).

    with RealBus() as bus, bus.client("shop") as shop:
        shop.created("orders", "https://shop.example.com/orders/1")
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from routemaster_client.blocking import Client

_RUN = "from twisted.scripts.twistd import run; run()"
_PORT = re.compile(r"HTTPS on .*:(\d+)$", re.MULTILINE)
PATIENCE = 60.0  #: seconds for the start


class RealBus:
    """A bus with a Redis of its own, in a temporary folder; `options` are added to its command line.

    The variable BUS_PYTHON may name the Python in which the server is installed, if it is another than this one.

    Attributes:
        url: where it listens. ca_file: the certificate to trust.
        root_key: its root key.
    """

    root_key = "root-key-of-tests"

    def __init__(self, *options: str) -> None:
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="rm-"))
        self.ca_file = str(self._folder / "localhost.crt")
        self.url = ""
        self._log: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> RealBus:
        """Start it, and return when it accepts requests; RuntimeError with its log if it does not."""
        ready = threading.Event()
        python = os.environ.get("BUS_PYTHON", sys.executable)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROUTEMASTER_")}
        command = [python, "-c", _RUN, "-n", "routemaster", "--state-dir", str(self._folder),
                   "--https", "tcp:0:interface=127.0.0.1", "--root-key", self.root_key, "--clients", "demo",
                   *self._options]  # fmt: skip
        self._process = subprocess.Popen(  # noqa: S603
            command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process, ready), daemon=True).start()
        found = ready.wait(PATIENCE) and _PORT.search(self.log)
        if not found:
            self.stop()
            raise RuntimeError(f"the bus did not start:\n{self.log}")
        self.url = f"https://localhost:{found[1]}"
        return self

    @property
    def log(self) -> str:
        """What it has logged."""
        return "".join(self._log)

    def client(self, name: str, **options: Any) -> Client:
        """A client with a new token of this name."""
        with self.root() as root:
            token = root.add_token(name)
        return Client(self.url, token, ca_file=self.ca_file, **options)

    def root(self) -> Client:
        """A client with the root key."""
        return Client(self.url, self.root_key, ca_file=self.ca_file)

    def stop(self) -> None:
        """Stop it and remove its data."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RealBus:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None  # noqa: S101
        with process.stdout as lines:
            for line in lines:
                self._log.append(line)
                if "Routemaster is ready" in line:
                    ready.set()
        ready.set()
