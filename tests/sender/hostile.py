"""Attempts at hostile servers over real TLS, on a clock of the test's, and what holds for each of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from attrs import frozen
from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from routemaster.interfaces import Outcome
from routemaster.sender import pool
from routemaster.sender.exchange import Exchange
from routemaster.testing.zoo import Behaviour, ScriptedServer
from tests.sender.case import SERVER, UUID, PostingSender, SenderCase
from tests.sender.timed_reactor import TimedReactor

BODY = b"[]"
LARGE = bytes(20_000_000)  #: more than the kernel's buffers hold
TLS_1_2 = {"lowerMaximumSecurityTo": ssl.TLSVersion.TLSv1_2}
MOMENT = 2**-10  #: seconds; the clock adds it without rounding
TIMEOUT, CONNECT_TIMEOUT = 20.0, 2.0  #: the defaults


def sockets() -> int:
    """How many sockets the process has."""
    return sum(each.is_socket() for each in Path("/dev/fd").iterdir())


def held(contexts: Collection[SSL.Context]) -> list[Any]:
    """What takes memory: exchanges with their batch, and TLS connections of these contexts."""
    return [
        each for each in gc.get_objects()
        # by type: to ask a lazy object of another library for its class may begin its work
        if (issubclass(type(each), Exchange) and each._body)
        or (type(each) is SSL.Connection and each.get_context() in contexts)
    ]  # fmt: skip


@frozen
class Attempt:
    """An attempt at a server, under way."""

    server: ScriptedServer
    sender: PostingSender
    exchange: Exchange | None

    @property
    def received(self) -> int:
        """Bytes of the answer that have come."""
        connection = self.exchange and self.exchange.connection
        return connection.received if connection else 0


class HostileCase(SenderCase):
    """Attempts on a clock of their own: a server that ends one does so while time stands still."""

    def setUp(self) -> None:
        super().setUp()
        gc.disable()
        self.addCleanup(gc.enable)
        self.contexts: list[SSL.Context] = []
        self.addCleanup(lambda: self.assertEqual(held(self.contexts), []))
        self.reactor = TimedReactor()
        self.patch(pool, "REST", 0)  # time stands still
        self.logged: list[Any] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def timed(self, **options: Any) -> PostingSender:
        sender = self.sender(timeout=TIMEOUT, connect_timeout=CONNECT_TIMEOUT, **options)
        self.contexts.append(sender.pool._trust.options.getContext())
        return sender

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait, at most for the test's timeout."""
        while not condition():
            await deferLater(reactor, 0.001)

    async def attempt(
        self, behaviour: Behaviour, error: str, *, options: Any = SERVER, kept: bool = False, attempts: int = 1,
        body: bytes = BODY, ends: float = 0.0, when: Callable[[Attempt], object] | None = None,
    ) -> tuple[Outcome, ScriptedServer]:  # fmt: skip
        """Make attempts at a new server, and check all that holds for any.

        `error`: what the reason contains; empty: acknowledged. `kept`: whether the
        connection is kept. `ends`: the attempt ends so many seconds after `when` holds.
        """
        before = sockets()
        server = self.server(behaviour, options)
        sender = self.timed()
        self.logged.clear()  # that the server listens
        for _ in range(attempts):
            posting = ensureDeferred(sender.post(server.url, UUID, body))
            if when is not None:
                seen = Attempt(server, sender, next(iter(sender._exchanges), None))
                await self.until(lambda seen=seen: when(seen))
                self.reactor.clock.advance(ends - MOMENT)
                self.assertNoResult(posting)
                self.reactor.clock.advance(MOMENT)
            outcome = await posting
            if error:
                self.assertFailed(outcome, error)
            else:
                self.assertAcknowledged(outcome)
        self.assertEqual(sender.pool.idle, kept, "kept")
        if not kept:
            await server.empty()
        await sender.close()
        self.assertEqual(self.logged, [])
        await server.stop()
        self.assertEqual(self.reactor.clock.getDelayedCalls(), [])
        self.assertEqual(sockets(), before)
        return outcome, server
