# mypy: allow-untyped-calls
"""The plain-HTTP port: redirects to HTTPS, or serves the API behind a trusted proxy.

A request is answered 308 with the same path and query at the configured public
URL. Location does not depend on the client's Host; a request target is visible
ASCII, so it cannot end the header line.

A proxy that terminates TLS sends `X-Forwarded-Proto: https`; several proxies in a
row make a list of it, whose first value is the client's protocol. The API serves
such a request if the address of the connection's peer is in `trusted_proxies`;
the word `unix` there stands for all peers on a Unix socket, which the mode of the
socket's file limits. The proxy must set the header itself and not forward the client's.

Health checks are answered here, too: load balancers use the plain port.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from twisted.web.http_headers import Headers
from twisted.web.resource import Resource

from routemaster.web.http_server.request import BusRequest
from routemaster.web.http_server.request_head import Head

CACHED = 1024  #: addresses for which the result is cached
HEALTH = (b"/health", b"/health/ping", b"/health/ping.json", b"/health/ready")


class RedirectResource(Resource):
    """Redirects to the public URL, or has the API answer behind a trusted proxy.

    Args:
        public_url: `https://host[:port]`, optionally with a path as prefix.
        api: the resource of the API.
        trusted_proxies: networks of the trusted proxies; `unix` for Unix sockets.
    """

    isLeaf = True

    def __init__(
        self, public_url: str, api: Any = None, trusted_proxies: Sequence[IPv4Network | IPv6Network | str] = ()
    ) -> None:
        super().__init__()
        self._base = public_url.rstrip("/").encode("ascii")
        self._api = api
        self.observe = getattr(api, "observe", lambda *answer: None)  #: as that of the API
        self._networks = tuple(each for each in trusted_proxies if not isinstance(each, str))
        self._trusts_unix = "unix" in trusted_proxies
        self.trusted = lru_cache(CACHED)(self._is_trusted)  #: whether a peer's address is trusted

    def admit(self, head: Head, peer: Any) -> str:
        """Refuse a request whose body would be read in vain, if the API answers it, as the API's `admit` does."""
        if self._api is not None and self._came_over_https(head.headers, peer):
            return str(self._api.admit(head, peer))
        return ""

    def render(self, request: BusRequest) -> Any:
        """The API's answer, or an empty 308."""
        if self._api is not None and (
            request.path in HEALTH or self._came_over_https(request.requestHeaders, request.client)
        ):
            return self._api.render(request)
        request.setResponseCode(308)
        request.setHeader(b"Location", self._base + request.uri)
        return b""

    def _came_over_https(self, headers: Headers, peer: Any) -> bool:
        values = headers.getRawHeaders(b"X-Forwarded-Proto", ())
        if len(values) != 1 or values[0].partition(b",")[0].strip().lower() != b"https":
            return False
        host = getattr(peer, "host", None)  # None for a Unix socket
        return self._trusts_unix if host is None else self.trusted(host)

    def _is_trusted(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped  # how a dual-stack socket shows IPv4 peers
        return any(address in network for network in self._networks)
