"""A trial: one POST beside all queues, over a new connection, that says how far it came."""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from routemaster.interfaces import Trial
from routemaster.sender.connection import Connection
from routemaster.sender.exchange import Exchange

HEADER = b"Routemaster-Test"


class TrialExchange(Exchange):
    """An exchange that notes the address and the version of TLS that it used."""

    address = tls = ""

    async def run(self) -> Trial:
        """POST at once; returns whatever the server does."""
        self.fresh = True
        self.post()
        outcome = await self.done
        return Trial(outcome, self._reactor.seconds() - self._began, self.address, self.tls)

    def send_over(self, connection: Connection, method: bytes, headers: Headers) -> Deferred[IResponse]:
        headers.setRawHeaders(HEADER, [b"1"])
        peer = connection.transport.getPeer()
        self.address = f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}"
        return super().send_over(connection, method, headers)

    def _answered(self, response: Any) -> None:
        if self.connection is not None:
            self.tls = self.connection.transport.getHandle().get_protocol_version_name()
        super()._answered(response)
