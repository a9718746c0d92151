"""HTTPS servers for tests of HTTP clients: one that records requests, and many that violate HTTP or TLS.

`HttpsSink` answers by script and records its requests. `ScriptedServer` runs one
of the behaviours in `ZOO`, a table by name: each is a coroutine over a `Wire`,
one for each connection. A few faults lie below TLS (`silent_port`, `black_hole`)
or in the certificate (`Authority.issue`). All listen on 127.0.0.1, on a port of the system's choice.

The module is longer than 350 lines because it is a table: most of it is one
short entry for each behaviour.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
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


def certificate(names: list[GeneralName] | None, common_name: str = "receiver") -> ssl.CertificateOptions:
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


# The behaviours, by name.

ZOO: dict[str, Behaviour] = {}


def in_zoo(behaviour: Behaviour) -> Behaviour:
    """Enter a behaviour in the table under its name."""
    ZOO[behaviour.__name__] = behaviour
    return behaviour


def says(name: str, answer: bytes, *, close: bool = False) -> None:
    """Enter a behaviour which says this to each request, to the letter."""

    async def say(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.write(answer)
            if close:
                wire.close()

    ZOO[name] = say


@in_zoo
async def silent(wire: Wire) -> None:
    """Takes the request and says nothing."""
    await wire.request()
    await wire.hang()


@in_zoo
async def dripped_head(wire: Wire) -> None:
    """A head, a byte at a time."""
    await wire.request()
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1_000_000:
        wire.write(bytes([byte]))
        await wire.sleep(0.005)


@in_zoo
async def endless_head(wire: Wire) -> None:
    """A head without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        wire.write(b"X-More: more and more\r\n" * 500)
        await wire.sleep(0)


@in_zoo
async def long_line(wire: Wire) -> None:
    """One header line without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        wire.write(b"x" * 10_000)
        await wire.sleep(0)


@in_zoo
async def endless_interim(wire: Wire) -> None:
    """1xx for ever."""
    await wire.request()
    while True:
        wire.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        await wire.sleep(0)


@in_zoo
async def interim_then_done(wire: Wire) -> None:
    """A harmless one: 100, 103, then the answer."""
    await wire.request()
    wire.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 N")
    await wire.sleep(0)
    wire.write(b"o Content\r\n\r\n")
    await wire.hang()


@in_zoo
async def dripped_body(wire: Wire) -> None:
    """200, and a body, a byte at a time."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
    while True:
        wire.write(b".")
        await wire.sleep(0.005)


@in_zoo
async def endless_body(wire: Wire) -> None:
    """200, chunks without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        await wire.sleep(0)


@in_zoo
async def endless_small_chunks(wire: Wire) -> None:
    """200, chunks of one byte without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"1\r\nx\r\n" * 2000)
        await wire.sleep(0)


@in_zoo
async def endless_small_records(wire: Wire) -> None:
    """200, chunks of one byte without end, each in a TLS record of its own."""
    await wire.request()
    wire.transport._write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        for _ in range(500):
            wire.transport._write(b"1\r\nx\r\n")
        await wire.sleep(0)


@in_zoo
async def endless_refusal(wire: Wire) -> None:
    """500, a body without end and a byte at a time."""
    await wire.request()
    wire.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"1\r\nx\r\n")
        await wire.sleep(0.005)


@in_zoo
async def cut_in_length(wire: Wire) -> None:
    """200, FIN in the middle of the body."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    wire.close()


@in_zoo
async def reset_in_length(wire: Wire) -> None:
    """200, RST in the middle of the body."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await wire.sleep(0.02)
    wire.reset()


@in_zoo
async def cut_in_chunks(wire: Wire) -> None:
    """200, closed before the last chunk."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    wire.close()


@in_zoo
async def closed_at_end(wire: Wire) -> None:
    """No length, ended with close_notify."""
    await wire.request()
    wire.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
    wire.close()


@in_zoo
async def closed_without_notify(wire: Wire) -> None:
    """No length, ended by FIN alone."""
    await wire.request()
    wire.write(b"HTTP/1.0 200 OK\r\n\r\nall of it?")
    wire.cut()


@in_zoo
async def late_body_behind_204(wire: Wire) -> None:
    """204, and a body that nobody announced in a TLS record of its own."""
    while True:
        await wire.request()
        wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        wire.transport._flushSendBIO()
        wire.write(b"ok")


@in_zoo
async def stray_bytes(wire: Wire) -> None:
    """204, and an unasked acknowledgement right behind it."""
    await wire.request()
    wire.write(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    await wire.hang()


@in_zoo
async def closes_on_reuse(wire: Wire) -> None:
    """Answers the first request, closes when the second has come."""
    await wire.request()
    wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    await wire.more()
    wire.close()


@in_zoo
async def resets_on_reuse(wire: Wire) -> None:
    """Answers the first request, resets when the second has come."""
    await wire.request()
    wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    await wire.more()
    wire.reset()


@in_zoo
async def closes_before_answer(wire: Wire) -> None:
    """Closes instead of answering."""
    await wire.request()
    wire.close()


@in_zoo
async def closes_while_reading(wire: Wire) -> None:
    """Reads the beginning of a request, then closes without an answer, as servers with a limit do."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.cut()


