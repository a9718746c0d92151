"""The row of the dashboard about subscribers."""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panels import OWN, SUBSCRIBER, graph, quantile, queries_of, rate, rise, top

STATUS: Final = f"{SUBSCRIBER},status="
COLUMNS: Final = {
    "subscriber": "Subscriber",
    "state": "State",
    "Value #A": "Waiting",
    "Value #B": "Oldest",
    "Value #C": "Failures in a row",
    "Value #D": "Last success",
}


def _table() -> Any:
    """One row for each subscriber."""
    listed = table.Panel().title("Subscribers").span(24).height(9).filterable(True)
    listed.sort_by([common_builders.TableSortByFieldState().display_name("Oldest").desc(True)])
    for name, unit in (("Oldest", "s"), ("Last success", "dateTimeFromNow")):
        listed.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    rows = [
        (f"max by (subscriber) (routemaster_{metric}{{{SUBSCRIBER}}}){factor}", "")
        for metric, factor in (
            ("subscriber_queue_events", ""),
            ("subscriber_oldest_seconds", ""),
            ("subscriber_failures", ""),
            ("subscriber_last_success_timestamp_seconds", " * 1000 > 0"),
        )
    ]
    state = f"max by (subscriber, state) (routemaster_subscriber_state{{{SUBSCRIBER}}})"
    queries_of(listed, [*rows, (state, "")], instant=True, form=PromQueryFormat.TABLE)
    listed.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    shown = {"excludeByName": {"Time": True, "Value #E": True}, "renameByName": COLUMNS}
    return listed.with_transformation(models.DataTransformerConfig(id_val="organize", options=shown))


LOST: Final = ("autodropped", "expired", "skipped", "parked")
SUBSCRIBERS: Final = [
    _table(),
    graph("Waiting events", "short", (top("subscriber_queue_events", SUBSCRIBER, "subscriber"), "{{subscriber}}")),
    graph(
        "Age of the oldest waiting event",
        "s",
        (top("subscriber_oldest_seconds", SUBSCRIBER, "subscriber"), "{{subscriber}}"),
    ),
    graph(
        "Delivered",
        "eps",
        (rate("delivery_events_total", f'{STATUS}"success"', "subscriber"), "{{subscriber}}"),
    ),
    graph(
        "Failed attempts",
        "ops",
        (rate("delivery_batches_total", f'{STATUS}"failure"', "subscriber"), "{{subscriber}}"),
    ),
    graph(
        "Duration of a delivery, 95th percentile",
        "s",
        (quantile(0.95, "delivery_duration_seconds", SUBSCRIBER, "subscriber"), "{{subscriber}}"),
        (f"min(last_over_time(routemaster_delivery_timeout_seconds{{{OWN}}}[10m]))", "the option timeout"),
        about="A delivery that takes longer than the option timeout fails, and is repeated.",
    ),
    graph(
        "From publishing to delivery",
        "s",
        (quantile(0.5, "latency_first_attempt_seconds"), "first attempt, median"),
        (quantile(0.99, "latency_first_attempt_seconds"), "first attempt, 99th percentile"),
        (quantile(0.5, "latency_acknowledged_seconds"), "acknowledged, median"),
        (quantile(0.99, "latency_acknowledged_seconds"), "acknowledged, 99th percentile"),
        about="Of the oldest event of each batch; the timeout of the subscription is in it.",
    ),
    graph(
        "Events not delivered, in an hour",
        "short",
        *(
            (
                f"{rise(f'events_{each}_total', SUBSCRIBER, 'subscriber')} > 0",
                f"{{{{subscriber}}}} {each}",
            )
            for each in LOST
        ),
        about="autodropped: lost, Redis was full. The others: as the subscription asks.",
    ),
    graph(
        "Events in a batch, on average",
        "short",
        (
            f"{rate('delivery_events_total', SUBSCRIBER, 'subscriber, status')} / "
            f"{rate('delivery_batches_total', SUBSCRIBER, 'subscriber, status')}",
            "{{subscriber}} {{status}}",
        ),
    ),
]
