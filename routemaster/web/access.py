"""Who may call an endpoint: decided from a request's headers alone, before its body is read.

Failed authentications are limited by the client's address (`failed_authentications`).
The first success on a connection is noted by the connection, which then keeps its
place, and for the address; further ones on it cost no look-up while nobody is
blocked. A trusted proxy's connection has many clients, so each success is noted.
"""

from __future__ import annotations

from math import ceil
from typing import Any, Final

from twisted.web.http_headers import Headers

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, Meter
from routemaster.web.auth import Authenticator, Principal, Role
from routemaster.web.failed_authentications import FailedAuthentications
from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.responses import TooManyFailures, Unauthorized

Who = frozenset[Role]

CLIENTS = Who({Role.CLIENT})
ROOTS = Who({Role.ROOT})
OWNERS = CLIENTS | ROOTS                #: a client for what is its own, root for all
MONITORS = ROOTS | {Role.MONITOR}
READERS = OWNERS | MONITORS
NOBODY = Who()                          #: no credentials are needed

COUNTER: Final = "authentication.failures"

_REQUIRED = {
    CLIENTS: "a client's token is required: root and monitors neither publish nor subscribe",
    ROOTS: "the root key is required",
    OWNERS: "a client's token or the root key is required",
    MONITORS: "the root key or a monitor key is required",
}


class Access:
    """Checks credentials."""

    def __init__(
        self, authenticator: Authenticator, clock: Clock, meter: Meter, proxies: TrustedProxies | None = None
    ) -> None:
        self._authenticator, self._meter, self._proxies = authenticator, meter, proxies or TrustedProxies()
        self._failures = FailedAuthentications(clock)
        self._guesses = FailedAuthentications(clock)  # unknown tokens until all are known; some may be valid
        for status in ("401", "429"):
            meter.count(COUNTER, 0, status=status)  # so that its growth from 0 to 1 is seen

    def principal(self, request: Any, who: Who) -> Principal:
        """The principal of a request; raises as `check` does."""
        return self.check(request.requestHeaders, request.client, request.channel, who)

    def check(self, headers: Headers, peer: Any, channel: Any, who: Who) -> Principal:
        """The principal of a request with these headers.

        Args:
            peer: the connection's, an address of Twisted's.
            channel: the connection, None if it is closed.

        Raises Unauthorized, TooManyFailures, or StoreUnavailable as `identify` does.
        """
        try:
            principal = self.identify(headers)
        except StoreUnavailable:
            self._undecided(headers, peer)
            raise
        if principal is None:
            raise self._failed(headers, peer)
        blocks = self._failures.blocked or (self._guesses.blocked and not self._authenticator.complete)
        if blocks or (channel is not None and channel.principal is not principal):
            self._note(principal, headers, peer, channel)
        if principal.role not in who:
            raise Unauthorized(_REQUIRED[who])
        if principal.role is Role.CLIENT and Role.MONITOR not in who and not self._authenticator.complete:
            raise StoreUnavailable("client cannot be determined: tokens have not been read from Redis yet")
        return principal

    def identify(self, headers: Headers) -> Principal | None:
        """Whose credentials these are; None if they are missing, malformed or unknown. Nothing is counted.

        Raises StoreUnavailable as `Authenticator.identify` does.
        """
        values = headers.getRawHeaders(b"authorization", ())
        return self._authenticator.identify(values[0]) if len(values) == 1 else None

    def _failed(self, headers: Headers, peer: Any) -> Unauthorized | TooManyFailures:
        address = self._client(headers, peer)
        if headers.hasHeader(b"authorization"):
            seconds = self._failures.failed(address)
            self._meter.count(COUNTER, status="429" if seconds else "401")
        else:
            seconds = self._failures.wait(address)
        if seconds:
            return TooManyFailures(ceil(seconds))
        return Unauthorized("authentication required: send your token as the HTTP Basic user name")

    def _undecided(self, headers: Headers, peer: Any) -> None:
        """Count an unknown token while not all are known: it may be a guess at a configured one."""
        seconds = self._guesses.failed(self._client(headers, peer))
        if seconds:
            self._meter.count(COUNTER, status="429")
            raise TooManyFailures(ceil(seconds)) from None

    def _note(self, principal: Principal, headers: Headers, peer: Any, channel: Any) -> None:
        """Note a success, unless its address is blocked: then raise TooManyFailures."""
        address = self._client(headers, peer)
        seconds = self._failures.wait(address, principal)
        if not self._authenticator.complete:
            seconds = max(seconds, self._guesses.wait(address, principal))
            if not seconds:
                self._guesses.succeeded(address, principal)
        if seconds:
            self._meter.count(COUNTER, status="429")
            raise TooManyFailures(ceil(seconds))
        self._failures.succeeded(address, principal)
        if channel is not None and not self._proxies.trusts(peer):
            channel.principal = principal
            channel.site.keep(channel)

    def _client(self, headers: Headers, peer: Any) -> bytes:
        return self._proxies.client(peer, headers.getRawHeaders(b"x-forwarded-for", ()))
