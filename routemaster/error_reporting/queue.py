"""A bounded queue of reports, and the thread that passes them to the service's library.

The libraries block on the network, which the reactor must not do. The thread is
a daemon thread, so that a blocked service does not delay the exit of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Queue
from threading import Lock, Thread

from routemaster.error_reporting.base import OnLost, Service
from routemaster.error_reporting.report import Report

CAPACITY = 100  #: reports
FLUSH = 2.5     #: seconds for the library to send what it holds, when the queue is empty


class ReportQueue:
    """Accepts reports from any thread without blocking."""

    def __init__(self, make: Callable[[OnLost], Service]) -> None:
        """`make` is called at once, with the function that counts losses; the first report starts the thread."""
        self._lock = Lock()
        self._lost = 0
        self._queue: Queue[Report | None] = Queue(CAPACITY + 1)
        self._thread: Thread | None = None
        self._closed = self._sending = False
        self._service = make(self.count_lost)

    def put(self, report: Report) -> None:
        """Queue the report, or count it as lost."""
        with self._lock:
            if self._closed or self._queue.qsize() >= CAPACITY:
                self._lost += 1
                return
            if self._thread is None:
                self._thread = Thread(target=self._run, name="exception reports", daemon=True)
                self._thread.start()
            self._queue.put_nowait(report)

    def close(self) -> None:
        """Accept no more reports; the thread ends when the queue is empty and the library is flushed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put_nowait(None)  # put() leaves room for it

    @property
    def busy(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def abandon(self) -> None:
        """Count as lost the reports in the queue, and the one being sent."""
        with suppress(Empty):
            while True:
                self.count_lost(self._queue.get_nowait() is not None)
        self._queue.put_nowait(None)
        self.count_lost(self._sending)

    def take_lost(self) -> int:
        """The number of reports lost since the last call."""
        with self._lock:
            lost, self._lost = self._lost, 0
            return lost

    def count_lost(self, number: int) -> None:
        """Count reports as lost."""
        with self._lock:
            self._lost += number

    def _run(self) -> None:
        while (report := self._queue.get()) is not None:
            self._sending = True
            try:
                self._service.send(report)
            except Exception:
                self.count_lost(1)
            self._sending = False
        self._service.close(FLUSH)
