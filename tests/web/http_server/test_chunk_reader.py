"""Bodies in chunks: every way to cut them, what is refused, and how the work grows."""

from __future__ import annotations

import random
import sys

from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.http_server.chunk_reader import MAX_LINE, OVERHEAD, ChunkReader
from routemaster.web.http_server.refusal import Refused

END = b"0\r\n\r\n"


def chunk(content: bytes, spelt: str = "%x") -> bytes:
    return (spelt % len(content)).encode() + b"\r\n" + content + b"\r\n"


def calls(data: bytes) -> int:
    """How many functions are called to read this."""
    reader, count = ChunkReader(), 0

    def notice(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(notice)
    try:
        reader.feed(data)
    finally:
        sys.setprofile(None)
    return count


class ChunkReaderTests(SynchronousTestCase):
    """`ChunkReader`."""

    def test_any_segments(self) -> None:
        """Content and rest depend neither on the sizes of chunks nor on how they are cut into segments."""
        chance = random.Random(1)
        for sizes in ([1], [1, 2, 3], [300, 1, 5000, 16], [4095, 4096, 10, 255, 256]):
            for content in (b"\r\n", b"a\r", b"\n", b"xyz", b"0\r\n\r\n", b"1\r\nx\r\n"):
                contents = [(content * size)[:size] for size in sizes * 3]
                spelt = [chunk(each, chance.choice(["%x", "%X", "0%x", "%x;a=b", "%x;"])) for each in contents]
                wire = b"".join(spelt) + b"0;last\r\nTrailer: x\r\n\r\nrest"
                for segment in (1, 2, 3, 7, 100, 65536):
                    reader = ChunkReader()
                    found = [reader.feed(wire[at : at + segment]) for at in range(0, len(wire) - 4, segment)]
                    self.assertEqual(bytes(reader.content), b"".join(contents))
                    self.assertEqual({*found[:-1]}, {None} if found[:-1] else set())
                    self.assertTrue(b"rest".startswith(found[-1] or b""))

    def test_refused(self) -> None:
        """Whatever is not exact is refused, in one segment and in many, behind small chunks and large ones."""
        for bad in (
            b"2\nab\n", b"2\r\nabc\r\n", b"2\r\nab\n", b"2\r\nab0\r\n", b"0x2\r\nab\r\n", b"-2\r\n", b"+2\r\n",
            b" 2\r\n", b"2 \r\n", b"2\t\r\n", b"0_2\r\n", b"\r\n", b"g\r\n", b"2;\0\r\n", b"2;a\rb\r\n",
            b"2;a\nb\r\n", b"\xb2\r\n", b"123456789\r\n", b"0" * MAX_LINE, b"2;" + b"x" * MAX_LINE, b"0\r\nx\r\n",
            b"0\r\nx y: z\r\n",
            b"0\r\nx: \0\r\n", b"0\r\n: x\r\n", b"2\r\nab\rX", b"1;\r\na\r\n" * (OVERHEAD + 1),
            b"01\r\na\r\n" * (OVERHEAD + 1),
            b"0\r\n" + b"a: b\r\n" * OVERHEAD,
        ):  # fmt: skip
            for before in (b"", chunk(b"a") * 3, chunk(b"a" * 5000)):
                for segment in (1, 65536) if len(bad) < 9 else (65536,):
                    reader = ChunkReader()
                    wire = before + bad + b"x" * 2 * MAX_LINE
                    with self.assertRaises(Refused, msg=bad[:20]) as caught:
                        for at in range(0, len(wire), segment):
                            reader.feed(wire[at : at + segment])
                    self.assertEqual(caught.exception.status, 400)

    def test_overhead(self) -> None:
        """The framing that small chunks need is not limited, only what is passed over."""
        reader = ChunkReader()
        self.assertEqual(reader.feed(chunk(b"a") * 100_000 + END), b"")
        self.assertEqual(len(reader.content), 100_000)

    def test_work(self) -> None:
        """A run of small chunks costs no call for each; one with a CRLF costs a few, so work is linear."""
        few, many = calls(chunk(b"a") * 100), calls(chunk(b"a") * 10_000)
        self.assertEqual(many, few)
        for content, spelt in ((b"\r\n", "%x"), (b"a", "0%x"), (b"a" * 4096, "%x")):
            few, many = (calls(chunk(content, spelt) * count) for count in (100, 1000))
            self.assertLess(many, 11 * few)
            self.assertLess(many, 20 * 1000)
