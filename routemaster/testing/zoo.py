"""HTTPS servers for tests of HTTP clients: one that records requests, and one that does whatever a test says.

`HttpsSink` answers by script and records its requests. `ScriptedServer` plays a
behaviour, a coroutine over a `Wire`, on each connection; those that violate HTTP
are in `hostile_answers` and `odd_answers`, those that violate TLS in `hostile_tls`.
All listen on 127.0.0.1, on a port of the system's choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import GeneralName
from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

LOOPBACK = "127.0.0.1"

_log = Logger()


class Authority:
    """A certificate authority for tests."""

    def __init__(self) -> None:
        import trustme

        self._ca = trustme.CA()

    def write(self, path: Path) -> Path:
        """Write the root to `path` (PEM), for a client's `ca_file`."""
        self._ca.cert_pem.write_to_path(str(path))
        return path

    def certificate(self, *names: str, **options: Any) -> Any:
        """A certificate with its key, as trustme makes them."""
        return self._ca.issue_cert(*names, **options)

    def write_pair(self, certificate: Path, private_key: Path, name: str = "bus.example") -> None:
        """Write a certificate for `name` and its key (PEM)."""
        leaf = self.certificate(name)
        certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        private_key.write_bytes(leaf.private_key_pem.bytes())

    def issue(
        self,
        *names: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        **options: Any,
    ) -> ssl.CertificateOptions:
        """A server's certificate for `names` (default: loopback), and further `CertificateOptions`."""
        leaf = self.certificate(*(names or (LOOPBACK, "localhost")), not_before=not_before, not_after=not_after)
        chain = [crypto.load_certificate(crypto.FILETYPE_PEM, pem.bytes()) for pem in leaf.cert_chain_pems]
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, leaf.private_key_pem.bytes())
        return ssl.CertificateOptions(
            privateKey=key, certificate=chain[0], extraCertChain=chain[1:], **options
        )


def certificate(
    names: list[GeneralName] | None, common_name: str = "receiver", **options: Any
) -> ssl.CertificateOptions:
    """A self-signed certificate with exactly these names in its subjectAltName; None: it has no such extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return ssl.CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(key),
        certificate=crypto.X509.from_cryptography(builder.sign(key, hashes.SHA256())),
        **options,
    )


class Gone(Exception):
    """The peer has closed the connection."""


@frozen
class Received:
    """One request, as received."""

    connection: int              #: number of the connection, from 1
    line: bytes                  #: the request line
    headers: dict[bytes, bytes]  #: names in lower case
    body: bytes
    raw: bytes = field(repr=False)  #: the head, byte for byte


class Wire(Protocol):
    """One connection on the server's side; a behaviour writes any bytes to it."""

    transport: Any

    def __init__(self, server: ScriptedServer, number: int) -> None:
        self.server = server
        self.number = number
        self.sent = 0  #: bytes written
        self._buffer = b""
        self._waiting: Deferred[None] | None = None
        self._gone = False
        self._play: Deferred[None] | None = None

    def connectionMade(self) -> None:
        self.server.wires.add(self)
        self._play = Deferred.fromCoroutine(self.server.behaviour(self))
        self._play.addErrback(self._over)

    def dataReceived(self, data: bytes) -> None:
        self.server.heard += len(data)
        self._buffer += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._gone = True
        self.server.lost(self)
        self._wake()
        if self._play is not None:
            self._play.cancel()

    def _over(self, failure: Failure) -> None:
        if not isinstance(failure.value, (Gone, CancelledError)):
            _log.failure("a behaviour of the zoo failed", failure=failure)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def more(self) -> None:
        """Wait for further bytes; raises `Gone`."""
        if self._gone:
            raise Gone
        self._waiting = Deferred()
        await self._waiting
        if self._gone:
            raise Gone

    async def request(self) -> Received:
        """Read one whole request; raises `Gone`."""
        while b"\r\n\r\n" not in self._buffer:
            await self.more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (entry.partition(b":") for entry in fields)
        }
        length = int(headers.get(b"content-length", b"0"))
        while len(rest) < length:
            await self.more()
            rest = self._buffer.partition(b"\r\n\r\n")[2]
        self._buffer = rest[length:]
        received = Received(self.number, line, headers, rest[:length], head)
        self.server.received.append(received)
        return received

    def write(self, data: bytes) -> None:
        """Send bytes; raises `Gone`."""
        if self._gone:
            raise Gone
        self.sent += len(data)
        self.transport.write(data)

    async def sleep(self, seconds: float) -> None:
        """Let time pass; raises `Gone`."""
        await deferLater(self.server.reactor, seconds)
        if self._gone:
            raise Gone

    def close(self) -> None:
        """Close properly: close_notify, then FIN."""
        self.transport.loseConnection()

    def cut(self) -> None:
        """Close without a word of TLS: what was written, then FIN."""
        self.transport._aggregator.flush()
        self.transport.transport.loseConnection()

    def notify(self) -> None:
        """Send close_notify, and keep the connection."""
        self.transport._aggregator.flush()
        self.transport.getHandle().shutdown()
        self.transport._flushSendBIO()

    def reset(self) -> None:
        """Close with RST."""
        self.transport.transport.abortConnection()

    async def hang(self) -> None:
        """Keep the connection, do nothing, until the peer closes it."""
        await Deferred()


