"""Each of the three clients, as the contract suite uses them: a call returns something to await on the reactor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any, Protocol

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from routemaster_client import Client
from routemaster_client.aio import AsyncClient
from routemaster_client.tx import TwistedClient, _Body

Body = _Body


class Driver(Protocol):
    """A client behind one interface."""

    def do(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call a method."""

    def close(self) -> Awaitable[Any]:
        """Close the client."""


class Blocking:
    """`Client`, in a thread of its own for each call."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        self.client = Client(url, token, **options)

    def do(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        found: Awaitable[Any] = deferToThread(getattr(self.client, name), *args, **kwargs)
        return found

    def close(self) -> Awaitable[Any]:
        return deferToThread(self.client.close)


class Asyncio:
    """`AsyncClient`, on a loop in a thread."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        self.client = AsyncClient(url, token, **options)  # first: it may raise
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        async def call() -> Any:
            return await getattr(self.client, name)(*args, **kwargs)

        return deferToThread(asyncio.run_coroutine_threadsafe(call(), self._loop).result)

    async def close(self) -> None:
        await self.do("close")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Twisted:
    """`TwistedClient`, on trial's reactor."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        self.client = TwistedClient(reactor, url, token, **options)

    def do(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        try:
            found: Deferred[Any] = getattr(self.client, name)(*args, **kwargs)
        except Exception:
            return Deferred.fromCoroutine(_raised(name, self.client, args, kwargs))
        return found

    def close(self) -> Awaitable[Any]:
        return self.client.close()


async def _raised(name: str, client: Any, args: Any, kwargs: Any) -> Any:
    return getattr(client, name)(*args, **kwargs)
