"""Certificates: the self-signed pair, and which pairs are valid."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key
from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import ConfigError
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed

NOW = time.time()
DAY = 86400


class SelfSignedTests(SynchronousTestCase):
    """`ensure_self_signed`."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "state"

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.directory / "localhost.crt").read_bytes())

    def test_made_once(self) -> None:
        """The pair is created at the first start and reused unchanged at the next."""
        certificate, key, created = ensure_self_signed(self.directory, NOW)
        before = certificate.read_bytes(), key.read_bytes()
        self.assertTrue(created)
        self.assertEqual(ensure_self_signed(str(self.directory), NOW + DAY), (certificate, key, False))
        self.assertEqual((certificate.read_bytes(), key.read_bytes()), before)

    def test_private(self) -> None:
        """With any umask, only the owner can read the key or enter the directory; no temporary file is left."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        _, key, _ = ensure_self_signed(self.directory, NOW)
        self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(sorted(os.listdir(self.directory)), ["localhost.crt", "localhost.key"])

    def test_content(self) -> None:
        """The key is ECDSA P-256; the certificate covers localhost and the host's name, and can issue no other."""
        ensure_self_signed(self.directory, NOW)
        certificate = self.certificate()
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self.assertEqual(key.curve.name, "secp256r1")
        self.assertLess((certificate.not_valid_after_utc - certificate.not_valid_before_utc).days, 825)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        expected = ["localhost", "127.0.0.1", "::1", socket.gethostname().lower()]
        self.assertEqual([str(name.value) for name in names], expected)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        self.assertEqual((constraints.ca, constraints.path_length), (True, 0))

    def test_renewed(self) -> None:
        """A pair that expires within 30 days, is invalid, or does not match is created again."""
        ensure_self_signed(self.directory, NOW)
        certificate, key = self.directory / "localhost.crt", self.directory / "localhost.key"
        for days in (390, 1000):
            self.assertTrue(ensure_self_signed(self.directory, NOW + days * DAY)[2])
            self.assertFalse(ensure_self_signed(self.directory, NOW + (days + 300) * DAY)[2])
        spoilt: list[Callable[[], object]] = [
            lambda: certificate.write_bytes(certificate.read_bytes()[:100]),
            lambda: key.write_bytes(b""),
            key.unlink,
            certificate.unlink,
            lambda: shutil.copy(other_key, key),
        ]
        _, other_key, _ = ensure_self_signed(self.directory / "other", NOW)
        for spoil in spoilt:
            spoil()
            self.assertTrue(ensure_self_signed(self.directory, NOW)[2])
            self.assertFalse(ensure_self_signed(self.directory, NOW)[2])

    def test_no_place(self) -> None:
        """A state directory that cannot be created raises a ConfigError of one line with its path."""
        self.directory.parent.mkdir()
        self.directory.write_text("a file")
        error = self.assertRaises(ConfigError, ensure_self_signed, self.directory, NOW)
        self.assertIn(str(self.directory), str(error))
        self.assertNotIn("\n", str(error))


class PairTests(SynchronousTestCase):
    """`ReloadableTLS`."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.certificate, self.key, _ = ensure_self_signed(self.directory, NOW)

    def test_days_left(self) -> None:
        """`days_left` is negative after expiry."""
        tls = ReloadableTLS(self.certificate, self.key)
        self.assertAlmostEqual(tls.days_left(NOW), 397, places=3)
        self.assertAlmostEqual(tls.days_left(NOW + 400 * DAY), -3, places=3)

    def test_unusable(self) -> None:
        """An invalid pair raises a ConfigError of one line with option and file."""
        good = self.certificate.read_bytes(), self.key.read_bytes()
        encrypted = load_key(good[1], None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        _, stranger, _ = ensure_self_signed(self.directory / "other", NOW)
        tls = ReloadableTLS(self.certificate, self.key)
        for option, certificate, key in [
            ("certificate", None, good[1]),
            ("private_key", good[0], None),
            ("certificate", b"", good[1]),
            ("certificate", b"nonsense", good[1]),
            ("certificate", good[1], good[1]),
            ("private_key", good[0], b""),
            ("private_key", good[0], good[0]),
            ("private_key", good[0], encrypted),
            ("private_key", good[0], stranger.read_bytes()),
        ]:
            for path, content in ((self.certificate, certificate), (self.key, key)):
                path.unlink(missing_ok=True)
                if content is not None:
                    path.write_bytes(content)
            error = str(self.assertRaises(ConfigError, ReloadableTLS, self.certificate, self.key))
            self.assertTrue(error.startswith(f"{option}: "), error)
            self.assertIn(str(self.certificate if option == "certificate" else self.key), error)
            self.assertNotIn("\n", error)
            self.assertRaises(ConfigError, tls.reload)
            self.assertAlmostEqual(tls.days_left(NOW), 397, places=3)
