"""The scripted sender: attempts that end with the outcomes of a script."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.interfaces import Outcome
from routemaster.testing.script_sender import ACKNOWLEDGED, LOCAL, ScriptedSender, refused

CALLBACK = "https://sub.example/events"


class ScriptedSenderTests(SynchronousTestCase):
    """`ScriptedSender` keeps the contract of `interfaces.Sender`."""

    def post(
        self, sender: ScriptedSender, to: str, uuid: str | None = None, body: bytes = b"[]"
    ) -> Deferred[Outcome]:
        async def post() -> Outcome:
            async with sender.turn(to, uuid) as turn:
                return await turn.post(body)

        return Deferred.fromCoroutine(post())

    def test_script(self) -> None:
        """Attempts end with the script's outcomes, then with `otherwise`, and are recorded."""
        sender = ScriptedSender(refused(404), otherwise=None)
        sending = [self.post(sender, CALLBACK, "u", b"[%d]" % n) for n in range(2)]
        self.assertEqual(self.successResultOf(sending[0]).status, 404)
        self.assertNoResult(sending[1])
        sender.attempts[1].end(ACKNOWLEDGED)
        self.assertEqual(self.successResultOf(sending[1]), ACKNOWLEDGED)
        self.assertEqual(sender.bodies, [[0], [1]])
        self.assertEqual((sender.attempts[1].callback, sender.attempts[1].uuid), (CALLBACK, "u"))
        self.assertRaises(ValueError, sender.attempts[1].end, LOCAL)

    def test_at_once(self) -> None:
        """`most_at_once` counts the attempts to one callback that are in flight at the same time."""
        sender = ScriptedSender(otherwise=None)
        sending = [self.post(sender, to) for to in ("a", "b", "a")]
        self.assertEqual(sender.most_at_once, {"a": 2, "b": 1})
        Deferred.fromCoroutine(sender.close())
        for attempt in sending:
            self.failureResultOf(attempt)
        self.assertTrue(all(attempt.was_aborted for attempt in sender.attempts))

    def test_aborted(self) -> None:
        """Cancelling an attempt raises, and the attempt is no longer in flight."""
        sender = ScriptedSender(otherwise=None)
        sending = self.post(sender, CALLBACK)
        sending.cancel()
        self.failureResultOf(sending)
        self.assertEqual(sender.in_flight, [])
