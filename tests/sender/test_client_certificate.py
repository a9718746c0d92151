"""Mutual TLS: the certificate that the bus shows to receivers which ask for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509

from routemaster.errors import ConfigError
from routemaster.interfaces import Outcome
from routemaster.testing import zoo
from routemaster.testing.zoo import Authority, ScriptedServer, Wire
from tests.sender.case import AUTHORITY, UUID, PostingSender, SenderCase

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


def own(path: Path) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


class ClientCertificateTests(SenderCase):
    """Receivers that ask, and pairs that change."""

    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.mktemp())
        folder.mkdir()
        self.certificate, self.key = folder / "client.pem", folder / "client.key"
        AUTHORITY.write_pair(self.certificate, self.key)
        self.seen: list[int | None] = []  #: serial numbers of the certificates that a receiver was shown
        self.on_request: Callable[[], None] = lambda: None  #: called before a receiver answers

    def receiver(self, roots: Path | None = None, required: bool = True, asks: bool = True) -> ScriptedServer:
        async def note(wire: Wire) -> None:
            while True:
                await wire.request()
                shown = wire.transport.getHandle().get_peer_certificate()
                self.seen.append(None if shown is None else shown.get_serial_number())
                self.on_request()
                wire.write(ANSWER)

        options = AUTHORITY.issue()
        if asks:
            zoo.demand_certificate(options, roots or self.ca_file, required)
        return self.server(note, options)

    def mutual(self, **options: Any) -> PostingSender:
        return self.sender(client_certificate=self.certificate, client_private_key=self.key, **options)

    async def post(self, sender: PostingSender, server: ScriptedServer) -> Outcome:
        return await sender.post(server.url, UUID, b"[]")

    async def test_required(self) -> None:
        """A receiver that requires a certificate is shown the configured one, and gets the delivery."""
        receiver = self.receiver()
        self.assertAcknowledged(await self.post(self.mutual(), receiver))
        self.assertEqual(self.seen, [own(self.certificate)])

    async def test_required_and_not_configured(self) -> None:
        """Without a certificate the attempt fails with TLS's own reason, and the receiver hears no request."""
        receiver = self.receiver()
        self.assertFailed(await self.post(self.sender(), receiver), "certificate required")
        self.assertEqual((self.seen, receiver.received), ([], []))

    async def test_not_trusted(self) -> None:
        """A receiver that trusts another authority refuses, and the reason says so."""
        receiver = self.receiver(Authority().write(Path(self.mktemp())))
        self.assertFailed(await self.post(self.mutual(), receiver), "unknown ca")
        self.assertEqual(self.seen, [])

    async def test_asked(self) -> None:
        """A receiver that asks and does not require gets it if there is one; one that does not ask gets none."""
        serial = own(self.certificate)
        for asks, sender, shown in (
            (True, self.mutual(), serial), (True, self.sender(), None), (False, self.mutual(), None),
        ):  # fmt: skip
            self.assertAcknowledged(await self.post(sender, self.receiver(required=False, asks=asks)))
            self.assertEqual(self.seen.pop(), shown)

    async def test_with_its_issuers(self) -> None:
        """The certificates of issuers in the file are sent, too: the receiver needs only the root."""
        root = trustme.CA()
        issuer = root.create_child_ca()
        leaf = issuer.issue_cert("bus.example")
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        self.key.write_bytes(leaf.private_key_pem.bytes())
        roots = Path(self.mktemp())
        root.cert_pem.write_to_path(str(roots))
        self.assertAcknowledged(await self.post(self.mutual(), self.receiver(roots)))
        self.assertEqual(self.seen, [own(self.certificate)])

    async def test_not_verified(self) -> None:
        """The certificate is shown also where receivers' certificates are not verified."""
        sender = self.mutual(verify=False, ca_files=())
        self.assertAcknowledged(await self.post(sender, self.receiver()))
        self.assertEqual(self.seen, [own(self.certificate)])

    async def test_changed(self) -> None:
        """When the files have changed, new connections show the new pair; open ones carry no further request."""
        receiver, sender, old = self.receiver(), self.mutual(), own(self.certificate)
        watched = sender.client_certificate
        assert watched is not None
        self.assertAcknowledged(await self.post(sender, receiver))
        self.assertAcknowledged(await self.post(sender, receiver))
        self.assertFalse(watched.changed)
        AUTHORITY.write_pair(self.certificate, self.key)
        self.assertTrue(watched.changed)
        watched.reload()
        self.assertFalse(watched.changed)
        self.assertAcknowledged(await self.post(sender, receiver))
        self.assertEqual(self.seen, [old, old, own(self.certificate)])
        self.assertEqual([request.connection for request in receiver.received], [1, 1, 2])
        self.assertEqual(watched.serial, f"{own(self.certificate):X}")

    async def test_changed_under_way(self) -> None:
        """A request under way goes on over its connection, which is not used again."""
        receiver, sender = self.receiver(), self.mutual()
        assert sender.client_certificate is not None
        self.on_request = sender.client_certificate.reload
        self.assertAcknowledged(await self.post(sender, receiver))
        self.on_request = lambda: None
        for _ in range(2):
            self.assertAcknowledged(await self.post(sender, receiver))
        self.assertEqual([request.connection for request in receiver.received], [1, 2, 2])

    async def test_bad_change(self) -> None:
        """A pair that does not fit leaves the current one in use, and the open connections."""
        receiver, sender, old = self.receiver(), self.mutual(), own(self.certificate)
        assert sender.client_certificate is not None
        self.assertAcknowledged(await self.post(sender, receiver))
        AUTHORITY.write_pair(self.certificate, Path(self.mktemp()))
        error = str(self.assertRaises(ConfigError, sender.client_certificate.reload))
        self.assertRegex(error, "^client_private_key: .* is not the key of the certificate")
        self.assertAcknowledged(await self.post(sender, receiver))
        self.assertEqual(self.seen, [old, old])
        self.assertEqual([request.connection for request in receiver.received], [1, 1])

    def test_unusable(self) -> None:
        """A file that is missing or invalid is a fault of the configuration that names option and file."""
        good = self.certificate.read_bytes(), self.key.read_bytes()
        for option, certificate, key in (
            ("client_certificate", None, good[1]), ("client_private_key", good[0], None),
            ("client_certificate", good[1], good[1]), ("client_private_key", good[0], good[0]),
        ):  # fmt: skip
            for path, content in ((self.certificate, certificate), (self.key, key)):
                path.unlink(missing_ok=True)
                if content is not None:
                    path.write_bytes(content)
            error = str(self.assertRaises(ConfigError, self.mutual))
            self.assertTrue(error.startswith(f"{option}: "), error)
            self.assertIn(str(self.certificate if option == "client_certificate" else self.key), error)
