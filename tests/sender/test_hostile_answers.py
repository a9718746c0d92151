"""Servers that answer wrongly, slowly, without end or not at all: verdict, reason, time, connection."""

from __future__ import annotations

import tracemalloc
from itertools import product

from twisted.internet.defer import Deferred, ensureDeferred

from routemaster.testing.hostile_answers import ZOO, answering
from routemaster.testing.zoo import Answer, Wire
from tests.sender.case import UUID
from tests.sender.hostile import BODY, LARGE, MOMENT, TIMEOUT, HostileCase


class StallTests(HostileCase):
    """Servers that let an attempt wait: it ends exactly at its deadline."""

    async def test_in_answer(self) -> None:
        """An answer that does not come, stops or drips ends at the deadline; the reason says how far it came."""
        for name, received, error in (
            ("silent", 0, "no answer within 20 s"),
            ("dripped_head", 4, "no complete answer within 20 s"),
            ("dripped_interim", 30, "no complete answer within 20 s"),
            ("half_head", 20, "no complete answer within 20 s"),
            ("dripped_body", 50, "answered 200, but its body was not complete within 20 s"),
            ("half_body", 40, "answered 200, but its body was not complete within 20 s"),
            ("half_chunk", 50, "answered 200, but its body was not complete within 20 s"),
            ("no_last_chunk", 50, "answered 200, but its body was not complete within 20 s"),
            ("no_end", 20, "answered 200, but its body was not complete within 20 s"),
        ):
            await self.attempt(
                ZOO[name], error, ends=TIMEOUT,
                when=lambda attempt, least=received: attempt.server.received and attempt.received >= least,
            )  # fmt: skip

    async def test_refusal(self) -> None:
        """The body of a refusal has a second; its status is the reason."""
        await self.attempt(
            ZOO["endless_refusal"], "answered 500", ends=1.0,
            when=lambda attempt: attempt.received > 50,
        )  # fmt: skip

    async def test_request_not_read(self) -> None:
        """A server that does not read the request ends the attempt at the deadline."""
        await self.attempt(
            ZOO["never_reads"], "no answer within 20 s", body=LARGE, ends=TIMEOUT,
            when=lambda attempt: attempt.exchange.connection and attempt.exchange.connection.sending,
        )  # fmt: skip

    async def test_success_at_the_last_moment(self) -> None:
        """An answer just before the deadline acknowledges."""
        late = Deferred[None]()

        async def slow(wire: Wire) -> None:
            await wire.request()
            await late
            wire.write(b"HTTP/1.1 204 N\r\n\r\n")

        server, sender = self.server(slow), self.timed()
        posting = ensureDeferred(sender.post(server.url, UUID, BODY))
        await self.until(lambda: server.received)
        self.reactor.clock.advance(TIMEOUT - MOMENT)
        late.callback(None)
        self.assertAcknowledged(await posting)
        await sender.close()


class HeadTests(HostileCase):
    """Heads without end cost 64 KiB, and no time."""

    async def test_heads(self) -> None:
        """A head over 64 KiB in any form, and a switch of protocols, fail at once; a large one does not."""
        for name, error, kept in (
            ("endless_head", "malformed answer: its head is over 65536 bytes", False),
            ("long_line", "malformed answer: its head is over 65536 bytes", False),
            ("endless_interim", "malformed answer: its head is over 65536 bytes", False),
            ("empty_lines", "malformed answer: its head is over 65536 bytes", False),
            ("switches", "answered 101 (no protocol switch was requested)", False),
            ("interim_then_done", "", True),
            ("long_head", "", True),
        ):
            await self.attempt(ZOO[name], error, kept=kept)


