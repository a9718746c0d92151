"""Limits the requests that one client has under way over connections of trusted proxies.

A connection from a client that is not a proxy counts for its address
(`http_server.places`). A proxy's connection serves many clients, one at a time:
it counts for the client whose request is under way on it. So a client has as
many places behind a proxy as without. If the proxies name no client, there is
no limit but the total: the requests could be anybody's.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any, Final

from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.refusal import Refused

RETRY_AFTER: Final = 1  #: seconds


def limit_by_client(proxies: TrustedProxies | None, most: int) -> RequestsByClient | None:
    """The limit; None if there is none, because `most` is 0 or no proxy is trusted."""
    return RequestsByClient(proxies, most) if proxies and most else None


class RequestsByClient:
    """See above; `most`: requests of one client."""

    def __init__(self, proxies: TrustedProxies, most: int) -> None:
        self._proxies, self._most = proxies, most
        self.under_way: dict[bytes, int] = {}  #: by group of `http_server.addresses`

    def __call__(self, request: Any) -> None:
        """Count a request until it is answered or its connection is lost; raises Refused (429)."""
        forwarded = request.requestHeaders.getRawHeaders(b"x-forwarded-for", ())
        client = self._proxies.named_client(request.client, forwarded)
        if client is None:
            return
        count = self.under_way.get(client, 0)
        if count >= self._most:
            message = f"too many requests from your address are under way: expected at most {self._most}"
            raise Refused(429, message, (b"Retry-After", b"%d" % RETRY_AFTER))
        self.under_way[client] = count + 1
        request.notifyFinish().addBoth(lambda _: self._over(client))

    def _over(self, client: bytes) -> None:
        left = self.under_way[client] - 1
        if left:
            self.under_way[client] = left
        else:
            del self.under_way[client]
