"""What follows from failed attempts: a pause before the next one, and smaller batches. Pure; time is an argument.

A receiver that refuses a batch for itself (400, 413, 422), or that closes the
connection while the batch is still being sent, twice in a row, may choke on one
event or on the size: the next batch has half as many events, down to one. Each
success doubles the size again.

The size is stored with the failures. If it was not, every restart or change of
the worker would begin at `max` again: halving from 10,000 takes 14 attempts, with
pauses of up to a minute between them, and a bus that is restarted more often
would never arrive. The first of two cuts is not stored: it costs one attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from routemaster.delivery.decision import Rules
from routemaster.interfaces import LastAttempt, LeaseGrant, Outcome
from routemaster.util.backoff import backoff

REFUSED = frozenset({400, 413, 422})  #: statuses that may concern one event, or the size of the batch
LOCAL_PAUSE = 0.6  #: seconds to wait after a fault of this machine, and up to half as long again


class Retries:
    """One subscriber's failures in a row; times in seconds by one clock."""

    def __init__(self, rules: Rules, random: Callable[[], float]) -> None:
        """`random` returns a number in [0, 1)."""
        self._rules, self._random = rules, random
        self.failures = 0      #: in a row
        self.batch_limit = 0   #: the most events in the next batch; 0: no limit but the subscription's
        self._succeeded = False
        self._cuts = 0         #: connections closed while a batch was being sent, in a row
        self._epoch = 0
        self._until = inf      #: end of the pause after a failure
        self._local_until = 0.0  #: end of the pause after a fault of this machine

    @property
    def until(self) -> float:
        """No attempt before this."""
        return max(self._until, self._local_until)

    @property
    def last(self) -> LastAttempt:
        """How the last attempt ended."""
        if self.failures:
            return LastAttempt.FAILED
        return LastAttempt.SUCCEEDED if self._succeeded else LastAttempt.NONE

    def most(self, maximum: int) -> int:
        """The most events in the next batch, if the subscription allows `maximum`."""
        return min(self.batch_limit or maximum, maximum)

    def load(self, grant: LeaseGrant, now: float) -> None:
        """Take what is stored.

        A pause lasts no longer than the longest, and is counted once for each
        lease, even if the store's clock was set back.
        """
        if grant.epoch != self._epoch:
            self._epoch, self._until, self._cuts = grant.epoch, inf, 0
        left = min((grant.retry_at - grant.now) / 1e6, self._rules.max_backoff)
        self._until = min(self._until, now + left)
        self.failures, self.batch_limit, self._succeeded = grant.failures, grant.batch_limit, grant.succeeded

    def failed(self, outcome: Outcome, events: int, now: float) -> None:
        """An attempt with so many events failed."""
        self.failures += 1
        rules = self._rules
        self._until = now + backoff(
            self.failures, rules.retry_delay, rules.max_backoff, self._random(), outcome.retry_after
        )
        self._cuts = self._cuts + 1 if outcome.cut else 0
        if outcome.status in REFUSED or self._cuts > 1:
            self.batch_limit = max(1, events // 2)

    def failed_here(self, now: float) -> None:
        """A fault of this machine ended an attempt: a short pause, which is not stored."""
        self._local_until = now + LOCAL_PAUSE * (1 + self._random() / 2)

    def parked(self) -> None:
        """The event at fault was parked: what is behind it starts anew."""
        self.failures, self._until = 0, 0.0

    def succeeded(self, maximum: int) -> None:
        """A batch was acknowledged; the subscription allows `maximum` events."""
        self.failures, self._until, self._cuts, self._succeeded = 0, 0.0, 0, True
        self.batch_limit = self.batch_limit * 2 if self.batch_limit * 2 < maximum else 0
