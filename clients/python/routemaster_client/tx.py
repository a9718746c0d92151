"""The client for Twisted; needs the extra `twisted`.

It uses twisted.web's Agent itself: an exchange that is cancelled, or takes too long, has its connection closed,
whichever part of it is under way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from OpenSSL import SSL
from twisted.internet import error as network
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web import client as web
from twisted.web._newclient import RequestNotSent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface.declarations import implementer

from routemaster_client import calls
from routemaster_client.async_consumer import AsyncConsumer
from routemaster_client.errors import BusError
from routemaster_client.methods import method_of
from routemaster_client.protocol import CONNECTING, Call, Repetition, Response, Settings, certificates
from routemaster_client.resource import handle
from routemaster_client.streaming import SILENCE, AsyncSource, AsyncStream
from routemaster_client.tx_stream import StreamBody

P = ParamSpec("P")
T = TypeVar("T")


def _method(build: Callable[P, Call[T]]) -> Callable[Concatenate[TwistedClient, P], Deferred[T]]:
    return method_of(build, lambda self, call: self.call(call))


def _streamed(build: Callable[P, Call[None]]) -> Callable[Concatenate[TwistedClient, P], AsyncStream]:
    return method_of(build, lambda self, call: AsyncStream(call, lambda: self._repeated(lambda: self._open(call))))


class TwistedClient:
    """A client of one bus, on a reactor.

    bus = TwistedClient(reactor, "https://bus.example.com", token)
    await bus.created("orders", "https://shop.example.com/orders/1")

    The methods are the functions of `routemaster_client.calls`; they return Deferreds that fail with `BusError`s
    and can be cancelled. The arguments are those of `Settings`.
    """

    def __init__(
        self, reactor: Any, url: str, token: str, *, ca_file: str | None = None, timeout: float = 10.0,
        retries: int = 3, retry_unknown: bool = False, connections: int = 32,
    ) -> None:  # fmt: skip
        self.settings = Settings(url, token, ca_file, timeout, retries, retry_unknown, connections)
        self._reactor, self._chance = reactor, random.random
        self._headers = Headers({
            name: [value] for name, value in self.settings.headers().items()
        })  # fmt: skip
        self._pool = web.HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = connections
        self._pool.retryAutomatically = False
        trust: Any = platformTrust()
        if ca_file is not None:
            found = certificates(Path(ca_file).read_bytes())
            trust = trustRootFromCertificates([Certificate.loadPEM(each) for each in found])
        self._agent = web.Agent(
            reactor, web.BrowserLikePolicyForHTTPS(trust), CONNECTING * timeout, pool=self._pool
        )

    def __repr__(self) -> str:
        return f"<TwistedClient of {self.settings.url}>"

    def call(self, call: Call[T]) -> Deferred[T]:
        """Execute a call; what every method does."""
        return Deferred.fromCoroutine(self._call(call))

    def consume(
        self, *topics: str, max: int | None = None, wait: float = 20.0, stream: bool = False, **options: Any
    ) -> AsyncConsumer:
        """Iterate over the events of topics in batches, pulling them; as `Client.consume`."""
        return AsyncConsumer(
            self, topics, max=max, wait=wait, stream=stream, options=options, sleep=self._sleep, handle=handle
        )

    def close(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._reactor, seconds)

    async def _call(self, call: Call[T]) -> T:
        async def attempt() -> T:
            return call.result(await self._exchange(call))

        return await self._repeated(attempt)

    async def _repeated(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        repetition = Repetition(self.settings, self._chance)
        while True:
            try:
                return await attempt()
            except BusError as error:
                wait = repetition.after(error)
            await self._sleep(wait)

    async def _exchange(self, call: Call[Any]) -> Response:
        """One attempt; raises a BusError if there is no answer."""
        return await self._in_time(call, self._attempt(call))

    async def _open(self, call: Call[Any]) -> AsyncSource:
        """One attempt to begin a stream; raises a BusError if there is none."""
        return await self._in_time(call, self._begun(call))

    async def _in_time(self, call: Call[Any], exchange: Coroutine[Any, Any, T]) -> T:
        patience = self.settings.timeout + call.wait
        attempt = Deferred.fromCoroutine(exchange).addTimeout(patience, self._reactor, _late)
        try:
            return await attempt
        except Late:
            raise call.broken(f"nothing within {patience:g} s") from None
        except (network.ConnectError, network.DNSLookupError, network.TimeoutError, RequestNotSent) as error:
            raise call.not_sent(_words(error)) from None
        except (web.ResponseFailed, web.RequestTransmissionFailed) as error:
            refused = _certificate_error(error)
            if refused:
                raise call.untrusted(refused) from None
            raise call.broken(_words(error)) from None
        except (network.ConnectionClosed, SSL.Error) as error:
            raise call.broken(_words(error)) from None

    async def _attempt(self, call: Call[Any]) -> Response:
        return await _complete(await self._answered(call))

    async def _begun(self, call: Call[Any]) -> AsyncSource:
        answer = await self._answered(call)
        if answer.code != 200:
            call.result(await _complete(answer))
        patience = self.settings.timeout + SILENCE

        def broken(error: BaseException | None) -> BusError:
            return call.broken(f"nothing within {patience:g} s" if error is None else _words(error))

        source = StreamBody(self._reactor, patience, broken)
        answer.deliverBody(source)
        return source

    async def _answered(self, call: Call[Any]) -> Any:
        """The answer whose body is still to come."""
        body: Any = None if call.body is None else _Body(call.body)
        headers = self._headers
        if call.headers:
            headers = headers.copy()
            for name, value in call.headers.items():
                headers.setRawHeaders(name, [value])
        url = self.settings.base + call.path
        return await self._agent.request(call.method.encode(), url.encode(), headers, body)

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


async def _complete(answer: Any) -> Response:
    body = _Answer()
    answer.deliverBody(body)
    headers = {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in answer.headers.getAllRawHeaders()
    }
    return Response(answer.code, headers, await body.done)


@implementer(IBodyProducer)
class _Body:
    """A body in memory, written at once."""

    def __init__(self, body: bytes) -> None:
        self._body, self.length = body, len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """Nothing is left to pause."""

    def resumeProducing(self) -> None:
        """Nothing is left to resume."""

    def stopProducing(self) -> None:
        """Nothing is left to stop."""


class _Answer(Protocol):
    """The body of an answer; if `done` is cancelled, the connection is closed (`web.readBody` leaves it open)."""

    transport: Any

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.done: Deferred[bytes] = Deferred(lambda _: self.transport.loseConnection())

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(web.ResponseDone):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


def _late(result: object, patience: float) -> NoReturn:
    """The result of an attempt that was cancelled since its time is over, whatever error came of that."""
    raise Late


def _causes(error: BaseException) -> list[BaseException]:
    return [each.value for each in getattr(error, "reasons", ()) or ()]


def _certificate_error(error: BaseException) -> str:
    """Why TLS refused the server's certificate; empty if it did not."""
    for cause in _causes(error):
        if isinstance(cause, SSL.Error) and "certificate verify failed" in str(cause):
            return "certificate verify failed"
        if type(cause).__name__ in ("VerificationError", "CertificateError"):
            return "it is for another host"
    return ""


def _words(error: BaseException) -> str:
    causes = _causes(error)
    return _words(causes[0]) if causes else str(error) or type(error).__name__
