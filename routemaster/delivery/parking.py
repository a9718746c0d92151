"""When an event that the receiver refuses for itself is put aside. Pure.

A refusal (400, 413, 422) of a batch leads to smaller batches, at last to the
oldest event alone. Refused alone `park_after` times in a row, it is parked, and
the events behind it go on. The count is stored with the failures, so that it
survives a restart; which event it belongs to is in the report of the last attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routemaster.administration import MAX_PARKED, MAX_PARKED_BYTES
from routemaster.delivery.attempt_report import oldest_event
from routemaster.delivery.batch import Batch
from routemaster.delivery.retries import REFUSED
from routemaster.interfaces import LeaseGrant, Outcome
from routemaster.model import EventID, ParkedEvent, with_id

#: how `last_error` begins while an event cannot be parked
NO_MEMORY = "Redis has no memory to park the event"
FULL = f"{MAX_PARKED} events or {MAX_PARKED_BYTES >> 20} MiB are parked, the most"


class Refusals:
    """How often one subscriber refused its oldest event, alone in its batch, in a row."""

    def __init__(self) -> None:
        self.count = 0
        self.ends: Mapping[str, EventID] = {}  #: the last events of a batch that comes again in smaller ones
        self._event: tuple[str, EventID] | None = None  #: topic and ID of the event; None: not known
        self._epoch = 0

    def load(self, grant: LeaseGrant) -> None:
        """Take what is stored. It is for another target if no attempt has failed."""
        self.count = grant.refusals if grant.failures else 0
        if grant.epoch != self._epoch:
            self._epoch, self._event = grant.epoch, None

    @property
    def is_unknown(self) -> bool:
        """Whether it has to be found out which event is counted."""
        return self.count > 0 and self._event is None

    def identify(self, reports: Sequence[bytes]) -> None:
        """Find it in the reports of failed attempts, newest first."""
        self._event = oldest_event(reports[0]) if reports else None
        if self._event is None:
            self.count = 0

    def failed(self, batch: Batch, outcome: Outcome) -> bool:
        """An attempt failed; whether the oldest event, alone, was refused for itself."""
        oldest = next(topic for topic, first in batch.starts.items() if first == batch.first), batch.first
        if oldest != self._event:
            self.count, self._event = 0, oldest
        counts = batch.events == 1 and outcome.status in REFUSED
        self.count += counts
        return counts

    def ended(self) -> None:
        """The event is not the oldest any more: it was delivered, or parked."""
        self.count, self._event = 0, None


def parked_event(batch: Batch, reason: str, at: float) -> ParkedEvent:
    """The one event of a batch, to be parked for that reason at a time in seconds since the epoch."""
    ((topic, event),) = batch.ends.items()
    fragment = batch.body[1:-1].removesuffix(with_id(b"}", event)) + b"}"
    return ParkedEvent(topic, event, fragment, reason, at)


def retried_batch(event: ParkedEvent) -> Batch:
    """A parked event, as it is delivered."""
    return Batch.of([(event.topic, event.id, with_id(event.fragment, event.id))])
