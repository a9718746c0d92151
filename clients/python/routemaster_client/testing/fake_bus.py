"""A bus in the memory of the process, which checks what the real one checks.

    with FakeBus() as bus:
        client = bus.client("shop")
        client.created("orders", "https://shop.example.com/orders/1")
        bus.assert_published("orders", "create", "https://shop.example.com/orders/1")
        bus.deliver("mail", receiver)  # what waits for the subscriber "mail"

Clients, background publishers and consumers work on it as they are, of all three kinds, with the URL `bus.url`
and a token of `add_client`: while it is active their requests go to it, and no connection is made. It knows topics
with their settings and history, publishing, subscriptions with all that decides what is delivered, pulling,
streams, and tokens. Nothing is delivered unless the test says so, so there are no attempts, no failures of
deliveries and no parked events, and `rate` and `timeout` change nothing. What it does not know raises
NotImplementedError: use `RealBus` there.
"""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Any

from routemaster_client.blocking import Client
from routemaster_client.model import Event
from routemaster_client.protocol import Call, Response, Settings
from routemaster_client.receiver import Receiver
from routemaster_client.testing.fake_api import FakeApi
from routemaster_client.testing.fake_rules import Refusal
from routemaster_client.testing.fake_streams import BlockingStream, FakeStream, WaitingStream

_active: dict[str, FakeBus] = {}
_numbers = itertools.count(1)


class FakeBus(FakeApi):
    """See the module. `root_key` is accepted as token too."""

    def __init__(self) -> None:
        self.url = f"https://fake-bus-{next(_numbers)}.invalid"
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._failures: list[Response] = []

    def __enter__(self) -> FakeBus:
        _install()
        _active[self.url] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del _active[self.url]

    def add_client(self, name: str) -> str:
        """Make a client; its token."""
        self._clients[f"{name}--secret"] = name
        return f"{name}--secret"

    def client(self, name: str, **options: Any) -> Client:
        """A blocking client with a token of this name."""
        return Client(self.url, self.add_client(name), **options)

    def fail(self, times: int = 1, *, outcome_unknown: bool = False) -> None:
        """Have the next requests answered 503."""
        body: dict[str, str] = {"error": "Redis is unavailable"}
        if outcome_unknown:
            body["outcome"] = "unknown"
        self._failures += [Response(503, {"retry-after": "0"}, json.dumps(body).encode())] * times

    def events(self, topic: str | None = None, type: str | None = None, url: str | None = None) -> list[Event]:
        """The published events of this topic, type and URL."""
        wanted = {"topic": topic, "type": type, "url": url}
        given = {name: value for name, value in wanted.items() if value is not None}
        return [event for event in self.published if given.items() <= vars(event).items()]

    def assert_published(self, topic: str, type: str | None = None, url: str | None = None, **more: Any) -> Event:
        """The one event of this topic, type, URL, `data`, `t`; AssertionError unless there is exactly one."""
        found = [event for event in self.events(topic, type, url)
                 if all(getattr(event, name) == value for name, value in more.items())]  # fmt: skip
        if len(found) != 1:
            listed = "".join(f"\n  {event}" for event in self.published) or " nothing"
            raise AssertionError(f"{len(found)} events match, expected 1; published:{listed}")
        return found[0]

    def assert_nothing_published(self, topic: str | None = None) -> None:
        """AssertionError if there is an event (of this topic)."""
        if found := self.events(topic):
            counted = "1 event was" if len(found) == 1 else f"{len(found)} events were"
            raise AssertionError(f"{counted} published: {found}")

    def root(self, **options: Any) -> Client:
        """A blocking client with the root key."""
        return Client(self.url, self.root_key, **options)

    def deliver(self, subscriber: str, receiver: Receiver) -> int:
        """Deliver what waits for a subscriber, batch by batch, as the bus does; returns how many events.

        Raises what a handler raises; its batch stays in the queue. A pause is respected.
        """
        delivered = 0
        while True:
            with self._lock:
                subscription = self.subscription(self._named(subscriber))
                batch = [] if subscription.paused else subscription.queue[: subscription.most]
            if not batch:
                return delivered
            receiver.handle(batch)
            with self._lock:
                delivered += subscription.take(batch, "acknowledged")

    def answer(self, settings: Settings, call: Call[Any]) -> Response:
        """Answer a request, as the bus does."""
        with self._lock:
            if self._failures:
                return self._failures.pop(0)
            try:
                return self.route(settings.token, call)
            except Refusal as error:
                return Response(error.status, {}, json.dumps({"error": str(error)}).encode())

    def open(self, settings: Settings, call: Call[Any]) -> FakeStream:
        """Begin a stream, as the bus does; raises a BusError."""
        answer = self.answer(settings, call)
        call.result(answer)
        token, sent = answer.headers["subscriber"], "ack" in answer.headers
        return FakeStream(lambda: self.subscription(token, pulled=True), sent, self._lock)


@cache
def _install() -> None:
    """Have the clients look for a fake bus before they make a connection."""
    _intercept(Client)
    with suppress(ImportError):
        from routemaster_client.aio import AsyncClient

        _intercept_async(AsyncClient)
    with suppress(ImportError):
        from routemaster_client.tx import TwistedClient

        _intercept_async(TwistedClient)


def _intercept(client: Any) -> None:
    exchange, connect = client._exchange, client._open

    def intercepted(self: Any, call: Call[Any]) -> Response:
        bus = _active.get(self.settings.base)
        answer: Response = exchange(self, call) if bus is None else bus.answer(self.settings, call)
        return answer

    def opened(self: Any, call: Call[Any]) -> Any:
        bus = _active.get(self.settings.base)
        return connect(self, call) if bus is None else BlockingStream(bus.open(self.settings, call))

    client._exchange, client._open = intercepted, opened


def _intercept_async(client: Any) -> None:
    exchange, connect = client._exchange, client._open

    async def intercepted(self: Any, call: Call[Any]) -> Response:
        bus = _active.get(self.settings.base)
        answer: Response = await exchange(self, call) if bus is None else bus.answer(self.settings, call)
        return answer

    async def opened(self: Any, call: Call[Any]) -> Any:
        bus = _active.get(self.settings.base)
        if bus is None:
            return await connect(self, call)
        return WaitingStream(bus.open(self.settings, call), self._sleep)

    client._exchange, client._open = intercepted, opened
