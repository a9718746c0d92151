"""Many deliveries at once: turns, limits, cancelling and closing."""

from __future__ import annotations

from threading import Event

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import LastAttempt, Outcome, Verdict
from routemaster.sender import client
from routemaster.sender import dns_cache as names_module
from routemaster.sender.client import STOPPING
from routemaster.testing import zoo
from routemaster.testing.hostile_tls import black_hole, no_handshake
from routemaster.testing.zoo import Answer, ScriptedServer
from tests.sender.case import SERVER, UUID, PostingSender, SenderCase
from tests.sender.timed_reactor import TimedReactor


class TryOutTests(SenderCase):
    """A test of a callback."""

    async def test_what_it_says(self) -> None:
        """It goes over a new connection, marked as a test, and says address, TLS version, status and answer."""
        sink, sender = self.sink(), self.sender()
        self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
        trial = await sender.try_out(sink.url, UUID, b"[1]")
        self.assertAcknowledged(trial.outcome)
        self.assertFalse(trial.outcome.reused)
        self.assertEqual((trial.address, trial.tls), (f"127.0.0.1:{sink.port}", "TLSv1.3"))
        self.assertEqual([each.headers.get(b"routemaster-test") for each in sink.received], [None, b"1"])

    async def test_beside_all_queues(self) -> None:
        """It waits for no place, though receivers that hang have all of them."""
        hanging, sink = self.server("silent"), self.sink()
        sender = self.sender(max_open=1, max_per_server=1)
        stuck = ensureDeferred(sender.post(hanging.url, UUID, b"[]"))
        stuck.addErrback(lambda failure: failure.trap(CancelledError))
        self.assertAcknowledged((await sender.try_out(sink.url, UUID, b"[]")).outcome)
        stuck.cancel()

    async def test_no_connection(self) -> None:
        """Without a connection there is no address, and the reason says why."""
        trial = await self.sender().try_out("https://127.0.0.1:1/", UUID, b"[]")
        self.assertEqual((trial.outcome.verdict, trial.address, trial.tls), (Verdict.FAILED, "", ""))
        self.assertIn("refused", trial.outcome.error)


