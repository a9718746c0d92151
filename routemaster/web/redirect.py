# mypy: allow-untyped-calls
"""The plain-HTTP port: redirects to HTTPS, or serves the API behind a trusted proxy.

A request is answered 308 with the same path and query at the configured public
URL. Location does not depend on the client's Host; a request target is visible
ASCII, so it cannot end the header line.

A proxy that terminates TLS sends `X-Forwarded-Proto: https`; several proxies in a
row make a list of it, whose first value is the client's protocol. The API serves
such a request if the connection's peer is a trusted proxy (`http_server.addresses`); who may
connect to a Unix socket is limited by the mode of its file. The proxy must set the header
itself and not forward the client's.

Health checks are answered here, too: load balancers use the plain port.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from twisted.web.http_headers import Headers
from twisted.web.resource import Resource

from routemaster.web.http_server.addresses import TrustedProxies
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request import BusRequest
from routemaster.web.http_server.request_head import Head

HEALTH = (b"/health", b"/health/ping", b"/health/ping.json", b"/health/ready")


class RedirectResource(Resource):
    """Redirects to the public URL, or has the API answer behind a trusted proxy.

    Args:
        public_url: `https://host[:port]`, optionally with a path as prefix.
        api: the resource of the API.
        proxies: whose X-Forwarded-Proto is believed.
    """

    isLeaf = True

    def __init__(self, public_url: str, api: Any = None, proxies: TrustedProxies | None = None) -> None:
        super().__init__()
        self._base = public_url.rstrip("/").encode("ascii")
        self._api = api
        self.observe = getattr(api, "observe", lambda *answer: None)  #: as that of the API
        self._proxies = proxies or TrustedProxies()

    def admit(self, head: Head, channel: Any) -> tuple[str, Hashable]:
        """Answer a request whose body would be read in vain: 308, or what the API refuses it with."""
        if self._serves(head.target.partition(b"?")[0], head.headers, channel.getPeer()):
            admitted: tuple[str, Hashable] = self._api.admit(head, channel)
            return admitted
        raise Refused(308, "moved to HTTPS", (b"Location", self._base + head.target))

    def render(self, request: BusRequest) -> Any:
        """The API's answer, or an empty 308."""
        if self._serves(request.path, request.requestHeaders, request.client):
            return self._api.render(request)
        request.setResponseCode(308)
        request.setHeader(b"Location", self._base + request.uri)
        return b""

    def _serves(self, path: bytes, headers: Headers, peer: Any) -> bool:
        """Whether the API answers."""
        return self._api is not None and (path in HEALTH or self._came_over_https(headers, peer))

    def _came_over_https(self, headers: Headers, peer: Any) -> bool:
        values = headers.getRawHeaders(b"X-Forwarded-Proto", ())
        if len(values) != 1 or values[0].partition(b",")[0].strip().lower() != b"https":
            return False
        return self._proxies.trusts(peer)
