"""Sessions end, and are bounded."""

from __future__ import annotations

from itertools import count

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console import sessions as module
from routemaster.console.sessions import Sessions


class SessionTests(SynchronousTestCase):
    """With secrets that count."""

    def setUp(self) -> None:
        numbers = count()
        self.clock = Clock()
        self.sessions = Sessions(self.clock, lambda: f"secret-{next(numbers)}", 100.0, 1000.0)

    def test_found(self) -> None:
        """A session is found by its secret alone, which is kept nowhere."""
        secret, session = self.sessions.begin("ann")
        self.assertIs(self.sessions.find(secret), session)
        self.assertIsNone(self.sessions.find(session.csrf))
        self.assertIsNone(self.sessions.find(""))
        self.assertNotIn(secret, repr(vars(self.sessions)))

    def test_form(self) -> None:
        """A form is accepted with the session's own token alone."""
        _, ann = self.sessions.begin("ann")
        _, bob = self.sessions.begin("bob")
        self.assertTrue(ann.accepts(ann.csrf))
        for other in (bob.csrf, "", "ä"):
            self.assertFalse(ann.accepts(other))

    def test_idle(self) -> None:
        """It ends when it is not used; use keeps it."""
        secret, session = self.sessions.begin("ann")
        for _ in range(3):
            self.clock.advance(99)
            self.assertIsNotNone(self.sessions.find(secret))
        self.clock.advance(100)
        self.assertTrue(self.sessions.is_valid(session))  # an open stream is no use of it, and no reason to end
        self.assertIsNone(self.sessions.find(secret))
        self.assertFalse(self.sessions.is_valid(session))

    def test_lifetime(self) -> None:
        """It ends after its lifetime, however it is used."""
        secret, session = self.sessions.begin("ann")
        for _ in range(19):
            self.clock.advance(50)
            self.sessions.find(secret)
        self.assertTrue(self.sessions.is_valid(session))
        self.clock.advance(50)
        self.assertFalse(self.sessions.is_valid(session))
        self.assertIsNone(self.sessions.find(secret))

    def test_log_out(self) -> None:
        """After a logout its secret opens nothing; logging out twice is harmless."""
        secret, session = self.sessions.begin("ann")
        self.sessions.end(secret)
        self.sessions.end(secret)
        self.assertIsNone(self.sessions.find(secret))
        self.assertFalse(self.sessions.is_valid(session))

    def test_bounded(self) -> None:
        """With too many, the one that was not used for longest makes way."""
        self.patch(module, "MAX_SESSIONS", 2)
        first, second = self.sessions.begin("ann")[0], self.sessions.begin("bob")[0]
        self.sessions.find(first)
        self.sessions.begin("eve")
        self.assertIsNotNone(self.sessions.find(first))
        self.assertIsNone(self.sessions.find(second))

    def test_notice(self) -> None:
        """A notice is shown once."""
        _, session = self.sessions.begin("ann")
        session.notice = "done"
        self.assertEqual((session.take_notice(), session.take_notice()), ("done", ""))
