"""TLS: the server's certificate and name."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from cryptography.x509 import DNSName, IPAddress
from OpenSSL import crypto
from twisted.internet import reactor, ssl

from routemaster.errors import ConfigError
from routemaster.sender import TreqSender
from routemaster.testing import zoo
from routemaster.testing.zoo import Authority, HttpsSink
from tests.sender.case import AUTHORITY, UUID, SenderCase


class TLSTests(SenderCase):
    """A server that is not the intended one gets no request."""

    async def test_client_certificate_required(self) -> None:
        """A server that requires a client certificate fails with TLS's own text."""
        server = self.server("silent", zoo.demand_certificate(AUTHORITY.issue()))
        self.assertFailed(await self.sender().post(server.url, UUID, b"[]"), "certificate required")
        self.assertEqual(server.received, [])

    async def test_verify_off(self) -> None:
        """With `verify` off any certificate is accepted."""
        server = self._stopped(HttpsSink(reactor, Authority().issue("other.example")))
        self.assertAcknowledged(await self.sender(verify=False, ca_files=()).post(server.url, UUID, b"[]"))

    async def test_name(self) -> None:
        """A host name is resolved, sent as SNI, and verified."""
        options, named = AUTHORITY.issue("localhost"), []
        options.getContext().set_tlsext_servername_callback(lambda tls: named.append(tls.get_servername()))
        sink = self._stopped(HttpsSink(reactor, options))
        self.assertAcknowledged(await self.sender().post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual(named, [b"localhost"])

    async def test_trailing_dot(self) -> None:
        """A trailing dot of the host is resolved, and neither sent as SNI, nor verified, nor in Host."""
        options, named, resolved = AUTHORITY.issue("localhost"), [], []
        options.getContext().set_tlsext_servername_callback(lambda tls: named.append(tls.get_servername()))
        sink = self._stopped(HttpsSink(reactor, options))

        def resolve(name: str) -> list[str]:
            resolved.append(name)
            return ["127.0.0.1"]

        self.assertAcknowledged(await self.sender(resolve=resolve).post(sink.url_for("localhost."), UUID, b"[]"))
        self.assertEqual((resolved, named), (["localhost."], [b"localhost"]))
        self.assertEqual(sink.received[0].headers[b"host"], b"localhost:%d" % sink.port)

    async def test_names_without_sense(self) -> None:
        """A name that is no valid pattern is passed over: the other names count."""
        senseless = [DNSName("*.*.internal"), DNSName("10.0.0.1"), DNSName("")]
        for names, accepted in (
            ([*senseless, IPAddress(ip_address("127.0.0.1"))], True),
            ([*senseless, DNSName("localhost")], False),
            ([DNSName("127.0.0.1")], False),
            ([DNSName("127.0.0.1.")], False),
            (senseless, False),
        ):
            options = zoo.certificate(names)
            sender = self.sender(ca_files=[self.trusted(options)])
            server = self._stopped(HttpsSink(reactor, options))
            outcome = await sender.post(server.url, UUID, b"[]")
            if accepted:
                self.assertAcknowledged(outcome)
            else:
                self.assertFailed(outcome, "the certificate is not for 127.0.0.1")

    async def test_spelling_of_names(self) -> None:
        """Case and a trailing dot make no difference between the name in the certificate and in the callback."""
        for name in ("LOCALHOST.", "localhost.", "LocalHost"):
            options = zoo.certificate([DNSName(name)])
            sink = self._stopped(HttpsSink(reactor, options))
            sender = self.sender(ca_files=[self.trusted(options)], resolve=lambda _: ["127.0.0.1"])
            for host in ("localhost", "LOCALHOST."):
                self.assertAcknowledged(await sender.post(sink.url_for(host), UUID, b"[]"))
        options = zoo.certificate([DNSName("localhost..")])
        server, sender = self.server("silent", options), self.sender(ca_files=[self.trusted(options)])
        self.assertFailed(await sender.post(server.url_for("localhost"), UUID, b"[]"), "is not for localhost")

    async def test_no_alternative_name(self) -> None:
        """A certificate without subjectAltName is refused; the reason says so and gives its CN."""
        options = zoo.certificate(None, "shop.example")
        server = self._stopped(HttpsSink(reactor, options))
        outcome = await self.sender(ca_files=[self.trusted(options)]).post(server.url, UUID, b"[]")
        self.assertFailed(outcome, "the certificate has no subjectAltName, only the CN shop.example")
        self.assertEqual(server.received, [])

    def trusted(self, options: ssl.CertificateOptions) -> Path:
        """A file with the server's self-signed certificate."""
        path = Path(self.mktemp())
        path.write_bytes(crypto.dump_certificate(crypto.FILETYPE_PEM, options.certificate))
        return path

    def test_unusable_ca_file(self) -> None:
        """A ca_file without certificates is a configuration error that names the file."""
        missing = Path(self.mktemp())
        error = self.assertRaises(ConfigError, TreqSender, reactor, user_agent="x", ca_files=[missing])
        self.assertIn(str(missing), str(error))
