"""What is told of attempts to deliver to one subscriber: each to measures and at debug, failures louder."""

from __future__ import annotations

from attrs import field, frozen
from twisted.logger import Logger

from routemaster.delivery.attempt_metrics import AttemptMetrics
from routemaster.delivery.backlog import Batch
from routemaster.interfaces import Meter, Outcome, Verdict
from routemaster.util.log_throttle import Allowance, LogThrottle
from routemaster.util.log_throttle import Allowances as CommonAllowances

_log = Logger()


@frozen
class Allowances(CommonAllowances):
    """The log lines that all subscribers of a process share."""

    leases: Allowance = field(factory=Allowance)  #: for leases that were lost


class AttemptLog:
    """Tells of one subscriber; `repeats` decides which failures are more than debug lines."""

    def __init__(self, meter: Meter, name: str, allowances: Allowances) -> None:
        """`name` is the subscriber's public one."""
        self._name = name
        self._measures = AttemptMetrics(meter, name)
        self._repeats = LogThrottle(name, allowances)

    def ended(
        self,
        batch: Batch,
        outcome: Outcome,
        attempt: int,
        oldest: float,
        began: float,
        ended: float,
    ) -> None:
        """An attempt ended, the `attempt`-th in a row; moments in seconds by one clock."""
        acknowledged = outcome.verdict is Verdict.ACKNOWLEDGED
        if outcome.verdict is not Verdict.LOCAL:
            self._measures.attempt(batch.events, oldest, began, ended, acknowledged)
        facts = {
            "name": self._name,
            "events": batch.events,
            "first": str(batch.first),
            "last": str(batch.last),
            "attempt": attempt,
            "status": outcome.status,
            "ms": round((ended - began) * 1000, 1),
            "bytes": len(batch.body),
            "reused": outcome.reused,
        }
        if acknowledged:
            _log.debug("delivered {events} events to '{name}' in {ms} ms", **facts)
            self._succeeded(ended)
        else:
            facts["error"] = outcome.error
            _log.debug("attempt {attempt} with {events} events to '{name}' failed: {error}", **facts)
            self._failed(ended, facts)

    def _failed(self, now: float, facts: dict[str, object]) -> None:
        since = self._repeats.failed(now, str(facts["error"]))
        if since is None:
            return
        if since.failures == 1:
            _log.warn("failed to deliver {events} events to '{name}': {error}", **facts)
        else:
            _log.warn(
                "failed to deliver {events} events to '{name}', {failures} failures since the last line, "
                "failing for {lasting} s: {error}",
                failures=since.failures, lasting=round(since.lasting), **facts,
            )  # fmt: skip

    def _succeeded(self, now: float) -> None:
        since = self._repeats.succeeded(now)
        if since is not None:
            _log.info(
                "deliveries to '{name}' succeed again, after {failures} failures in {lasting} s",
                name=self._name, failures=since.failures, lasting=round(since.lasting, 1),
            )  # fmt: skip


def sum_up(allowances: Allowances, now: float) -> None:
    """Tell what was beyond the allowances of a minute, if one is over; to be called every second or so."""
    failed, succeeded = allowances.failures.sum_up(now), allowances.successes.sum_up(now)
    lost = allowances.leases.sum_up(now)
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
