"""A sender whose attempts end as a test says: no socket, no time of its own.

    sender = ScriptedSender(refused(), ACKNOWLEDGED)  # the first two attempts; the others are acknowledged
    sender = ScriptedSender(otherwise=None)           # attempts stay in flight ...
    sender.attempts[0].end(ACKNOWLEDGED)              # ... until the test ends them
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred

from routemaster.interfaces import Body, Outcome, Verdict

ACKNOWLEDGED = Outcome(Verdict.ACKNOWLEDGED, status=204)
LOCAL = Outcome(Verdict.LOCAL, error="too many open files")


def refused(status: int = 500, retry_after: float | None = None) -> Outcome:
    """The subscriber answered with a status that is no acknowledgement."""
    return Outcome(Verdict.FAILED, status, f"answered {status}", retry_after)


def carrying(content: bytes | None) -> Body:
    """What to give to `send` when it is known already."""

    async def body() -> bytes | None:
        return content

    return body


@define(eq=False)
class Attempt:
    """One call of `send`, as the subscriber would see it."""

    callback: str
    uuid: str | None
    body: bytes
    outcome: Outcome | None = None  #: None while it is in flight, and if it was cut
    was_cut: bool = False
    _ended: Deferred[Outcome] = field(factory=Deferred, init=False)

    @property
    def in_flight(self) -> bool:
        """Whether it has not ended."""
        return self.outcome is None and not self.was_cut

    @property
    def events(self) -> list[Any]:
        """The batch, decoded."""
        batch: list[Any] = json.loads(self.body)
        return batch

    def end(self, outcome: Outcome) -> None:
        """Let it end so; it must be in flight."""
        if not self.in_flight:
            raise ValueError("this attempt has ended")
        self.outcome = outcome
        self._ended.callback(outcome)


class ScriptedSender:
    """`interfaces.Sender` without a network."""

    def __init__(self, *script: Outcome | None, otherwise: Outcome | None = ACKNOWLEDGED) -> None:
        """`script` holds the ends of the first attempts, `otherwise` that of all others; None: none yet."""
        self.attempts: list[Attempt] = []
        self.otherwise = otherwise
        self.most_at_once: Counter[str] = Counter()  #: by callback: attempts in flight at the same time
        self.on_send: Callable[[Attempt], None] = lambda attempt: None  #: called before an attempt ends
        self.busy = False  #: whether whoever comes has to wait for a turn, until `let_go`
        self.waiting: list[Deferred[None]] = []
        self._script = deque(script)

    @property
    def in_flight(self) -> list[Attempt]:
        """The attempts that have not ended, the oldest first."""
        return [attempt for attempt in self.attempts if attempt.in_flight]

    @property
    def bodies(self) -> list[Any]:
        """The batches of all attempts, decoded, in order."""
        return [attempt.events for attempt in self.attempts]

    def then(self, *script: Outcome | None) -> None:
        """Let the next attempts end so."""
        self._script.extend(script)

    def let_go(self) -> None:
        """Let those go who wait for their turn, and whoever comes."""
        self.busy = False
        waiting, self.waiting = self.waiting, []
        for turn in waiting:
            turn.callback(None)

    async def send(self, callback: str, uuid: str | None, body: Body) -> Outcome | None:
        if self.busy:
            turn: Deferred[None] = Deferred(lambda turn: self.waiting.remove(turn))
            self.waiting.append(turn)
            await turn
        content = await body()
        if content is None:
            return None
        attempt = Attempt(callback, uuid, content)
        self.attempts.append(attempt)
        together = sum(other.callback == callback for other in self.in_flight)
        self.most_at_once[callback] = max(together, self.most_at_once[callback])
        self.on_send(attempt)
        outcome = self._script.popleft() if self._script else self.otherwise
        if outcome is not None and attempt.in_flight:
            attempt.end(outcome)
        try:
            return await attempt._ended
        finally:
            attempt.was_cut = attempt.outcome is None

    async def close(self) -> None:
        """Cut what is in flight."""
        for attempt in self.in_flight:
            attempt._ended.cancel()
