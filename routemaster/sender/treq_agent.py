"""What treq runs on: an agent that takes connections from the sender's own pool, and no cookies.

treq always offers gzip and decodes answers without a limit. So the agent sends
`identity`, and removes the Content-Encoding of answers before treq reads it.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

from typing import Any, Protocol, cast

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface.declarations import implementer

from routemaster.sender.connection import Connection
from routemaster.sender.pool import Pool
from routemaster.sender.target import Target


class NoCookies(IndexableCookieJar):
    """A cookie jar that stays empty: subscribers share nothing."""

    def add_cookie_header(self, request: object) -> None:
        """Send no cookie, and do not parse the URL for it."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Keep no cookie, and do not parse Set-Cookie."""


NO_COOKIES = NoCookies()


class Request(Protocol):
    """What the producer of a request's body does for the agent (an `Exchange`)."""

    target: Target
    attempt: int  #: number of the attempt, from 1
    fresh: bool  #: whether it needs a new connection

    def send_over(self, connection: Connection, method: bytes, headers: Headers) -> Deferred[IResponse]:
        """Send the request on this connection."""


def http_client(pool: Pool) -> HTTPClient:
    """A treq client for requests whose body is produced by a `Request`, on connections of `pool`."""
    return HTTPClient(cast(IAgent, _Agent(pool)), NO_COOKIES, lambda producer: producer)


@implementer(IAgent)
class _Agent:
    """Takes a connection for a request, which treq passes as the producer of its body."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        producer: Request = bodyProducer
        assert headers is not None  # noqa: S101  # treq passes a copy of the target's
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        headers.setRawHeaders(b"routemaster-attempt", [b"%d" % producer.attempt])
        key = producer.target.key
        connection = None if producer.fresh else self._pool.take(key)
        if connection is not None:
            answer = producer.send_over(connection, method, headers)
        else:
            answer = self._pool.connect(key).addCallback(producer.send_over, method, headers)
        return answer.addCallback(_without_encoding)


def _without_encoding(response: Any) -> Any:
    response.headers.removeHeader(b"content-encoding")
    return response
