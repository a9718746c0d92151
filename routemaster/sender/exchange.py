"""One POST and its answer.

The exchange is the producer of the request's body and the consumer of the
answer's body. treq passes the producer down to the agent unchanged; the agent
reports through it which connection carries the request, so that each phase has
a connection to abort. One timer covers look-up, connect, TLS, sending, head and
body. At the end of an exchange its connection is either back in the pool or
aborted: Twisted's `loseConnection` waits for the peer's close_notify without
limit.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import re
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from typing import Any, cast

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import Request
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface.declarations import implementer

from routemaster.interfaces import Outcome, Verdict
from routemaster.sender.connection import Connection
from routemaster.sender.failure_reasons import MALFORMED, DeliveryError, explain, is_closed, one_line
from routemaster.sender.target import Target
from routemaster.sender.treq_agent import NO_COOKIES
from routemaster.util.work_queue import WorkQueue

MAX_BODY = 65536  #: bytes of an answer's body that are read
MAX_WIRE = 2 * 65536  #: bytes of an answer that are read, its head and the sizes of its chunks included
MAX_PIECES = 128  #: reads and chunks of an answer at once: a byte in a TLS record of its own costs like 1,000
PIECES_PER_SECOND = 512  #: the same, later
REFUSAL_BODY_TIMEOUT = 1.0  #: seconds for the body of an answer whose status is a failure

PIECE = 65536  #: bytes of a request's body that are written at once
MAX_QUOTED = 120  #: characters of a refusal's body in its reason
MAX_ANSWER = 200  #: characters of an answer's body in the Outcome
QUOTED_FROM = 2048  #: bytes of it that are kept for both, enough for a secret that begins in them

_WEBHOOK_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_\\-]+")


class Acknowledging:
    """The statuses that acknowledge a delivery."""

    def __init__(self, statuses: Collection[int]) -> None:
        self.statuses = frozenset(statuses)
        *most, last = map(str, sorted(statuses))
        #: says which they are
        self.text = f"only {', '.join(most)} and {last} acknowledge" if most else f"only {last} acknowledges"


@implementer(IBodyProducer)
class Exchange(Protocol):
    """One POST over one connection, or over a second one if the first was stale.

    `done` fires once with the Outcome; cancelling it aborts the connection.
    """

    def __init__(
        self, client: HTTPClient, reactor: Any, writing: WorkQueue, timeout: float,
        acknowledging: Acknowledging, target: Target, body: bytes, attempt: int,
    ) -> None:  # fmt: skip
        """
        Args:
            writing: the writing of all bodies, a little of it in each turn of the reactor.
            timeout: seconds for the whole exchange.
            attempt: its number, from 1, for the server.
        """
        self._client, self._reactor, self._writing, self._timeout = client, reactor, writing, timeout
        self.target, self.attempt = target, attempt
        self._acknowledging = acknowledging
        self._body = body
        self.length = len(body)
        self.done: Deferred[Outcome] = Deferred(lambda _: self.abort())
        self.connection: Connection | None = None
        self.fresh = False            #: whether the agent has to open a new connection
        self._reused = False
        self._request: Deferred[IResponse] | None = None
        self._status: int | None = None
        self._error = ""              #: why the status is no acknowledgement
        self._retry_after: float | None = None
        self._received = 0
        self._cut = False
        self._quoted = b""            #: the beginning of the answer's body
        self._ended = False
        self._began = reactor.seconds()
        self._consumer: Any = None    # gets the request's body
        self._all_sent: Deferred[None] | None = None
        self._timer = reactor.callLater(timeout, self._timed_out)

    def post(self) -> None:
        """Give the request to treq; raises nothing."""
        try:
            self._request = self._client.post(
                self.target.url, data=cast(IBodyProducer, self), headers=self.target.headers,
                cookies=NO_COOKIES, allow_redirects=False, unbuffered=True, reactor=self._reactor,
            )  # fmt: skip
        except Exception:
            self.fail(Failure())
        else:
            self._request.addCallbacks(self._answered, self._failed)

    def send_over(self, connection: Connection, method: bytes, headers: Headers) -> Deferred[IResponse]:
        """Send the request on this connection; for the agent."""
        self.connection = connection
        self._reused = connection.requests > 0
        return connection.request(Request(method, self.target.path, headers, self, persistent=True))

    def abort(self) -> None:
        """Stop the timer and abort the connection unless it is in the pool; does not fire `done`."""
        self._ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self.connection is not None:
            if not self.connection.idle:
                self.connection.drop()
        elif self._request is not None:
            self._request.cancel()
        # most of these refer to this exchange: without them it is freed, and the batch, as soon as nobody needs it
        self._timer = self._consumer = self._all_sent = self._request = self.connection = None
        self._body = b""

    def fail(self, failure: Failure) -> None:
        """End because of a fault on this side of the connection."""
        if not self._ended:
            verdict, why = explain(failure)
            self._finish(why, verdict)

    # IBodyProducer: in pieces, so that a body which is read slowly is not in memory a second time, encrypted

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self._consumer, self._paused, self._sent = consumer, False, 0
        self._all_sent = all_sent = Deferred[None]()
        if self.length <= PIECE:
            self._produce()
        else:
            self._writing.run(self._produce)
        return all_sent

    def _produce(self) -> None:
        if self._ended:
            return
        while not self._paused and self._sent < self.length:
            piece = self._body[self._sent : self._sent + PIECE]
            self._sent += len(piece)  # before the write, which may end in a call of `resumeProducing`
            self._consumer.write(piece)
        if self._sent == self.length and self._all_sent is not None:
            all_sent, self._all_sent = self._all_sent, None
            all_sent.callback(None)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        if not self._ended:
            self._paused = False
            self._writing.run(self._produce)

    def stopProducing(self) -> None:
        self._paused = True

    # the answer

    def _answered(self, response: Any) -> None:
        if self._ended:
            return
        self._status = response.code
        if response.code not in self._acknowledging.statuses:
            self._error = f"answered {response.code}"
            if response.code < 300:
                self._error += f" ({self._acknowledging.text})"
            elif 300 <= response.code < 400:
                self._error += " (redirects are not followed)"
            if response.code in (429, 503):
                self._retry_after = retry_after(response.headers)
            if self._timer.getTime() - self._reactor.seconds() > REFUSAL_BODY_TIMEOUT:
                self._timer.reset(REFUSAL_BODY_TIMEOUT)
        response.deliverBody(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if len(self._quoted) < QUOTED_FROM:
            self._quoted += data[:QUOTED_FROM]
        connection = self.connection
        if connection is None or self._ended:
            return
        pieces = MAX_PIECES + PIECES_PER_SECOND * (self._reactor.seconds() - self._began)
        if self._received > MAX_BODY or connection.received > MAX_WIRE or connection.pieces > pieces:
            self._finish(self._error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            return
        # PotentialDataLoss: a body of unannounced length ends with the connection (RFC 9112 section 6.3)
        if reason.check(ResponseDone, PotentialDataLoss) or self._error:
            self._finish(self._error)
        else:
            self._finish(f"answered {self._status}, but its body was cut short")

    def _failed(self, failure: Failure) -> None:
        if self._ended:
            return
        connection = self.connection
        if connection is not None:
            self._cut = connection.sending and connection.fault is None and is_closed(failure)
            if self._reused and not connection.received and not self.fresh:
                # the server closed a kept connection just as it was used: try once more on a new one
                connection.drop()
                self.connection, self._reused = None, False
                self.fresh = True
                self.post()
                return
            if connection.fault is not None:
                failure = Failure(connection.fault)
            elif self._cut:
                failure = Failure(DeliveryError("the connection was closed while the request was being sent"))
        self.fail(failure)

    def _timed_out(self) -> None:
        limit = f"within {self._timeout:g} s"
        if self._error:
            why = self._error
        elif self._status is not None:
            why = f"answered {self._status}, but its body was not complete {limit}"
        elif self.connection is None:
            why = f"no connection {limit}"
        elif not self.connection.handshaken:
            why = f"no TLS handshake {limit}"
        elif self.connection.received:
            why = f"no complete answer {limit}"
        else:
            why = f"no answer {limit}"
        self._finish(why)

    def _finish(self, error: str, verdict: Verdict = Verdict.FAILED) -> None:
        """End with this outcome; no error means acknowledged."""
        reason = MALFORMED if error.startswith(MALFORMED) else error
        answer = beginning(self._quoted, self.target.secrets) if self._quoted else ""
        if answer and error and error == self._error and (quoted := first_line(self._quoted, self.target.secrets)):
            error = f"{error}: {quoted}"
        try:
            self.abort()
        finally:  # `done` fires even if a canceller raises
            self.done.callback(Outcome(
                verdict if error else Verdict.ACKNOWLEDGED,
                self._status, one_line(error), self._retry_after, self._reused, self._received,
                one_line(reason), self._cut, answer,
            ))  # fmt: skip


def first_line(body: bytes, secrets: Collection[str]) -> str:
    """The first line of a refusal's body as far as it is printable text, with the secrets masked."""
    text = body.decode("utf-8", "surrogateescape").lstrip("\ufeff \t\r\n").replace("\t", " ")
    end = next((index for index, character in enumerate(text) if not character.isprintable()), len(text))
    return _masked(text[:end], secrets)[:MAX_QUOTED].rstrip()


def beginning(body: bytes, secrets: Collection[str]) -> str:
    """The beginning of an answer's body as text, with the secrets masked, and what is not printable replaced."""
    text = _masked(body.decode("utf-8", "replace"), secrets)[:MAX_ANSWER]
    return "".join(each if each.isprintable() or each in "\r\n\t" else "\ufffd" for each in text)


def _masked(text: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "********")
    return _WEBHOOK_SECRET.sub("whsec_********", text)  # also one that is not used any more


def retry_after(headers: Headers) -> float | None:
    """The seconds that a Retry-After header demands; None if there is none that can be read.

    A date is compared with the answer's own Date, because the subscriber's
    clock may differ from this one; without a Date it is ignored (RFC 9110
    section 10.2.3).
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
