"""Servers that refuse, stall or fail before HTTP, or are not the intended ones: they get no request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from threading import Event

from cryptography.x509 import IPAddress
from twisted.internet.defer import ensureDeferred, gatherResults

from routemaster.testing import zoo
from routemaster.testing.hostile_answers import ZOO
from routemaster.testing.hostile_tls import (
    AES_GCM,
    BEFORE_TLS,
    black_hole,
    closed_port,
    renegotiates,
    requests_handshakes,
)
from routemaster.testing.zoo import Authority
from tests.sender.case import AUTHORITY, UUID
from tests.sender.hostile import BODY, CONNECT_TIMEOUT, MOMENT, TIMEOUT, TLS_1_2, HostileCase, sockets


class ConnectTests(HostileCase):
    """Servers that cannot be reached, or stall before a request is sent."""

    async def test_before_tls(self) -> None:
        """A handshake that does not begin, stops or drips ends at the deadline."""
        for name in ("no_handshake", "stops_in_handshake", "drips_handshake"):
            await self.attempt(
                BEFORE_TLS[name], "no TLS handshake within 20 s", options=None, ends=TIMEOUT,
                when=lambda attempt: attempt.server.heard,
            )  # fmt: skip

    async def test_no_connection(self) -> None:
        """A port that does not answer, and a name that is looked up for too long, end at `connect_timeout`."""
        looked_up = Event()
        self.addCleanup(looked_up.set)
        sender = self.timed(resolve=lambda _: (looked_up.wait(60) and []) or [])
        with black_hole() as port:
            for url, error in (
                (f"https://127.0.0.1:{port}/", "no connection within 2 s"),
                ("https://slow.example/", "the DNS look-up of slow.example took over 2 s"),
            ):
                before = sockets()
                posting = ensureDeferred(sender.post(url, UUID, BODY))
                self.reactor.clock.advance(CONNECT_TIMEOUT - MOMENT)
                self.assertNoResult(posting)
                self.reactor.clock.advance(MOMENT)
                self.assertFailed(await posting, error)
                self.assertEqual(sockets(), before)
        await sender.close()
        self.assertEqual(self.reactor.clock.getDelayedCalls(), [])

    async def test_no_server(self) -> None:
        """A port that refuses ends the attempt at once."""
        with closed_port() as port:
            outcome = await self.timed().post(f"https://127.0.0.1:{port}/", UUID, BODY)
        self.assertFailed(outcome, "connection refused")


class CertificateTests(HostileCase):
    """Servers that are not the intended one: they get no byte of a request."""

    async def test_refused(self) -> None:
        """Each fault of a certificate, a version or a handshake has its reason."""
        now, day = datetime.now(UTC), timedelta(days=1)
        past = {"not_before": now - 2 * day, "not_after": now - day}
        future = {"not_before": now + day, "not_after": now + 2 * day}
        own = [IPAddress(ip_address("127.0.0.1"))]
        for issue, error in (
            (partial(AUTHORITY.issue, **past), "the certificate has expired"),
            (partial(AUTHORITY.issue, **future), "the certificate is not yet valid"),
            (partial(AUTHORITY.issue, "other.example"), "the certificate is not for 127.0.0.1"),
            (Authority().issue, "the certificate is from an unknown authority"),
            (partial(zoo.certificate, own), "the certificate is self-signed"),
        ):
            for options in (TLS_1_2, {}):
                _, server = await self.attempt(ZOO["silent"], error, options=issue(**options))
                self.assertEqual(server.heard, 0, error)

    async def test_others(self) -> None:
        """Many that are refused, all at once, change nothing for another server of the same sender."""
        sink, sender = self.sink(), self.timed()
        strangers = [self.server("silent", Authority().issue()) for _ in range(20)]
        failing = [ensureDeferred(sender.post(each.url, UUID, BODY)) for each in strangers]
        self.assertAcknowledged(await sender.post(sink.url, UUID, BODY))
        for outcome in await gatherResults(failing):
            self.assertFailed(outcome, "unknown authority")
        await sender.close()

    async def test_handshake(self) -> None:
        """A handshake that fails ends the attempt at once, with TLS's own text where there is one."""
        for name, error in (
            ("closes_in_handshake", "the connection was closed before"),
            ("resets_in_handshake", "the connection was closed before"),
            ("chooses_tls_1_1", "TLS failed: "),
            ("speaks_first", "TLS failed: "),
            ("speaks_plain_http", "TLS failed: "),
        ):
            await self.attempt(BEFORE_TLS[name], error, options=None)

    async def test_client_certificate(self) -> None:
        """A server that demands a certificate where there is none gets no request."""
        for options, error in ((TLS_1_2, "TLS failed: "), ({}, "certificate required")):
            demanding = zoo.demand_certificate(AUTHORITY.issue(**options))
            _, server = await self.attempt(ZOO["silent"], error, options=demanding)
            self.assertEqual(server.heard, 0)

    async def test_renegotiation(self) -> None:
        """A new handshake on the connection is refused: a server could keep the processor busy with them."""
        options = AUTHORITY.issue(**TLS_1_2)
        _, server = await self.attempt(renegotiates, "TLS failed: ", options=options)
        self.assertEqual(len(server.received), 1)


    async def test_messages_without_end(self) -> None:
        """TLS's own messages end at 512 KiB, though none of them, nor the answers to them, is HTTP's."""
        error = "malformed answer: over 524288 bytes of TLS"
        await self.attempt(requests_handshakes, error, options=AUTHORITY.issue(**AES_GCM))
