"""Requests that are refused: invalid heads and chunks, and bodies over their limit."""

from __future__ import annotations

import random

from twisted.logger import LogLevel, globalLogPublisher

from tests.web.wire import CHUNKED, PUBLISH, Case, get, head, post, request

#: name of a case -> bytes and allowed statuses; the server then closes the connection
REFUSED: dict[str, tuple[bytes, set[int]]] = {
    # body length
    "length and chunks": (post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n"), {400}),
    "chunks and length": (post(CHUNKED, b"Content-Length: 4", body=b"0\r\n\r\n"), {400}),
    "two lengths": (post(b"Content-Length: 2", b"Content-Length: 3", body=b"abc"), {400}),
    "the same length twice": (post(b"Content-Length: 2", b"Content-Length: 2", body=b"ab"), {400}),
    "a list of lengths": (post(b"Content-Length: 2, 2", body=b"ab"), {400}),
    "a signed length": (post(b"Content-Length: +2", body=b"ab"), {400}),
    "a negative length": (post(b"Content-Length: -1"), {400}),
    "a hexadecimal length": (post(b"Content-Length: 0x2", body=b"ab"), {400}),
    "an empty length": (post(b"Content-Length:"), {400}),
    "a length with an underscore": (post(b"Content-Length: 1_0", body=b"a" * 10), {400}),
    "a length of 10^18": (post(b"Content-Length: 1000000000000000000"), {413}),
    "a length of 5,000 digits": (post(b"Content-Length: " + b"9" * 5000), {413}),
    "a length in superscript digits": (post("Content-Length: \u00b2".encode(), body=b"ab"), {400}),
    "a length with an exponent": (post(b"Content-Length: 1e1", body=b"a" * 10), {400}),
    "a length with a fraction": (post(b"Content-Length: 2.0", body=b"ab"), {400}),
    "a length in two parts": (post(b"Content-Length: 1 0", body=b"a" * 10), {400}),
    "a length with a parameter": (post(b"Content-Length: 2;x", body=b"ab"), {400}),
    "a quoted length": (post(b'Content-Length: "2"', body=b"ab"), {400}),
    "a vertical tab behind a length": (post(b"Content-Length: 2\x0b", body=b"ab"), {400}),
    "a no-break space before a length": (post(b"Content-Length: \xa02", body=b"ab"), {400}),
    "a length and an empty one": (post(b"Content-Length: 2", b"Content-Length:", body=b"ab"), {400}),
    "a folded length": (post(b"Content-Length:", b" 2", body=b"ab"), {400}),
    "a space before the colon": (post(b"Content-Length : 2", body=b"ab"), {400}),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), {400}),
    "chunked, identity": (post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), {400}),
    "identity, chunked": (post(b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n"), {400}),
    "identity with a length": (post(b"Transfer-Encoding: identity", b"Content-Length: 2", body=b"ab"), {400}),
    "gzip": (post(b"Transfer-Encoding: gzip"), {400}),
    "chunked twice": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), {400}),
    "a vertical tab before chunked": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), {400}),
    "a comma before chunked": (post(b"Transfer-Encoding: ,chunked", body=b"0\r\n\r\n"), {400}),
    "chunked twice in one line": (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), {400}),
    "chunked with a parameter": (post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"), {400}),
    "chunked in quotes": (post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), {400}),
    "chunked and an empty coding": (post(CHUNKED, b"Transfer-Encoding:", body=b"0\r\n\r\n"), {400}),
    "a comma behind chunked": (post(b"Transfer-Encoding: chunked,", body=b"0\r\n\r\n"), {400}),
    "a no-break space before chunked": (post(b"Transfer-Encoding: \xa0chunked", body=b"0\r\n\r\n"), {400}),
    "a next line before chunked": (post(b"Transfer-Encoding: \x85chunked", body=b"0\r\n\r\n"), {400}),
    "a NUL behind chunked": (post(b"Transfer-Encoding: chunked\0", body=b"0\r\n\r\n"), {400}),
    "a space between name and colon": (post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), {400}),
    "a space before the name": (post(b" Transfer-Encoding: chunked", body=b"0\r\n\r\n"), {400}),
    "an empty coding": (post(b"Transfer-Encoding:"), {400}),
    "chunks in HTTP/1.0": (head(b"POST /topics/cats HTTP/1.0", CHUNKED) + b"0\r\n\r\n", {400}),
    "a folded header": (post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), {400}),
    "a fold after the request line": (head(b"GET /hello HTTP/1.1", b" x: y", b"Host: bus.test"), {400}),
    "a lone CR in a header": (post(b"X: a\rContent-Length: 2", body=b"ab"), {400}),
    "a lone LF in a header": (post(b"X: a\nContent-Length: 2", body=b"ab"), {400}),
    "a NUL in a header": (post(b"X: a\x00b"), {400}),
    "a header without a colon": (post(b"nonsense"), {400}),
    "a header without a name": (post(b": nonsense"), {400}),
    "a name with a bracket": (post(b"X(y): z"), {400}),
    "a hexadecimal prefix in a chunk": (post(CHUNKED, body=b"0x2\r\nab\r\n0\r\n\r\n"), {400}),
    "a negative chunk": (post(CHUNKED, body=b"-2\r\nab\r\n0\r\n\r\n"), {400}),
    "a signed chunk": (post(CHUNKED, body=b"+2\r\nab\r\n0\r\n\r\n"), {400}),
    "a chunk size with an underscore": (post(CHUNKED, body=b"0_2\r\nab\r\n0\r\n\r\n"), {400}),
    "no chunk size": (post(CHUNKED, body=b"\r\nab\r\n0\r\n\r\n"), {400}),
    "an extension without a size": (post(CHUNKED, body=b";x\r\nab\r\n0\r\n\r\n"), {400}),
    "a chunk size of letters": (post(CHUNKED, body=b"xyz\r\n"), {400}),
    "chunk lines that end in a line feed": (post(CHUNKED, body=b"2\nab\n0\n\n" + b"x" * 2000), {400}),
    "a chunk that ends in a line feed": (post(CHUNKED, body=b"2\r\nab\n0\r\n\r\n"), {400}),
    "a chunk without a line end": (post(CHUNKED, body=b"2\r\nab0\r\n\r\n"), {400}),
    "a space before a chunk's size": (post(CHUNKED, body=b" 2\r\nab\r\n0\r\n\r\n"), {400}),
    "a tab after a chunk's size": (post(CHUNKED, body=b"2\t\r\nab\r\n0\r\n\r\n"), {400}),
    "an endless chunk extension": (post(CHUNKED, body=b"2;" + b"x" * 20_000), {400}),
    "a NUL in a chunk's extension": (post(CHUNKED, body=b"2;\0\r\nab\r\n0\r\n\r\n"), {400}),
    "a CR in a chunk's extension": (post(CHUNKED, body=b"2;a\rb\r\nab\r\n0\r\n\r\n"), {400}),
    "a space after a chunk's size": (post(CHUNKED, body=b"2 \r\nab\r\n0\r\n\r\n"), {400}),
    "a chunk longer than its size": (post(CHUNKED, body=b"2\r\nabc\r\n0\r\n\r\n"), {400}),
    "a line feed in a chunk's extension": (post(CHUNKED, body=b"2;a\nb\r\nab\r\n0\r\n\r\n"), {400}),
    "an endless chunk size": (post(CHUNKED, body=b"0" * 2000), {400}),
    "endless trailers": (post(CHUNKED, body=b"0\r\n" + b"X: y\r\n" * 12000), {400}),
    # Host and target
    "no Host": (head(b"GET /hello HTTP/1.1"), {400}),
    "two Hosts": (head(b"GET /hello HTTP/1.1", b"Host: a", b"Host: a"), {400}),
    "two Hosts in 1.0": (head(b"GET /hello HTTP/1.0", b"Host: a", b"Host: b"), {400}),
    "an empty Host": (head(b"GET /hello HTTP/1.1", b"Host:"), {400}),
    "an empty label": (head(b"GET /hello HTTP/1.1", b"Host: a..b"), {400}),
    "a label of 70 characters": (head(b"GET /hello HTTP/1.1", b"Host: " + b"a" * 70), {400}),
    "a Host of 300 characters": (head(b"GET /hello HTTP/1.1", b"Host: " + b"a.b." * 75), {400}),
    "a Host of other bytes": (head(b"GET /hello HTTP/1.1", b"Host: \xff"), {400}),
    "a Host with a user": (head(b"GET /hello HTTP/1.1", b"Host: a@b"), {400}),
    "a Host with a path": (head(b"GET /hello HTTP/1.1", b"Host: a/b"), {400}),
    "a list of Hosts": (head(b"GET /hello HTTP/1.1", b"Host: a, b"), {400}),
    "a port that is none": (head(b"GET /hello HTTP/1.1", b"Host: a:b"), {400}),
    "a URL with user info": (get(b"https://u:p@bus.test/hello"), {400}),
    "a URL with an invalid host": (get(b"http://a..b/hello"), {400}),
    "a compressed body": (post(b"Content-Encoding: gzip", b"Content-Length: 2", body=b"{}"), {415}),
    "a star": (head(b"OPTIONS * HTTP/1.1", b"Host: bus.test"), {400}),
    "CONNECT": (head(b"CONNECT other.test:443 HTTP/1.1", b"Host: other.test:443"), {400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    # request line
    "HTTP/0.9": (b"GET /hello\r\n\r\n", {400}),
    "HTTP/1.2": (head(b"GET /hello HTTP/1.2", b"Host: bus.test"), {400}),
    "HTTP/1.10": (head(b"GET /hello HTTP/1.10", b"Host: bus.test"), {400}),
    "http/1.1": (head(b"GET /hello http/1.1", b"Host: bus.test"), {400}),
    "two spaces": (head(b"GET  /hello HTTP/1.1", b"Host: bus.test"), {400}),
    "a tab": (head(b"GET\t/hello HTTP/1.1", b"Host: bus.test"), {400}),
    "a space at the end": (head(b"GET /hello HTTP/1.1 ", b"Host: bus.test"), {400}),
    "a line feed first": (b"\n" + get(b"/hello"), {400}),
    "a byte 0x7f in the target": (get(b"/hello\x7f"), {400}),
    "a byte 0x80 in the target": (get(b"/hello\x80"), {400}),
    "a byte 0xb0 in the target": (get(b"/\xb0"), {400}),
    "a byte 0xff in the query": (get(b"/hello?\xff"), {400}),
    "a NUL in the target": (get(b"/hello\x00"), {400}),
    "no slash": (get(b"hello"), {400}),
    "no UTF-8": (get(b"/%ff"), {400}),
    "an overlong slash": (get(b"/%c0%af"), {400}),
    "half an escape": (get(b"/hello%2"), {400}),
    "an escape of letters": (get(b"/hello%zz"), {400}),
    "an escaped NUL": (get(b"/hello%00"), {404}),
    "escaped line ends": (get(b"/hello%0d%0aX:%20y"), {404}),
    "an escaped ESC": (get(b"/%1b%5b2J"), {404}),
    "an escaped slash": (post(body=b"").replace(b"/topics/cats", b"/topics%2fcats"), {404}),
    "a method in small letters": (head(b"get /hello HTTP/1.1", b"Host: bus.test"), {501}),
    "a method with a hyphen": (head(b"M-SEARCH /hello HTTP/1.1", b"Host: bus.test"), {501}),
    "a method with a bracket": (head(b"G(T /hello HTTP/1.1", b"Host: bus.test"), {400}),
    "a target of 17 KB": (get(b"/" + b"a" * 17000), {431}),
    "a header of 17 KB": (post(b"X: " + b"a" * 17000), {431}),
    "headers of 17 KB": (post(*[b"X-%d: y" % n for n in range(2000)]), {431}),
    "600 headers": (post(*[b"X: y"] * 600), {431}),
    # size
    "a body over the cap": (
        head(b"POST /subscription HTTP/1.1", b"Host: bus.test", b"Content-Length: 65537"), {413}),
    "a bulk over the cap": (post(b"Content-Length: 1048577"), {413}),
    "a body over the cap, to be continued": (
        post(b"Content-Length: 1048577", b"Expect: 100-continue"), {413}),
    "a GET with a body": (
        head(b"GET /hello HTTP/1.1", b"Host: bus.test", b"Content-Length: 1025"), {413}),
    # other protocols
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), {400}),
    "an SSH greeting": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", {400}),
    "a PROXY line": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get(b"/hello"), {400}),
}  # fmt: skip

