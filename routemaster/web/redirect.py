# mypy: allow-untyped-calls
"""The plain-HTTP port: everybody is sent to HTTPS, except who comes there already, through a proxy.

A request is answered `308` to the same path and query on the configured public
URL; nothing of the client's `Host` goes into it, and the channel lets only
visible ASCII through, so that a path cannot end the Location line.

A proxy that ends TLS speaks plain HTTP to this port and says so in
`X-Forwarded-Proto: https`. It is believed if its address, the other end of the
connection, is one of `trusted_proxies`, and it said it once and nothing else;
then the API serves the request. A proxy must set that header itself rather
than pass on what it received.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from twisted.web.resource import Resource

from routemaster.web.http_server.request import BusRequest

KEPT = 1024  #: verdicts about addresses remembered


class RedirectResource(Resource):
    """Answers 308 to the public URL, or has the API answer for a trusted proxy.

    Args:
        public_url: `https://host[:port]`, a path after it is kept as a prefix.
        api: the resource of the API.
        trusted_proxies: networks of the proxies to believe.
    """

    isLeaf = True

    def __init__(
        self, public_url: str, api: Any = None, trusted_proxies: Sequence[IPv4Network | IPv6Network] = ()
    ) -> None:
        super().__init__()
        self._base = public_url.rstrip("/").encode("ascii")
        self._api = api
        self._networks = tuple(trusted_proxies)
        self._verdicts: dict[str, bool] = {}

    def render(self, request: BusRequest) -> Any:
        """The API's answer, or an empty 308."""
        if self._api is not None and self._came_by_https(request):
            return self._api.render(request)
        request.setResponseCode(308)
        request.setHeader(b"Location", self._base + request.uri)
        return b""

    def _came_by_https(self, request: BusRequest) -> bool:
        if request.requestHeaders.getRawHeaders(b"X-Forwarded-Proto") != [b"https"]:
            return False
        host = getattr(request.client, "host", None)  # a Unix socket has no address: not trusted
        if host is None:
            return False
        verdict = self._verdicts.get(host)
        if verdict is None:
            if len(self._verdicts) >= KEPT:
                self._verdicts.clear()
            verdict = self._verdicts[host] = self._trusted(host)
        return verdict

    def _trusted(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped  # a socket for both families shows IPv4 peers like this
        return any(address in network for network in self._networks)
