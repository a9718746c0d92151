"""Servers whose fault lies in TLS, or below it; for `zoo.ScriptedServer`.

Those of the table `BEFORE_TLS` run on a server without TLS (`options` None): they
get the ClientHello, and answer with whatever bytes they like.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL
from twisted.internet import ssl

from routemaster.testing.zoo import LOOPBACK, Behaviour, Wire

HANDSHAKE, TLS_1_1, TLS_1_2 = 22, b"\x03\x02", b"\x03\x03"
SERVER_HELLO, HELLO_REQUEST = 2, b"\0\0\0\0"
AES_SHA = b"\xc0\x14"  #: ECDHE-RSA-AES256-SHA, which TLS 1.1 knows, too

BEFORE_TLS: dict[str, Behaviour] = {}


def before_tls(behaviour: Behaviour) -> Behaviour:
    """Enter a behaviour in the table under its name."""
    BEFORE_TLS[behaviour.__name__] = behaviour
    return behaviour


def record(version: bytes, content: bytes, length: int | None = None) -> bytes:
    """A record of the handshake, which may announce another length than it has."""
    announced = len(content) if length is None else length
    return bytes([HANDSHAKE]) + version + announced.to_bytes(2, "big") + content


def server_hello(version: bytes) -> bytes:
    """The server's first message, which chooses this version."""
    content = version + bytes(32) + b"\0" + AES_SHA + b"\0"
    return bytes([SERVER_HELLO]) + len(content).to_bytes(3, "big") + content


@before_tls
async def no_handshake(wire: Wire) -> None:
    """Takes the ClientHello and says nothing."""
    await wire.hang()


@before_tls
async def speaks_plain_http(wire: Wire) -> None:
    """Answers plain HTTP."""
    await wire.more()
    wire.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await wire.hang()


@before_tls
async def stops_in_handshake(wire: Wire) -> None:
    """Sends a part of its first message, and no more."""
    await wire.more()
    wire.write(record(TLS_1_2, server_hello(TLS_1_2)[:20], 100))
    await wire.hang()


@before_tls
async def drips_handshake(wire: Wire) -> None:
    """Sends its first message a byte at a time."""
    await wire.more()
    for byte in record(TLS_1_2, server_hello(TLS_1_2)[:20] + bytes(16_000)):
        wire.write(bytes([byte]))
        await wire.sleep(0.005)


@before_tls
async def closes_in_handshake(wire: Wire) -> None:
    """Closes when the ClientHello has come."""
    await wire.more()
    wire.transport.loseConnection()


@before_tls
async def resets_in_handshake(wire: Wire) -> None:
    """Resets when the ClientHello has come."""
    await wire.more()
    wire.transport.abortConnection()


@before_tls
async def chooses_tls_1_1(wire: Wire) -> None:
    """Chooses TLS 1.1, which was not offered."""
    await wire.more()
    wire.write(record(TLS_1_1, server_hello(TLS_1_1)))
    await wire.hang()


@before_tls
async def speaks_first(wire: Wire) -> None:
    """A mail server."""
    wire.write(b"220 mail.example.com ESMTP\r\n")
    await wire.hang()


async def renegotiates(wire: Wire) -> None:
    """With TLS 1.2: takes the request, and wants a new handshake before it answers, again and again."""
    await wire.request()
    tls: SSL.Connection = wire.transport.getHandle()
    while True:
        tls.renegotiate()
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:  # the client has refused; a reset might reach it before the alert
            wire.transport._flushSendBIO()
            wire.cut()
            return
        wire.transport._flushSendBIO()
        await wire.sleep(0.001)


#: For a server whose `OwnRecords` are used.
AES_GCM: dict[str, Any] = {
    "lowerMaximumSecurityTo": ssl.TLSVersion.TLSv1_2,
    "acceptableCiphers": ssl.AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AES128+AESGCM"),
}


class OwnRecords:
    """Encrypts what a server sends, and so sends what OpenSSL would not (RFC 5246, RFC 5288)."""

    def __init__(self, tls: SSL.Connection) -> None:
        """`tls`: with a handshake by `AES_GCM`, after which it has sent nothing."""
        seed = b"key expansion" + (tls.server_random() or b"") + (tls.client_random() or b"")
        secret, link, block = tls.master_key() or b"", seed, b""
        while len(block) < 40:  # two keys, then two salts: the client's, the server's
            link = hmac.digest(secret, link, "sha256")
            block += hmac.digest(secret, link + seed, "sha256")
        self._cipher, self._salt = AESGCM(block[16:32]), block[36:40]
        self._sent = 1  # the last message of the handshake

    def encrypt(self, kind: int, content: bytes) -> bytes:
        """A record of this kind."""
        number = self._sent.to_bytes(8, "big")
        self._sent += 1
        head = bytes([kind]) + TLS_1_2
        authenticated = number + head + len(content).to_bytes(2, "big")
        sealed = number + self._cipher.encrypt(self._salt + number, content, authenticated)
        return head + len(sealed).to_bytes(2, "big") + sealed


async def requests_handshakes(wire: Wire) -> None:
    """With `AES_GCM`: takes the request, and wants a new handshake without end, whatever the client says to it."""
    await wire.request()
    records, transport = OwnRecords(wire.transport.getHandle()), wire.transport.transport
    transport.pauseProducing()  # what the client answers is not read
    for _ in range(100_000):
        transport.write(b"".join(records.encrypt(HANDSHAKE, HELLO_REQUEST) for _ in range(100)))
        await wire.sleep(0)


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
