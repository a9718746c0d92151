"""The sender itself: treq on an agent of our own, one exchange for each attempt."""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any, cast

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import Request
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface.declarations import implementer

from routemaster.interfaces import Body, Outcome, Verdict
from routemaster.sender.connection import Connection
from routemaster.sender.dns_cache import DNSCache, Threads, look_up
from routemaster.sender.failure_reasons import explain, one_line
from routemaster.sender.fair_queue import FairQueue, QueueClosed
from routemaster.sender.pool import Pool
from routemaster.sender.target import BadCallback, Target
from routemaster.sender.tls import TLSTrust

MAX_BODY = 65536  #: bytes of an answer that are read
DRAIN = 1.0  #: seconds for the body of a refusal: its head has said all
PACE = 0.01  #: seconds from one attempt to a server that did not answer the last one to the next such
MAX_TARGETS = 10_000  #: callbacks whose parse is remembered

_ACKNOWLEDGING = (200, 204)
STOPPING = Outcome(Verdict.LOCAL, error="the bus is stopping")


class NoCookies(IndexableCookieJar):
    """A jar that neither gives nor takes: subscribers share nothing."""

    def __iter__(self) -> Iterator[Cookie]:
        return iter(())

    def add_cookie_header(self, request: object) -> None:
        """No request carries a cookie."""

    def extract_cookies(self, response: object, request: object) -> None:
        """No answer leaves one."""


@implementer(IBodyProducer)
class Exchange(Protocol):
    """One POST and its answer, over one connection, or two if the first was stale.

    It is the producer of the request's body and the consumer of the answer's.
    `done` fires once, with the Outcome; cancelling it aborts the connection.
    """

    def __init__(self, sender: TreqSender, target: Target, body: bytes) -> None:
        self._sender = sender
        self.target = target
        self._body = body
        self.length = len(body)
        self.done: Deferred[Outcome] = Deferred(lambda _: self.abort())
        self.connection: Connection | None = None
        self.fresh = False            #: insist on a new connection
        self._reused = False
        self._request: Deferred[IResponse] | None = None
        self._status: int | None = None
        self._error = ""              #: what the status alone says against an acknowledgement
        self._retry_after: float | None = None
        self._received = 0
        self._ended = False
        self._timer = sender.reactor.callLater(sender.timeout, self._late)

    def post(self) -> None:
        """Hand the request to treq; raises nothing."""
        target, sender = self.target, self._sender
        try:
            self._request = sender.client.post(
                target.url, data=cast(IBodyProducer, self), headers=target.headers, cookies=sender.cookies,
                allow_redirects=False, unbuffered=True, reactor=sender.reactor,
            )
        except Exception:
            self.fail(Failure())
        else:
            self._request.addCallbacks(self._answered, self._failed)

    def over(self, connection: Connection, method: bytes, headers: Headers) -> Deferred[IResponse]:
        """Called by the agent: make the request on this connection."""
        self.connection = connection
        self._reused = connection.requests > 0
        return connection.request(Request(method, self.target.path, headers, self, persistent=True))

    def abort(self) -> None:
        """Leave the exchange: timer off, socket in the pool or aborted; `done` is not fired."""
        self._ended = True
        if self._timer.active():
            self._timer.cancel()
        if self.connection is not None:
            if not self.connection.idle:
                self.connection.drop()
        elif self._request is not None:
            self._request.cancel()

    # The request's body (IBodyProducer): it is in memory, so it is written at once.

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing to pause: all is written."""

    def resumeProducing(self) -> None:
        """Nothing to resume."""

    def stopProducing(self) -> None:
        """Nothing to stop."""

    # The answer.

    def _answered(self, response: Any) -> None:
        if self._ended:
            return
        self._status = response.code
        if response.code not in _ACKNOWLEDGING:
            self._error = f"answered {response.code}"
            if 300 <= response.code < 400:
                self._error += " (redirects are not followed)"
            if response.code in (429, 503):
                self._retry_after = retry_after(response.headers)
            if self._timer.getTime() - self._sender.reactor.seconds() > DRAIN:
                self._timer.reset(DRAIN)
        response.deliverBody(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_BODY and not self._ended:
            self._finish(self._error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            return
        complete = reason.check(ResponseDone) or (
            reason.check(PotentialDataLoss) and self.connection is not None and self.connection.ended_cleanly
        )
        if complete or self._error:
            self._finish(self._error)
        elif reason.check(PotentialDataLoss):
            self._finish(
                f"answered {self._status}, cut short: no length, and closed without TLS close_notify"
            )
        else:
            self._finish(f"answered {self._status}, but its body was cut short")

    def _failed(self, failure: Failure) -> None:
        if self._ended:
            return
        connection = self.connection
        if connection is not None:
            if self._reused and not connection.received and not self.fresh:
                connection.drop()
                self.connection = None
                self.fresh = True
                self.post()
                return
            if connection.fault is not None:
                failure = Failure(connection.fault)
        verdict, why = explain(failure)
        self._finish(why, verdict)

    def _late(self) -> None:
        limit = f"within {self._sender.timeout:g} s"
        if self._error:
            why = self._error
        elif self._status is not None:
            why = f"answered {self._status}, but its body was not complete {limit}"
        elif self.connection is None:
            why = f"no connection {limit}"
        elif not self.connection.handshaken:
            why = f"no TLS handshake {limit}"
        elif self.connection.received:
            why = f"no whole answer {limit}"
        else:
            why = f"no answer {limit}"
        self._finish(why)

    def _finish(self, error: str, verdict: Verdict = Verdict.FAILED) -> None:
        """End with this outcome; no error means acknowledged."""
        try:
            self.abort()
        finally:  # whatever a canceller may do, whoever waits is answered
            self.done.callback(Outcome(
                verdict if error else Verdict.ACKNOWLEDGED,
                self._status, one_line(error), self._retry_after, self._reused, self._received,
            ))

    def fail(self, failure: Failure) -> None:
        """End because of a fault on our side of the connection."""
        if not self._ended:
            verdict, why = explain(failure)
            self._finish(why, verdict)


def retry_after(headers: Headers) -> float | None:
    """The seconds that a Retry-After asks for; None if there is none that can be read.

    A date is measured against the answer's own Date: the subscriber's clock
    need not agree with ours, and without a Date there is no measure.
    """
    value = headers.getRawHeaders(b"retry-after", [b""])[0].strip()
    if value.isdigit():
        return float(value[:9])
    sent = headers.getRawHeaders(b"date", [b""])[0]
    try:
        wait = parsedate_to_datetime(value.decode("ascii")) - parsedate_to_datetime(sent.decode("ascii"))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait.total_seconds())


@implementer(IAgent)
class _Agent:
    """What treq talks to: takes the connection from the pool, and tells the exchange which.

    treq always offers gzip and would decode without bound, so `identity` goes
    out, and what an answer says of its encoding stays below.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        """Make the request of an Exchange, given as the producer of its body."""
        exchange: Exchange = bodyProducer
        assert headers is not None  # noqa: S101  # treq gives a copy of the target's
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        key = exchange.target.key
        connection = None if exchange.fresh else self._pool.take(key)
        if connection is not None:
            answer = exchange.over(connection, method, headers)
        else:
            answer = self._pool.connect(key).addCallback(exchange.over, method, headers)
        return answer.addCallback(_without_encoding)


