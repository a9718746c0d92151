"""A pull consumer for asyncio and Twisted.

    async for batch in bus.consume("orders"):
        for event in batch:
            ...
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from routemaster_client import calls
from routemaster_client.consuming import Pulling, subscribing
from routemaster_client.errors import NotFound, Unavailable
from routemaster_client.model import Event, Pulled
from routemaster_client.protocol import Call
from routemaster_client.receiver import Receiver
from routemaster_client.streaming import AsyncStream

_log = logging.getLogger("routemaster_client")


class Caller(Protocol):
    """The part of a client that a consumer needs."""

    def call(self, call: Call[Any]) -> Awaitable[Any]:
        """Execute a call."""

    def stream(self, *, ack: str | None = None) -> AsyncStream:
        """See `calls.stream`."""


class AsyncConsumer:
    """As `consumer.Consumer`: each batch is acknowledged when the next one is asked for.

    `sleep` waits so many seconds, and `handle` has a receiver's handlers called as the event loop wants it.
    """

    def __init__(
        self, client: Caller, topics: tuple[str, ...], *, max: int | None, wait: float, stream: bool,
        options: dict[str, Any], sleep: Callable[[float], Awaitable[Any]],
        handle: Callable[[Receiver, Sequence[Event]], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._client, self._topics, self._options = client, topics, options
        self._pulling, self._sleep, self._handle = Pulling(max, wait), sleep, handle
        self._stopped = False
        self._streams = stream
        self._stream: AsyncStream | None = None

    async def __aiter__(self) -> AsyncIterator[Pulled]:
        await self._subscribe()
        try:
            while not self._stopped:
                batch = await self._pull()
                if batch:
                    yield batch
                    self._pulling.handled(batch)
        finally:
            await self._end_stream()
        await self.finish()

    async def run(self, receiver: Receiver) -> None:
        """Give every batch to a receiver's handlers; if one raises, it comes again after a growing pause."""
        await self._subscribe()
        while not self._stopped:
            batch = await self._pull()
            if not batch:
                continue
            try:
                await self._handle(receiver, batch.events)
            except Exception as error:
                _log.exception("handling events failed, they come again")
                await self._end_stream()
                await self._sleep(self._pulling.failed(RuntimeError(str(error))))
            else:
                self._pulling.handled(batch)
        await self.finish()

    def stop(self) -> None:
        """End the iteration when the loop's body or the request under way is done."""
        self._stopped = True
        if self._stream is not None:
            self._stream.close()

    async def _subscribe(self) -> None:
        try:
            current = await self._client.call(calls.subscription())
        except NotFound:
            current = None
        call = subscribing(current, self._topics, self._options)
        if call is not None:
            await self._client.call(call)

    async def _pull(self) -> Pulled | None:
        """The next batch; None if there is none yet."""
        try:
            batch: Pulled | None
            if not self._streams:
                batch = await self._client.call(self._pulling.call())
            elif (batch := await self._streamed()) is None:
                return None
        except Exception as error:
            await self._end_stream()
            wait = self._pulling.failed(error)
            _log.warning("pulling failed, next attempt in %.1f s: %s", wait, error)
            await self._sleep(wait)
            return None
        self._pulling.took(batch)
        return batch or None

    async def _streamed(self) -> Pulled | None:
        """The next batch of the stream, which is made if there is none; None if it was stopped.

        What was handled is acknowledged before.
        """
        if self._stream is None:
            self._stream = self._client.stream(ack=self._pulling.handled_up_to)
        elif (call := self._pulling.last()) is not None:
            await self._client.call(call)
            self._pulling.took(None)
        async for batch in self._stream:
            return batch
        if self._stopped:
            return None
        raise Unavailable("the bus has ended the stream")

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def finish(self) -> None:
        """Acknowledge what was handled, where no further batch is asked for."""
        await self._end_stream()
        call = self._pulling.last()
        if call is not None:
            await self._client.call(call)
