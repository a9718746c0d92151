"""Bytes are given to the system at once, in their order, and never past what waits or what changes them."""

from __future__ import annotations

from twisted.internet.main import CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.write_now import write_now


class Socket(Connection):
    """A TCP transport whose system takes `room` bytes at once."""

    connected = 1
    disconnecting = _writeDisconnecting = False
    dataBuffer = b""

    def __init__(self, room: int | Exception) -> None:
        self.room, self.sent, self.written = room, b"", b""
        self._tempDataBuffer: list[bytes] = []

    def writeSomeData(self, data: bytes) -> int | Exception:  # type: ignore[override]
        if isinstance(self.room, Exception):
            return self.room
        self.sent += data[: self.room]
        return min(self.room, len(data))

    def write(self, data: bytes) -> None:
        self.written += data


class WriteNowTests(SynchronousTestCase):
    """`write_now`."""

    def test_taken(self) -> None:
        """What the system takes is not written again; the rest the transport writes."""
        for room, sent, written in ((5, b"12345", b""), (2, b"12", b"345"), (0, b"", b"12345")):
            transport = Socket(room)
            write_now(transport, b"12345")
            self.assertEqual((transport.sent, transport.written), (sent, written))

    def test_waits(self) -> None:
        """Nothing overtakes what waits; on a connection that ends the transport decides."""
        cases: dict[str, object] = {
            "dataBuffer": b"x", "_tempDataBuffer": [b"x"], "disconnecting": True, "_writeDisconnecting": True,
            "connected": 0, "_aborting": True, "room": CONNECTION_LOST,
        }  # fmt: skip
        for name, value in cases.items():
            transport = Socket(9)
            setattr(transport, name, value)
            write_now(transport, b"12345")
            self.assertEqual((transport.sent, transport.written), (b"", b"12345"), name)

    def test_other_transports(self) -> None:
        """What is no socket writes itself: TLS, for one, encrypts."""
        transport = StringTransport()
        write_now(transport, b"12345")
        self.assertEqual(transport.value(), b"12345")
