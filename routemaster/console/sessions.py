"""Who is logged in: sessions in memory, bounded, each with a token against forged requests.

A session ends when it is not used for `idle` seconds, after `lifetime`, or when the
console stops. Its secret is known to the browser alone: here is only its SHA-256.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from attrs import define, field

from routemaster.interfaces import Clock

COOKIE: Final = "__Host-routemaster-console"  #: browsers accept it from HTTPS only, for this host alone
MAX_SESSIONS: Final = 10_000  #: the least recently used one makes way


@define(eq=False)
class Session:
    """One user in one browser."""

    user: str
    csrf: str = field(repr=False)  #: each form has it
    began: float
    used: float
    notice: str = ""  #: shown on the next page, once
    ended: bool = False

    def accepts(self, csrf: str) -> bool:
        """Whether a form has come from a page of this session."""
        return hmac.compare_digest(self.csrf.encode(), csrf.encode())

    def take_notice(self) -> str:
        """The notice, which is not shown again."""
        notice, self.notice = self.notice, ""
        return notice


class Sessions:
    """All sessions."""

    def __init__(self, clock: Clock, make_secret: Callable[[], str], idle: float, lifetime: float) -> None:
        """`make_secret` returns a text beyond guessing; times in seconds."""
        self._clock, self._make_secret = clock, make_secret
        self._idle, self._lifetime = idle, lifetime
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, user: str) -> tuple[str, Session]:
        """A new session, and the secret for the cookie."""
        secret, now = self._make_secret(), self._clock.seconds()
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.popitem(last=False)[1].ended = True
        session = self._sessions[_digest(secret)] = Session(user, self._make_secret(), now, now)
        return secret, session

    def find(self, secret: str) -> Session | None:
        """The session of a cookie, if it has not ended; it counts as used."""
        digest, now = _digest(secret), self._clock.seconds()
        session = self._sessions.get(digest)
        if session is None:
            return None
        if self._is_over(session, now):
            self._sessions.pop(digest).ended = True
            return None
        session.used = now
        self._sessions.move_to_end(digest)
        return session

    def is_valid(self, session: Session) -> bool:
        """Whether a session has not ended; it does not count as used."""
        return not session.ended and self._clock.seconds() < session.began + self._lifetime

    def end(self, secret: str) -> None:
        """Log out."""
        session = self._sessions.pop(_digest(secret), None)
        if session is not None:
            session.ended = True

    def _is_over(self, session: Session, now: float) -> bool:
        return now >= session.used + self._idle or now >= session.began + self._lifetime


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
