"""What each metric means, and its name for Prometheus.

The services `print`, `statsd` and `datadog` get the names of the bus: dots,
milliseconds, `jobs.count`. `GET /metrics` follows the conventions of Prometheus:
base units (seconds, bytes) with the unit in the name, `_total` for counters alone,
`_count` for histograms alone, and one label `subscriber` where a tag is `queue`.
A name that is not listed here appears with its dots as `_`; `tests/daemon/test_deploy.py`
finds metrics without an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

SECONDS: Final = 0.001  #: from milliseconds


@frozen
class Metric:
    """One metric for Prometheus."""

    help: str
    name: str = ""           #: after `routemaster_`, without `_total`; empty: the bus's name
    scale: float = 1         #: what the bus's values are multiplied by
    counter: bool = False    #: a gauge of the bus that only grows
    queue: str = "subscriber"  #: the label for the tag `queue`

    def label(self, tag: str) -> str:
        """The label for a tag."""
        return self.queue if tag == "queue" else tag


_GAUGES: Final = {
    "subscriber.queue.events": Metric("Events that wait for the subscriber."),
    "subscriber.queue.batches": Metric("Deliveries that the subscriber's waiting events make."),
    "subscriber.failures": Metric("Failed attempts in a row to deliver to the subscriber."),
    "subscriber.oldest_seconds": Metric("Age of the subscriber's oldest waiting event; 0 if none waits."),
    "subscriber.overdue_seconds": Metric(
        "Age of the subscriber's oldest waiting event beyond the timeout of the subscription; 0 if none is due."),
    "subscriber.last_success": Metric(
        "When a delivery to the subscriber was last acknowledged, in seconds since the epoch; 0: never.",
        "subscriber_last_success_timestamp_seconds"),
    "subscriber.state": Metric("Subscriptions of the subscriber in this state."),
    "jobs.count": Metric("Deliveries over all subscribers: due now (instant) or later (scheduled).", "jobs",
                         queue="queue"),
    "redis.bytes_used": Metric("Memory that Redis uses.", "redis_used_bytes"),
    "redis.max_mem": Metric("Memory that Redis may use, for autodrop.", "redis_max_memory_bytes"),
    "redis.low_mark": Metric("Memory in use down to which autodrop drops events.", "redis_low_mark_bytes"),
    "redis.high_mark": Metric("Memory in use above which autodrop drops events.", "redis_high_mark_bytes"),
    "redis.autodrop_nearness": Metric("Memory in use between the low mark (0) and the high mark (1)."),
    "redis.used_cpu_user": Metric("Processor time of Redis in user mode since its start.",
                                  "redis_cpu_user_seconds", SECONDS, counter=True),
    "redis.used_cpu_sys": Metric("Processor time of Redis in the kernel since its start.",
                                 "redis_cpu_system_seconds", SECONDS, counter=True),
    "redis.clock_offset": Metric(
        "Time by which the clock of Redis is ahead of that of this process, as far as it is certain.",
        "redis_clock_offset_seconds"),
    "workers": Metric("Processes that deliver."),
    "redis.up": Metric("Whether Redis answered; if 0, only what this process knows itself is given."),
    "build_info": Metric("1, with the version and the role of this process."),
    "connections.open": Metric("Connections of clients to this process that are open."),
    "polls.waiting": Metric("Polls to this process that wait for events."),
    "streams.open": Metric("Streams of events from this process that are open."),
    "leases": Metric("Subscribers that this process delivers to."),
    "delivery.timeout": Metric("Time after which an attempt to deliver fails: the option timeout.",
                               "delivery_timeout_seconds"),
    "certificate.expires": Metric("Seconds until the certificate expires.", "certificate_expires_seconds"),
}  # fmt: skip

_COUNTERS: Final = {
    "events.published": Metric("Events accepted."),
    "events.bytes": Metric("Bytes of the accepted events, as they are delivered."),
    "publications.refused": Metric("Requests to publish that were refused, by reason."),
    "authentication.failures": Metric("Requests with wrong credentials, by the status they were answered with."),
    "connections.rejected": Metric("Connections closed because too many were open, by reason."),
    "events.added": Metric("Events that came into the subscriber's queue."),
    "events.removed": Metric("Events that left the subscriber's queue: delivered, or in one of the next four."),
    "events.autodropped": Metric("Events that autodrop took from the subscriber's queue: lost."),
    "events.expired": Metric("Events that the subscription's `retention` or `max_queued` passed over."),
    "events.skipped": Metric("Events that the subscriber skipped."),
    "events.parked": Metric("Events that were put aside because the receiver refused them."),
    "delivery.batches": Metric("Attempts to deliver."),
    "delivery.events": Metric("Events in attempts to deliver; a batch tried three times counts three times."),
    "delivery.time": Metric("Duration of all attempts to deliver, added up.", "delivery_time_seconds", SECONDS),
    "delivery.time2": Metric("Squares of the durations in seconds of all attempts, added up.",
                             "delivery_time_squared_seconds", SECONDS**2),
    "latency.batches.count": Metric("Batches acknowledged.", "latency_batches"),
    "latency.batches.first_attempt": Metric(
        "Time from accepting the oldest event of each acknowledged batch to its first attempt, added up.",
        "latency_batches_first_attempt_seconds", SECONDS),
    "latency.batches.last_attempt": Metric(
        "Time from accepting the oldest event of each acknowledged batch to its last attempt, added up.",
        "latency_batches_last_attempt_seconds", SECONDS),
    "process": Metric("Processes that became ready (start) and that were shut down cleanly (stop)."),
    "metrics.failures": Metric("Times that the metrics service was not reached."),
    "log.dropped": Metric("Lines that could not be written to the log.", "log_dropped_lines"),
}  # fmt: skip

_HISTOGRAMS: Final = {
    "delivery.duration": Metric("Duration of one attempt to deliver, from connecting to the end of the answer."),
    "latency.first_attempt": Metric(
        "Time from accepting the oldest event of a batch to its first attempt; the timeout of the subscription "
        "is part of it."),
    "latency.acknowledged": Metric("Time from accepting the oldest event of a batch to its acknowledgement."),
    "http.request.duration": Metric(
        "Time from the last byte of a request to the last byte of its answer, by route and status; 0 if it was "
        "refused before it was complete."),
    "reactor.lag": Metric("How late timers run: the time that other work kept the process from them."),
}  # fmt: skip

METRICS: Final[Mapping[str, Metric]] = _GAUGES | _COUNTERS | _HISTOGRAMS
