"""The client for asyncio; needs the extra `asyncio` (aiohttp)."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

try:
    import aiohttp
    from yarl import URL
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "AsyncClient needs aiohttp: pip install 'routemaster-client[asyncio]'", name=error.name
    ) from None

from routemaster_client import calls
from routemaster_client.asgi import handle
from routemaster_client.async_consumer import AsyncConsumer
from routemaster_client.errors import BusError
from routemaster_client.methods import method_of
from routemaster_client.protocol import CONNECTING, Call, Repetition, Response, Settings
from routemaster_client.streaming import SILENCE, AsyncSource, AsyncStream

P = ParamSpec("P")
T = TypeVar("T")


def _method(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    return method_of(build, lambda self, call: self.call(call))


def _streamed(build: Callable[P, Call[None]]) -> Callable[Concatenate[AsyncClient, P], AsyncStream]:
    return method_of(build, lambda self, call: AsyncStream(call, lambda: self._repeated(lambda: self._open(call))))


class AsyncClient:
    """A client of one bus, for one event loop at a time.

    async with AsyncClient("https://bus.example.com", token) as bus:
        await bus.created("orders", "https://shop.example.com/orders/1")

    The methods are the functions of `routemaster_client.calls`; they raise `BusError`s. The arguments are those of
    `Settings`.
    """

    def __init__(
        self, url: str, token: str, *, ca_file: str | None = None, timeout: float = 10.0, retries: int = 3,
        retry_unknown: bool = False, connections: int = 32,
    ) -> None:  # fmt: skip
        self.settings = Settings(url, token, ca_file, timeout, retries, retry_unknown, connections)
        self._headers, self._tls = self.settings.headers(), self.settings.tls()
        self._owner: tuple[int, object] = (0, None)  # process and loop to which the session belongs
        self._session: aiohttp.ClientSession | None = None
        self._sleep, self._chance = asyncio.sleep, random.random

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.settings.url}>"

    async def call(self, call: Call[T]) -> T:
        """Execute a call; what every method does."""

        async def attempt() -> T:
            return call.result(await self._exchange(call))

        return await self._repeated(attempt)

    async def _repeated(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        repetition = Repetition(self.settings, self._chance)
        while True:
            try:
                return await attempt()
            except BusError as error:
                await self._sleep(repetition.after(error))

    def consume(
        self, *topics: str, max: int | None = None, wait: float = 20.0, stream: bool = False, **options: Any
    ) -> AsyncConsumer:
        """Iterate over the events of topics in batches, pulling them; as `Client.consume`."""
        return AsyncConsumer(
            self, topics, max=max, wait=wait, stream=stream, options=options, sleep=self._sleep, handle=handle
        )

    async def close(self) -> None:
        """Close the connections that are kept."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _connections(self) -> aiohttp.ClientSession:
        """The session of this process and loop."""
        owner = os.getpid(), asyncio.get_running_loop()
        if self._session is None or self._owner != owner:
            connector = aiohttp.TCPConnector(limit=self.settings.connections, ssl=self._tls)
            self._owner = owner
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=self._headers
            )
        return self._session

    async def _exchange(self, call: Call[Any]) -> Response:
        """One attempt; raises a BusError if there is no answer."""
        patience = self.settings.timeout + call.wait
        # `connect` counts the wait for one of the connections too: a request that was not sent is known to be so
        limit = aiohttp.ClientTimeout(total=patience, connect=CONNECTING * self.settings.timeout)
        _, response = await self._request(call, limit, patience, lambda answer: answer.read())
        return response

    async def _open(self, call: Call[Any]) -> AsyncSource:
        """One attempt to begin a stream; raises a BusError if there is none."""
        patience = self.settings.timeout + SILENCE
        limit = aiohttp.ClientTimeout(total=None, connect=self.settings.timeout, sock_read=patience)

        async def unless_it_begins(answer: aiohttp.ClientResponse) -> bytes:
            return b"" if answer.status == 200 else await answer.read()

        answer, response = await self._request(call, limit, patience, unless_it_begins)
        if response.status != 200:
            call.result(response)
        return _Stream(call, answer, patience)

    async def _request(
        self, call: Call[Any], limit: aiohttp.ClientTimeout, patience: float,
        read: Callable[[aiohttp.ClientResponse], Coroutine[Any, Any, bytes]],
    ) -> tuple[aiohttp.ClientResponse, Response]:  # fmt: skip
        """Send a request; aiohttp's answer, and the same with the body that `read` returns."""
        try:
            answer = await self._connections().request(
                call.method, URL(self.settings.base + call.path, encoded=True), data=call.body,
                headers=call.headers, allow_redirects=False, timeout=limit,
            )  # fmt: skip
            body = await read(answer)
        except aiohttp.ClientConnectorCertificateError as error:
            found = error.certificate_error
            raise call.untrusted(getattr(found, "verify_message", "") or str(found)) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            cause = getattr(error, "os_error", None)
            raise call.not_sent(_reason(cause or error, self.settings.timeout)) from None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise call.broken(_reason(error, patience)) from None
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer, Response(answer.status, headers, body)

    publish = _method(calls.publish)
    created = _method(calls.created)
    updated = _method(calls.updated)
    deleted = _method(calls.deleted)
    noop = _method(calls.noop)
    bulk = _method(calls.bulk)
    topics = _method(calls.topics)
    topic = _method(calls.topic)
    configure_topic = _method(calls.configure_topic)
    delete_topic = _method(calls.delete_topic)
    topic_events = _method(calls.topic_events)
    where = _method(calls.where)
    subscribe = _method(calls.subscribe)
    unsubscribe = _method(calls.unsubscribe)
    unsubscribe_topic = _method(calls.unsubscribe_topic)
    remove_subscriber = _method(calls.remove_subscriber)
    subscriptions = _method(calls.subscriptions)
    subscription = _method(calls.subscription)
    pull = _method(calls.pull)
    stream = _streamed(calls.stream)
    acknowledge = _method(calls.acknowledge)
    pause = _method(calls.pause)
    resume = _method(calls.resume)
    retry = _method(calls.retry)
    rewind = _method(calls.rewind)
    skip = _method(calls.skip)
    attempts = _method(calls.attempts)
    send_test = _method(calls.send_test)
    parked = _method(calls.parked)
    retry_parked = _method(calls.retry_parked)
    drop_parked = _method(calls.drop_parked)
    tokens = _method(calls.tokens)
    add_token = _method(calls.add_token)
    delete_token = _method(calls.delete_token)
    pulse = _method(calls.pulse)


class _Stream:
    """The answer of a stream, see `streaming.AsyncSource`."""

    def __init__(self, call: Call[Any], answer: aiohttp.ClientResponse, patience: float) -> None:
        self._call, self._answer, self._patience, self._closed = call, answer, patience, False

    async def read(self) -> bytes:
        try:
            return b"" if self._closed else await self._answer.content.readany()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            if self._closed:
                return b""
            raise self._call.broken(_reason(error, self._patience)) from None

    def close(self) -> None:
        self._closed = True
        self._answer.close()

    async def closed(self) -> None:
        """Nothing to wait for."""


def _reason(error: BaseException, patience: float) -> str:
    """Why there is no answer, in the system's words."""
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return f"nothing within {patience:g} s"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
