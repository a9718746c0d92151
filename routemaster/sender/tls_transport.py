"""Twisted's TLS, with a limit for what a server sends below HTTP, and without its reference cycle.

A server may send messages of TLS itself without end (tickets, key updates,
requests for a new handshake). No byte of them reaches the connection above, which
could count it, and some have to be answered: the answers to a server that does
not read them would take memory without a limit.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted have no annotations)

from __future__ import annotations

from typing import Any

from twisted.protocols.tls import BufferingTLSTransport
from twisted.python.failure import Failure

from routemaster.sender.connection import Connection

#: Bytes that are received for one request, TLS's own included: more than a handshake with a chain of 100 kB, the
#: largest head and the largest body that is read have together, in records that are not tiny
MAX_RECEIVED = 8 * 65536


class TLSTransport(BufferingTLSTransport):
    """The transport of a `Connection`."""

    def dataReceived(self, data: Any) -> None:
        connection: Connection = self.wrappedProtocol
        connection.encrypted += len(data)
        if connection.encrypted > MAX_RECEIVED:
            connection.refuse(f"malformed answer: over {MAX_RECEIVED} bytes of TLS")
        else:
            super().dataReceived(data)
            connection.has_read()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)
        if reason is not None:
            reason.cleanFailure()  # a frame of its traceback refers to it, and to the TLS connection
