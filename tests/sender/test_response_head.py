"""Response heads."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender.response_head import Malformed, read_head

#: the fields of a head that is not exact -> those of what Twisted's parser gets
REWRITTEN = {
    b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n": b"content-length: 2\r\n",
    b"Transfer-Encoding: gzip, Chunked\r\n": b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n": b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n": b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: binary\r\n": b"",
    b"Content-Length:\r\n": b"",
    b"Content-Length: NaN\r\n": b"",
    b"Content-Length: " + b"9" * 5000 + b"\r\n": b"",
    b"Content-Length: 2, 2\r\nContent-Length: 02\r\n": b"content-length: 2\r\n",
    b"no field\r\nX y: z\r\n: w\r\nServer : a\r\n b\r\n": b"server: a b\r\n",
    b"A: b\nC:d \r\n": b"a: b\r\nc: d\r\n",
}


class HeadTests(SynchronousTestCase):
    """`read_head`."""

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
            self.assertEqual(read_head(fields + b"\r\n"), (fields + b"\r\n", 200, expected), fields)

    def test_body_behind_204(self) -> None:
        """A body that a 204 announces may come: the connection is not used again."""
        for fields, expected in {
            b"Content-Length: 2\r\n": False,
            b"Transfer-Encoding: chunked\r\n": False,
            b"Content-Length: 0\r\n": True,
        }.items():
            head = b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n"
            self.assertEqual(read_head(head), (head, 204, expected), fields)

    def test_rewritten_fields(self) -> None:
        """The body's length is the one that a browser takes; lines that are no fields are left out."""
        for fields, expected in REWRITTEN.items():
            head = b"HTTP/1.1 200 \r\n" + expected + b"\r\n"
            self.assertEqual(read_head(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"), (head, 200, False), fields)

    def test_rewritten_status_line(self) -> None:
        """HTTP has no case, any version from 1 and several spaces are read."""
        for line in (b"http/1.1 204 X", b"HTTP/1.1  204", b"HTTP/1.1\t204\tX", b"HTTP/2.0 204 X", b"HTTP/2 204"):
            self.assertEqual(read_head(line + b"\r\n\r\n"), (b"HTTP/1.1 204 \r\n\r\n", 204, False), line)

    def test_folded_status_line(self) -> None:
        """A status line is one line: a folded one is refused, as it is when its second part has not come yet."""
        for head in (b"HTTP/1.1\n 200 OK\n\n", b"HTTP/1.1\r\n\t200 OK\r\n\r\n"):
            self.assertRaises(Malformed, read_head, head)
        self.assertEqual(read_head(b"HTTP/1.1 200\n x\n\n")[1], 200)

    def test_malformed_line_is_escaped(self) -> None:
        """An invalid status line is reported with escapes."""
        error = self.assertRaises(Malformed, read_head, b"\x1b[31m\xff\r\n\r\n")
        self.assertIn("\\x1b[31m\\xff", str(error))

    def test_ambiguous(self) -> None:
        """Two different lengths, and CR or NUL within a line, are refused."""
        for fields in (
            b"Content-Length: 1\r\nContent-Length: 2\r\n", b"Content-Length: 1, 2\r\n",
            b"X: a\rb\r\n", b"X: a\0b\r\n",
        ):  # fmt: skip
            self.assertRaises(Malformed, read_head, b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
