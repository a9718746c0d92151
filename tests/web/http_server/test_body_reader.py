"""Bodies of requests: by length and in chunks, limits, memory."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from routemaster.web.api import BodyLimits
from routemaster.web.http_server.body_reader import BodyReader
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.refusal import Refused
from tests.web.http_server.test_request_head import REFUSED
from tests.web.wire import PUBLISH, Case, request


class BodyReaderTests(SynchronousTestCase):
    """`BodyReader`."""

    def test_rest(self) -> None:
        """`feed` returns the bytes after the body, and None until the body is complete."""
        chunks = [b"2\r\na", b"b\r\n1\r\nc\r\n0\r\n", b"\r\nrest"]
        for length, parts in ((3, [b"a", b"b", b"crest"]), (None, chunks)):
            reader = BodyReader(length, 3)
            self.assertEqual([reader.feed(part) for part in parts], [None, None, b"rest"])
            self.assertEqual(reader.body, b"abc")

    def test_refused(self) -> None:
        """A body in chunks over the limit raises 413, a malformed chunk 400."""
        for data, status in ((b"4\r\nabcd\r\n", 413), (b"x\r\n", 400)):
            self.assertEqual(self.assertRaises(Refused, BodyReader(None, 3).feed, data).status, status)


class BodyTests(Case):
    """Bodies."""

    def test_caps(self) -> None:
        """A body may have as many bytes as its limit, by length or in chunks, and no more."""
        limits = Limits(BodyLimits(max_body=10, max_bulk_body=20, max_other_body=5))
        for method, target, cap in [("POST", "/topics/cats", 20), ("POST", "/x", 10), ("DELETE", "/hello", 5)]:
            for excess in (0, 1):
                body = b"a" * (cap + excess)
                chunks = b"1\r\na\r\n" * len(body) + b"0\r\n\r\n"
                in_chunks = request(method, target, b"", "Transfer-Encoding: chunked") + chunks
                for data in (request(method, target, body), in_chunks):
                    for segment in (0, 1):
                        answer = self.wire(limits).send(data, segment)[-1]
                        self.assertEqual(answer.status == 413, bool(excess), (data, answer))

    def test_no_continue_before_413(self) -> None:
        """A request with `Expect: 100-continue` is answered 413 at once, or 100 and then the final answer."""
        too_large, _ = REFUSED["a body over the cap, to be continued"]
        self.assertEqual([answer.status for answer in self.wire().send(too_large)], [413])
        wire = self.wire()
        start, body = PUBLISH.split(b"\r\n\r\n")
        self.assertEqual([a.status for a in wire.send(start + b"\r\nExpect: 100-continue\r\n\r\n")], [100])
        self.assertEqual([a.status for a in wire.send(body)], [100, 204])

    def test_in_memory(self) -> None:
        """A body of 1 MiB is kept in memory, not in a file."""
        self.patch(__import__("tempfile"), "TemporaryFile", None)
        body = random.Random(1).randbytes(1048576)
        (answer,) = self.wire().send(request("POST", "/topics/cats", body), 65536)
        self.assertEqual(answer.status, 204)
        self.assertEqual(self.api.published, [("cats", body)])

    def test_forms_are_not_parsed(self) -> None:
        """Form bodies reach the handler unparsed."""
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            self.wire().send(request("POST", "/topics/cats", b"a=b&c=d", f"Content-Type: {kind}"))
            self.assertEqual(self.api.published.pop(), ("cats", b"a=b&c=d"))

    def test_cut_anywhere(self) -> None:
        """An incomplete request reaches no handler, a complete one reaches it once."""
        for end in range(len(PUBLISH) + 1):
            wire = self.wire()
            wire.send(PUBLISH[:end])
            wire.transport.lose()
            self.assertEqual(len(self.api.published), int(end == len(PUBLISH)))
        self.assertEqual(self.flushLoggedErrors(), [])
