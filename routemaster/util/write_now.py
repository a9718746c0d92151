"""Bytes to a socket at once.

Twisted's transports write in the reactor's next iteration. A request whose answer waits for Redis would wait for
four of them, one for each read and write, and in each for what the reactor does for others.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def write_now(transport: Any, data: bytes) -> None:
    """Write: what the system takes at once, if nothing waits before it, and the rest as the transport does.

    Only to TCP and Unix sockets: what else is a transport, such as TLS, may have to change the bytes.
    """
    if isinstance(transport, Connection) and transport.connected and not _waits(transport):
        sent = transport.writeSomeData(data)
        if isinstance(sent, int) and sent > 0:  # of a lost connection the transport learns when it writes
            if sent == len(data):
                return
            data = data[sent:]
    transport.write(data)


def _waits(transport: Any) -> bool:
    """Whether there are bytes to be written before others, or none may be."""
    ends = transport.disconnecting or transport._writeDisconnecting or transport._aborting
    return bool(transport.dataBuffer or transport._tempDataBuffer or ends)
