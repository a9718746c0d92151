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
from routemaster_client.errors import NotFound, Unavailable
from routemaster_client.model import Pulled
from routemaster_client.protocol import Call
from routemaster_client.receiver import Receiver
from routemaster_client.streaming import Stream

_log = logging.getLogger("routemaster_client")


class Caller(Protocol):
    """The part of a client that a consumer needs."""

    def call(self, call: Call[Any]) -> Any:
        """Execute a call."""

    def stream(self, *, ack: str | None = None) -> Stream:
        """See `calls.stream`."""


class Consumer:
    """Iterates over batches, for ever; each is acknowledged when the next one is asked for.

    After `break`, or an exception in the loop's body, the last batch is not acknowledged and comes again. `stop`,
    from the body, a signal handler or another thread, ends the loop when its body is done, at most `wait` seconds
    later, and the batch is acknowledged. While the bus is unavailable the consumer waits, and tries again.
    """

    def __init__(
        self, client: Caller, topics: tuple[str, ...], *, max: int | None, wait: float, stream: bool,
        options: dict[str, Any]
    ) -> None:
        self._client, self._topics, self._options = client, topics, options
        self._pulling = Pulling(max, wait)
        self._streams = stream
        self._stream: Stream | None = None
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Pulled]:
        self._subscribe()
        try:
            while not self._stopped.is_set():
                batch = self._pull()
                if batch:
                    yield batch
                    self._pulling.handled(batch)
        finally:
            self._end_stream()
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
                self._end_stream()
                self._stopped.wait(self._pulling.failed(RuntimeError(str(error))))
            else:
                self._pulling.handled(batch)
        self.finish()

    def stop(self) -> None:
        """End the iteration; safe for threads and signal handlers."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.close()

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
            batch: Pulled | None
            if not self._streams:
                batch = self._client.call(self._pulling.call())
            elif (batch := self._streamed()) is None:
                return None
        except Exception as error:
            self._end_stream()
            wait = self._pulling.failed(error)
            _log.warning("pulling failed, next attempt in %.1f s: %s", wait, error)
            self._stopped.wait(wait)
            return None
        self._pulling.took(batch)
        return batch or None

    def _streamed(self) -> Pulled | None:
        """The next batch of the stream, which is made if there is none; None if it was stopped.

        What was handled is acknowledged before.
        """
        if self._stream is None:
            self._stream = self._client.stream(ack=self._pulling.handled_up_to)
        elif (call := self._pulling.last()) is not None:
            self._client.call(call)
            self._pulling.took(None)
        for batch in self._stream:
            return batch
        if self._stopped.is_set():
            return None
        raise Unavailable("the bus has ended the stream")

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def finish(self) -> None:
        """Acknowledge what was handled, where no further batch is asked for."""
        self._end_stream()
        call = self._pulling.last()
        if call is not None:
            self._client.call(call)