Behaviour = Callable[[Wire], Coroutine[Deferred[Any], Any, None]]


class ScriptedServer(Factory):
    """A TLS server on loopback which plays one behaviour on each connection."""

    noisy = False

    def __init__(self, reactor: Any, options: ssl.CertificateOptions | None, behaviour: Behaviour) -> None:
        self.reactor = reactor
        self.behaviour = behaviour
        self.received: list[Received] = []
        self.connections = 0         #: accepted so far
        self.heard = 0               #: bytes inside TLS
        self.wires: set[Wire] = set()  #: open now
        self._empty: list[Deferred[None]] = []
        if options is None:
            self._port = reactor.listenTCP(0, self, interface=LOOPBACK)
        else:
            self._port = reactor.listenSSL(0, self, options, interface=LOOPBACK)

    @property
    def port(self) -> int:
        """Where it listens."""
        number: int = self._port.getHost().port
        return number

    @property
    def url(self) -> str:
        """A callback."""
        return self.url_for(LOOPBACK)

    def url_for(self, host: str) -> str:
        """A callback on another name of loopback."""
        return f"https://{host}:{self.port}/callback"

    def buildProtocol(self, addr: object) -> Wire:
        self.connections += 1
        return Wire(self, self.connections)

    def lost(self, wire: Wire) -> None:
        """Called by a wire whose connection ended."""
        self.wires.discard(wire)
        if not self.wires:
            empty, self._empty = self._empty, []
            for waiting in empty:
                waiting.callback(None)

    async def empty(self) -> None:
        """Wait until no connection is open: the client has closed them all."""
        if self.wires:
            waiting: Deferred[None] = Deferred()
            self._empty.append(waiting)
            await waiting

    async def close_port(self) -> None:
        """Accept no further connection."""
        closing = self._port.stopListening()
        if closing is not None:
            await closing

    async def stop(self) -> None:
        """Close port and connections."""
        await self.close_port()
        for wire in tuple(self.wires):
            wire.transport.abortConnection()
        await self.empty()


@frozen
class Answer:
    """What a sink answers."""

    status: int = 204
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0  #: seconds before it

    def encode(self) -> bytes:
        """The answer as bytes."""
        fields = [*self.headers]
        if self.status != 204:
            fields.append(("Content-Length", str(len(self.body))))
        head = f"HTTP/1.1 {self.status} Scripted\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        return head.encode("latin-1") + b"\r\n" + self.body


class HttpsSink(ScriptedServer):
    """A well-behaved receiver: records every request, answers what the script says, then `default`."""

    def __init__(
        self, reactor: Any, options: ssl.CertificateOptions, *script: Answer, default: Answer | None = None
    ) -> None:
        self.script = deque(script)
        self.default = default or Answer()
        super().__init__(reactor, options, self._serve)

    async def _serve(self, wire: Wire) -> None:
        while True:
            await wire.request()
            answer = self.script.popleft() if self.script else self.default
            if answer.delay:
                await wire.sleep(answer.delay)
            wire.write(answer.encode())


def demand_certificate(
    options: ssl.CertificateOptions, roots: Path | None = None, required: bool = True
) -> ssl.CertificateOptions:
    """A server that wants a client's certificate, issued by the `roots` (PEM); None: it accepts none.

    Unless it is `required`, a client without one is accepted.
    """
    context: SSL.Context = options.getContext()
    if roots is not None:
        context.load_verify_locations(str(roots))
    demanded = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0
    context.set_verify(SSL.VERIFY_PEER | demanded, lambda *verified: roots is not None and bool(verified[-1]))
    return options
