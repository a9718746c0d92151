"""What calls raise. A message says what failed, the bus's own words, and what to do; it never contains a secret.

    BusError
      Refused                  the bus refused the request, nothing was stored; a repetition fails again
        Invalid                400, 413, 415, or found by the client before anything was sent
        Unauthorized           401: the token
        Forbidden              403: another client's topic
        NotFound               404: no such topic, subscription, event
        Conflict               409
      Unavailable              nothing was stored; a later attempt may succeed
        TooManyRequests        429: of this address, or too many wrong tokens from it
      OutcomeUnknown           the request may have been executed, or not
      UnexpectedAnswer         what answered is no Routemaster bus, or is configured wrongly
"""

from __future__ import annotations


class BusError(Exception):
    """A call failed.

    Attributes:
        status: of the answer; None if there was none.
        reason: the bus's own words, or those of the system.
        retry_after: seconds to wait before another attempt, as far as the bus says so.
    """

    def __init__(
        self, message: str, *, status: int | None = None, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason or message, retry_after


class Refused(BusError):
    """The bus refused the request: nothing was stored, and the same request fails again."""


class Invalid(Refused):
    """The request is invalid, by the bus (400, 413, 415) or by the client's own check (status None)."""


class Unauthorized(Refused):
    """The token is unknown, or not of the kind that the request needs (401)."""


class Forbidden(Refused):
    """The topic belongs to another client (403)."""


class NotFound(Refused):
    """There is no such topic, subscription or event (404)."""


class Conflict(Refused):
    """The request contradicts the subscription or the token as it is (409)."""


class Unavailable(BusError):
    """The bus cannot be reached, or cannot store now: nothing was stored, and a later attempt may succeed."""


class TooManyRequests(Unavailable):
    """The bus serves this address no more for now (429): it has too many requests under way, or has sent too many
    wrong tokens. `retry_after` says for how long; a call that can be repeated in at most 30 s is."""


class OutcomeUnknown(BusError):
    """The request was sent, and no definite answer came: the bus may have executed it, or not."""


class UnexpectedAnswer(BusError):
    """The answer is not one of a Routemaster bus: the URL leads elsewhere, or a proxy answered."""
