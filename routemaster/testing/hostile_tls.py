"""Servers whose fault lies in TLS, or below it; for `zoo.ScriptedServer`.

Those of the table `BEFORE_TLS` run on a server without TLS (`options` None): they
get the ClientHello, and answer with whatever bytes they like.
"""

from __future__ import annotations

from OpenSSL import SSL

from routemaster.testing.zoo import Behaviour, Wire

HANDSHAKE, TLS_1_1, TLS_1_2 = 22, b"\x03\x02", b"\x03\x03"
SERVER_HELLO = 2
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
        except SSL.Error:
            wire.reset()  # the client has refused
        wire.transport._flushSendBIO()
        await wire.sleep(0.001)
