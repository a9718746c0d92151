"""One pipelined connection to Redis: txredisapi's protocol, with the hot path and the watchdog made ours.

Commands are written at once, answers come back in the same order. What differs
from txredisapi's `execute_command`, and why:

- One timer watches the oldest command under way, instead of a timer for each.
  It belongs to the connection, so that a caller who cancels cannot disarm it.
  When nothing is under way it sends a PING: a half-open link is found within
  twice the reply time-out.
- A command whose time is up gets `GRACE` more: if this process itself stood
  still (stopped, swapped out), the answer may lie unread in the socket.
- hiredis packs commands and parses replies. It makes an exception for each
  error of a reply, however deeply nested, and so tells us of them for nothing:
  no reply is searched.
- Errors are those of `replies`. An answer NOSCRIPT runs the script again from
  its text, behind what is under way by then: the one exception to the order.
- A connection that is given up, or lost, fails all that is under way with
  `outcome_unknown`, and refuses what comes later with a promise that it was
  not executed.

A command that blocks (XREAD BLOCK, WAIT, BLPOP) would hold up all others and
must not go down here.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import hiredis
import txredisapi
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable
from routemaster.redis.errors import dissect, named_error

GRACE = 0.05  #: seconds
MAX_PENDING = 20_000  #: commands under way; more are refused, so that a slow Redis costs bounded memory

_pack: Any = hiredis.pack_command  # its stub allows tuples of one only

Args = tuple[bytes, ...]
Reply = Any  #: bytes, int, None, or a list of these


class Clock(Protocol):
    """The part of a reactor that is needed here."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Any, *args: Any) -> Any: ...


class Wire(txredisapi.HiredisProtocol):
    """See the head of the file; `redis` is the server's name in error sentences."""

    transport: Any

    def __init__(self, redis: str, reply_timeout: float, clock: Clock) -> None:
        super().__init__(charset=None, convertNumbers=False)  # type: ignore[no-untyped-call]
        self._reader = hiredis.Reader(replyError=self._note_error)
        self._redis = redis
        self._timeout = reply_timeout
        self._clock = clock
        # (where the answer goes, when it is due, script text and arguments for a second try by EVAL)
        self._pending: deque[tuple[Deferred[Reply], float, bytes | None, Args]] = deque()
        self._error: tuple[str, str] | None = None  # in the reply being parsed
        self._late: object = None  # the command which is in its time of grace
        self._timer: Any = None
        self._lost: list[Deferred[None]] = []
        self.usable = False
        self.why = "not connected yet"  #: once lost: one sentence without subject

    # -- what Twisted calls

    def connectionMade(self) -> None:  # type: ignore[override]
        self.usable = True
        self._timer = self._clock.callLater(self._timeout, self._watch)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.usable:
            self.usable = False
            self.why = f"the connection was lost: {reason.getErrorMessage()}"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, deque()
        for answer, *_ in pending:
            answer.errback(StoreUnavailable(f"{self._redis}: {self.why}", outcome_unknown=True))
        lost, self._lost = self._lost, []
        self.connected = 0
        for each in lost:
            each.callback(None)

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self.replyReceived(reply)
        except hiredis.ProtocolError:
            self.give_up("what answers there does not speak Redis's protocol")

    # -- commands

    def execute_command(self, *args: bytes, script: bytes | None = None) -> Deferred[Reply]:
        """Send a command; its reply, or one of the errors of `replies`.

        With `script` the command is an EVALSHA of that text. The answer can be
        cancelled, which changes nothing for the server or the connection.
        """
        pending = self._pending
        if not self.usable or len(pending) >= MAX_PENDING:
            why = "has too many commands under way" if self.usable else f"is not connected: {self.why}"
            return fail(StoreUnavailable(f"{self._redis} {why}"))
        self.transport.write(_pack(args))
        answer: Deferred[Reply] = Deferred()
        pending.append((answer, self._clock.seconds() + self._timeout, script, args))
        return answer

    def replyReceived(self, reply: Reply) -> None:
        """Hand a reply to the oldest command under way."""
        if not self._pending:
            self.give_up(f"an answer came that nobody asked for: {reply!r:.200}")
            return
        answer, _, script, args = self._pending.popleft()
        if self._error is None:
            answer.callback(reply)
            return
        (code, detail), self._error = self._error, None
        if code == "NOSCRIPT" and script is not None and not answer.called:
            again = self.execute_command(b"EVAL", script, *args[2:])
            again.chainDeferred(answer)
            return
        if code in ("READONLY", "NOAUTH"):  # these do not pass by waiting on this connection
            self.give_up(str(named_error(code, detail, "it")))
        answer.errback(named_error(code, detail, self._redis))

    def _note_error(self, text: str) -> Exception:
        if self._error is None:
            self._error = dissect(text)
        return Exception(text)

    # -- the end of it

    def when_lost(self) -> Deferred[None]:
        """Fires when the connection is gone; at once if it is gone already."""
        if not self.connected:
            return succeed(None)
        lost: Deferred[None] = Deferred()
        self._lost.append(lost)
        return lost

    def give_up(self, why: str) -> None:
        """Abort the connection; `why` is for the logs and for all callers that are left."""
        if self.usable:
            self.usable = False
            self.why = why
        self.transport.abortConnection()

    def _watch(self) -> None:
        wait = self._timeout
        if self._pending:
            oldest = self._pending[0]
            wait = oldest[1] - self._clock.seconds()
            if wait <= 0:
                if oldest is self._late:
                    self._timer = None
                    self.give_up(f"no answer came within {self._timeout:g} s")
                    return
                self._late, wait = oldest, GRACE
        else:
            self.execute_command(b"PING").addErrback(lambda _: None)
        self._timer = self._clock.callLater(wait, self._watch)
