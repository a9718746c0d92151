"""Bodies of requests: by length and in chunks, limits, memory."""

from __future__ import annotations

import gc
import random
import weakref

from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.work_queue import WorkQueue
from routemaster.web.http_server.body_reader import CONNECTION, PIECE, BodyBudget, BodyReader
from routemaster.web.http_server.chunk_reader import OVERHEAD
from routemaster.web.http_server.connection import CROWD
from routemaster.web.http_server.limits import Limits
from routemaster.web.http_server.refusal import Refused
from routemaster.web.limits import BodyLimits
from tests.web.http_server.test_request_head import REFUSED
from tests.web.wire import CHUNKED, PUBLISH, Case, Wire, post, request


class BodyReaderTests(SynchronousTestCase):
    """`BodyReader`."""

    def test_rest(self) -> None:
        """`feed` returns the bytes after the body, and None until the body is complete."""
        chunks = [b"2\r\na", b"b\r\n1\r\nc\r\n0\r\n", b"\r\nrest"]
        for length, parts in ((3, [b"a", b"b", b"crest"]), (None, chunks)):
            reader = BodyReader(length, 3, BodyBudget(3))
            self.assertEqual([reader.feed(part) for part in parts], [None, None, b"rest"])
            self.assertEqual(reader.take(), b"abc")

    def test_refused(self) -> None:
        """A body in chunks over the limit raises 413, as soon as a size says so; a malformed chunk 400."""
        for data, status in (
            (b"4\r\nabcd\r\n", 413), (b"4\r\n", 413), (b"1\r\na\r\n3\r\nb", 413), (b"ffffffff\r\n", 413),
            (b"x\r\n", 400),
        ):  # fmt: skip
            reader = BodyReader(None, 3, BodyBudget(9))
            self.assertEqual(self.assertRaises(Refused, reader.feed, data).status, status)


class ShareTests(SynchronousTestCase):
    """Which part of the budget one client has."""

    def setUp(self) -> None:
        self.budget = BodyBudget(120)

    def fits(self, length: int | None, client: object, data: bytes = b"") -> BodyReader | None:
        """A body that is under way now; None if it is refused."""
        try:
            reader = BodyReader(length, 1000, self.budget, client)
            reader.feed(data)
        except Refused as refused:
            self.assertEqual((refused.status, dict(refused.headers)[b"Retry-After"]), (503, b"1"))
            return None
        return reader

    def held(self, client: object) -> int:
        """How many bodies of 10 bytes of a client can be under way beside the present ones."""
        count = 0
        while self.fits(10, client):
            count += 1
        return count

    def test_shares(self) -> None:
        """Each client holds as much as it leaves free, so that later ones find something too."""
        self.assertEqual([self.held(client) for client in "abcd"], [6, 3, 1, 1])
        self.assertEqual(self.budget.held, 110)

    def test_only_body(self) -> None:
        """A client's only body may take all that is left; not one byte more of a second."""
        self.assertIsNotNone(self.fits(100, "a"))
        self.assertIsNone(self.fits(1, "a", b""))
        self.assertIsNotNone(self.fits(20, "b"))
        self.assertIsNone(self.fits(1, "c"))

    def test_unknown_client(self) -> None:
        """Bodies of nobody have the sum as limit alone."""
        self.assertEqual(self.held(None), 12)

    def test_given_back(self) -> None:
        """A body that ends, or is refused, counts no more, once."""
        first = self.fits(50, "a")
        assert first is not None
        self.assertIsNone(self.fits(50, "a"))
        first.release()
        first.release()
        self.assertEqual((self.budget.held, self.held("a")), (0, 6))

    def test_in_chunks(self) -> None:
        """Bodies in chunks have their share as they grow."""
        readers = [BodyReader(None, 1000, self.budget, "a") for _ in range(2)]
        for reader in readers:
            self.assertIsNone(reader.feed(b"1e\r\n" + b"x" * 30 + b"\r\n"))
        self.assertRaises(Refused, readers[0].feed, b"1\r\nx\r\n")
        self.assertEqual(self.budget.held, 60)
        for reader in readers:
            reader.release()
        self.assertEqual(self.budget.held, 0)


