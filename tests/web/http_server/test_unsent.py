"""What the peer's TCP has not taken, on real connections with and without TLS."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.threads import deferToThread

from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
from routemaster.web.http_server.unsent import unsent
from tests.web.http_server.test_open_answers import Feed
from tests.web.test_tls import NOW, Client, ServerCase

REQUEST = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
PART = b"x" * 1024 * 1024
AMOUNT = 16  #: parts: more than the buffers of both sides hold


class PlainClient(Client):
    """The same without TLS."""

    def connect(self) -> Client:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=20)  # type: ignore[assignment]
        return self


class UnsentTests(ServerCase):
    """`unsent`, by the outlet of an open answer."""

    async def count(self, client: Client) -> None:
        """Nothing is unsent, but while the client does not read, and when it resets the connection."""
        self.addCleanup(client.close)
        await deferToThread(client.connect)
        assert client.socket is not None
        await deferToThread(client.socket.sendall, REQUEST)
        await self.until(lambda: self.pending)
        feed = Feed()
        body: Any = feed
        self.pending.pop().callback(body)
        await deferToThread(client.socket.recv, 65536)
        await self.until(lambda: feed.outlet.unsent == 0)
        feed.add(*[PART] * AMOUNT)
        await self.until(lambda: len(feed.parts) < AMOUNT and feed.outlet.unsent > 0)
        self.assertGreater(feed.outlet.unsent, 65536)
        await deferToThread(self.read, client.socket, AMOUNT * len(b"100000\r\n" + PART + b"\r\n"))
        await self.until(lambda: feed.outlet.unsent == 0)
        while not feed.outlet.unsent:  # until the client's buffer is full, and some is in the kernel's here
            feed.add(b"x" * 10_000)
            await self.until(lambda: not feed.parts)
        # what the reactor does not know yet: the client's reset has emptied the kernel's buffer
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        self.assertGreater(feed.outlet.unsent, 0)
        self.assertFalse(feed.over)
        await self.until(lambda: feed.over)

    def read(self, connected: socket.socket, count: int) -> None:
        while count > 0:
            count -= len(connected.recv(1 << 20))

    async def test_tls(self) -> None:
        """Over TLS."""
        certificate, key, _ = ensure_self_signed(self.mktemp(), NOW)
        await self.serve(ReloadableTLS(certificate, key))
        await self.count(Client(self.port))

    async def test_plain(self) -> None:
        """Over TCP alone."""
        await self.serve(None)
        await self.count(PlainClient(self.port))

    def test_no_socket(self) -> None:
        """Without a socket only the buffers here count."""

        class Transport:
            dataBuffer, offset, _tempDataLen = b"0123456789", 3, 5

        self.assertEqual(unsent(Transport()), 12)

    def test_lost(self) -> None:
        """What was written to a connection that is lost counts as unsent, though no buffer has it any more."""

        class Transport:
            connected, dataBuffer, offset, _tempDataLen = 0, b"", 0, 0

        self.assertEqual(unsent(Transport()), 1)

    def test_unix(self) -> None:
        """On a Unix socket what the peer has not read is unsent, still when it closes without reading it."""

        class Transport:
            dataBuffer, offset, _tempDataLen = b"", 0, 0
            socket: Any

        transport = Transport()
        transport.socket, peer = socket.socketpair()
        self.addCleanup(transport.socket.close)
        for read in (True, False):
            transport.socket.sendall(b"x" * 1000)
            self.assertGreater(unsent(transport), 0)
            if read:
                peer.recv(1000)
                self.assertEqual(unsent(transport), 0)
        peer.close()
        self.assertGreater(unsent(transport), 0)
