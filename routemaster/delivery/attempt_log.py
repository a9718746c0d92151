"""What is logged and counted of the attempts to deliver to one subscriber.

Every attempt is counted, and logged at debug level. Failures and the recovery
after them are logged at higher levels, as often as the throttle allows. With tracing
each attempt is a span, too, whose IDs are in its log lines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Final

from attrs import field, frozen
from twisted.logger import Logger

from routemaster.delivery.attempt_metrics import AttemptMetrics
from routemaster.delivery.batch import Batch, TracedBatch
from routemaster.delivery.courier_state import Attempt
from routemaster.interfaces import Meter, Outcome, Turn, Verdict
from routemaster.model import ParkedEvent, Signing
from routemaster.traces import AttemptTracer
from routemaster.util.log_throttle import Allowance, LogThrottle
from routemaster.util.log_throttle import Allowances as CommonAllowances

_log = Logger()
_NO_IDS: Final[Mapping[str, str]] = {}


@frozen
class Allowances(CommonAllowances):
    """The log lines that all subscribers of a process share."""

    leases: Allowance = field(factory=Allowance)  #: for leases that were lost
    parked: Allowance = field(factory=Allowance)  #: for events that were parked


class AttemptLog:
    """The log and the metrics of one subscriber's attempts."""

    _ids = _NO_IDS  #: of the last attempt's span

    def __init__(self, meter: Meter, name: str, allowances: Allowances) -> None:
        """`name`: the subscriber's public name; `allowances`: log lines for all subscribers together."""
        self._name, self._parked = name, allowances.parked
        self._metrics = AttemptMetrics(meter, name)
        self._throttle = LogThrottle(name, allowances)

    def post(
        self, turn: Turn, attempt: Attempt, batch: Batch, number: int, signing: Signing | None
    ) -> Awaitable[Outcome]:
        """Make the `number`-th attempt in a row, see `Turn.post`; then call `ended`."""
        return turn.post(batch.body, number, signing)

    def ended(
        self, batch: Batch, outcome: Outcome, attempt: int, oldest: float, began: float, ended: float
    ) -> None:
        """The `attempt`-th attempt in a row has ended; the times in seconds by one clock."""
        acknowledged = outcome.verdict is Verdict.ACKNOWLEDGED
        if outcome.verdict is not Verdict.LOCAL:
            self._metrics.attempt(batch.events, oldest, began, ended, acknowledged)
        fields: dict[str, object] = {
            "name": self._name,
            "events": batch.events,
            "first": str(batch.first),
            "last": str(batch.last),
            "attempt": attempt,
            "status": outcome.status,
            "ms": round((ended - began) * 1000, 1),
            "bytes": len(batch.body),
            "reused": outcome.reused,
            **self._ids,
        }
        if acknowledged:
            _log.debug("delivered {events} events to '{name}' in {ms} ms", **fields)
            self._log_success(ended)
        else:
            fields["error"] = outcome.error
            _log.debug("attempt {attempt} with {events} events to '{name}' failed: {error}", **fields)
            self._log_failure(ended, outcome.reason or outcome.error, fields)

    def parked(self, event: ParkedEvent, times: int) -> None:
        """The subscriber refused an event so many times in a row, and it was parked."""
        if self._parked.take(self._name, event.reason):
            _log.warn(
                "parked event {event} of topic '{topic}' for '{name}', refused {times} times: {error}",
                event=str(event.id), topic=event.topic, name=self._name, times=times, error=event.reason,
                **self._ids,
            )  # fmt: skip

    def _log_failure(self, now: float, reason: str, fields: dict[str, object]) -> None:
        since = self._throttle.failed(now, reason)
        if since is None:
            return
        if since.failures == 1:
            _log.warn("failed to deliver {events} events to '{name}': {error}", **fields)
        else:
            _log.warn(
                "failed to deliver {events} events to '{name}', {failures} failures since the last line, "
                "failing for {lasting} s: {error}",
                failures=since.failures, lasting=round(since.lasting), **fields,
            )  # fmt: skip

    def _log_success(self, now: float) -> None:
        since = self._throttle.succeeded(now)
        if since is not None:
            _log.info(
                "deliveries to '{name}' succeed again, after {failures} failures in {lasting} s",
                name=self._name, failures=since.failures, lasting=round(since.lasting, 1), **self._ids,
            )  # fmt: skip


class TracedAttemptLog(AttemptLog):
    """The same; each attempt is a span."""

    def __init__(self, meter: Meter, name: str, allowances: Allowances, tracer: AttemptTracer) -> None:
        super().__init__(meter, name, allowances)
        self._tracer = tracer

    async def post(
        self, turn: Turn, attempt: Attempt, batch: Batch, number: int, signing: Signing | None
    ) -> Outcome:
        traces = batch.traces if isinstance(batch, TracedBatch) else ()
        span = self._tracer.attempt(self._name, attempt.target[0], batch, number, traces)
        self._ids = span.ids
        outcome = None
        try:
            outcome = await turn.post(batch.body, number, signing, span.headers)
        finally:
            span.ended(outcome)
        return outcome


def log_suppressed(allowances: Allowances, now: float) -> None:
    """Log a summary of the lines that the last minute's allowances suppressed; to be called about every second."""
    failed, succeeded = allowances.failures.sum_up(now), allowances.successes.sum_up(now)
    lost, parked = allowances.leases.sum_up(now), allowances.parked.sum_up(now)
    if failed is not None:
        _log.warn(
            "{times} further deliveries failed in the last minute, to {subscribers} subscribers, "
            "most often: {error}",
            times=failed.times, subscribers=failed.names, error=failed.reason,
        )  # fmt: skip
    if succeeded is not None:
        _log.info(
            "deliveries to {subscribers} further subscribers succeed again", subscribers=succeeded.names
        )
    if lost is not None:
        _log.warn("lost the leases on {subscribers} further subscribers", subscribers=lost.names)
    if parked is not None:
        _log.warn(
            "parked {times} further events in the last minute, for {subscribers} subscribers, "
            "most often: {error}",
            times=parked.times, subscribers=parked.names, error=parked.reason,
        )  # fmt: skip
