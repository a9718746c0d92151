"""What a subscription's deliveries do next, computed from what is stored, by any process."""

from __future__ import annotations

from attrs import evolve

from routemaster.delivery.decision import Facts, State, Step, decide
from routemaster.delivery.pacing import most_at_once
from routemaster.model import SubscriptionInfo


def _most(fact: SubscriptionInfo) -> int:
    """The most events in a batch, as long as none is refused."""
    return most_at_once(fact.subscription.max, fact.subscription.rate)


def facts_of(fact: SubscriptionInfo) -> Facts:
    """What `decide` needs, in seconds since the epoch."""
    most, limit = _most(fact), fact.health.batch_limit
    return Facts(
        backlog=fact.queued,
        oldest=fact.oldest or 0.0,
        max=min(limit or most, most),
        timeout=fact.subscription.timeout / 1000,
        retry_at=fact.health.retry_at or 0.0,
        paused=fact.paused,
    )


def step_of(fact: SubscriptionInfo, now: float) -> Step:
    """What its courier does at `now`, in seconds since the epoch."""
    return decide(facts_of(fact), now)


def batches(fact: SubscriptionInfo) -> int:
    """How many batches its backlog makes."""
    return -(-fact.queued // _most(fact))


def batches_due(fact: SubscriptionInfo, horizon: float) -> int:
    """How many of them are due by `horizon`, in seconds since the epoch."""
    full, rest = divmod(fact.queued, _most(fact))

    def due(backlog: int) -> bool:
        return decide(evolve(facts_of(fact), backlog=backlog), horizon).state is State.DELIVERING

    return full * due(fact.queued) + due(rest)
