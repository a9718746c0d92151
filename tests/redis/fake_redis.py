"""A fake Redis whose replies a test chooses, for errors and interruptions that a real one rarely causes.

It speaks the protocol on a Unix socket or behind any endpoint. `script` maps a
connection (0, 1, 2, ...) and a command to the raw bytes of the reply, to None for
no reply, or to `CLOSE`. `polite` is the script of a healthy server.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import hiredis
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from routemaster.redis.address import RedisAddress

CLOSE = object()
INFO = b"redis_version:7.0.15\r\nrole:master\r\n"
Script = Callable[[int, list[bytes]], Any]


def polite(connection: int, command: list[bytes]) -> bytes:
    """The reply of a healthy server."""
    name = command[0].upper()
    if name == b"INFO":
        return b"$%d\r\n%b\r\n" % (len(INFO), INFO)
    if name == b"SCRIPT":
        return b"$2\r\nab\r\n"
    if name == b"SUBSCRIBE":
        return b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
    return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"


class _Server(Protocol):
    def __init__(self, fake: FakeRedis, number: int) -> None:
        self._fake, self._number, self._reader = fake, number, hiredis.Reader()
        self.open = True

    def connectionLost(self, reason: Any) -> None:
        self.open = False

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self._fake.received(self._number, command)
            reply = self._fake.script(self._number, command)
            if reply is CLOSE:
                self.transport.loseConnection()
                return
            if reply is not None:
                self.transport.write(reply)


class FakeRedis(Factory):
    """See above; `seen` holds (connection, command) for each command that arrived."""

    noisy = False

    def __init__(self, script: Script = polite) -> None:
        self.script = script
        self.directory = tempfile.mkdtemp(prefix="rm-")
        self.address = RedisAddress(path=f"{self.directory}/s")
        self.seen: list[tuple[int, list[bytes]]] = []
        self.servers: list[_Server] = []
        self._awaited: list[tuple[bytes, Deferred[int]]] = []
        self._port: Any = None

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    async def listen(self, reactor: Any, endpoint: Any = None) -> None:
        self._port = await (endpoint or UNIXServerEndpoint(reactor, self.address.path)).listen(self)

    async def stop(self) -> None:
        for server in [server for server in self.servers if server.open]:
            server.transport.abortConnection()
        await self._port.stopListening()
        shutil.rmtree(self.directory)

    def buildProtocol(self, addr: Any) -> _Server:
        self.servers.append(_Server(self, len(self.servers)))
        return self.servers[-1]

    def received(self, connection: int, command: list[bytes]) -> None:
        self.seen.append((connection, command))
        for name, fired in list(self._awaited):
            if command[0].upper() == name:
                self._awaited.remove((name, fired))
                fired.callback(connection)

    def next(self, name: bytes) -> Deferred[int]:
        """Fires with the connection on which the next command `name` arrives."""
        self._awaited.append((name, Deferred()))
        return self._awaited[-1][1]