class BodyTests(HostileCase):
    """Bodies that are too long, or cut."""

    async def test_too_long(self) -> None:
        """After 64 KiB of a body, or many small pieces, the status decides; its connection is not kept."""
        for name, error in (
            ("endless_body", ""), ("endless_small_chunks", ""), ("endless_small_records", ""), ("large_body", ""),
            ("unannounced_without_end", ""), ("large_body_of_500", "answered 500"),
        ):  # fmt: skip
            outcome, _ = await self.attempt(ZOO[name], error)
            self.assertLess(outcome.received, 2 * 65536)

    async def test_bomb(self) -> None:
        """What is compressed is not decoded: a body of 64 MB in 64 kB is 64 kB."""
        outcome, _ = await self.attempt(ZOO["gzip_bomb"], "", kept=True)
        self.assertLess(outcome.received, 70_000)

    async def test_ends(self) -> None:
        """What is cut short fails, whatever ends it; a body of unannounced length ends with its connection."""
        for framing, error in (
            (b"Content-Length: 9\r\n\r\nhalf", "answered 200, but its body was cut short"),
            (b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "answered 200, but its body was cut short"),
            (b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf", "answered 200, but its body was cut short"),
            (b"Content-Length: 4\r\n\r\nhalf", ""),
            (b"\r\nhalf", ""),
        ):
            for version, end in product((b"1.1", b"1.0"), (Wire.close, Wire.cut)):
                answer = b"HTTP/%b 200 OK\r\nConnection: close\r\n%b" % (version, framing)
                await self.attempt(answering(answer, end), error)

    async def test_reset(self) -> None:
        """A connection that is reset within a body whose length is known fails the attempt."""
        await self.attempt(ZOO["reset_in_length"], "answered 200, but its body was cut short")

    async def test_behind_204(self) -> None:
        """Bytes behind a 204 change nothing but that its connection is not kept."""
        for name in ("body_behind_204", "announced_behind_204", "stray_bytes"):
            await self.attempt(ZOO[name], "")


class MemoryTests(HostileCase):
    """What an attempt may take."""

    async def test_peak(self) -> None:
        """Whatever a server sends without end, an attempt takes less than 2 MiB, the server's own included."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for name, error in (
            ("endless_head", "over 65536 bytes"), ("long_line", "over 65536 bytes"),
            ("endless_interim", "over 65536 bytes"), ("empty_lines", "over 65536 bytes"), ("endless_body", ""),
            ("endless_small_chunks", ""), ("endless_small_records", ""), ("large_body", ""),
            ("unannounced_without_end", ""), ("large_body_of_500", "answered 500"), ("gzip_bomb", ""),
        ):  # fmt: skip
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            await self.attempt(ZOO[name], error, kept=name == "gzip_bomb")
            self.assertLess(tracemalloc.get_traced_memory()[1] - before, 2 * 2**20, name)


class RedirectTests(HostileCase):
    """Redirects."""

    async def test_not_followed(self) -> None:
        """No redirect is followed, wherever it leads; the connection is as good as another."""
        other = self.sink()
        for status, target in product((300, 301, 302, 303, 305, 307, 308), (
            other.url, f"//127.0.0.1:{other.port}/", "/callback", "", "http://169.254.169.254/latest/meta-data/",
            "https://user:password@127.0.0.1/", "file:///etc/passwd", "https://" + "a" * 25_000, "\x7f\xff",
        )):  # fmt: skip
            answer = Answer(status, headers=(("Location", target), ("Refresh", f"0; url={target}")))
            outcome, server = await self.attempt(
                answering(answer.encode()), f"answered {status} (redirects are not followed)", kept=True
            )
            self.assertEqual((len(server.received), server.connections, outcome.answer), (1, 1, ""))
        self.assertEqual(other.connections, 0)


class StaleTests(HostileCase):
    """A kept connection that the server ends: at each point of a race, what happens to the second batch."""

    async def test_race_points(self) -> None:
        """Unless a byte of an answer came, the batch is sent again on a new connection; no attempt fails."""
        ends = ("close", "cut", "reset")
        for name, connections, requests in (
            *((f"{end}s_when_idle", 2, 2) for end in ends),
            *((f"{end}s_on_reuse", 2, 2) for end in ends),
            *((f"{end}s_when_sent", 2, 3) for end in ends),  # the server has it twice: the bus cannot know
            ("only_notifies_when_idle", 2, 2),
            ("only_notifies_on_reuse", 2, 2),
        ):
            _, server = await self.attempt(ZOO[name], "", attempts=2, kept=True)
            self.assertEqual((server.connections, len(server.received)), (connections, requests), name)
