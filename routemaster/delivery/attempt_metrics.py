"""The metrics of the deliveries to one subscriber."""

from __future__ import annotations

from routemaster.interfaces import Meter


class AttemptMetrics:
    """Counts attempts, and measures how long events waited for them; times in seconds by one clock."""

    def __init__(self, meter: Meter, queue: str) -> None:
        """`queue` is the subscriber's public name."""
        self._meter, self._queue = meter, queue
        self._first: float | None = None

    def attempt(self, events: int, oldest: float, began: float, ended: float, acknowledged: bool) -> None:
        """Count an attempt that has ended; `oldest` is when the first of its events was accepted."""
        count, elapsed = self._meter.count, round((ended - began) * 1000)
        tags = {"queue": self._queue, "status": "success" if acknowledged else "failure"}
        count("delivery.events", events, **tags)
        count("delivery.batches", 1, **tags)
        count("delivery.time", elapsed, **tags)
        count("delivery.time2", elapsed * elapsed, **tags)
        self._meter.histogram("delivery.duration", queue=self._queue)(elapsed)
        if self._first is None:
            self._first = began
            self._meter.histogram("latency.first_attempt")(_ms(oldest, began))
        if acknowledged:
            count("latency.batches.count", 1, queue=self._queue)
            count("latency.batches.first_attempt", _ms(oldest, self._first), queue=self._queue)
            count("latency.batches.last_attempt", _ms(oldest, began), queue=self._queue)
            self._meter.histogram("latency.acknowledged")(_ms(oldest, ended))
            self._first = None


def _ms(since: float, until: float) -> int:
    """Milliseconds, at least 0: the two times may come from different clocks."""
    return max(0, round((until - since) * 1000))
