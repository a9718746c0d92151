"""Connections of a port begin and end a few at a time."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from routemaster.util.work_queue import STEP, WorkQueue
from routemaster.web.http_server.port_turns import ACCEPTS, take_turns


class Server(Protocol):
    """Notes what happens to it."""

    def __init__(self, ended: list[Server]) -> None:
        self.begun: Deferred[None] = Deferred()
        self.ended, self.received = ended, b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.begun.called:
            self.begun.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.append(self)


class PortTurnsTests(TestCase):
    """`take_turns`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = WorkQueue(self.clock)
        self.servers: list[Server] = []
        self.ended: list[Server] = []
        factory: Any = Factory()
        factory.buildProtocol = self.build
        self.port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        assert IListeningPort.providedBy(self.port)
        take_turns(self.port, self.queue)
        self.addCleanup(self.port.stopListening)

    def build(self, _: object) -> Server:
        self.servers.append(Server(self.ended))
        return self.servers[-1]

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        self.addCleanup(client.close)
        client.send(b"x")
        return client

    async def lose(self, count: int) -> None:
        """Have so many clients leave, and the reactor notice it."""
        clients = [self.connect() for _ in range(count)]
        while len(self.servers) < count:
            self.port.doRead()
        for server in self.servers:
            await server.begun
        for client in clients:
            client.close()
        while any(server.transport.connected for server in self.servers):
            await deferLater(reactor, 0, lambda: None)  # type: ignore[arg-type]

    def test_accepts(self) -> None:
        """In one iteration of the reactor at most ACCEPTS connections are accepted, however many have come."""
        for _ in range(4 * ACCEPTS):
            self.connect()
        for turn in range(1, 4):
            self.port.doRead()
            self.assertEqual(len(self.servers), turn * ACCEPTS)
        for server in self.servers:
            server.transport.abortConnection()

    async def test_at_once(self) -> None:
        """Where nothing waits, a lost connection ends at once."""
        await self.lose(1)
        self.assertEqual(self.ended, self.servers)

    async def test_ends(self) -> None:
        """Lost connections wait for their turn, and meanwhile write nothing; each ends once."""
        self.queue.run(lambda: setattr(self.clock, "rightNow", 10 * STEP))
        await self.lose(3)
        self.assertEqual(self.ended, [])
        for server in self.servers:
            server.transport.write(b"too late")
            server.transport.loseConnection()
            server.transport.abortConnection()
        await deferLater(reactor, 0, lambda: None)  # type: ignore[arg-type]
        self.assertEqual(self.ended, [])
        self.clock.advance(0)
        self.assertEqual(self.ended, self.servers)