class BodyTests(Case):
    """Bodies."""

    def test_caps(self) -> None:
        """A body may have as many bytes as its limit, by length or in chunks, and no more."""
        limits = Limits(BodyLimits(max_body=10, max_bulk_body=20, max_other_body=5))
        caps = [("POST", "/topics/cats", 20), ("POST", "/subscription", 10), ("DELETE", "/hello", 5)]
        for method, target, cap in caps:
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

    def wires(self, most: int) -> list[Wire]:
        """Ten connections with limits in common."""
        limits = Limits(BodyLimits(max_bulk_body=1000), bodies=BodyBudget(most))
        return [self.wire(limits) for _ in range(10)]

    def test_budget_by_length(self) -> None:
        """Bodies under way hold at most max_buffered_bodies; above that a new one is refused before it is read."""
        wires = self.wires(700)
        start = post(b"Content-Length: 300")
        for wire in wires:
            wire.send(start + b"a" * 299)
        found = [[(each.status, each.headers.get("retry-after")) for each in wire.answers()] for wire in wires]
        self.assertEqual(found, [[], [], *[[(503, "1")]] * 8])
        wires[0].send(b"a")  # complete
        wires[1].transport.lose()
        late = [wires[0], *self.wires(0)[:1]]
        late[1].site.limits = wires[0].site.limits
        for wire in late:
            self.assertEqual([each.status for each in wire.send(start)], [204] if wire is wires[0] else [])
        self.assertEqual(wires[0].site.limits.bodies.held, 600)
        self.assertIn("nothing was stored", wires[2].answers()[0].error)

    def test_budget_beside_connections(self) -> None:
        """The more connections are open, the less bodies may hold; one body, and an eighth, is always theirs."""
        for most, largest, connections, fits in (
            (800_000, 0, 0, 800_000), (800_000, 0, 10, 800_000 - 10 * CONNECTION), (800_000, 0, 1000, 100_000),
            (800_000, 300_000, 1000, 300_000), (800_000, 300_000, 20, 800_000 - 20 * CONNECTION),
        ):  # fmt: skip
            for size, refused in ((fits, False), (fits + 1, True)):
                budget = BodyBudget(most, largest, lambda count=connections: count)
                budget.begin("client")
                if refused:
                    self.assertRaises(Refused, budget.take, "client", size)
                else:
                    budget.take("client", size)

    def test_least(self) -> None:
        """A body under way counts so many bytes at least, by length or in chunks, and none when it has ended."""
        for length in (10, None):
            budget = BodyBudget(1000, least=300)
            readers = [BodyReader(length, 2000, budget) for _ in range(3)]
            self.assertEqual(budget.held, 900)
            self.assertRaises(Refused, BodyReader, length, 2000, budget)
            readers.pop().release()
            readers.append(BodyReader(length, 2000, budget))
            if length is None:
                readers[0].feed(b"12c\r\n" + b"a" * 300)
                self.assertRaises(Refused, readers[0].feed, b"\r\n190\r\n" + b"a" * 101)
            for reader in readers:
                reader.release()
            self.assertEqual(budget.held, 0)

    def test_room_kept(self) -> None:
        """A body that was counted goes on within what it was counted for, however many connections have come."""
        connections = 0
        budget = BodyBudget(1000, connections=lambda: connections, least=300)
        readers = [BodyReader(None, 2000, budget) for _ in range(3)]
        connections = 100
        for reader in readers:
            self.assertIsNone(reader.feed(b"12c\r\n" + b"a" * 300))
            self.assertRaises(Refused, reader.feed, b"\r\n1\r\na")

    def test_pieces(self) -> None:
        """Chunks are read in pieces, each in a turn of its connection; what else follows is not lost."""
        wire = self.wire()
        body = b"".join(b"1\r\n%c\r\n" % (97 + number % 26) for number in range(3 * PIECE)) + b"0\r\n\r\n"
        others: list[int] = []
        wire.channel.dataReceived(post(CHUNKED))
        wire.channel.dataReceived(body + PUBLISH)
        wire.site.queue.add(lambda: others.append(len(wire.channel._inbox)))
        self.assertEqual(self.api.published, [])
        wire.clock.advance(0)
        self.assertGreater(others[0], PIECE)
        sizes = [len(each[1]) for each in self.api.published]
        self.assertEqual((len(sizes), sizes[0]), (2, 3 * PIECE))

    def test_wasteful(self) -> None:
        """Beside many that wait, a body whose chunks are mostly framing is given up; another one is read."""
        for size, crowd, refused in ((1, CROWD + 1, True), (1, CROWD, False), (8, CROWD + 1, False)):
            wire = self.wire()
            chunk = b"%x\r\n%b\r\n" % (size, size * b" ")
            wire.channel.known = True
            wire.channel.dataReceived(post(CHUNKED))
            self.patch(WorkQueue, "__len__", lambda _, waiting=crowd: waiting)
            count, sent = 4 * OVERHEAD // len(chunk), 0
            while sent < count and not wire.answers():
                sent += 100
                wire.channel.dataReceived(100 * chunk)
                while not wire.answers() and wire.channel._inbox:
                    wire.channel._go_on()
            self.assertEqual([each.status for each in wire.answers()], [503] if refused else [], (size, crowd))
            if refused:
                self.assertIn("too small chunks", wire.answers()[0].error)
                self.assertGreater(sent * len(chunk), 2 * OVERHEAD)

    def test_budget_in_chunks(self) -> None:
        """A body in chunks counts with what has arrived; one that is refused or ends counts no more."""
        wires = self.wires(700)
        bodies = wires[0].site.limits.bodies
        for wire in wires:
            wire.send(post(CHUNKED, body=b"12c\r\n" + b"a" * 300 + b"\r\n"))
        self.assertEqual([[each.status for each in wire.answers()] for wire in wires], [[], [], *[[503]] * 8])
        self.assertEqual(bodies.held, 600)
        wires[0].send(b"0\r\n\r\n")
        self.assertEqual(bodies.held, 300)
        wires[1].send(b"x\r\n")
        self.assertEqual(([each.status for each in wires[1].answers()], bodies.held), ([400], 0))

    def test_budget_until_the_answer(self) -> None:
        """A body counts until its request is answered or its connection is lost."""
        for lost in (False, True):
            wire = self.wire(Limits(BodyLimits(), bodies=BodyBudget(100)))
            wire.send(request("GET", "/wait", b"", "Content-Length: 100"))
            wire.send(b"a" * 100)
            self.assertEqual(wire.site.limits.bodies.held, 100)
            if lost:
                wire.transport.lose()
            else:
                self.api.waiting[-1].callback(b"")
            self.assertEqual(wire.site.limits.bodies.held, 0)

    def test_freed_at_once(self) -> None:
        """What a lost connection held is free at once, without the garbage collector."""
        gc.disable()
        self.addCleanup(gc.enable)
        for start in (post(b"Content-Length: 300"), post(CHUNKED, body=b"5\r\naaaaa\r\n"), b"", PUBLISH[:40]):
            wire = self.wire()
            wire.send(PUBLISH + start)
            channel = wire.channel
            kept = [weakref.ref(each) for each in (channel._body, channel) if each is not None]
            wire.transport.lose()
            del channel, wire.channel, wire.transport.channel
            wire.transport.producer = None  # as Twisted's transports do
            self.assertEqual([each() for each in kept], [None] * len(kept))

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