#: name of a case -> the header lines of a POST and its body as it is sent, and as its handler gets it
FRAMED: dict[str, tuple[list[bytes], bytes, bytes]] = {
    "no length": ([], b"", b""),
    "a length": ([b"Content-Length: 2"], b"ab", b"ab"),
    "a length of zero": ([b"Content-Length: 0"], b"", b""),
    "a length with zeros before it": ([b"Content-Length: " + b"0" * 999 + b"2"], b"ab", b"ab"),
    "a length between blanks": ([b"Content-Length: \t 2 \t"], b"ab", b"ab"),
    "a length without a blank": ([b"Content-Length:2"], b"ab", b"ab"),
    "a name in capitals": ([b"CONTENT-LENGTH: 2"], b"ab", b"ab"),
    "chunks": ([CHUNKED], b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
    "a chunk size in small and large digits": ([CHUNKED], b"0aA\r\n%b\r\n0\r\n\r\n" % (b"x" * 170), b"x" * 170),
    "a chunk size of 16 digits": ([CHUNKED], b"0000000000000002\r\nab\r\n0\r\n\r\n", b"ab"),
    "line ends in a chunk": ([CHUNKED], b"6\r\n0\r\n\r\n\n\r\n0\r\n\r\n", b"0\r\n\r\n\n"),
    "chunk extensions": ([CHUNKED], b"2;a\r\nab\r\n1;b=\"c\"\r\nc\r\n0;d\r\n\r\n", b"abc"),
    "trailers": ([CHUNKED], b"2\r\nab\r\n0\r\nX: y\r\nZ: Content-Length\r\n\r\n", b"ab"),
    "many trailers": ([CHUNKED], b"0\r\n" + b"X: y\r\n" * 2000 + b"\r\n", b""),
    "no chunks": ([CHUNKED], b"0\r\n\r\n", b""),
    "another header's name": ([b"Transfer_Encoding: chunked", b"X-Content-Length: 9"], b"", b""),
    "TE": ([b"TE: chunked, trailers"], b"", b""),
}  # fmt: skip

#: name of a case -> bytes and status; the connection stays open
ROUTED: dict[str, tuple[bytes, int]] = {
    "an unknown path": (get(b"/nowhere"), 404),
    "two slashes": (get(b"//hello"), 404),
    "two slashes inside": (request("POST", "/topics//cats"), 404),
    "nothing but slashes": (get(b"//"), 404),
    "two slashes and another method": (request("POST", "//hello"), 404),
    "a slash at the end": (get(b"/hello/"), 404),
    "a slash at the end and another method": (request("POST", "/hello/"), 404),
    "no slash at the end and another method": (request("PUT", "/dir"), 404),
    "no slash at the end": (get(b"/dir"), 404),
    "an escaped end": (get(b"/hello%20"), 404),
    "dots": (get(b"/topics/../hello"), 404),
    "another method": (request("POST", "/hello"), 405),
    "TRACE": (request("TRACE", "/hello"), 405),
    "OPTIONS": (request("OPTIONS", "/hello"), 405),
    "an unknown method": (request("BREW", "/hello"), 405),
}


class RefusalTests(Case):
    """Refused requests."""

    def test_table(self) -> None:
        """Each is answered one JSON error and a close, logs one debug line, and reaches no handler."""
        for name, (data, statuses) in REFUSED.items():
            for segment in (0, 1000, 7):
                wire, events = self.wire(), self.log_lines()
                answers = wire.send(data, segment)
                self.assertEqual(len(answers), 1, (name, segment, answers))
                self.assertIn(answers[0].status, statuses, (name, answers))
                self.assertTrue(answers[0].error)
                self.assertEqual(answers[0].headers["connection"], "close", name)
                self.assertTrue(wire.closing, name)
                self.assertEqual([event["log_level"] for event in events], [LogLevel.debug], name)
                self.assertEqual(self.api.published, [], name)
                globalLogPublisher.removeObserver(events.append)

    def test_framed(self) -> None:
        """A body ends exactly where its framing says: the bytes behind it are the next request."""
        for name, (lines, sent, body) in FRAMED.items():
            for segment in (0, 1, 7):
                self.api.published.clear()
                wire = self.wire()
                answers = wire.send((post(*lines, body=sent) + PUBLISH) * 2, segment)
                self.assertEqual([each.status for each in answers], [204] * 4, name)
                self.assertEqual([each for _, each in self.api.published], [body, b'{"type":"noop"}'] * 2, name)

    def test_huge_chunks(self) -> None:
        """A chunk size beyond 64 bits does not wrap around: what follows is part of the chunk, up to the limit."""
        for size in (b"ffffffffffffffff", b"10000000000000002", b"1" + b"0" * 31 + b"2"):
            wire = self.wire()
            answers = wire.send(post(CHUNKED, body=size + b"\r\nab\r\n0\r\n\r\n" + PUBLISH))
            self.assertLessEqual({each.status for each in answers}, {400, 413}, size)
            self.assertIn(wire.send(b"x" * (1 << 20))[0].status, {400, 413}, size)
        self.assertEqual(self.api.published, [])

    def test_routed(self) -> None:
        """Unknown paths and methods are answered 404 and 405 in JSON, and the connection stays open."""
        for name, (data, status) in ROUTED.items():
            wire = self.wire()
            for _ in range(2):  # the second time from the cache of routes, if it were cached
                answer = wire.send(data)[-1]
                self.assertEqual(answer.status, status, name)
                self.assertTrue(answer.error)
                self.assertNotIn("location", answer.headers)
            self.assertFalse(wire.closing, name)
        self.assertEqual(self.api.published, [])

    def test_allow(self) -> None:
        """A 405 lists the allowed methods."""
        (answer,) = self.wire().send(request("PUT", "/hello"))
        self.assertEqual(answer.headers["allow"], "DELETE, GET, HEAD")

    def test_nothing_repeated(self) -> None:
        """No error answer repeats what the client sent."""
        for data, _ in [*REFUSED.values(), *ROUTED.values()]:
            for text in ("hello", "cats", "nonsense", ".test", "nowhere", "BREW"):
                wire = self.wire()
                wire.send(data)
                self.assertNotIn(text.encode(), wire.transport.value())

    def test_nothing_after_a_refusal(self) -> None:
        """Bytes after a refused request are discarded, up to a limit."""
        wire = self.wire()
        self.assertEqual(len(wire.send(get(b"/%ff") + PUBLISH)), 1)
        for _ in range(100):
            wire.send(PUBLISH * 2000)
        self.assertEqual(self.api.published, [])
        self.assertEqual(wire.transport.producerState, "paused")
        wire.pass_time(7)
        self.assertTrue(wire.transport.aborted)

    def test_forms_of_clients(self) -> None:
        """Codings have no case, a target may be a whole URL, and identity is no compression (RFC 9110, 9112)."""
        chunks = b"2\r\n{}\r\n0\r\n\r\n"
        for data, status in (
            (get(b"https://bus.test/hello"), 200),
            (get(b"HTTP://other.test:8080/hello?a=b"), 200),
            (get(b"http://bus.test"), 404),
            (post(b"Transfer-Encoding: Chunked", body=chunks), 204),
            (post(b"Transfer-Encoding: CHUNKED", b"Content-Encoding: Identity", body=chunks), 204),
        ):
            self.assertEqual(self.wire().send(data)[0].status, status, data)

    def test_mangled(self) -> None:
        """For any bytes the site writes complete answers or closes, and logs no error."""
        dice = random.Random(20240811)
        seeds = [data for data, _ in [*REFUSED.values(), *ROUTED.values()] if len(data) < 3000] + [PUBLISH] * 20
        for _ in range(3000):
            data = bytearray(dice.choice(seeds) + dice.choice(seeds))
            for _ in range(dice.randrange(4)):
                place = dice.randrange(len(data))
                data[place : place + dice.randrange(3)] = dice.choice(
                    [b"\r\n", b"\n", b"\x00", b" ", b"%", b"/", b":", b"\xff", bytes([dice.randrange(256)])]
                )
            wire = self.wire()
            for answer in wire.send(bytes(data), dice.choice([0, 0, 1, 13])):
                self.assertIn(answer.status, {100, 200, 204, 400, 404, 405, 413, 415, 431, 501}, data)
            wire.clock.pump([1] * 70)
            self.assertTrue(wire.transport.lost, data)
            self.assertEqual(wire.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
