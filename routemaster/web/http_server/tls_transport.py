"""TLS of one connection: Twisted's, with limits on what a client can have the bus hold and compute.

OpenSSL takes 15 kB for a connection and 40 kB more for a handshake, and keeps a ClientHello of up to 128 KiB. So
the ClientHello, one record of at most `MAX_HELLO` bytes, is collected here first, and the handshakes of all
connections take turns (`WorkQueue`): their computations are the most expensive thing that a stranger can ask for.
A handshake of which more than `MAX_HANDSHAKE` bytes have come is given up.

What has been received of an incomplete record waits here, too: OpenSSL takes 17 kB from its first byte on. And
memory BIOs never shrink: after a burst they are replaced, so that it does not stay in memory for as long as the
connection is open.

An exception of OpenSSL has a traceback, which refers to the connection: without it, the connection is free as
soon as it is lost.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from OpenSSL._util import ffi, lib
from OpenSSL.SSL import WantReadError
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import BaseProtocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface.declarations import implementer

from routemaster.util.write_now import write_now

MAX_HELLO = 8192       #: bytes of the record with the ClientHello; with post-quantum keys it has about 2,000
MAX_HANDSHAKE = 32768  #: bytes of an incomplete handshake
PIECE = 16384          #: bytes given to OpenSSL at once
KEPT = 1024            #: bytes that a BIO may have had when it is kept
MAX_RECORD = PIECE + 256  #: bytes of a record's content (RFC 8446 section 5.2)
_RECORD = 5            #: bytes before a record's content: type, version, length
_HANDSHAKE = 22
_TYPES = range(20, 24)


def complete_records(data: bytes) -> int:
    """The bytes of the complete records at the beginning; all bytes if what follows is no record."""
    at = 0
    while len(data) - at >= _RECORD:
        size = int.from_bytes(data[at + 3 : at + _RECORD], "big")
        if data[at] not in _TYPES or size > MAX_RECORD:
            return len(data)  # OpenSSL's to refuse
        if at + _RECORD + size > len(data):
            break
        at += _RECORD + size
    return at


@implementer(ITCPTransport, IPushProducer)
class ServerTLS(TLSMemoryBIOProtocol):
    """See above; its factory has a `queue`, and counts in `held` what is kept of incomplete records."""

    factory: Any
    transport: Any
    wrappedProtocol: Any
    _tlsConnection: Any = None  # until the handshake begins
    _received = b""      # not yet given to OpenSSL
    _complete = 0        # bytes of it that are complete records
    _handshake_size = 0
    _queued = False
    _feeding = False
    _greeted = False     # the ClientHello is complete
    _holds = False       # counted in `held`
    _grown = True        # the BIOs have had more than is kept, as in each handshake

    def makeConnection(self, transport: Any) -> None:
        """As Twisted does it, but without OpenSSL and the transport's interfaces: to declare these takes long."""
        self._appSendBuffer: list[bytes] = []
        BaseProtocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        self.wrappedProtocol.makeConnection(self)

    def dataReceived(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if self._handshakeDone and not self._queued:
            self._feed()
            return
        self._handshake_size += len(data)
        if not self._may_greet():
            self.abortConnection()
        elif not self._greeted:
            self._count()
        elif not self._queued:
            self._queued = True
            self.transport.pauseProducing()
            self.factory.queue.run(self._go_on, begins=self._tlsConnection is None)

    def _may_greet(self) -> bool:
        """Notice when the ClientHello is complete; false if it is too long."""
        start = self._received[:_RECORD]
        if self._greeted or len(start) < _RECORD:
            return True
        size = int.from_bytes(start[3:], "big")
        if start[0] == _HANDSHAKE and size > MAX_HELLO:
            return False
        # what is no handshake at all is OpenSSL's to refuse
        self._greeted = start[0] != _HANDSHAKE or len(self._received) >= _RECORD + size
        return True

    def _go_on(self) -> None:
        """It is this connection's turn."""
        self._queued = False
        if not self._aborted and self.connected:
            if self._tlsConnection is None:
                self._tlsConnection = self.factory._creatorCallable(self)
            self.transport.resumeProducing()
            self._feed()
            if not self._handshakeDone and self._handshake_size > MAX_HANDSHAKE:
                self.abortConnection()

    def _feed(self) -> None:
        if self._feeding:  # what is fed has had the socket read on: the rest of it comes first
            return
        self._feeding = True
        try:
            while self._goes_on:
                self._complete = self._complete or complete_records(self._received)
                if not (size := min(self._complete, PIECE)):
                    break
                data, self._received = self._received[:size], self._received[size:]
                self._complete -= size
                super().dataReceived(data)
                self._keep_small(size)
        finally:
            self._feeding = False
        self._count()

    @property
    def _goes_on(self) -> bool:
        return self._tlsConnection is not None and not self._lostTLSConnection and not self._aborted

    def _count(self) -> None:
        """Count what waits to be complete."""
        if len(self._received) > KEPT and self.connected:
            self.factory.held.add(self, len(self._received))
        elif self._holds:
            self.factory.held.discard(self)
        self._holds = len(self._received) > KEPT

    def _write(self, data: bytes) -> None:
        if self._tlsConnection is None:
            self._bufferedWrite(data)
            return
        super()._write(data)
        self._keep_small(len(data))

    def _keep_small(self, size: int) -> None:
        """Replace the BIOs if they have had so many bytes, and are empty; pyOpenSSL has no call for it."""
        self._grown = self._grown or size > KEPT
        connection = self._tlsConnection
        if not self._grown or not self._handshakeDone or connection is None or self._lostTLSConnection:
            return
        content = ffi.new("char **")
        if any(lib.BIO_get_mem_data(bio, content) for bio in (connection._into_ssl, connection._from_ssl)):
            return
        self._grown = False
        connection._into_ssl, connection._from_ssl = (lib.BIO_new(lib.BIO_s_mem()) for _ in range(2))
        lib.SSL_set_bio(connection._ssl, connection._into_ssl, connection._from_ssl)

    def _flushSendBIO(self) -> None:
        if self._aborted:  # an alert would make what was cut off look complete
            return
        try:
            data = self._tlsConnection.bio_read(4 * PIECE)
        except WantReadError:
            return
        write_now(self.transport, data)

    def _shutdownTLS(self) -> None:
        if self._tlsConnection is None:
            self.transport.loseConnection()
        else:
            super()._shutdownTLS()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.held.discard(self)
        self._lostTLSConnection = self._lostTLSConnection or self._tlsConnection is None
        super().connectionLost(reason)
        self._producer = None  # it refers to the connection above, and that to this
