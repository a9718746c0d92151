"""A courier's state: whether it runs, what it waits for, and the attempt under way."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from attrs import define
from twisted.internet.defer import Deferred

from routemaster.delivery.batch import Batch
from routemaster.interfaces import Ack, Clock, Timer
from routemaster.model import ParkedEvent


class Run(Enum):
    """Whether a courier goes on."""

    RUNNING = "running"
    STOPPING = "stopping"  #: no further attempt starts
    ABORTING = "aborting"  #: the attempt under way is cut, too


class Reason(Enum):
    """What a courier waits for."""

    NOTHING = "nothing"
    EVENTS = "events"  #: no event is waiting to be delivered
    TIME = "time"      #: until the batch is due, or the pause after a failure is over
    STORE = "store"    #: until the store replies or the lease is renewed
    TURN = "turn"      #: at the sender
    ANSWER = "answer"  #: of the subscriber


@define
class Attempt:
    """One attempt, with the lease's epoch and the target that it uses."""

    epoch: int
    target: tuple[str, str | None]  #: callback and uuid
    began: float = 0.0              #: seconds, by the clock here
    batch: Batch | None = None      #: None: there is nothing to send
    acks: Sequence[Ack] = ()        #: what to acknowledge when it is delivered
    retried: ParkedEvent | None = None  #: the batch is this event, which was parked


class Wait:
    """One wait at a time; `reason` says for what."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._over: Deferred[None] | None = None
        self._timer: Timer | None = None
        self.reason = Reason.NOTHING

    async def wait(self, reason: Reason, seconds: float | None) -> None:
        """Wait for at most `seconds` (None: without limit), or until `end`."""
        over: Deferred[None] = Deferred()
        self._over, self.reason = over, reason
        if seconds is not None:
            self._timer = self._clock.callLater(max(0.0, seconds), self.end)
        await over
        self.reason = Reason.NOTHING

    def end(self) -> None:
        """End the present wait, if there is one."""
        over, self._over = self._over, None
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if over is not None:
            over.callback(None)
