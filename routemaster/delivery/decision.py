"""When a subscriber is to be sent a batch: the whole decision, as a pure function of facts.

=============  =======================================  ==========================
state          facts                                    until
=============  =======================================  ==========================
`paused`       the subscriber has paused deliveries     it resumes
`idle`         no event waits                           an event is accepted
`backoff`      the pause after a failure is not over    it is over
`delivering`   `max` events wait, or the oldest has     (now)
               waited `timeout`
`waiting`      neither                                  the oldest has, or `max` do
=============  =======================================  ==========================

The state is computed from what is stored, never stepped through by events: no
transition can be missed, and another worker continues from the same point.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen


class State(Enum):
    """What a courier does, as `health` shows it."""

    PAUSED = "paused"
    IDLE = "idle"
    WAITING = "waiting"
    DELIVERING = "delivering"
    BACKOFF = "backoff"


@frozen
class Rules:
    """How deliveries are made; times in seconds."""

    lease_ttl: float = 10.0
    retry_delay: float = 0.1
    max_backoff: float = 60.0
    max_batch_body: int = 8 * 1024 * 1024  #: bytes
    event_bytes: int = 16 * 1024           #: the most that an event takes in a body
    max_outgoing_bodies: int = 64 * 1024 * 1024  #: bytes that the bodies under way in one process may take

    def batch_bytes(self, events: int) -> int:
        """The most bytes that a batch of so many events takes."""
        return min(events * self.event_bytes, self.max_batch_body)


@frozen
class Facts:
    """What the decision depends on; times in seconds by one clock."""

    backlog: int    #: events waiting
    oldest: float   #: when the oldest of them was accepted (without meaning if there is none)
    max: int        #: events that make a batch full
    timeout: float  #: seconds that an event may wait for the batch to fill
    retry_at: float = 0.0  #: no attempt before this
    paused: bool = False   #: no attempt at all


@frozen
class Step:
    """What to do, and when to decide again at the latest (None: only when woken)."""

    state: State
    until: float | None = None


def decide(facts: Facts, now: float) -> Step:
    """The step that follows from the facts."""
    if facts.paused:
        return Step(State.PAUSED)
    if not facts.backlog:
        return Step(State.IDLE)
    if now < facts.retry_at:
        return Step(State.BACKOFF, facts.retry_at)
    due = facts.oldest + facts.timeout
    if facts.backlog >= facts.max or now >= due:
        return Step(State.DELIVERING)
    return Step(State.WAITING, due)
