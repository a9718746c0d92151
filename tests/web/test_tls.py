"""TLS and the site on loopback: versions, ciphers, reloads, full buffers and resets."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, TestCase

from routemaster.errors import ConfigError
from routemaster.util.work_queue import WorkQueue
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed
from routemaster.web.http_server.places import Places
from routemaster.web.http_server.site import BusSite, Limits
from routemaster.web.klein_resource import BusApp

NOW = time.time()
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client:
    """A blocking TLS client for a thread, which allows all versions and ciphers."""

    def __init__(self, port: int, *, verify: Path | None = None, name: str = "localhost", **wishes: Any) -> None:
        self.port, self.name = port, name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = verify is not None
        if verify is None:
            self.context.verify_mode = ssl.CERT_NONE
            self.context.set_ciphers("ALL:@SECLEVEL=0")
        else:
            self.context.load_verify_locations(verify)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # calling for old versions is deprecated, refusing them is not
            for wish, value in wishes.items():
                if wish in ("minimum_version", "maximum_version"):
                    setattr(self.context, wish, value)
                else:
                    getattr(self.context, wish)(value)
        self.socket: ssl.SSLSocket | None = None

    def connect(self) -> Client:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        try:
            self.socket = self.context.wrap_socket(plain, server_hostname=self.name)
        except BaseException:
            plain.close()
            raise
        return self

    def call(self, data: bytes = GET) -> bytes:
        """The first part of the answer to a request."""
        assert self.socket is not None
        self.socket.sendall(data)
        return self.socket.recv(65536)

    def read_all(self) -> bytes:
        assert self.socket is not None
        data = b""
        while more := self.socket.recv(65536):
            data += more
        return data

    def certificate(self) -> bytes | None:
        assert self.socket is not None
        return self.socket.getpeercert(binary_form=True)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


class ServerCase(TestCase):
    """A site with TLS on a port of loopback."""

    timeout = 60

    async def serve(self, tls: ReloadableTLS | None, limits: Limits | None = None, clock: Any = reactor) -> None:
        app = BusApp()
        self.pending: list[Deferred[bytes]] = []
        app.route("/hello", endpoint="hello")(lambda request: b"hello")
        app.route("/large", endpoint="large")(lambda request: b"x" * 300_000)
        app.route("/wait", endpoint="wait")(lambda request: self.pending.append(Deferred()) or self.pending[-1])
        self.site = BusSite(app.resource(), reactor=clock, limits=limits)
        self.site.queue = WorkQueue(reactor)
        self.addCleanup(self.site.queue.stop)
        factory = self.site if tls is None else tls.wrap(self.site)
        self.listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.port = self.listening.getHost().port
        self.addCleanup(self.stop, self.site, self.listening)

    def stop(self, site: BusSite, listening: Any) -> Any:
        for channel in list(site._channels):
            channel.transport.abortConnection()
        stopped = listening.stopListening() or succeed(None)
        return stopped.addCallback(lambda _: self.until(lambda: site.live == 0))

    async def client(self, **wishes: Any) -> Client:
        client = Client(self.port, **wishes)
        self.addCleanup(client.close)
        return await deferToThread(client.connect)

    def until(self, condition: Callable[[], object]) -> Any:
        """Fires when the condition is true."""
        if condition():
            return succeed(None)
        return deferLater(reactor, 0.005, self.until, condition)


class TLSTests(ServerCase):
    """Versions, ciphers, ALPN, reloads."""

    async def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.certificate, self.key, _ = ensure_self_signed(self.directory, NOW)
        self.tls = ReloadableTLS(self.certificate, self.key)
        await self.serve(self.tls)

    async def test_verified(self) -> None:
        """A client with the certificate as its only root verifies localhost and its addresses."""
        for name in ("localhost", "127.0.0.1", "::1"):
            client = await self.client(verify=self.certificate, name=name)
            self.assertIn(b"hello", await deferToThread(client.call))
        with self.assertRaises(ssl.SSLCertVerificationError):
            await self.client(verify=self.certificate, name="bus.example.com")

    async def test_curl(self) -> None:
        """`curl --cacert` accepts the certificate."""
        curl = shutil.which("curl")
        if curl is None:
            raise SkipTest("there is no curl here")
        command = ["-sS", "--max-time", "20", "--cacert", str(self.certificate), f"https://127.0.0.1:{self.port}/hello"]
        out, error, code = await getProcessOutputAndValue(curl, command, env={"PATH": os.environ["PATH"]})
        self.assertEqual((out, error, code), (b"hello", b"", 0))

    async def test_matrix(self) -> None:
        """TLS 1.2 and 1.3 with forward-secret AEAD ciphers succeed; all other handshakes fail."""
        old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
        only_12 = {"minimum_version": old, "maximum_version": old}
        good, bad = ("AES128-GCM-SHA256", "CHACHA20-POLY1305"), ("AES128-SHA", "AES128-SHA256", "AES128-CCM")
        strong = [f"ECDHE-ECDSA-{rest}" for rest in good]
        weak = [f"ECDHE-ECDSA-{rest}" for rest in bad] + ["kRSA", "DHE", "aNULL"]
        for version, wishes in [
            ("TLSv1.3", {}),
            ("TLSv1.3", {"minimum_version": new}),
            ("TLSv1.2", {"maximum_version": old}),
            *(("TLSv1.2", {**only_12, "set_ciphers": cipher + ":@SECLEVEL=0"}) for cipher in strong),
        ]:
            client = await self.client(**wishes)
            assert client.socket is not None
            self.assertEqual(client.socket.version(), version)
            self.assertIsNone(client.socket.compression())
        for wishes in [
            {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1},
            {"minimum_version": ssl.TLSVersion.TLSv1_1, "maximum_version": ssl.TLSVersion.TLSv1_1},
            *({**only_12, "set_ciphers": cipher + ":@SECLEVEL=0"} for cipher in weak),
        ]:
            with self.assertRaises(ssl.SSLError) as caught:
                await self.client(**wishes)
            self.assertIn("alert", str(caught.exception), wishes)  # the server refused
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_alpn(self) -> None:
        """ALPN selects HTTP/1.1 if it is offered, and otherwise no protocol."""
        for offered, chosen in [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None)]:
            client = await self.client(set_alpn_protocols=offered)
            assert client.socket is not None
            self.assertEqual(client.socket.selected_alpn_protocol(), chosen)
            self.assertIn(b"HTTP/1.1 200", await deferToThread(client.call))

    async def test_no_renegotiation(self) -> None:
        """Renegotiation in TLS 1.2 is refused."""

        def renegotiate() -> None:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            # A socket with a timeout does not block, and OpenSSL would need repeated calls.
            with socket.create_connection(("127.0.0.1", self.port)) as plain:
                client = SSL.Connection(context, plain)
                client.set_connect_state()
                client.do_handshake()
                client.renegotiate()
                client.do_handshake()
                client.send(GET)
                client.recv(1000)

        with self.assertRaises(SSL.Error) as caught:
            await deferToThread(renegotiate)
        self.assertIn("no renegotiation", str(caught.exception))

    async def test_no_tls(self) -> None:
        """Plain HTTP or random bytes on the TLS port close the connection and log no error."""

        def speak(data: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                plain.sendall(data)
                received = b""
                try:
                    while more := plain.recv(1000):
                        received += more
                except ConnectionError:
                    pass
                return received

        for data in (GET, b"\x00" * 5000, b"\x16\x03\x01" + b"\xff" * 20000, bytes(range(256)) * 100):
            self.assertNotIn(b"HTTP", await deferToThread(speak, data))
        await self.until(lambda: self.site.live == 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_reload(self) -> None:
        """After a reload new connections use the new certificate, and open connections stay open."""
        before = await self.client()
        self.assertIn(b"hello", await deferToThread(before.call))
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.assertIn(b"hello", await deferToThread(before.call))
        self.tls.reload()
        self.assertIn(b"hello", await deferToThread(before.call))
        root = self.directory / "root.pem"
        root.write_bytes(authority.cert_pem.bytes())
        after = await self.client(verify=root)
        self.assertNotEqual(before.certificate(), after.certificate())
        self.assertIn(b"hello", await deferToThread(after.call))

    async def test_reload_of_rubbish(self) -> None:
        """An invalid new pair is rejected, and the old certificate stays in use."""
        self.key.write_bytes(b"rubbish")
        with self.assertRaises(ConfigError):
            self.tls.reload()
        client = await self.client()
        expected = x509.load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(Encoding.DER)
        self.assertEqual(client.certificate(), expected)

    async def test_disconnect(self) -> None:
        """A disconnect cancels the handler."""
        client = await self.client()
        assert client.socket is not None
        client.socket.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.until(lambda: self.pending)
        client.close()
        await self.until(lambda: self.pending[0].called)
        await self.until(lambda: self.site.live == 0)

    async def test_drain(self) -> None:
        """Draining closes an idle connection, and a current request gets its answer."""
        self.site.limits = Limits(closing=1000.0)
        idle, busy = await self.client(), await self.client()
        self.assertIn(b"hello", await deferToThread(idle.call))
        calling = deferToThread(busy.call, b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.until(lambda: self.pending)
        await self.listening.stopListening()
        drained = Deferred.fromCoroutine(self.site.drain(30))
        self.assertEqual(await deferToThread(idle.read_all), b"")
        await self.until(lambda: self.site.live == 1)  # without the close_notify of the client
        self.pending[0].callback(b"at last")
        answer = await calling
        self.assertIn(b"Connection: close", answer)
        self.assertIn(b"at last", answer)
        busy.close()
        await drained
        self.assertEqual(self.site.live, 0)


class NetworkTests(ServerCase):
    """Full buffers and resets, with a clock of the test."""

    async def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        certificate, key, _ = ensure_self_signed(self.directory, NOW)
        self.tls = ReloadableTLS(certificate, key)
        self.clock = Clock()

    async def test_slow_reader(self) -> None:
        """A client that sends many requests and reads nothing is aborted after 30 s."""
        for tls in (self.tls, None):
            await self.serve(tls, clock=self.clock)
            client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
            self.addCleanup(client.close)
            if tls is not None:
                context = Client(self.port).context
                client = await deferToThread(context.wrap_socket, client)
                self.addCleanup(client.close)
            client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
            await self.until(lambda: self.site.live == 1)
            (channel,) = self.site._channels


            def waits(channel: Any = channel) -> bool:
                self.clock.advance(0)  # a turn of the body writer
                return bool(channel._waitingForTransport)

            await self.until(waits)
            self.assertGreater(len(channel._inbox), 0)
            self.clock.pump([1] * 28)
            self.assertEqual(self.site.live, 1)
            self.clock.pump([1] * 4)
            await self.until(lambda: self.site.live == 0)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_large_answers(self) -> None:
        """A client that reads receives every byte, however often the buffers fill, and then the close."""
        for tls in (self.tls, None):
            await self.serve(tls)

            def fetch(tls: ReloadableTLS | None = tls) -> int:
                with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                    client = plain if tls is None else Client(self.port).context.wrap_socket(plain)
                    client.sendall(
                        b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
                        + b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    )
                    total = 0
                    while more := client.recv(65536):
                        total += more.count(b"x")
                    if tls is not None:
                        client.unwrap()  # type: ignore[attr-defined]
                    return total

            # No head holds a small x.
            self.assertEqual(await deferToThread(fetch), 21 * 300_000)

    async def test_refusal_arrives(self) -> None:
        """A client that reads only when it has sent its whole body receives the answer that refuses it."""
        for tls, size in ((self.tls, 30_000), (None, 30_000), (self.tls, 4_000_000), (None, 4_000_000)):
            await self.serve(tls)

            def upload(tls: ReloadableTLS | None = tls, size: int = size) -> bytes:
                with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
                    client = plain if tls is None else Client(self.port).context.wrap_socket(plain)
                    client.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n")
                    client.sendall(b"x" * size)
                    return client.recv(65536)

            self.assertIn(b"413", (await deferToThread(upload)).split(b"\r\n")[0])
            await self.until(lambda: self.site.live == 0)

    async def test_stalled_handshake(self) -> None:
        """A connection with an incomplete TLS handshake is closed after 10 s."""
        await self.serve(self.tls, clock=self.clock)
        stalled = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        self.addCleanup(stalled.close)
        stalled.sendall(b"\x16\x03\x01\x02\x00")
        await self.until(lambda: self.site.live == 1)
        self.clock.pump([1] * 9)
        self.assertEqual(self.site.live, 1)
        self.clock.pump([1] * 2)
        await self.until(lambda: self.site.live == 0)

    async def test_connection_cap(self) -> None:
        """A connection over the limit is closed before the TLS handshake."""
        await self.serve(self.tls, Limits(places=Places(1)))
        first = await self.client()
        self.site.keep(*self.site._channels)
        self.assertIn(b"hello", await deferToThread(first.call))
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            await self.client()
        self.assertIn(b"hello", await deferToThread(first.call))
