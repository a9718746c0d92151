"""A bounded queue of reports, and the one thread that gives them to the service's library.

The libraries wait for networks; the reactor must not. The thread is a daemon:
a service that hangs holds up no exit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Queue
from threading import Lock, Thread

from routemaster.error_reporting.base import Lost, Service
from routemaster.error_reporting.report import Report

CAPACITY = 100  #: reports waiting
FLUSH = 2.5     #: seconds for the library to send what it holds, when all reports are given to it


class Outbox:
    """Takes reports from any thread without waiting."""

    def __init__(self, make: Callable[[Lost], Service]) -> None:
        """The service is made at once, of what counts its losses; the thread with the first report."""
        self._lock = Lock()
        self._lost = 0
        self._queue: Queue[Report | None] = Queue(CAPACITY + 1)
        self._thread: Thread | None = None
        self._closed = self._sending = False
        self._service = make(self.lose)

    def put(self, report: Report) -> None:
        """Send the report some time, or count it as lost."""
        with self._lock:
            if self._closed or self._queue.qsize() >= CAPACITY:
                self._lost += 1
                return
            if self._thread is None:
                self._thread = Thread(target=self._run, name="exception reports", daemon=True)
                self._thread.start()
            self._queue.put_nowait(report)

    def close(self) -> None:
        """Take no more; the thread ends when it has given away all and the library is flushed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put_nowait(None)  # put() leaves a place for it

    @property
    def busy(self) -> bool:
        """Whether there is something under way."""
        return self._thread is not None and self._thread.is_alive()

    def abandon(self) -> None:
        """Count as lost what still waits, or is under way."""
        with suppress(Empty):
            while True:
                self.lose(self._queue.get_nowait() is not None)
        self._queue.put_nowait(None)
        self.lose(self._sending)

    def take_lost(self) -> int:
        """How many reports were lost since this was last asked."""
        with self._lock:
            lost, self._lost = self._lost, 0
            return lost

    def lose(self, number: int) -> None:
        """Count that many as lost."""
        with self._lock:
            self._lost += number

    def _run(self) -> None:
        while (report := self._queue.get()) is not None:
            self._sending = True
            try:
                self._service.send(report)
            except Exception:
                self.lose(1)
            self._sending = False
        self._service.close(FLUSH)
