"""Pulling, decided without I/O: which call comes next, and what an error means.

`consumer` and `async_consumer` make the calls.

A consumer asks for events, hands a batch out, and acknowledges it with the next request, when it was handled. What
was not acknowledged comes again, to this process or its successor: at least once, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from routemaster_client import calls
from routemaster_client.errors import BusError, Conflict, OutcomeUnknown, Unavailable
from routemaster_client.model import Pulled, Subscription
from routemaster_client.protocol import Call

LONGEST = 30.0  #: seconds between two attempts
#: options that a change of topics keeps
_KEPT = ("timeout", "max_bytes", "retention", "max_queued", "missing_topics")


def subscribing(current: Subscription | None, topics: Sequence[str], options: dict[str, Any]) -> Call[Any] | None:
    """The call that makes this client's subscription a pulled one of these topics; None if it is.

    Without topics, the subscription is taken as it is. Raises Conflict if there is a callback: its deliveries
    would end.
    """
    if current is not None and current.get("callback"):
        raise Conflict("this client's subscription has a callback: unsubscribe first, or use a token of its own")
    if current is None:
        return calls.subscribe(topics, **options)
    there = {*current.get("topics", ()), *current.get("awaited", ())}
    if not topics or (set(topics) == there and not options):
        return None
    kept: dict[str, Any] = {name: current.get(name) for name in _KEPT}
    return calls.subscribe(topics, **{**kept, "max": current.get("max_events"), **options})


class Pulling:
    """One consumer's state."""

    def __init__(self, max: int | None, wait: float, chance: Callable[[], float] = random.random) -> None:
        self._max, self._wait, self._chance = max, wait, chance
        self._handled: str | None = None  # the cursor to acknowledge
        self._failures = 0

    def call(self) -> Call[Pulled]:
        """The next request."""
        return calls.pull(max=self._max, wait=self._wait, ack=self._handled)

    @property
    def handled_up_to(self) -> str | None:
        """The cursor that a new stream shall acknowledge."""
        return self._handled

    def took(self, batch: Pulled | None) -> None:
        """A request succeeded, and with it the acknowledgement; None: it did nothing else."""
        self._handled = None
        if batch is not None and not batch.events:
            self._failures = 0

    def handled(self, batch: Pulled) -> None:
        """The next request shall acknowledge this batch."""
        self._failures, self._handled = 0, batch.cursor

    def last(self) -> Call[None] | None:
        """The call that acknowledges what was handled, when no request follows."""
        return None if self._handled is None else calls.acknowledge(self._handled)

    def failed(self, error: Exception) -> float:
        """Seconds to wait after an error of the bus or of a handler; raises what a repetition does not help."""
        if isinstance(error, BusError) and not isinstance(error, (Unavailable, OutcomeUnknown)):
            raise error
        self._failures += 1
        wait = min(LONGEST, 0.2 * 2.0 ** min(self._failures - 1, 10)) * (0.5 + self._chance() / 2)
        return max(wait, getattr(error, "retry_after", None) or 0.0)
