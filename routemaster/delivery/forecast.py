"""What a subscription's deliveries do next, computed from what is stored, by any process."""

from __future__ import annotations

from attrs import evolve

from routemaster.delivery.decision import Facts, State, Step, decide
from routemaster.delivery.pacing import most_at_once
from routemaster.model import SubscriptionInfo


def _most(info: SubscriptionInfo) -> int:
    """The most events in a batch, as long as none is refused."""
    return most_at_once(info.subscription.max, info.subscription.rate)


def facts_of(info: SubscriptionInfo) -> Facts:
    """What `decide` needs, in seconds since the epoch."""
    most, limit = _most(info), info.health.batch_limit
    return Facts(
        backlog=info.queued,
        oldest=info.oldest or 0.0,
        max=min(limit or most, most),
        timeout=info.subscription.timeout / 1000,
        retry_at=info.health.retry_at or 0.0,
        paused=info.paused,
    )


def step_of(info: SubscriptionInfo, now: float) -> Step:
    """What its courier does at `now`, in seconds since the epoch; without a courier events wait to be pulled."""
    step = decide(facts_of(info), now)
    if info.subscription.callback is None and step.state is State.DELIVERING:
        return Step(State.WAITING)
    return step


def batches(info: SubscriptionInfo) -> int:
    """How many batches its backlog makes."""
    return -(-info.queued // _most(info))


def batches_due(info: SubscriptionInfo, horizon: float) -> int:
    """How many of them are due by `horizon`, in seconds since the epoch; none if the subscriber pulls them."""
    if info.subscription.callback is None:
        return 0
    full, rest = divmod(info.queued, _most(info))

    def due(backlog: int) -> bool:
        return decide(evolve(facts_of(info), backlog=backlog), horizon).state is State.DELIVERING

    return full * due(info.queued) + due(rest)
