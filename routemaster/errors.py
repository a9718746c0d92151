"""Every way in which the bus says no, each an exception with one sentence for the person who gets it.

The web floor turns them into statuses in one place (`routemaster.web.responses`).
The sentence says what was wrong, with which value, and what is allowed; it
never holds a secret.
"""

from __future__ import annotations


class RoutemasterError(Exception):
    """The common ancestor: `str(error)` is a sentence that can be shown."""


class ConfigError(RoutemasterError):
    """An option is unknown or ill-formed: names option, value and what is allowed."""


class Invalid(RoutemasterError):
    """What a client sent breaks a rule of the contract; nothing was written (400)."""


class TooLarge(Invalid):
    """A body is over its limit; nothing was written (413)."""


class NotYourTopic(RoutemasterError):
    """Another client publishes this topic (403)."""


class UnknownTopic(RoutemasterError):
    """No topic of that name exists (404)."""


class NotSubscribed(RoutemasterError):
    """The client has no subscription, or none to that topic (404)."""


class StoreUnavailable(RoutemasterError):
    """Redis cannot serve now: away, loading, full or refusing writes (503).

    `outcome_unknown` is true when a command had been sent before the
    connection broke or the answer was too late: it may have been executed.
    False promises that it was not.
    """

    def __init__(self, sentence: str, outcome_unknown: bool = False) -> None:
        super().__init__(sentence)
        self.outcome_unknown = outcome_unknown


class StoreBroken(RoutemasterError):
    """Redis answered what no healthy store answers: a bug or foreign data (500, reported)."""
