"""What a client still sends after it was refused: read and discarded, a little in each turn.

Closing with unread bytes resets the connection, and many clients read the answer only when they have sent
everything. But to receive and decrypt takes time, and hostile clients may send without end.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from routemaster.util.work_queue import WorkQueue
from routemaster.web.http_server.socket_reading import read_now

MOST = 8 * 1024 * 1024  #: bytes of one client; then its connection waits unread for its deadline


class Discarding:
    """The bytes of one connection; `producer` pauses and resumes its reading."""

    def __init__(self, transport: Any, producer: Any, queue: WorkQueue) -> None:
        self._transport, self._producer, self._queue = transport, producer, queue
        self._count, self._queued = 0, False

    def received(self, count: int) -> None:
        """So many more bytes were received."""
        self._count += count
        self._producer.pauseProducing()
        if self._count <= MOST and not self._queued:
            self._queued = True
            self._queue.add(self._go_on)

    def _go_on(self) -> None:
        """It is this connection's turn: read now, as that takes the time."""
        self._queued = False
        read_now(self._transport)
        if not self._queued and self._count <= MOST:
            self._producer.resumeProducing()
