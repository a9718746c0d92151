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
from routemaster_client.errors import NotFound
from routemaster_client.model import Event, Pulled
from routemaster_client.protocol import Call
from routemaster_client.receiver import Receiver

_log = logging.getLogger("routemaster_client")


class Caller(Protocol):
    """The part of a client that a consumer needs."""

    def call(self, call: Call[Any]) -> Awaitable[Any]:
        """Execute a call."""


class AsyncConsumer:
    """As `consumer.Consumer`: each batch is acknowledged when the next one is asked for.

    `sleep` waits so many seconds, and `handle` has a receiver's handlers called as the event loop wants it.
    """

    def __init__(
        self, client: Caller, topics: tuple[str, ...], *, max: int | None, wait: float, options: dict[str, Any],
        sleep: Callable[[float], Awaitable[Any]],
        handle: Callable[[Receiver, Sequence[Event]], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._client, self._topics, self._options = client, topics, options
        self._pulling, self._sleep, self._handle = Pulling(max, wait), sleep, handle
        self._stopped = False

    async def __aiter__(self) -> AsyncIterator[Pulled]:
        await self._subscribe()
        while not self._stopped:
            batch = await self._pull()
            if batch:
                yield batch
                self._pulling.handled(batch)
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
                await self._sleep(self._pulling.failed(RuntimeError(str(error))))
            else:
                self._pulling.handled(batch)
        await self.finish()

    def stop(self) -> None:
        """End the iteration when the loop's body or the request under way is done."""
        self._stopped = True

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
            batch: Pulled = await self._client.call(self._pulling.call())
        except Exception as error:
            wait = self._pulling.failed(error)
            _log.warning("pulling failed, next attempt in %.1f s: %s", wait, error)
            await self._sleep(wait)
            return None
        self._pulling.took(batch)
        return batch if batch.events else None

    async def finish(self) -> None:
        """Acknowledge what was handled, where no further batch is asked for."""
        call = self._pulling.last()
        if call is not None:
            await self._client.call(call)
