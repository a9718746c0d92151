"""One pipelined connection to Redis: commands are sent at once, replies come in the same order.

A subclass of txredisapi's protocol that replaces its encoding, its queue of
replies and its time-outs, and keeps none of its code on the path of a command:

- One timer watches the oldest command in flight, instead of one timer for each
  command. Cancelling a command does not stop it. While no command is in flight
  it sends a PING, so that a half-open connection is found within twice the
  reply time-out.
- A late reply has `GRACE` more to arrive: if this process itself was stopped or
  swapped out, the reply may lie unread in the socket.
- hiredis encodes commands and parses replies. It calls `_note_error` for each
  error, however deeply nested, so that no reply has to be searched for errors.
- Errors are those of `errors`. After NOSCRIPT the script is sent again as text,
  behind the commands then in flight: the only exception to the order.
- When a connection is lost or aborted, all commands in flight fail with
  `outcome_unknown`. Later commands fail at once, and are not sent.

Commands that block (XREAD BLOCK, BLPOP) would delay all others: do not send
them on a connection that others use.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import hiredis
import txredisapi
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable
from routemaster.redis.errors import NotPermitted, lost_reason, named_error, split_error
from routemaster.util.write_now import write_now

GRACE = 0.05          #: seconds
MAX_PENDING = 20_000  #: commands in flight; more are refused, so that a slow Redis costs bounded memory

_pack: Any = hiredis.pack_command  # its stub allows tuples of one only

Args = tuple[bytes, ...]
Reply = Any  #: bytes, int, None, or a list of these


class Clock(Protocol):
    """The part of a reactor that the protocol uses."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Any, *args: Any) -> Any: ...


class RedisProtocol(txredisapi.HiredisProtocol):
    """See the head of the file. `redis` names the server in errors; `reply_timeout` in seconds."""

    transport: Any

    def __init__(self, redis: str, reply_timeout: float, clock: Clock) -> None:
        super().__init__(charset=None, convertNumbers=False)  # type: ignore[no-untyped-call]
        self._reader = hiredis.Reader(replyError=self._note_error)
        self._redis = redis
        self._timeout = reply_timeout
        self._clock = clock
        # for each command in flight: its Deferred, when its reply is due, a script's text and its arguments
        self._pending: deque[tuple[Deferred[Reply], float, bytes | None, Args]] = deque()
        self._error: tuple[str, str] | None = None  # of the reply that is being parsed
        self._late: object = None  # the command whose GRACE runs
        self._timer: Any = None
        self._lost: list[Deferred[None]] = []
        self.usable = False
        self.reason = "not connected yet"  #: why it is not usable, a clause

    # -- called by Twisted

    def connectionMade(self) -> None:  # type: ignore[override]
        self.usable = True
        self._timer = self._clock.callLater(self._timeout, self._check_timeout)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.usable:
            self.usable = False
            self.reason = f"the connection was lost: {lost_reason(reason)}"
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, deque()
        for result, *_ in pending:
            result.errback(StoreUnavailable(f"{self._redis}: {self.reason}", outcome_unknown=True))
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
            self.give_up("the reply is not in Redis's protocol")

    # -- commands

    def execute_command(self, *args: bytes, script: bytes | None = None) -> Deferred[Reply]:
        """Send a command. Fires with its reply, or fails with an error of `errors`.

        With `script` the command is an EVALSHA of that text. Cancelling the
        Deferred affects neither the server nor the connection.
        """
        pending = self._pending
        if not self.usable or len(pending) >= MAX_PENDING:
            why = "has too many commands in flight" if self.usable else f"is not connected: {self.reason}"
            return fail(StoreUnavailable(f"{self._redis} {why}"))
        if pending:
            self.transport.write(_pack(args))  # in the next iteration, together with all that come until then
        else:
            write_now(self.transport, _pack(args))
        result: Deferred[Reply] = Deferred()
        pending.append((result, self._clock.seconds() + self._timeout, script, args))
        return result

    def replyReceived(self, reply: Reply) -> None:
        """Pass a reply to the oldest command in flight."""
        if not self._pending:
            self.give_up(f"a reply arrived without a command: {reply!r:.200}")
            return
        result, due, script, args = self._pending.popleft()
        if self._error is None:
            result.callback(reply)
            return
        (code, detail), self._error = self._error, None
        if code == "NOSCRIPT" and script is not None and not result.called:
            again = self.execute_command(b"EVAL", script, *args[2:])
            # both together have one reply time-out
            left = max(0.0, due + GRACE - self._clock.seconds())
            again.addTimeout(left, self._clock, self._too_late)  # type: ignore[arg-type]
            again.chainDeferred(result)
            return
        error = named_error(code, detail, self._redis)
        # only a new connection can help, or has to find out which rights are missing
        if code in ("READONLY", "NOAUTH") or (isinstance(error, NotPermitted) and error.outcome_unknown):
            self.give_up(str(named_error(code, detail, "it")))
        result.errback(error)

    def _too_late(self, _failure: object, _timeout: float) -> None:
        raise StoreUnavailable(f"{self._redis}: no reply within {self._timeout:g} s", outcome_unknown=True)

    def _note_error(self, text: str) -> Exception:
        if self._error is None:
            self._error = split_error(text)
        return Exception(text)

    # -- closing

    def when_lost(self) -> Deferred[None]:
        """Fires when the connection is closed, at once if it is."""
        if not self.connected:
            return succeed(None)
        lost: Deferred[None] = Deferred()
        self._lost.append(lost)
        return lost

    def give_up(self, reason: str) -> None:
        """Abort the connection. `reason`, a clause, is for logs and for the errors of commands."""
        if self.usable:
            self.usable = False
            self.reason = reason
        self.transport.abortConnection()

    def _check_timeout(self) -> None:
        wait = self._timeout
        if self._pending:
            oldest = self._pending[0]
            wait = oldest[1] - self._clock.seconds()
            if wait <= 0:
                if oldest is self._late:
                    self._timer = None
                    self.give_up(f"no reply within {self._timeout:g} s")
                    return
                self._late, wait = oldest, GRACE
        else:
            self.execute_command(b"PING").addErrback(lambda _: None)
        self._timer = self._clock.callLater(wait, self._check_timeout)
