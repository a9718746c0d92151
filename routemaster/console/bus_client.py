"""Requests to one bus over HTTPS: bounded in time and size, redirects not followed.

The bus's certificate is verified by the authorities in `ca_files`, else by the system's. The
files are read for each new connection: they may be renewed while the console runs.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from attrs import frozen
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed
from twisted.internet.error import ConnectError, ConnectionLost, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectionTimedOut
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS
from zope.interface.declarations import implementer

from routemaster import __version__
from routemaster.console.credentials import Key
from routemaster.console.reading import BadAnswer, parse
from routemaster.errors import RoutemasterError

CONNECTIONS = 4  #: to one bus, kept between requests
AT_ONCE = 8  #: requests to one bus under way; further ones wait, which is a part of their time
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class BusError(RoutemasterError):
    """The bus gave no usable answer; the message is one sentence, without secrets.

    `status`: of its answer, 0 if there was none; `unknown`: a change may have been made all the same.
    """

    def __init__(self, message: str, status: int = 0, unknown: bool = False) -> None:
        super().__init__(message)
        self.status, self.unknown = status, unknown


@frozen
class Answer:
    """A successful answer."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body; None if there is none. Raises BusError."""
        try:
            return parse(self.body) if self.body else None
        except BadAnswer as error:
            raise BusError(str(error), self.status) from None


@implementer(IPolicyForHTTPS)
class _Policy:
    """How connections verify the bus's certificate."""

    def __init__(self, ca_files: Iterable[Path]) -> None:
        self._files = tuple(ca_files)

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """Of `IPolicyForHTTPS`."""
        trust: Any = platformTrust()
        if self._files:
            pems = [pem for file in self._files for pem in _PEM.findall(file.read_bytes())]
            trust = trustRootFromCertificates([Certificate.loadPEM(pem) for pem in pems])
        return optionsForClientTLS(hostname.decode("ascii"), trust)


@implementer(IBodyProducer)
class _Body:
    """A short body, written at once: Twisted's own writes a part in each turn of the global reactor."""

    def __init__(self, body: bytes) -> None:
        self._body, self.length = body, len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """There is nothing to pause."""

    def resumeProducing(self) -> None:
        """The same."""

    def stopProducing(self) -> None:
        """The same."""


class _Collector(Protocol):
    """Reads a body of at most `most` bytes."""

    transport: Any

    def __init__(self, most: int) -> None:
        self._parts: list[bytes] = []
        self._left = most
        self.body: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._parts.clear()
            if not self.body.called:
                self.body.errback(BusError("the answer is larger than max_answer"))
            self._abort()
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.body.called:
            return
        if reason.check(ResponseDone):
            self.body.callback(b"".join(self._parts))
        elif reason.check(PotentialDataLoss):
            self.body.errback(BusError("the answer was cut short"))
        else:
            self.body.errback(reason)

    def _abort(self) -> None:
        abort = getattr(self.transport, "abortConnection", None) or getattr(self.transport, "loseConnection", None)
        if abort is not None:
            abort()


