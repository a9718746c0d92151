"""When the next attempt to one subscriber is due, and how large it may be.

The decision itself is `decision.decide`; this gathers its facts from the
subscription and from what is known here.
"""

from __future__ import annotations

from routemaster.delivery.backlog import Backlog
from routemaster.delivery.decision import Facts, Rules, State, decide
from routemaster.delivery.expiry import Expiry
from routemaster.delivery.pacing import Pace, most_at_once
from routemaster.delivery.parking import Refusals
from routemaster.delivery.retries import Retries
from routemaster.interfaces import LeaseGrant
from routemaster.model import Subscription


class Due:
    """The next attempt to one subscriber; times in seconds by the clock here."""

    subscription: Subscription

    def __init__(
        self, rules: Rules, backlog: Backlog, retries: Retries, refusals: Refusals, expiry: Expiry
    ) -> None:  # fmt: skip
        self._rules, self._backlog, self._retries = rules, backlog, retries
        self._refusals, self._expiry = refusals, expiry
        self.pace = Pace()
        self.paused = False  #: by the subscriber
        self.retried = 0     #: parked events that go next, each alone, as far as is known

    def load(self, grant: LeaseGrant, subscription: Subscription, now: float) -> None:
        """Take what is stored."""
        self.subscription, self.paused, self.retried = subscription, grant.paused, grant.retried
        self._retries.load(grant, now)
        self._refusals.load(grant)
        self._expiry.limit(subscription)
        self._backlog.filling.limit(subscription.max_bytes)
        self.pace.limit(subscription.rate)

    @property
    def most(self) -> int:
        """The most events in the next batch."""
        return self._retries.most(most_at_once(self.subscription.max, self.subscription.rate))

    def bytes_wanted(self) -> int:
        """The bytes that the next batch takes at most, unless it is one larger event."""
        wanted = self._rules.batch_bytes(1 if self.retried else min(self._backlog.count(), self.most))
        return min(wanted, self.subscription.max_bytes or wanted)

    def facts(self, now: float) -> Facts | None:
        """The facts, or None if the oldest event's age matters and is not known."""
        waiting, retry_at = self._backlog.count(), max(self._retries.until, self.pace.until(now))
        if self.retried:
            return Facts(1, now, 1, 0, retry_at, self.paused)
        # what was due before its batch was refused is due until it is delivered
        timeout = 0 if self._backlog.holds_any(self._refusals.ends) else self.subscription.timeout
        oldest, most = self._backlog.oldest, self._backlog.filling.most(self.most)
        if oldest is None:
            if 0 < waiting < most and timeout and now >= retry_at:
                return None
            oldest = now
        return Facts(waiting, oldest, most, timeout / 1000, retry_at, self.paused)

    def is_now(self, now: float) -> bool:
        """Whether an attempt is due."""
        facts = None if self._backlog.is_missing_events() else self.facts(now)
        return facts is not None and decide(facts, now).state is State.DELIVERING
