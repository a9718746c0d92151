"""A pull consumer for blocking code.

    for batch in bus.consume("orders"):
        for event in batch:
            ...
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from routemaster_client import calls
from routemaster_client.consuming import Pulling, subscribing
from routemaster_client.errors import NotFound
from routemaster_client.model import Pulled
from routemaster_client.protocol import Call
from routemaster_client.receiver import Receiver

_log = logging.getLogger("routemaster_client")


class Caller(Protocol):
    """The part of a client that a consumer needs."""

    def call(self, call: Call[Any]) -> Any:
        """Execute a call."""


class Consumer:
    """Iterates over batches, for ever; each is acknowledged when the next one is asked for.

    After `break`, or an exception in the loop's body, the last batch is not acknowledged and comes again. `stop`,
    from the body, a signal handler or another thread, ends the loop when its body is done, at most `wait` seconds
    later, and the batch is acknowledged. While the bus is unavailable the consumer waits, and tries again.
    """

    def __init__(
        self, client: Caller, topics: tuple[str, ...], *, max: int | None, wait: float, options: dict[str, Any]
    ) -> None:
        self._client, self._topics, self._options = client, topics, options
        self._pulling = Pulling(max, wait)
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Pulled]:
        self._subscribe()
        while not self._stopped.is_set():
            batch = self._pull()
            if batch:
                yield batch
                self._pulling.handled(batch)
        self.finish()

    def run(self, receiver: Receiver) -> None:
        """Give every batch to a receiver's handlers; if one raises, it comes again after a growing pause."""
        self._subscribe()
        while not self._stopped.is_set():
            batch = self._pull()
            if not batch:
                continue
            try:
                receiver.handle(batch.events)
            except Exception as error:
                _log.exception("handling events failed, they come again")
                self._stopped.wait(self._pulling.failed(RuntimeError(str(error))))
            else:
                self._pulling.handled(batch)
        self.finish()

    def stop(self) -> None:
        """End the iteration; safe for threads and signal handlers."""
        self._stopped.set()

    def _subscribe(self) -> None:
        try:
            current = self._client.call(calls.subscription())
        except NotFound:
            current = None
        call = subscribing(current, self._topics, self._options)
        if call is not None:
            self._client.call(call)

    def _pull(self) -> Pulled | None:
        """The next batch; None if there is none yet."""
        try:
            batch: Pulled = self._client.call(self._pulling.call())
        except Exception as error:
            wait = self._pulling.failed(error)
            _log.warning("pulling failed, next attempt in %.1f s: %s", wait, error)
            self._stopped.wait(wait)
            return None
        self._pulling.took(batch)
        return batch if batch.events else None

    def finish(self) -> None:
        """Acknowledge what was handled, where no further batch is asked for."""
        call = self._pulling.last()
        if call is not None:
            self._client.call(call)
