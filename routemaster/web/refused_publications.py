"""Counts refused publications by reason, and logs when Redis begins and ceases to be the reason."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from routemaster.errors import (
    Invalid,
    NotYourTopic,
    RoutemasterError,
    StoreBroken,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    TooManyTopics,
    WrongType,
)
from routemaster.interfaces import Clock, Meter
from routemaster.util.log_throttle import LogThrottle

COUNTER: Final = "publications.refused"

#: the first that matches an error is its reason
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (StoreFull, "out_of_memory"),
    (StoreUnavailable, "unavailable"),
    (WrongType, "wrong_type"),
    (StoreBroken, "internal_error"),
    (TooLarge, "too_large"),
    (Invalid, "invalid"),
    (NotYourTopic, "not_owner"),
    (TooManyTopics, "too_many_topics"),
    (RoutemasterError, "unauthorized"),
    (Exception, "internal_error"),
)

_UNKNOWN: Final = "outcome_unknown"  #: the reason if the connection broke after the event was sent


class RefusedPublications:
    """See above."""

    _log = Logger()

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter, self._clock = meter, clock
        self._throttle = LogThrottle()
        self._failing = False
        for reason in (*(reason for _, reason in _REASONS), _UNKNOWN):
            meter.count(COUNTER, 0, reason=reason)  # so that its growth from 0 to 1 is seen

    def refused(self, error: Exception) -> None:
        """A publication is refused with this error."""
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        if isinstance(error, StoreUnavailable) and error.outcome_unknown:
            reason = _UNKNOWN
        self._meter.count(COUNTER, reason=reason)
        if isinstance(error, StoreUnavailable):
            self._failing = True
            since = self._throttle.failed(self._clock.seconds(), reason)
            if since is not None:
                line = "publications are refused with 503, {count} since the last line: {error}"
                self._log.warn(line, count=since.failures, error=str(error))

    def accepted(self) -> None:
        """A publication is stored."""
        if not self._failing:
            return
        self._failing = False
        since = self._throttle.succeeded(self._clock.seconds())
        if since is not None:
            line = "publications succeed again: {count} were refused with 503 in {seconds} s"
            self._log.info(line, count=since.failures, seconds=round(since.lasting, 1))