@in_zoo
async def refuses_while_reading(wire: Wire) -> None:
    """Reads the beginning of a request, answers 413 and closes."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhuge")
    wire.cut()


@in_zoo
async def refuses_and_reads_no_more(wire: Wire) -> None:
    """Reads the beginning of a request, answers 413, and keeps the connection."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nhuge")
    await wire.hang()


@in_zoo
async def never_reads(wire: Wire) -> None:
    """TLS, then not another byte is read."""
    wire.transport.pauseProducing()
    await wire.hang()


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

#: Answers that a browser reads although they are not exact; their connection is not used again.
LENIENT = (
    "bare_lf", "some_bare_lf", "folded", "space_before_colon", "length_and_chunks", "chunks_in_1_0",
    "spaces_around_size", "lf_in_chunks", "lf_in_trailers", "no_end_of_trailers", "body_behind_204",
    "announced_behind_204", "late_body_behind_204", "closed_at_end", "closed_without_notify",
    "identity_coding", "two_codings", "unknown_coding", "empty_length", "length_no_number", "same_lengths",
    "version_in_lower_case", "version_2", "spaces_in_status_line", "empty_line_before_status",
    "empty_lines_after_interim", "line_without_colon",
)  # fmt: skip

says("switches", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
says("gzip_bomb", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")
says("says_close", b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok")
says("chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nokay\r\n0\r\n\r\n")
says("bare_lf", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
says("some_bare_lf", b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok")
says("folded", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length:\r\n\t2\r\n\r\nok")
says("space_before_colon", b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok")
says("length_and_chunks", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
says("chunks_in_1_0", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
says("spaces_around_size", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b" 2 \r\nok\r\n0  \r\n\r\n")
says("lf_in_chunks", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\nok\n0\n\n")
says("lf_in_trailers", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\nX: y\n\r\n")
says("no_end_of_trailers", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n", close=True)
says("body_behind_204", b"HTTP/1.1 204 No Content\r\n\r\nok")
says("announced_behind_204", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n")
says("identity_coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok")
says("two_codings", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
says("unknown_coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", close=True)
says("empty_length", b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", close=True)
says("length_no_number", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", close=True)
says("same_lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2, 2\r\n\r\nok")
says("version_in_lower_case", b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
says("version_2", b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
says("spaces_in_status_line", b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok")
says("empty_line_before_status", b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
says("empty_lines_after_interim", b"HTTP/1.1 100 Continue\r\n\r\n\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
says("line_without_colon", b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 2\r\n\r\nok")
says("long_head", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok")
says("old_version", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")

#: Answers that no browser reads, or that have two meanings: none may count as an acknowledgement.
MALFORMED: dict[str, bytes] = {
    "underscore": b"HTTP/1.1 2_00 OK\r\nContent-Length: 0\r\n\r\n",
    "plus": b"HTTP/1.1 +200 OK\r\nContent-Length: 0\r\n\r\n",
    "zero": b"HTTP/1.1 0200 OK\r\nContent-Length: 0\r\n\r\n",
    "shoutcast": b"ICY/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "CR in value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\nx",
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
    "mail": b"220 mail.example.com ESMTP\r\n",
    "ssh": b"SSH-2.0-OpenSSH\r\n",
}


async def silent_port(wire: Wire) -> None:
    """Without TLS (`ScriptedServer(reactor, None, ...)`): accepts, and stalls the handshake."""
    await wire.hang()


async def plain_http(wire: Wire) -> None:
    """Without TLS: answers plain HTTP to whatever comes."""
    await wire.more()
    wire.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await wire.hang()


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose connections are never made: a backlog of none, and full."""
    listener = socket.socket()
    crowd: list[socket.socket] = []
    try:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        for _ in range(3):
            crowd.append(socket.socket())
            crowd[-1].setblocking(False)
            crowd[-1].connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
    finally:
        for each in (listener, *crowd):
            each.close()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses, and which nobody else gets meanwhile (bound, not listening)."""
    holder = socket.socket()
    try:
        holder.bind((LOOPBACK, 0))
        yield holder.getsockname()[1]
    finally:
        holder.close()


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
