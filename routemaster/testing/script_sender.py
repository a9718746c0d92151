"""A sender whose attempts end with the outcomes that a test sets, without sockets and timers.

    sender = ScriptedSender(refused(), ACKNOWLEDGED)  # the first two attempts; the others are acknowledged
    sender = ScriptedSender(otherwise=None)           # attempts stay in flight ...
    sender.attempts[0].end(ACKNOWLEDGED)              # ... until the test ends them
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred

from routemaster.interfaces import LastAttempt, Outcome, Trial, Verdict
from routemaster.model import Signing

ACKNOWLEDGED = Outcome(Verdict.ACKNOWLEDGED, status=204)
LOCAL = Outcome(Verdict.LOCAL, error="too many open files")


def refused(status: int = 500, retry_after: float | None = None) -> Outcome:
    """The outcome of a response whose status is not an acknowledgement."""
    return Outcome(Verdict.FAILED, status, f"answered {status}", retry_after)


@define(eq=False)
class Attempt:
    """One POST, as the subscriber receives it."""

    callback: str
    uuid: str | None
    body: bytes
    decode: Callable[[bytes], list[Any]]
    number: int = 1  #: 1 for the first attempt at these events
    signing: Signing | None = None
    headers: Mapping[bytes, bytes] = field(factory=dict)  #: beside the usual ones
    outcome: Outcome | None = None  #: None while it is in flight, and if it was aborted
    was_aborted: bool = False
    _ended: Deferred[Outcome] = field(factory=Deferred, init=False)

    @property
    def in_flight(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None and not self.was_aborted

    @property
    def events(self) -> list[Any]:
        """The batch, decoded."""
        return self.decode(self.body)

    def end(self, outcome: Outcome) -> None:
        """End the attempt with this outcome. Raises ValueError if it has ended."""
        if not self.in_flight:
            raise ValueError("this attempt has ended")
        self.outcome = outcome
        self._ended.callback(outcome)


class ScriptedSender:
    """`interfaces.Sender` without a network."""

    def __init__(
        self, *script: Outcome | None, otherwise: Outcome | None = ACKNOWLEDGED,
        decode: Callable[[bytes], list[Any]] = json.loads,
    ) -> None:  # fmt: skip
        """`script` holds the outcomes of the first attempts, `otherwise` that of all others; None: in flight.

        `decode` makes `Attempt.events` of a body.
        """
        self.decode = decode
        self.attempts: list[Attempt] = []
        self.otherwise = otherwise
        self.most_at_once: Counter[str] = Counter()  #: by callback: attempts in flight at the same time
        self.on_post: Callable[[Attempt], None] = lambda attempt: None  #: called before an attempt ends
        self.busy = False  #: whether turns have to wait until `give_turns`
        self.waiting: list[Deferred[None]] = []
        self._script = deque(script)
        self.tried: list[tuple[str, str | None, bytes]] = []  #: arguments of `try_out` ...
        self.tried_signing: list[Signing | None] = []         #: ... and its last one
        self.connected = True  #: whether turns need no new connection
        self.refused = ""  #: what `refusal` says of every callback
        self.asked: list[str | None] = []  #: arguments of `refusal`

    @property
    def in_flight(self) -> list[Attempt]:
        """The attempts that have not ended, the oldest first."""
        return [attempt for attempt in self.attempts if attempt.in_flight]

    @property
    def bodies(self) -> list[Any]:
        """The batches of all attempts, decoded, in order."""
        return [attempt.events for attempt in self.attempts]

    def then(self, *script: Outcome | None) -> None:
        """Append the outcomes of the next attempts to the script."""
        self._script.extend(script)

    def give_turns(self) -> None:
        """Give every waiting turn, and all later ones at once."""
        self.busy = False
        waiting, self.waiting = self.waiting, []
        for turn in waiting:
            turn.callback(None)

    def turn(self, callback: str, uuid: str | None, last: LastAttempt = LastAttempt.NONE) -> ScriptedTurn:
        return ScriptedTurn(self, callback, uuid)

    def outcome_of(self, attempt: Attempt) -> None:
        """Record a new attempt, and end it if the script has an outcome for it."""
        self.attempts.append(attempt)
        together = sum(other.callback == attempt.callback for other in self.in_flight)
        self.most_at_once[attempt.callback] = max(together, self.most_at_once[attempt.callback])
        self.on_post(attempt)
        outcome = self._script.popleft() if self._script else self.otherwise
        if outcome is not None and attempt.in_flight:
            attempt.end(outcome)

    async def try_out(
        self, callback: str, uuid: str | None, body: bytes, signing: Signing | None = None
    ) -> Trial:
        """The next outcome of the script, at once, without an address."""
        self.tried.append((callback, uuid, body))
        self.tried_signing.append(signing)
        outcome = self._script.popleft() if self._script else self.otherwise
        return Trial(outcome or LOCAL, 0.0, "", "")

    async def refusal(self, callback: str | None) -> str:
        """`refused`."""
        self.asked.append(callback)
        return self.refused

    async def close(self) -> None:
        """Abort all attempts in flight."""
        for attempt in self.in_flight:
            attempt._ended.cancel()


class ScriptedTurn:
    """`interfaces.Turn` of a ScriptedSender."""

    def __init__(self, sender: ScriptedSender, callback: str, uuid: str | None) -> None:
        self._sender, self._callback, self._uuid = sender, callback, uuid

    async def __aenter__(self) -> ScriptedTurn:
        waiting = self._sender.waiting
        if self._sender.busy:
            turn: Deferred[None] = Deferred(lambda turn: waiting.remove(turn))
            waiting.append(turn)
            await turn
        return self

    async def __aexit__(self, *error: object) -> None:
        """Nothing is held."""

    def connected(self) -> bool:
        return self._sender.connected

    async def post(
        self, body: bytes, number: int = 1, signing: Signing | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Outcome:  # fmt: skip
        attempt = Attempt(self._callback, self._uuid, body, self._sender.decode, number, signing, headers or {})
        self._sender.outcome_of(attempt)
        try:
            return await attempt._ended
        finally:
            attempt.was_aborted = attempt.outcome is None
