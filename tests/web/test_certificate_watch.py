"""The certificate in use: read again when its files change, and reported before it expires."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.certificate_watch import DAY, CertificateWatch
from routemaster.web.certificates import ReloadableTLS, ensure_self_signed

NOW = time.time()


class WatchTests(SynchronousTestCase):
    """`CertificateWatch`."""

    def setUp(self) -> None:
        self.now = NOW
        self.certificate, self.key, _ = ensure_self_signed(self.mktemp(), NOW)
        self.tls = ReloadableTLS(self.certificate, self.key)
        self.watch = CertificateWatch([self.tls, None], lambda: self.now)
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict[str, object]) -> None:
        if str(event.get("log_namespace", "")).endswith("certificate_watch.CertificateWatch"):
            self.lines.append(formatEvent(event))

    def checked(self) -> list[str]:
        """The lines that a check logs."""
        self.lines.clear()
        self.watch.check()
        return list(self.lines)

    def renewed(self, days: float) -> tuple[Path, Path]:
        """Another pair, made so many days from now."""
        certificate, key, _ = ensure_self_signed(self.mktemp(), NOW + days * DAY)
        return certificate, key

    def test_unchanged(self) -> None:
        """Files that have not changed are not read again."""
        self.assertEqual(self.checked(), [])
        self.assertEqual(self.checked(), [])

    def test_renewed(self) -> None:
        """New files are read at the next check; a pair that does not fit leaves the old one, and is logged."""
        certificate, key = self.renewed(100)
        shutil.copy(certificate, self.certificate)
        (line,) = self.checked()
        self.assertRegex(line, "^certificate not reloaded, the current one stays in use: private_key: .* key")
        self.assertAlmostEqual(self.tls.days_left(NOW), 397, places=3)
        self.assertEqual(self.checked(), [])
        shutil.copy(key, self.key)
        self.assertEqual(self.checked(), ["certificate reloaded; it is valid for 496 days"])
        self.assertEqual(self.checked(), [])

    def test_removed(self) -> None:
        """Without its files the old pair stays in use, and the new ones are read when they appear."""
        certificate, key = self.renewed(100)
        self.key.unlink()
        self.assertEqual(len(self.checked()), 1)
        self.assertEqual(self.checked(), [])
        certificate.replace(self.certificate)
        key.replace(self.key)
        self.assertEqual(self.checked(), ["certificate reloaded; it is valid for 496 days"])

    def test_several(self) -> None:
        """Each of several pairs is read when its own files change; lines about the client's say which it is."""

        class Shown(ReloadableTLS):
            kind, options = "client ", ("client_certificate", "client_private_key")

        certificate, key = self.renewed(-200)
        shown = Shown(certificate, key)
        self.watch = CertificateWatch([self.tls, shown], lambda: self.now)
        self.assertEqual(self.checked(), [])
        self.now += 190.5 * DAY
        [line] = self.checked()
        self.assertRegex(line, f"^the client certificate {certificate}, serial {shown.serial}, expires on 20")
        for new, old in zip(self.renewed(100), (certificate, key), strict=True):
            shutil.copy(new, old)
        self.assertEqual(self.checked(), ["client certificate reloaded; it is valid for 306 days"])
        key.unlink()
        [line] = self.checked()
        reason = "client_private_key: cannot read"
        self.assertRegex(line, f"^client certificate not reloaded, the current one stays in use: {reason}")
        self.lines.clear()
        self.watch.reload()
        self.assertEqual([line.partition(";")[0].partition(",")[0] for line in self.lines],
                         ["certificate reloaded", "client certificate not reloaded"])

    def test_expiry(self) -> None:
        """From 14 days before its end a warning names the served certificate every day, until it is renewed."""
        self.now = NOW + (397 - 14.1) * DAY
        self.assertEqual(self.checked(), [])
        self.now += 0.2 * DAY
        (line,) = self.checked()
        self.assertIn(f"the served certificate {self.certificate}, serial {self.tls.serial}, expires on 20", line)
        self.assertEqual(self.checked(), [])
        self.now += DAY
        self.assertEqual(len(self.checked()), 1)
        self.now += 20 * DAY
        self.assertIn("expired on", self.checked()[0])
        for new, old in zip(self.renewed(390), (self.certificate, self.key), strict=True):
            shutil.copy(new, old)
        self.assertEqual(len(self.checked()), 1)
        self.now += DAY
        self.assertEqual(self.checked(), [])
