"""Shared by the tests of the sender: servers with TLS on loopback, and a check that no connection stays open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import TestCase

from routemaster.interfaces import LastAttempt, Outcome, Verdict
from routemaster.sender import TreqSender
from routemaster.sender.failure_reasons import MAX_REASON
from routemaster.testing.hostile_answers import ZOO, answering
from routemaster.testing.zoo import Answer, Authority, HttpsSink, ScriptedServer, Wire

AUTHORITY = Authority()
SERVER = AUTHORITY.issue()
UUID = "canary-8f14e45f"
HEAD = b"HTTP/1.1 %b X\r\n"


class PostingSender(TreqSender):
    """A sender that posts a given body."""

    async def post(
        self, callback: str, uuid: str | None, body: bytes, last: LastAttempt = LastAttempt.SUCCEEDED
    ) -> Outcome:
        async with self.turn(callback, uuid, last) as turn:
            return await turn.post(body)


class SenderCase(TestCase):
    """Makes senders and servers, and checks that each test leaves no connection open."""

    timeout = 20
    reactor: Any = reactor  #: of the senders

    def setUp(self) -> None:
        self.ca_file = AUTHORITY.write(Path(self.mktemp()))

    def sender(self, **options: Any) -> PostingSender:
        options = {"user_agent": "routemaster/9", "timeout": 5.0, "ca_files": [self.ca_file],
                   "loopback": lambda: True, **options}  # fmt: skip
        sender = PostingSender(self.reactor, **options)

        async def close() -> None:
            await sender.close()
            self.assertEqual((sender.pool.open, sender.queue.active, sender.queue.waiting), (0, 0, 0))

        self.addCleanup(lambda: ensureDeferred(close()))
        return sender

    def sink(self, *script: Answer, **options: Any) -> HttpsSink:
        return self._stopped(HttpsSink(reactor, SERVER, *script, **options))

    def server(self, behaviour: Any, options: Any = SERVER) -> ScriptedServer:
        return self._stopped(ScriptedServer(reactor, options, ZOO.get(behaviour, behaviour)))

    def saying(self, answer: bytes, close: bool = False) -> ScriptedServer:
        return self.server(answering(answer, *[Wire.close] * close))

    def _stopped(self, server: Any) -> Any:
        self.addCleanup(lambda: ensureDeferred(server.stop()))
        return server

    async def gone(self, server: ScriptedServer) -> None:
        """Wait until the server has seen every connection close."""
        await server.empty()

    def assertAcknowledged(self, outcome: Outcome) -> None:
        self.assertEqual((outcome.verdict, outcome.error), (Verdict.ACKNOWLEDGED, ""), outcome)

    def assertFailed(self, outcome: Outcome, error: str) -> None:
        self.assertEqual(outcome.verdict, Verdict.FAILED, outcome)
        self.assertIn(error, outcome.error)
        self.assertLessEqual(len(outcome.error), MAX_REASON)
        self.assertNotIn(UUID, outcome.error)
