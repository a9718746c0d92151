"""TLS: the server's certificate and name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet import reactor, ssl

from routemaster.errors import ConfigError
from routemaster.sender import TreqSender
from routemaster.testing import zoo
from routemaster.testing.zoo import Authority, HttpsSink
from tests.sender.case import AUTHORITY, UUID, SenderCase


class TLSTests(SenderCase):
    """A server that is not the intended one gets no request."""

    async def refused(self, options: Any, error: str, **sender: Any) -> None:
        beast = self.beast("silent", options)
        self.assertFailed(await self.sender(**sender).post(beast.url, UUID, b"[]"), error)
        await self.gone(beast)
        self.assertEqual(beast.heard, 0)

    async def test_certificates(self) -> None:
        """A wrong certificate is refused with its reason, before any byte of the request is sent."""
        now, day = datetime.now(UTC), timedelta(days=1)
        await self.refused(AUTHORITY.issue(not_after=now - day, not_before=now - 2 * day), "has expired")
        await self.refused(AUTHORITY.issue(not_before=now + day, not_after=now + 2 * day), "not yet valid")
        await self.refused(AUTHORITY.issue("other.example"), "not for 127.0.0.1")
        await self.refused(Authority().issue(), "unknown authority")

    async def test_old_tls(self) -> None:
        """TLS 1.1 is refused."""
        old = AUTHORITY.issue(
            insecurelyLowerMinimumTo=ssl.TLSVersion.TLSv1_0, lowerMaximumSecurityTo=ssl.TLSVersion.TLSv1_1
        )
        await self.refused(old, "TLS failed")

    async def test_client_certificate_required(self) -> None:
        """A server that requires a client certificate fails with TLS's own text."""
        beast = self.beast("silent", zoo.demand_certificate(AUTHORITY.issue()))
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "certificate required")
        self.assertEqual(beast.received, [])

    async def test_plain_http(self) -> None:
        """A server that speaks plain HTTP is reported as a TLS failure."""
        beast = self.beast(zoo.plain_http, None)
        self.assertFailed(await self.sender().post(beast.url, UUID, b"[]"), "TLS failed: ")

    async def test_verify_off(self) -> None:
        """With `verify` off any certificate is accepted."""
        beast = self._stopped(HttpsSink(reactor, Authority().issue("other.example")))
        self.assertAcknowledged(await self.sender(verify=False, ca_files=()).post(beast.url, UUID, b"[]"))

    async def test_name(self) -> None:
        """A host name is resolved, sent as SNI, and verified."""
        options, named = AUTHORITY.issue("localhost"), []
        options.getContext().set_tlsext_servername_callback(lambda tls: named.append(tls.get_servername()))
        sink = self._stopped(HttpsSink(reactor, options))
        self.assertAcknowledged(await self.sender().post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual(named, [b"localhost"])

    def test_unusable_ca_file(self) -> None:
        """A ca_file without certificates is a configuration error that names the file."""
        missing = Path(self.mktemp())
        error = self.assertRaises(ConfigError, TreqSender, reactor, user_agent="x", ca_files=[missing])
        self.assertIn(str(missing), str(error))
