"""An HTTP server that answers what a test wrote down, and keeps what it was asked; and the real bus, shared."""

from __future__ import annotations

import atexit
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from routemaster_client.testing.real_bus import RealBus

CLOSE = b"close"    #: instead of an answer: the connection is closed
SILENT = b"silent"  #: instead of an answer: nothing comes


@dataclass
class Asked:
    """One request that came."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


def answer(status: int, body: object = None, **headers: object) -> bytes:
    """An answer in HTTP; a body that is not bytes is sent as JSON."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if status != 204:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


class ScriptedServer:
    """Answers the requests in their order, on all connections, with one line of the script each."""

    def __init__(self, *script: bytes | Callable[[], bytes]) -> None:
        self.script: list[Any] = list(script)
        self.asked: list[Asked] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for wire in self._sockets:
            wire.close()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(wire)
            threading.Thread(target=self._serve, args=(wire, len(self._sockets)), daemon=True).start()

    def _serve(self, wire: socket.socket, number: int) -> None:
        with suppress(ConnectionError):
            self._answer(wire, number)

    def _answer(self, wire: socket.socket, number: int) -> None:
        reader = wire.makefile("rb")
        while line := reader.readline().decode().strip():
            headers = {}
            while header := reader.readline().decode().strip():
                name, _, value = header.partition(": ")
                headers[name.lower()] = value
            body = reader.read(int(headers.get("content-length", 0)))
            self.asked.append(Asked(line, headers, body, number))
            what = self.script.pop(0) if self.script else answer(500)
            if what == SILENT:
                continue
            if what == CLOSE:
                wire.shutdown(socket.SHUT_RDWR)
                return
            wire.sendall(what() if callable(what) else what)


def at_end(stop: Callable[[], object]) -> None:
    """Have something stopped when the tests are over."""
    atexit.register(stop)


@cache
def real_bus() -> RealBus:
    """The bus that all tests share; each makes clients of its own."""
    bus = RealBus("--missing-topics", "refuse").start()
    at_end(bus.stop)
    return bus


def unique(counter: Any = iter(range(10**6))) -> str:  # noqa: B008
    """A name that no other test has, for topics and clients."""
    number, letters = next(counter), ""
    while True:
        number, digit = divmod(number, 26)
        letters += chr(97 + digit)
        if not number:
            return f"t_{letters}"
