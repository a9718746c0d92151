"""The bus's exceptions, each with a message of one sentence for users.

The message names what is invalid, the value, and what is expected; it never
contains a secret. `routemaster.web.responses` maps the exceptions to HTTP
statuses.
"""

from __future__ import annotations


class RoutemasterError(Exception):
    """The base class; `str(error)` is the message."""


class ConfigError(RoutemasterError):
    """An option of the configuration is unknown or invalid."""


class Invalid(RoutemasterError):
    """A client's request is invalid; nothing was stored (400)."""


class TooLarge(Invalid):
    """A body exceeds its limit; nothing was stored (413)."""


class NotYourTopic(RoutemasterError):
    """The topic is owned by another client (403)."""


class TooManyTopics(RoutemasterError):
    """The client has as many topics as it may have (403)."""


class UnknownTopic(RoutemasterError):
    """The topic does not exist (404)."""


class UnknownToken(RoutemasterError):
    """The token that another is to replace does not exist (404)."""


class TokenTaken(RoutemasterError):
    """The token exists, and speaks for another client (409)."""


class NotSubscribed(RoutemasterError):
    """The client has no subscription, or none to this topic (404)."""


class HasNoCallback(RoutemasterError):
    """The subscriber pulls its events, so that nothing can be posted (409)."""


class HasCallback(RoutemasterError):
    """The subscription has a callback: its events are not pulled (409)."""


class StoreUnavailable(RoutemasterError):
    """Redis is unavailable, loading, out of memory, or refuses writes (503).

    `outcome_unknown` is true if the command was sent, and then the connection
    was lost or the reply was late: Redis may have executed it. If it is false,
    Redis did not execute the command.
    """

    def __init__(self, message: str, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class StoreFull(StoreUnavailable):
    """Redis is out of memory."""


class StoreBroken(RoutemasterError):
    """Redis returned an unexpected reply: a bug, or data of another application (500, reported)."""


class WrongType(StoreBroken):
    """A key in Redis holds a value of another type than the bus gives it: another program wrote it (503).

    `outcome_unknown`: as of `StoreUnavailable`.
    """

    def __init__(self, message: str, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown
