"""The blocking client, for scripts, Django, Flask and every other thread.

A client keeps its connections open and may be shared by threads. A process that was forked from one with a client
uses it too: the child makes connections of its own.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from routemaster_client import calls
from routemaster_client.consumer import Consumer
from routemaster_client.errors import BusError
from routemaster_client.methods import method_of
from routemaster_client.protocol import CONNECTING, Call, Repetition, Response, Settings
from routemaster_client.streaming import SILENCE, Source, Stream

P = ParamSpec("P")
T = TypeVar("T")


def _method(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    return method_of(build, lambda self, call: self.call(call))


def _streamed(build: Callable[P, Call[None]]) -> Callable[Concatenate[Client, P], Stream]:
    return method_of(build, lambda self, call: Stream(call, lambda: self._repeated(lambda: self._open(call))))


class _OneWrite:
    """A connection that writes head and body of a request at once: one TLS record, and one wake-up of the bus."""

    _held: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
        finally:
            held, self._held = self._held, None
        super().send(b"".join(held))  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held.append(data)


class _Plain(_OneWrite, HTTPConnection):
    """Over TCP."""


class _Secure(_OneWrite, HTTPSConnection):
    """Over TLS."""


class Client:
    """A client of one bus.

    with Client("https://bus.example.com", token) as bus:
        bus.created("orders", "https://shop.example.com/orders/1")

    The methods are the functions of `routemaster_client.calls`; they raise `BusError`s. The arguments are those of
    `Settings`. `Client` is safe for threads and forks; `close` may be called at any time, and use after it works.
    """

    def __init__(
        self, url: str, token: str, *, ca_file: str | None = None, timeout: float = 10.0, retries: int = 3,
        retry_unknown: bool = False, connections: int = 32,
    ) -> None:  # fmt: skip
        self.settings = Settings(url, token, ca_file, timeout, retries, retry_unknown, connections)
        self._headers = self.settings.headers()
        base = urllib3.util.parse_url(self.settings.base)
        self._prefix = base.path or ""
        self._origin = f"{base.scheme}://{base.netloc}"
        self._tls = self.settings.tls()
        self._process = 0  # whose connections are in the pool
        self._pool: Any = None
        self._sleep, self._chance = time.sleep, random.random

    def __repr__(self) -> str:
        return f"<Client of {self.settings.url}>"

    def call(self, call: Call[T]) -> T:
        """Execute a call; what every method does."""
        return self._repeated(lambda: call.result(self._exchange(call)))

    def _repeated(self, attempt: Callable[[], T]) -> T:
        repetition = Repetition(self.settings, self._chance)
        while True:
            try:
                return attempt()
            except BusError as error:
                self._sleep(repetition.after(error))

    def consume(
        self, *topics: str, max: int | None = None, wait: float = 20.0, stream: bool = False, **options: Any
    ) -> Consumer:
        """Iterate over the events of topics in batches, pulling them; see `Consumer`.

        Without topics the subscription is taken as it is; otherwise it is created or changed to these topics, with
        these options of `subscribe`. Conflict if there is one with a callback.

        Args:
            max: the most events in a batch.
            wait: seconds of one request while nothing is there, up to 60.
            stream: take them from one connection, sooner by the time of a request; a batch is then what came
                together, and `max` and `wait` mean nothing.
        """
        return Consumer(self, topics, max=max, wait=wait, stream=stream, options=options)

    def close(self) -> None:
        """Close the connections that are kept."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connections(self) -> Any:
        """The pool of this process; a connection that a child shares with its parent would mix their answers."""
        if self._pool is None or self._process != os.getpid():
            options: dict[str, Any] = {"maxsize": self.settings.connections, "block": False}
            secure = self._origin.startswith("https")
            if secure:
                options["ssl_context"] = self._tls
            pool: Any = urllib3.connection_from_url(self._origin, **options)
            pool.ConnectionCls = _Secure if secure else _Plain
            self._process, self._pool = os.getpid(), pool
        return self._pool

    def _exchange(self, call: Call[Any]) -> Response:
        """One attempt; raises a BusError if there is no answer."""
        patience = self.settings.timeout + call.wait
        limit = urllib3.Timeout(total=patience, connect=CONNECTING * self.settings.timeout)
        return _response(self._request(call, limit, patience))

    def _open(self, call: Call[Any]) -> Source:
        """One attempt to begin a stream; raises a BusError if there is none."""
        patience = self.settings.timeout + SILENCE
        limit = urllib3.Timeout(connect=self.settings.timeout, read=patience)
        answer = self._request(call, limit, patience, preload_content=False)
        if answer.status != 200:
            call.result(_response(answer))
        return _Stream(call, answer, patience)

    def _request(self, call: Call[Any], limit: urllib3.Timeout, patience: float, **options: Any) -> Any:
        """Send a request, and return what urllib3 returns."""
        try:
            return self._connections().urlopen(
                call.method, self._prefix + call.path, body=call.body, headers={**self._headers, **call.headers},
                retries=False, redirect=False, assert_same_host=False, timeout=limit, **options,
            )  # fmt: skip
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise call.not_sent(_reason(error, patience)) from None
        except SSLError as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise call.untrusted(cause.verify_message) from None
            raise call.broken(f"TLS: {cause}") from None
        except (HTTPError, OSError) as error:
            raise call.broken(_reason(error, patience)) from None

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
    """The answer of a stream, see `streaming.Source`; a silence of `patience` seconds breaks it."""

    def __init__(self, call: Call[Any], answer: Any, patience: float) -> None:
        self._call, self._answer, self._patience = call, answer, patience
        self._reading = self._closed = False

    def read(self) -> bytes:
        self._reading = True
        try:
            return b"" if self._closed else bytes(self._answer.read1(65536))
        except (HTTPError, OSError, ValueError) as error:
            if self._closed:
                return b""
            raise self._call.broken(_reason(error, self._patience)) from None
        finally:
            self._reading = False
            if self._closed:
                self._answer.close()

    def close(self) -> None:
        self._closed = True
        wire = getattr(self._answer.connection, "sock", None)
        if wire is not None:
            with suppress(OSError):
                socket.socket.shutdown(wire, socket.SHUT_RDWR)  # ends a `read` of another thread
        if not self._reading:
            self._answer.close()


def _response(answer: Any) -> Response:
    return Response(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data)


def _reason(error: BaseException, patience: float) -> str:
    """Why there is no answer, in the system's words."""
    refused = isinstance(error, NewConnectionError)  # a ConnectTimeoutError by its class only
    if isinstance(error, (ReadTimeoutError, ConnectTimeoutError)) and not refused:
        return f"nothing within {patience:g} s"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause.args[0]) if cause.args else type(cause).__name__
