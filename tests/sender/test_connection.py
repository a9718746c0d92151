"""Response heads."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender.connection import Malformed, check_head


class HeadTests(SynchronousTestCase):
    """`check_head`."""

    def test_reusable(self) -> None:
        """HTTP version and Connection header decide whether the connection may be used again."""
        for fields, expected in {
            b"HTTP/1.1 200 OK\r\n": True,
            b"HTTP/1.1 200 OK\r\nConnection: Close\r\n": False,
            b"HTTP/1.1 200 OK\r\nCONNECTION: foo, close\r\n": False,
            b"HTTP/1.1 200\r\nX-Connection: close\r\n": True,
            b"HTTP/1.0 200 OK\r\n": False,
            b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n": True,
        }.items():
            self.assertEqual(check_head(fields + b"\r\n"), (200, expected), fields)

    def test_malformed_line_is_escaped(self) -> None:
        """An invalid status line is reported with escapes."""
        error = self.assertRaises(Malformed, check_head, b"\x1b[31m\xff\r\n\r\n")
        self.assertIn("\\x1b[31m\\xff", str(error))
