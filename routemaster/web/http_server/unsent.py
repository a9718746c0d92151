"""How much of what was written to a connection its peer has not taken."""

from __future__ import annotations

import fcntl
import select
import struct
import termios
from contextlib import suppress
from typing import Any


def unsent(transport: Any) -> int:
    """Bytes in the buffers of TLS, the transport and the kernel, those sent without the peer's TCP ACK included.

    0: the peer's machine has all of them, though perhaps not yet its program. On a Unix socket, its
    program has them. At least 1 if the connection is lost. Where the system does not count (`TIOCOUTQ`,
    which is `SIOCOUTQ` on Linux), the kernel's buffer counts as empty: then 0 means that the kernel has all.
    """
    count, lower = buffered(transport), socket_of(transport)
    if not getattr(lower, "connected", True):
        return max(1, count)
    with suppress(AttributeError, OSError):
        count += int(struct.unpack("i", fcntl.ioctl(lower.socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    with suppress(AttributeError, OSError):
        state = select.poll()
        state.register(lower.socket, 0)  # errors and the peer's close are always reported
        count += len(state.poll(0))  # such a peer has not got what was in its buffers: count at least 1
    return count


def buffered(transport: Any) -> int:
    """Bytes in the buffers of TLS and the transport, in this process."""
    lower = socket_of(transport)
    count = sum(map(len, getattr(transport, "_appSendBuffer", ())))
    count += len(getattr(lower, "dataBuffer", b"")) - getattr(lower, "offset", 0)
    return count + int(getattr(lower, "_tempDataLen", 0))


def socket_of(transport: Any) -> Any:
    """The transport below TLS, if there is TLS."""
    return transport.transport if hasattr(transport, "_appSendBuffer") else transport
