"""Callbacks as targets."""

from __future__ import annotations

from base64 import b64encode

from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender.target import BadCallback, Target
from tests.sender.case import UUID


class TargetTests(SynchronousTestCase):
    """Parsing a callback."""

    def test_callbacks(self) -> None:
        """Host, port and path of a callback."""
        for callback, expected in {
            "https://a.example": ("a.example", 443, b"/"),
            "HTTPS://a.example:/x": ("a.example", 443, b"/x"),
            "https://A.Example/x//y": ("a.example", 443, b"/x//y"),
            "https://127.0.0.1:8443/": ("127.0.0.1", 8443, b"/"),
            "https://[::1]:1/%41": ("::1", 1, b"/%41"),
            "https://xn--bcher-kva.example:65535/": ("xn--bcher-kva.example", 65535, b"/"),
        }.items():
            target = Target.parse(callback, None, "x")
            self.assertEqual((target.host, target.port, target.path), expected)

    def test_trailing_dot(self) -> None:
        """A trailing dot of the host is kept for DNS, and left out of the Host header."""
        for callback, host, header in (
            ("https://A.example./x", "a.example.", b"A.example"),
            ("https://a.example.:8443/", "a.example.", b"a.example:8443"),
        ):
            target = Target.parse(callback, None, "x")
            self.assertEqual((target.host, target.headers.getRawHeaders(b"Host")), (host, [header]))

    def test_refused_callbacks(self) -> None:
        """Ambiguous URLs are refused, and so are IP addresses in unusual forms."""
        for callback in (
            "http://a.example/", "https:///x", "https://a.example:0/", "https://a.example:65536/", "https://a:-1/",
            "https://u:p@a.example/", "https://a@127.0.0.1:443@b/", "https://b\\@127.0.0.1/", "https://b%2f@a/",
            "https://a.example:\uff14\uff14\uff13/", "https://\u2460\u2461\u2466.0.0.1/", "https://0x7f.1/", "https://2130706433/",
            "https://127.1/", "https://1.2.3.04/", "https://a.example/?q", "https://a.example/#f", "https://[::1/",
            "https://a.example/ x", "https://a.example/\n", "https://a.example\n", "https://[fe80::1%25lo]/", "",
            "https://bücher.example/", "https://a.example/\x00", "https://[1]/", "https://a.0x/",
            "https://a.example../", "https://./", "https://127.0.0.1./", "https://a.example:0443/", "https://a.example/a\\b",
        ):
            self.assertRaises(BadCallback, Target.parse, callback, None, "x")

    def test_repr_hides_the_uuid(self) -> None:
        """The repr of a target does not show the uuid in any encoding."""
        shown = repr(Target.parse("https://a.example/", UUID, "x"))
        self.assertNotIn(UUID, shown)
        self.assertNotIn(b64encode(f"{UUID}:{UUID}".encode()).decode(), shown)
