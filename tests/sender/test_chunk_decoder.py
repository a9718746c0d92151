"""The chunked transfer coding."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import _DataLoss

from routemaster.sender.chunk_decoder import MAX_LINE, MAX_TRAILERS, PORTION, ChunkDecoder

MANY = 10_000  #: chunks that are wanted


class Decoded:
    """What a decoder makes of pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.body, self.rest, self.lenient, self.calls, self.chunks = b"", None, False, 0, 0
        self.decoder = ChunkDecoder(self._data, self._end, self._lenient, self._count)
        for piece in pieces:
            self.decoder.dataReceived(piece)

    def _data(self, data: bytes) -> None:
        self.body += data
        self.calls += 1

    def _end(self, rest: bytes) -> None:
        self.rest = rest

    def _lenient(self) -> None:
        self.lenient = True

    def _count(self, chunks: int) -> bool:
        self.chunks += chunks
        return self.chunks < MANY


class ChunkDecoderTests(SynchronousTestCase):
    """`ChunkDecoder`."""

    def test_forms(self) -> None:
        """Exact and inexact forms are decoded, in two pieces split anywhere; only inexact ones are reported."""
        for coded, body, lenient in (
            (b"0\r\n\r\n", b"", False),
            (b"2\r\nok\r\n0\r\n\r\n", b"ok", False),
            (b"A\r\n0123456789\r\n1;name=value\r\nx\r\n000\r\nX: y\r\nZ: 1\r\n\r\n", b"0123456789x", False),
            (b"1\r\n\n\r\n0\r\n\r\n", b"\n", False),
            (b" 2\r\nok\r\n0\r\n\r\n", b"ok", True),
            (b"2\t \r\nok\r\n0\r\n\r\n", b"ok", True),
            (b"2\nok\r\n0\r\n\r\n", b"ok", True),
            (b"2\r\nok\n0\r\n\r\n", b"ok", True),
            (b"2\r\nok\r\n0\n\r\n", b"ok", True),
            (b"2\r\nok\r\n0\r\n\n", b"ok", True),
            (b"2\r\nok\r\n0\r\nX: y\n\r\n", b"ok", True),
        ):
            for split in range(len(coded)):
                found = Decoded(coded[:split], coded[split:] + b"rest")
                self.assertEqual((found.body, found.rest, found.lenient), (body, b"rest", lenient), (coded, split))
                found.decoder.noMoreData()

    def test_malformed(self) -> None:
        """A size that is no number, a chunk of another size, and lines without end are refused."""
        for coded in (
            b"\r\n", b"x\r\n", b"-1\r\n", b"0x1\r\n", b"2 2\r\n", b"1\rx\n", b"2\r\nokay\r\n", b"1" * 17 + b"\r\n",
            b"1;" + b"x" * MAX_LINE, b"0\r\n" + b"X: y\r\n" * MAX_TRAILERS,
        ):
            self.assertRaises(ValueError, Decoded, coded)

    def test_cut_short(self) -> None:
        """Without the last chunk the body is cut short; the line end behind that may be missing."""
        coded = b"2\r\nok\r\n0\r\n\r\n"
        for length in range(len(coded)):
            found = Decoded(coded[:length])
            self.assertIsNone(found.rest)
            if length < coded.index(b"0") + 3:
                self.assertRaises(_DataLoss, found.decoder.noMoreData)
            else:
                found.decoder.noMoreData()

    def test_small_chunks(self) -> None:
        """The chunks of one piece are counted, and handed on together, 128 of them."""
        found = Decoded(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\nrest")
        self.assertEqual((found.body, found.calls, found.chunks), (b"x" * 5000, 40, 5000))
        self.assertEqual(found.rest, b"rest")

    def test_not_wanted(self) -> None:
        """Chunks behind those that are wanted are not decoded, nor handed on."""
        found = Decoded(b"1\r\nx\r\n" * (10 * MANY))
        self.assertEqual(found.chunks, -(-MANY // PORTION) * PORTION)
        self.assertEqual(len(found.body), found.chunks - PORTION)