def _without_encoding(response: Any) -> Any:
    response.headers.removeHeader(b"content-encoding")
    return response


class TreqSender:
    """The Sender that delivers (`routemaster.interfaces.Sender`).

    `connect_timeout`: seconds for look-up and TCP; `timeout`: seconds for the
    whole exchange. `max_open`: attempts, and connections, at once; for one
    server (a host and a port) `max_per_server`. `ask` resolves a name, blocking, in a thread. Raises
    `ConfigError` for one of `ca_files` that cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        user_agent: str,
        connect_timeout: float = 2.0,
        timeout: float = 20.0,
        verify: bool = True,
        ca_files: Sequence[Path] = (),
        max_open: int = 1000,
        max_per_server: int = 100,
        ask: Callable[[str], Sequence[str]] = look_up,
    ) -> None:
        self.reactor = reactor
        self.timeout = timeout
        self._user_agent = user_agent
        self._names = DNSCache(reactor, Threads(reactor), ask)
        self.pool = Pool(
            reactor, self._names, TLSTrust(verify, ca_files), max_open=max_open, connect_timeout=connect_timeout
        )
        self.slots = FairQueue(max_open, max_per_server, paced=True)
        self._pacer: Any = None
        self.cookies = NoCookies()
        self.client = HTTPClient(cast(IAgent, _Agent(self.pool)), self.cookies, lambda exchange: exchange)
        self._targets: dict[tuple[str, str | None], Target] = {}  # oldest first
        self._exchanges: set[Exchange] = set()

    async def send(self, callback: str, uuid: str | None, body: Body) -> Outcome | None:
        """`interfaces.Sender.send`: POST what `body` gives to `callback`, authenticated with `uuid`."""
        try:
            target = self._target(callback, uuid)
        except BadCallback as fault:
            return Outcome(Verdict.FAILED, error=one_line(str(fault))) if await body() else None
        try:
            turn = self.slots.enter(target.key)
            self._pace()
            if turn is not None:
                await turn
        except QueueClosed:
            return STOPPING
        answered = None
        try:
            content = await body()
            if content is None:
                return None
            if self.slots.closed:
                return STOPPING
            answered = False
            outcome = await self._exchange(target, content)
            answered = outcome.status is not None
            return outcome
        finally:
            self.slots.leave(target.key, succeeded=answered)
            self._pace()

    def _pace(self) -> None:
        if self._pacer is None and self.slots.needs_tick:
            self._pacer = self.reactor.callLater(PACE, self._let_next)

    def _let_next(self) -> None:
        self._pacer = None
        self.slots.tick()
        self._pace()

    async def _exchange(self, target: Target, body: bytes) -> Outcome:
        exchange = Exchange(self, target, body)
        self._exchanges.add(exchange)
        try:
            exchange.post()
            return await exchange.done
        finally:
            self._exchanges.discard(exchange)

    async def close(self) -> None:
        """Abort what is under way (its outcome: LOCAL, the bus is stopping) and close every connection."""
        self.slots.close()
        if self._pacer is not None:
            self._pacer.cancel()
            self._pacer = None
        for exchange in tuple(self._exchanges):
            exchange.fail(Failure(QueueClosed()))
        self._names.close()
        await self.pool.close()

    def _target(self, callback: str, uuid: str | None) -> Target:
        target = self._targets.get((callback, uuid))
        if target is None:
            target = Target.parse(callback, uuid, self._user_agent)
            self._targets[callback, uuid] = target
            if len(self._targets) > MAX_TARGETS:
                del self._targets[next(iter(self._targets))]
        return target
