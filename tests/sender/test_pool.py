"""The connection pool."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender import pool
from routemaster.sender.connection import AT_ONCE, Connection
from routemaster.sender.dns_cache import NoAddress
from routemaster.sender.pool import CLOSE_TIMEOUT, IDLE, REST, Pool
from routemaster.testing.zoo import Wire
from tests.sender.case import UUID, SenderCase


class FakeConnection:
    """A usable connection without a socket; records what the pool does with it."""

    def __init__(self, key: tuple[str, int]) -> None:
        self.key = key
        self.idle = False
        self.usable = True
        self.calls: list[str] = []

    @property
    def transport(self) -> Any:
        """The one of TLS, over that of TCP, whose reading is paused."""
        pause, resume = (lambda call=call: self.calls.append(call) for call in ("pause", "resume"))
        return Mock(transport=Mock(pauseProducing=pause, resumeProducing=resume))

    def settle(self) -> None:
        """Nothing has arrived."""

    def close(self) -> None:
        self.calls.append("close")

    def drop(self) -> None:
        self.calls.append("drop")


class IdleTests(SynchronousTestCase):
    """Idle connections, on a test clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        nothing: Any = None
        self.pool: Any = Pool(self.clock, nothing, nothing, max_open=9, connect_timeout=1.0)

    def idle(self, host: str = "a.example") -> FakeConnection:
        connection = FakeConnection((host, 443))
        self.pool.opened(connection)
        self.pool.keep(connection)
        return connection

    def test_last_used_first(self) -> None:
        """Of several idle connections the last used one is taken, and only one with the same key."""
        first, last = self.idle(), self.idle()
        self.idle("b.example")
        taken = [self.pool.take(("a.example", 443)) for _ in range(3)]
        self.assertEqual((taken, self.pool.idle, last.idle), ([last, first, None], 1, False))

    def test_rest(self) -> None:
        """Connections that rest are read again `REST` seconds after the first of them, unless they are closed."""
        first, closed, late = (self.idle() for _ in range(3))
        for each in (first, first, closed):
            self.pool.rest(each)
        self.clock.advance(REST / 2)
        self.pool.rest(late)
        self.pool.closed(closed)
        self.pool.rest(closed)
        self.clock.advance(REST / 2)
        both = ["pause", "resume"]
        self.assertEqual([each.calls for each in (first, closed, late)], [both, ["pause"], both])
        self.pool.rest(first)
        self.clock.advance(REST)
        self.assertEqual(first.calls, ["pause", "resume"] * 2)

    def test_not_usable(self) -> None:
        """A connection that became unusable is aborted, and another one is taken."""
        good, bad = self.idle(), self.idle()
        bad.usable = False
        self.assertIs(self.pool.take(good.key), good)
        self.assertEqual((bad.calls, good.calls), (["drop"], []))

    def test_timeout(self) -> None:
        """Each connection is closed `IDLE` seconds after its last use, and aborted `CLOSE_TIMEOUT` later."""
        first = self.idle()
        self.clock.advance(IDLE / 2)
        second = self.idle("b.example")
        self.clock.advance(IDLE / 2)
        self.assertEqual((first.calls, second.calls, self.pool.idle), (["close"], [], 1))
        self.clock.advance(CLOSE_TIMEOUT)
        self.assertEqual(first.calls, ["close", "drop"])
        self.clock.advance(IDLE / 2 - CLOSE_TIMEOUT)
        self.assertEqual((second.calls, self.pool.idle), (["close"], 0))

    def test_nothing_is_left(self) -> None:
        """After its connections have closed the pool holds no timer and no key."""
        connections = [self.idle(f"{number}.example") for number in range(3)]
        self.pool.closed(connections[0])
        self.clock.advance(IDLE)
        for connection in connections[1:]:
            self.pool.closed(connection)
        self.assertEqual((self.pool.open, self.pool.idle, self.pool._idle), (0, 0, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PoolTests(SenderCase):
    """Idle connections, on real sockets."""

    async def test_many_small_records(self) -> None:
        """An answer in very many records is read a few times a second, and acknowledges."""
        spied: list[Connection] = []

        async def drips(wire: Wire) -> None:
            await wire.request()
            wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n")
            for _ in range(400):
                wire.transport._flushSendBIO()
                wire.write(b".")
                await wire.sleep(0.001)

        server, sender = self.server(drips), self.sender()
        opened = sender.pool.opened
        self.patch(sender.pool, "opened", lambda connection: (spied.append(connection), opened(connection)))
        began = sender.seconds()
        self.assertAcknowledged(await sender.post(server.url, UUID, b"[]"))
        self.assertLessEqual(spied[0].reads, AT_ONCE + 2 + (sender.seconds() - began) / REST)

    async def test_idle_makes_room(self) -> None:
        """At `max_open`, an idle connection is closed for a new one."""
        sinks, sender = [self.sink() for _ in range(4)], self.sender(max_open=2, max_per_server=2)
        for sink in sinks:
            self.assertAcknowledged(await sender.post(sink.url, UUID, b"[]"))
            self.assertLessEqual(len([wire for each in sinks for wire in each.wires]), 3)
        await self.gone(sinks[0])
        self.assertLessEqual(sender.pool.open, 2)

    async def test_idle_timeout(self) -> None:
        """An idle connection is closed after `IDLE` seconds."""
        self.patch(pool, "IDLE", 0.05)
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        self.assertEqual(sender.pool.idle, 1)
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))

    async def test_peer_closes_idle(self) -> None:
        """An idle connection that the server closes leaves the pool."""
        sink, sender = self.sink(), self.sender()
        await sender.post(sink.url, UUID, b"[]")
        for wire in tuple(sink.wires):
            wire.close()
        await self.gone(sink)
        await deferLater(reactor, 0.02)
        self.assertEqual((sender.pool.open, sender.pool.idle), (0, 0))


class AddressTests(SenderCase):
    """Names with several addresses, or none."""

    async def test_second_address(self) -> None:
        """If the first address refuses, the second one is tried, and tried first afterwards."""
        sink = self.sink()
        sender = self.sender(resolve=lambda _: ["127.0.0.2", "127.0.0.1"])
        self.assertAcknowledged(await sender.post(sink.url_for("localhost"), UUID, b"[]"))
        self.assertEqual((await sender._dns.addresses("localhost", 1.0))[0], "127.0.0.1")

    async def test_unknown_name(self) -> None:
        """A name that does not resolve is reported as such."""
        def ask(name: str) -> list[str]:
            raise NoAddress(f"the name {name} does not resolve")

        outcome = await self.sender(resolve=ask).post("https://no.example/", UUID, b"[]")
        self.assertFailed(outcome, "does not resolve")
