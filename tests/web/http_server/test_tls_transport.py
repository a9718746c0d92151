"""TLS of a connection, with a client in memory: what may be sent before a handshake, turns, memory."""

from __future__ import annotations

import contextlib
import gc
import ssl
import tempfile
import time
import weakref
from typing import Any, ClassVar

from twisted.protocols.tls import TLSMemoryBIOProtocol

from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
from routemaster.web.http_server.body_writer import Whole
from routemaster.web.http_server.tls_transport import KEPT, MAX_HANDSHAKE, MAX_HELLO, PIECE, complete_records
from tests.web.wire import CHUNKED, PUBLISH, Case, Transport, Wire, get, post


class Below(Transport):
    """The transport below TLS."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Client:
    """A client and its connection to a site."""

    tls: ClassVar[Any] = None

    def __init__(self, wire: Wire) -> None:
        if Client.tls is None:
            Client.tls = ReloadableTLS(*ensure_self_signed(tempfile.mkdtemp(), time.time())[:2])
        self.clock = wire.clock
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = context.wrap_bio(self._in, self._out)
        self.server: Any = Client.tls.wrap(wire.site).buildProtocol(wire.peer)
        self.transport = Below(wire.peer)
        self.transport.channel = self.server
        self.server.makeConnection(self.transport)

    def written(self) -> bytes:
        """What the client has to send."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._client.do_handshake()
        return self._out.read()

    def read(self) -> None:
        """Read what the server has written."""
        self._in.write(self.transport.value())
        self.transport.clear()

    def shake_hands(self) -> None:
        for _ in range(2):
            self.server.dataReceived(self.written())
            self.read()
        assert self.server._handshakeDone

    def send(self, data: bytes) -> None:
        self._client.write(data)
        self.server.dataReceived(self._out.read())

    def lose(self) -> None:
        """Lose the connection, as a socket does."""
        self.transport.lose()


class HandshakeTests(Case):
    """Before and during the handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.wire_ = self.wire()
        self.client = Client(self.wire_)

    def state(self) -> bytes:
        """OpenSSL's; empty: there is none."""
        handle = self.client.server.getHandle()
        return b"" if handle is None else handle.get_state_string()  # type: ignore[no-any-return]

    def test_in_bytes(self) -> None:
        """OpenSSL gets nothing of a ClientHello before it is complete; then the connection works."""
        hello, untouched = self.client.written(), self.state()
        for at in range(len(hello) - 1):
            self.client.server.dataReceived(hello[at : at + 1])
        self.assertEqual((self.state(), self.client.transport.value()), (untouched, b""))
        self.client.server.dataReceived(hello[-1:])
        self.assertNotEqual(self.state(), untouched)
        self.client.read()
        self.client.server.dataReceived(self.client.written())
        self.client.send(PUBLISH)
        self.assertEqual(len(self.api.published), 1)

    def test_long(self) -> None:
        """A ClientHello over MAX_HELLO bytes is refused by its first five; one of that size is not."""
        for size, aborted in ((MAX_HELLO, False), (MAX_HELLO + 1, True), (65535, True)):
            client = Client(self.wire_)
            client.server.dataReceived(b"\x16\x03\x01" + size.to_bytes(2, "big"))
            self.assertEqual(client.transport.aborted, aborted)

    def test_records(self) -> None:
        """A handshake in many records is given up after MAX_HANDSHAKE bytes."""
        part = b"\x16\x03\x01\x20\x00" + b"\x01\x01\xff\xff\x03\x03".ljust(MAX_HELLO, b"\0")
        sent = 0
        while not self.client.transport.aborted and not self.client.transport.disconnecting:
            self.client.server.dataReceived(part)
            sent += len(part)
            self.assertLessEqual(sent, MAX_HANDSHAKE + len(part))

    def test_long_first_request(self) -> None:
        """What comes with the end of the handshake is not part of it, however long it is."""
        self.client.server.dataReceived(self.client.written())
        self.client.read()
        finished = self.client.written()
        self.client._client.write(post(b"Content-Length: 60000", body=b"a" * 60000))
        self.client.server.dataReceived(finished + self.client._out.read())
        self.assertEqual([len(each[1]) for each in self.api.published], [60000])

    def test_no_tls(self) -> None:
        """What is no TLS is closed at once."""
        self.client.server.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(self.client.transport.disconnecting)

    def test_turns(self) -> None:
        """A handshake waits while others have used up their time, and is not read on meanwhile."""
        hello, untouched = self.client.written(), self.state()
        self.wire_.site.queue.run(lambda: setattr(self.wire_.clock, "rightNow", 1.0))
        self.client.server.dataReceived(hello)
        self.assertEqual((self.state(), self.client.transport.producerState), (untouched, "paused"))
        self.wire_.clock.advance(0)
        self.assertNotEqual(self.state(), untouched)
        self.assertEqual(self.client.transport.producerState, "producing")

    def test_closed_before(self) -> None:
        """A connection without a ClientHello ends at its deadline, or with its client, without OpenSSL."""
        for end in (lambda client: client.clock.advance(12), lambda client: client.lose()):
            client = Client(self.wire())
            client.server.dataReceived(client.written()[:-1])
            end(client)
            self.assertIsNone(client.server.getHandle())
            below = client.transport
            self.assertTrue(below.disconnecting or below.aborted or not client.server.connected)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_lost_in_the_queue(self) -> None:
        """A connection may be lost while its handshake waits."""
        self.wire_.site.queue.run(lambda: setattr(self.wire_.clock, "rightNow", 1.0))
        self.client.server.dataReceived(self.client.written())
        self.client.lose()
        self.wire_.transport.lose()
        self.wire_.clock.advance(0)
        self.assertEqual((self.flushLoggedErrors(), self.wire_.clock.getDelayedCalls()), ([], []))