class SharingTests(SenderCase):
    """Attempts share the sender fairly."""

    async def test_limit_per_server(self) -> None:
        """A server has at most `max_per_server` attempts; another port of its host is another server."""
        hanging, sink = self.server("silent"), self.sink()
        sender = self.sender(max_per_server=2, max_open=8, timeout=5.0)
        stuck = [ensureDeferred(sender.post(hanging.url, UUID, b"[]")) for _ in range(6)]
        self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
        self.assertEqual((sender.queue.active, sender.queue.waiting), (2, 4))
        for each in reversed(stuck):
            each.cancel()
        for success, result in await DeferredList(stuck, consumeErrors=True):
            self.assertFalse(success)
            self.assertTrue(result.check(CancelledError))

    def by_path(self) -> ScriptedServer:
        """One server with receivers that hang, and one at `/good` that answers."""
        async def serve(wire: zoo.Wire) -> None:
            while b"/good" in (await wire.request()).line:
                wire.write(b"HTTP/1.1 204 N\r\n\r\n")
            await wire.hang()

        return self.server(serve)

    def hanging(self, sender: PostingSender, server: ScriptedServer, count: int, last: LastAttempt) -> None:
        for number in range(count):
            stuck = ensureDeferred(sender.post(f"{server.url}/{number}", UUID, b"[]", last))
            stuck.addErrback(lambda failure: failure.trap(CancelledError))
            self.addCleanup(stuck.cancel)

    async def test_hanging_receivers_of_one_server(self) -> None:
        """Of 100 receivers of one server that hang a healthy one there waits for none, nor does a new one."""
        server, sender = self.by_path(), self.sender(max_per_server=8, timeout=60.0)
        self.hanging(sender, server, 100, LastAttempt.FAILED)
        for last in (LastAttempt.SUCCEEDED, LastAttempt.NONE):
            self.assertAcknowledged(await sender.post(f"{server.url}/good", UUID, b"[]", last))
        self.assertLessEqual(sender.queue.active, 4)
        self.assertGreaterEqual(sender.queue.waiting, 96)

    async def test_hanging_for_the_first_time(self) -> None:
        """Receivers that hang for the first time, as many as there are places, delay others by `LONG` only."""
        self.patch(client, "LONG", 0.05)
        server, sender = self.by_path(), self.sender(max_per_server=8, timeout=60.0)
        self.hanging(sender, server, 8, LastAttempt.SUCCEEDED)
        self.assertAcknowledged(await sender.post(f"{server.url}/good", UUID, b"[]", LastAttempt.SUCCEEDED))
        self.assertEqual(sender.queue.active, 8)

    async def test_outcomes_say_nothing_about_a_server(self) -> None:
        """Attempts that fail or are cancelled leave the places of others at the same server as they were."""
        sink, sender = self.sink(default=Answer(500)), self.sender(max_per_server=2, max_open=2)
        self.assertFailed(await sender.post(sink.url, UUID, b"[]"), "answered 500")
        cut = ensureDeferred(sender.post(sink.url, UUID, b"[]"))
        cut.cancel()
        self.failureResultOf(cut, CancelledError)
        async with sender.turn(sink.url, UUID), sender.turn(sink.url, UUID):
            self.assertEqual((sender.queue.active, sender.queue.waiting), (2, 0))

    async def test_connected(self) -> None:
        """A turn is connected if a kept connection is left for it: one for each turn, until it posts or ends."""
        sink, sender = self.sink(), self.sender()
        async with sender.turn(sink.url, UUID) as turn:
            self.assertFalse(turn.connected())
            await turn.post(b"[]")
        async with sender.turn(sink.url, UUID) as turn, sender.turn(sink.url, UUID) as other:
            self.assertEqual([each.connected() for each in (turn, other, turn)], [True, False, True])
            self.assertTrue((await turn.post(b"[]")).reused)
            self.assertTrue(other.connected())
        async with sender.turn(sink.url, UUID) as turn:
            self.assertTrue(turn.connected())
        self.assertEqual(sender.claims, {})

    async def test_turn_comes_before_the_body(self) -> None:
        """A second turn at a full server waits until the first ends; a turn may end without a POST."""
        sink, sender, ready = self.sink(), self.sender(max_per_server=1), Deferred[bytes]()
        entered: list[str] = []

        async def first() -> Outcome:
            async with sender.turn(sink.url, UUID) as turn:
                entered.append("first")
                return await turn.post(await ready)

        async def second() -> None:
            async with sender.turn(sink.url, UUID):
                entered.append("second")

        posting, waiting = ensureDeferred(first()), ensureDeferred(second())
        self.assertEqual((entered, sender.queue.active, sender.queue.waiting), (["first"], 1, 1))
        ready.callback(b"[1]")
        self.assertAcknowledged(await posting)
        await waiting
        self.assertEqual((entered, [request.body for request in sink.received]), (["first", "second"], [b"[1]"]))

    async def test_error_inside_a_turn(self) -> None:
        """An exception inside a turn is raised, and the turn is free again."""
        sender, url = self.sender(), self.sink().url

        async def fail() -> None:
            async with sender.turn(url, UUID):
                raise StoreUnavailable("Redis is unavailable")

        await self.assertFailure(ensureDeferred(fail()), StoreUnavailable)
        self.assertEqual((sender.queue.active, sender.pool.open), (0, 0))

    async def test_closed_inside_a_turn(self) -> None:
        """A sender that was closed during a turn opens no connection."""
        sink, sender, ready = self.sink(), self.sender(), Deferred[bytes]()

        async def post() -> Outcome:
            async with sender.turn(sink.url, UUID) as turn:
                return await turn.post(await ready)

        posting = ensureDeferred(post())
        await sender.close()
        ready.callback(b"[1]")
        self.assertEqual((await posting, sink.connections), (STOPPING, 0))

    async def test_waiting_is_not_timed(self) -> None:
        """Waiting in the queue is not part of the deadline."""
        sink = self.sink(default=Answer(delay=0.25))
        sender = self.sender(max_per_server=1, timeout=1.0)
        outcomes = await gatherResults([ensureDeferred(sender.post(sink.url, UUID, b"[]")) for _ in range(6)])
        for outcome in outcomes:
            self.assertAcknowledged(outcome)
        self.assertEqual(sink.connections, 1)

    async def test_cancel(self) -> None:
        """Cancelling a delivery closes its socket in every phase, and raises only CancelledError."""
        for behaviour, options in ((no_handshake, None), ("silent", SERVER), ("dripped_body", SERVER)):
            server, sender = self.server(behaviour, options), self.sender()
            sending = ensureDeferred(sender.post(server.url, UUID, b"[]"))
            await deferLater(reactor, 0.05)
            self.assertEqual(server.connections, 1)
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            await self.gone(server)

    async def test_cancel_connecting(self) -> None:
        """Cancelling during the TCP connect frees the place in the queue."""
        with black_hole() as port:
            sender = self.sender()
            sending = ensureDeferred(sender.post(f"https://127.0.0.1:{port}/", UUID, b"[]"))
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            self.assertEqual(sender.queue.active, 0)

    async def test_close(self) -> None:
        """Closing ends active, waiting and later attempts with LOCAL."""
        server = self.server("silent")
        sender = self.sender(max_per_server=1)
        sending = [ensureDeferred(sender.post(server.url, UUID, b"[]")) for _ in range(2)]
        await sender.close()
        for outcome in [*(await gatherResults(sending)), await sender.post(server.url, UUID, b"[]")]:
            self.assertEqual((outcome.verdict, outcome.error), (Verdict.LOCAL, "the bus is stopping"))
        await self.gone(server)

    async def test_hanging_look_ups(self) -> None:
        """While many look-ups hang, a cached name is still used; each hanging one ends at `connect_timeout`."""
        dead = Event()
        self.addCleanup(dead.set)
        sink = self.sink()

        def ask(name: str) -> list[str]:
            if name != "localhost":
                dead.wait(10)
            return ["127.0.0.1"]

        self.patch(names_module, "STALE", 0.0)
        self.reactor = TimedReactor()
        sender = self.sender(resolve=ask, connect_timeout=1.5)
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        stuck = [ensureDeferred(sender.post(f"https://dead{n}.example/", UUID, b"[]")) for n in range(40)]
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertFalse(any(each.called for each in stuck))
        self.reactor.clock.advance(1.5)
        for outcome in await gatherResults(stuck):
            self.assertFailed(outcome, "took over 1.5 s")