class BusClient:
    """Asks one bus."""

    def __init__(
        self, reactor: Any, url: str, ca_files: Iterable[Path], timeout: float, max_answer: int,
        agent: IAgent | None = None,
    ) -> None:  # fmt: skip
        """`timeout`: seconds for one request; `max_answer`: bytes; `agent`: in place of real connections."""
        self._reactor, self._url = reactor, url
        self._timeout, self._max_answer = timeout, max_answer
        self._turns = DeferredSemaphore(AT_ONCE)
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = CONNECTIONS
        self._pool._factory.noisy = False
        # not treq, which unpacks whatever an answer says is packed: a few kB may become gigabytes
        self._agent: Any = agent or Agent(reactor, _Policy(ca_files), timeout, pool=self._pool)

    async def get(self, key: Key, *path: str, **query: str | int | None) -> Answer:
        """GET a path, given by its parts; raises BusError."""
        return await self._ask("GET", key, path, query)

    async def send(self, method: str, key: Key, *path: str, body: Any = None) -> Answer:
        """Change something; raises BusError."""
        return await self._ask(method, key, path, {}, body)

    async def _ask(
        self, method: str, key: Key, path: Iterable[str], query: Mapping[str, str | int | None], body: Any = None
    ) -> Answer:
        url = "/".join([self._url, *(quote(part, safe="") for part in path)])
        given = {name: value for name, value in query.items() if value is not None}
        if given:
            url = f"{url}?{urlencode(given)}"
        exchange = self._turns.run(lambda: Deferred.fromCoroutine(self._exchange(method, url, key.read(), body)))
        late = self._reactor.callLater(self._timeout, exchange.cancel)
        try:
            return await exchange
        except Exception as error:
            if not late.active():
                raise BusError(f"no answer within {self._timeout:g} s", unknown=method != "GET") from None
            raise self._error(error, method) from None
        finally:
            if late.active():
                late.cancel()

    def _error(self, error: Exception, method: str) -> Exception:
        """The exception that callers get for an error of `_exchange`."""
        if isinstance(error, BusError):
            error.unknown = error.unknown or (method != "GET" and not error.status)
            return error
        if _is_cancelled(error):
            return CancelledError()
        if isinstance(error, ConnectError):
            return BusError(_not_connected(error))
        if isinstance(error, DNSLookupError):
            return BusError("its host name does not resolve")
        if isinstance(error, OSError):  # of a ca_file
            return BusError(f"{error.filename}: {error.strerror}")
        return BusError(_reason(error), unknown=method != "GET")

    async def _exchange(self, method: str, url: str, key: str, body: Any) -> Answer:
        headers = Headers({
            "User-Agent": [f"routemaster-console/{__version__}"],
            "Authorization": [f"Basic {b64encode(f'{key}:'.encode()).decode()}"],
        })  # fmt: skip
        data: Any = None
        if body is not None:
            data = _Body(json.dumps(body).encode())
            headers.addRawHeader("Content-Type", "application/json")
        response = await self._agent.request(method.encode(), url.encode("ascii"), headers, data)
        collector = _Collector(self._max_answer)
        response.deliverBody(collector)
        content = await collector.body
        if 200 <= response.code < 300:
            return Answer(response.code, content)
        raise refusal(response.code, content)

    def close(self) -> Deferred[None]:
        """Close the idle connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def refusal(status: int, body: bytes) -> BusError:
    """The error that the bus answered."""
    unknown = False
    try:
        answer = parse(body)
        text, unknown = " ".join(str(answer["error"]).split()), answer.get("outcome") == "unknown"
    except (BadAnswer, TypeError, KeyError, AttributeError):
        text = "the answer has no error message: is this the URL of a bus?"
    if status == 401:
        text = "the key is refused"
    return BusError(f"answered {status}: {text[:300]}", status, unknown)


def _is_cancelled(error: Exception) -> bool:
    """Whether a request was cancelled, wherever it was."""
    return isinstance(error, CancelledError) or any(
        reason.check(CancelledError) for reason in getattr(error, "reasons", ())
    )


def _not_connected(error: ConnectError) -> str:
    """Why a connection could not be made, in the operating system's words."""
    if isinstance(error, ConnectionTimedOut):
        return "its host does not answer"
    number = error.osError
    return f"connection failed: {os.strerror(number).lower() if isinstance(number, int) else _plain(error)}"


def _reason(error: Exception) -> str:
    """Why there was no answer, in one line."""
    if isinstance(error, ResponseFailed | ResponseNeverReceived) and error.reasons:
        inner = error.reasons[0].value
        if isinstance(inner, SSL.Error):
            return f"its certificate is not accepted: {_tls(inner)}"
        return _reason(inner) if isinstance(inner, Exception) else type(inner).__name__
    if isinstance(error, SSL.Error):
        return f"its certificate is not accepted: {_tls(error)}"
    if isinstance(error, ConnectionLost):
        return "the connection was lost"
    name = type(error).__name__
    if name in ("VerificationError", "CertificateError"):
        return "its certificate is for another name"
    return f"{name}: {_plain(error)}" if _plain(error) else name


def _tls(error: SSL.Error) -> str:
    reasons = [str(part[-1]) for part in error.args[0] if part] if error.args and error.args[0] else []
    return reasons[-1] if reasons else "TLS failed"


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