class MemoryTests(Case):
    """Memory of a connection."""

    def test_pieces(self) -> None:
        """OpenSSL gets at most PIECE bytes at once, and its buffers are new ones after more than KEPT."""
        client, sizes = Client(self.wire()), []
        client.shake_hands()
        connection, real = client.server.getHandle(), TLSMemoryBIOProtocol.dataReceived

        def spy(server: Any, data: bytes) -> None:
            sizes.append(len(data))
            real(server, data)

        self.patch(TLSMemoryBIOProtocol, "dataReceived", spy)
        self.api.long_body = Whole(b"x" * 60000)
        for request, replaced in (
            (get(b"/hello"), False), (post(b"Content-Length: 60000", body=b"a" * 60000), True),
            (get(b"/long"), True), (get(b"/hello"), False),
        ):  # fmt: skip
            before = connection._into_ssl, connection._from_ssl
            client.send(request)
            client.clock.advance(1)
            after = connection._into_ssl, connection._from_ssl
            self.assertEqual([old is not new for old, new in zip(before, after, strict=True)], 2 * [replaced])
        self.assertEqual(max(sizes), PIECE)
        self.assertEqual([len(each[1]) for each in self.api.published], [60000])

    def test_read_on(self) -> None:
        """What is read from the socket while records are given to OpenSSL comes after them."""
        for known in (False, True):
            client = Client(self.wire())
            client.shake_hands()
            client.server.wrappedProtocol.known = known
            body = bytes(range(1, 251)) * 240
            client._client.write(post(b"Content-Length: 60000", body=body))
            sent = client._out.read()
            rest = [sent[start : start + 40_000] for start in range(0, len(sent), 40_000)]

            def read(server: Any = client.server, rest: list[bytes] = rest) -> None:
                if rest:
                    server.dataReceived(rest.pop(0))

            client.transport.connected, client.transport.doRead = True, read  # type: ignore[attr-defined]
            while rest:
                read()  # as the reactor does
                client.clock.advance(0)
            self.assertEqual((rest, self.api.published.pop()[1] == body), ([], True))

    def test_incomplete_hello(self) -> None:
        """What has come of a ClientHello counts until it is complete."""
        wire = self.wire()
        client = Client(wire)
        hello = b"\x16\x03\x01" + MAX_HELLO.to_bytes(2, "big") + bytes(MAX_HELLO)
        client.server.dataReceived(hello[:KEPT])
        self.assertEqual(wire.site.held.size, 0)
        client.server.dataReceived(hello[KEPT:-1])
        self.assertEqual(wire.site.held.size, len(hello) - 1)
        client.server.dataReceived(hello[-1:])
        self.assertEqual(wire.site.held.size, 0)

    def test_incomplete_record(self) -> None:
        """OpenSSL gets nothing of a record before it is complete; what is kept of it counts until then."""
        wire = self.wire()
        client = Client(wire)
        client.shake_hands()
        client.transport.clear()
        client._client.write(post(b"Content-Length: 9000", body=b"a" * 9000) + get(b"/hello"))
        sent, held = client._out.read(), wire.site.held
        for start in range(0, len(sent), 1500):
            self.assertEqual(self.api.published, [])
            self.assertEqual(held.size, start if start > KEPT else 0)
            client.server.dataReceived(sent[start : start + 1500])
        self.assertEqual((len(self.api.published), held.size), (1, 0))
        client._client.write(PUBLISH)
        client._client.write(b"X" * 5000)
        client.server.dataReceived(client._out.read()[:-1])
        self.assertEqual(len(self.api.published), 2, "a complete record does not wait for the next one")
        self.assertGreater(held.size, 5000)
        client.lose()
        self.assertEqual(held.size, 0)

    def test_records(self) -> None:
        """What cannot be a record is OpenSSL's to refuse; what can be is given when it is complete."""
        record = b"\x17\x03\x03\x00\x02ab"
        for data, complete in (
            (b"", 0), (b"\x17\x03", 0), (record, 7), (record[:-1], 0), (record + record[:6], 7), (2 * record, 14),
            (record + b"GET / HTTP/1.1", 21), (b"\x17\x03\x03\x41\x00", 0), (b"\x17\x03\x03\x41\x01", 5),
            (b"\x13\x03\x03\x00\x02a", 6), (b"\x18\x03\x03\x00\x02a", 6),
        ):  # fmt: skip
            self.assertEqual(complete_records(data), complete, data)

    def test_aborted(self) -> None:
        """No alert is sent when the connection is aborted: it would make what was cut off look complete."""
        client = Client(self.wire())
        client.shake_hands()
        client.transport.clear()
        client.server.abortConnection()
        self.assertEqual(client.transport.value(), b"")

    def test_freed_at_once(self) -> None:
        """A lost connection is free at once, without the collector: TLS, the request, its body or answer."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.addCleanup(gc.collect)
        for data in (
            b"", PUBLISH, PUBLISH[:40], post(b"Content-Length: 300") + b"a" * 299,
            post(CHUNKED, body=b"5\r\naaaaa\r\n"),
            post(CHUNKED, body=b"x\r\n"), get(b"/large"), get(b"/wait"), get(b"/wait") + PUBLISH,
            get(b"/invalid"), get(b"/nowhere"), get(b"/%ff"),
        ):  # fmt: skip
            for paused in (False, True):
                wire = self.wire()
                client = Client(wire)
                client.shake_hands()
                channel = client.server.wrappedProtocol
                if paused:
                    channel.pauseProducing()
                if data:
                    client.send(data)
                handle = client.server.getHandle()
                kept = [weakref.ref(each) for each in (client.server, channel, handle, *channel.requests)]
                del channel, handle
                client.lose()
                wire.site.queue.stop()
                del client.server, client.transport.channel
                client.transport.producer = None  # as Twisted's transports do
                self.api.waiting.clear()
                self.assertEqual([each() for each in kept], [None] * len(kept), (data, paused))
