"""The errors with which a store refuses a call, and the scripts' codes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred

from routemaster.errors import (
    NotSubscribed,
    NotYourTopic,
    RoutemasterError,
    StoreUnavailable,
    TokenTaken,
    TooManyTopics,
    UnknownToken,
    UnknownTopic,
    WrongType,
)
from routemaster.util.gather import gather_outcomes


def not_yours(topic: str) -> NotYourTopic:
    """The topic belongs to another publisher."""
    return NotYourTopic(f"topic {topic} is owned by another client")


def no_topic(topic: str) -> UnknownTopic:
    """The topic does not exist."""
    return UnknownTopic(f"topic {topic} does not exist")


def too_many_topics(most: int) -> TooManyTopics:
    """The client may create no further topic."""
    return TooManyTopics(
        f"topic is one too many: this client has {most} topics, expected at most {most} (max_topics); "
        "delete one that is not used"
    )


def not_subscribed(topic: str = "") -> NotSubscribed:
    """The client has no subscription, or none to the topic."""
    return NotSubscribed(
        f"this client is not subscribed to {topic}" if topic else "this client has no subscription"
    )


def no_token(_topic: str = "") -> UnknownToken:
    """The token to be replaced does not exist."""
    return UnknownToken("replaces is invalid: there is no such token")


def token_taken(_topic: str = "") -> TokenTaken:
    """The token speaks for another client."""
    return TokenTaken("token is invalid: it exists, and is another client's than the one that it is to replace")


def named(code: str, topic: str = "") -> RoutemasterError:
    """The error for a script's error reply `RM:CODE`."""
    return _NAMED[code](topic)


_NAMED: dict[str, Callable[[str], RoutemasterError]] = {
    "NOTYOURS": not_yours,
    "NOTOPIC": no_topic,
    "NOTSUBSCRIBED": not_subscribed,
    "NOTOKEN": no_token,
    "TAKEN": token_taken,
}


@contextmanager
def after_a_write() -> Iterator[None]:
    """For the steps of a call after its first write: if Redis cannot do them, the outcome is unknown."""
    try:
        yield
    except WrongType as error:
        raise WrongType(str(error), outcome_unknown=True) from error
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error), outcome_unknown=True) from error


async def gather_writes(steps: Iterable[Deferred[Any]]) -> list[Any]:
    """As `gather`, for steps that write: an error says that the outcome is unknown unless no step was executed.

    Of a cluster one node may be lost, and the others execute their steps.
    """
    outcomes = await gather_outcomes(steps)
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if not errors:
        return outcomes
    if len(errors) < len(outcomes) or any(getattr(error, "outcome_unknown", False) for error in errors):
        with after_a_write():
            raise errors[0]
    raise errors[0]
