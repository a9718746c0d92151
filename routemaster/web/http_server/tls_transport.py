"""TLS of one connection: Twisted's, with limits on what a client can have the bus hold and compute.

OpenSSL takes some 40 kB for a handshake from its first byte on, and keeps a ClientHello of up to 128 KiB. So
the ClientHello, one record of at most `MAX_HELLO` bytes, is collected here first, and the handshakes of all
connections take turns (`WorkQueue`): their computations are the most expensive thing that a stranger can ask for.
A handshake of which more than `MAX_HANDSHAKE` bytes have come is given up.

Memory BIOs never shrink. They are fed in pieces, the smaller the more connections there are, so that a long
burst does not stay in memory for as long as the connection is open.

An exception of OpenSSL has a traceback, which refers to the connection: without it, the connection is free as
soon as it is lost.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import WantReadError
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from routemaster.util.write_now import write_now

MAX_HELLO = 8192       #: bytes of the record with the ClientHello; with post-quantum keys it has about 2,000
MAX_HANDSHAKE = 32768  #: bytes of an incomplete handshake
PIECE = 16384          #: bytes given to OpenSSL at once, if the transport's buffer is not smaller
_RECORD = 5            #: bytes before a record's content: type (22: handshake), version, length
_HANDSHAKE = 22


class ServerTLS(TLSMemoryBIOProtocol):
    """See above; its factory has a `queue`."""

    factory: Any
    transport: Any
    _received = b""      # of the handshake, not yet given to OpenSSL
    _handshake_size = 0
    _queued = False
    _greeted = False     # the ClientHello is complete

    def _checkHandshakeStatus(self) -> None:
        if self._greeted:
            super()._checkHandshakeStatus()

    def dataReceived(self, data: bytes) -> None:
        if self._handshakeDone and not self._received:
            self._feed(data)
            return
        self._received += data
        if not self._may_greet():
            self.abortConnection()
        elif self._greeted and not self._queued:
            self._queued = True
            self.transport.pauseProducing()
            self.factory.queue.run(self._go_on)

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
        data, self._received = self._received, b""
        if self._aborted or not self.connected:
            return
        self.transport.resumeProducing()
        self._feed(data)
        self._handshake_size += len(data)
        if not self._handshakeDone and self._handshake_size > MAX_HANDSHAKE:
            self.abortConnection()

    def _feed(self, data: bytes) -> None:
        piece = self._piece
        if len(data) <= piece:
            super().dataReceived(data)
            return
        for start in range(0, len(data), piece):
            if self._tlsConnection is not None and not self._lostTLSConnection and not self._aborted:
                super().dataReceived(data[start : start + piece])

    def _write(self, data: bytes) -> None:
        piece = self._piece
        for start in range(0, len(data), piece):
            if self._reason is None:
                super()._write(data[start : start + piece])

    @property
    def _piece(self) -> int:
        share: int = self.transport.bufferSize
        return min(PIECE, share)

    def _flushSendBIO(self) -> None:
        if self._aborted:  # an alert would make what was cut off look complete
            return
        try:
            data = self._tlsConnection.bio_read(2 * PIECE)
        except WantReadError:
            return
        write_now(self.transport, data)

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._producer = None  # it refers to the connection above, and that to this
