"""The dashboard for Grafana 10 and later:

    python deploy/grafana/dashboard.py > deploy/grafana/routemaster.json

The library grafana-foundation-sdk is Grafana's own, generated from its schemas: a panel that is made
with it has the form that Grafana expects. A test compares the file with what this makes, and every query with the
exposition of a running bus.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from panels import (
    BAD,
    BUS,
    OK,
    OWN,
    SOURCE,
    SUCCESS,
    TOPIC,
    WARN,
    graph,
    number,
    own,
    quantile,
    rate,
    rise,
    top,
    words,
)
from subscribers_row import SUBSCRIBERS

alerts = 'count(ALERTS{alertstate="firing",alertname=~"Routemaster.*"}) or vector(0)'
redis = f"min(last_over_time(routemaster_redis_up{{{OWN}}}[5m]))"
up = words({"0": "unavailable", "1": "up"})
#: how it goes, at one look
OVERVIEW: Final = [
    number("Alerts", "short", alerts, (None, OK), (1, BAD)),
    number("Redis", "short", redis, (None, BAD), (1, OK)).mappings([up]),
    number("Workers", "short", f"sum({top('workers')})", (None, BAD), (1, OK)),
    number("Events waiting", "short", f"sum({top('subscriber_queue_events', by='subscriber')})"),
    number("Most overdue", "s", f"max({top('subscriber_overdue_seconds')})", (None, OK), (60, WARN), (900, BAD)),
    number(
        "Subscribers that fail",
        "short",
        f"count({top('subscriber_failures', by='subscriber')} > 0) or vector(0)",
        (None, OK),
        (1, WARN),
    ),
    number(
        "Way to autodrop",
        "percentunit",
        f"max({top('redis_autodrop_nearness')})",
        (None, OK),
        (0.5, WARN),
        (0.9, BAD),
        about="At 100 % the oldest events are dropped.",
    ),
    number(
        "Certificate",
        "s",
        f"min(last_over_time(routemaster_certificate_expires_seconds{{{OWN}}}[10m]))",
        (None, BAD),
        (172800, WARN),
        (1209600, OK),
        about="Until the first one expires.",
    ),
    graph(
        "Events",
        "eps",
        (f"sum({rate('events_published_total', by='topic')})", "published"),
        (f"sum({rate('delivery_events_total', SUCCESS, 'subscriber')})", "delivered"),
        about="An event is delivered once to each subscriber of its topic.",
    ),
    graph(
        "Deliveries due",
        "short",
        (top("jobs", by="status"), "{{status}}"),
        about="instant: due now; scheduled: waiting for the batch to fill, or for a pause to end.",
    ),
]


count, duration = "http_request_duration_seconds_count", "http_request_duration_seconds"
#: what comes in, and what is refused
PUBLISHERS: Final = [
    graph("Published", "eps", (rate("events_published_total", TOPIC, "topic"), "{{topic}}")),
    graph("Published, bytes", "Bps", (rate("events_bytes_total", TOPIC, "topic"), "{{topic}}")),
    graph(
        "Refused publications",
        "reqps",
        (rate("publications_refused_total", BUS, "reason"), "{{reason}}"),
        about="unavailable, out_of_memory, outcome_unknown and wrong_type: Redis. The others: the publisher.",
    ),
    graph(
        "Answers by status",
        "reqps",
        (f"sum by (status) ({rate(count, BUS, 'method, route, status')})", "{{status}}"),
    ),
    graph(
        "Requests by route",
        "reqps",
        (f"sum by (method, route) ({rate(count, BUS, 'method, route, status')})", "{{method}} {{route}}"),
    ),
    graph(
        "Duration of requests, 99th percentile",
        "s",
        (quantile(0.99, duration, BUS, "method, route"), "{{method}} {{route}}"),
        about="In that of GET /subscription/events is the time for which a poll waits.",
    ),
    graph(
        "Wrong credentials",
        "reqps",
        (rate("authentication_failures_total", BUS, "status"), "{{status}}"),
        about="429: an address with more than 20 failures in a minute.",
    ),
    graph("Rejected connections", "cps", (rate("connections_rejected_total", BUS, "reason"), "{{reason}}")),
]


marks = (
    ("used_bytes", "used"),
    ("low_mark_bytes", "low mark"),
    ("high_mark_bytes", "high mark: autodrop begins"),
    ("max_memory_bytes", "limit"),
)
#: its memory against autodrop's marks, processor and clock
REDIS: Final = [
    graph(
        "Memory of Redis",
        "bytes",
        *((top(f"redis_{name}", by="node"), f"{legend} {{{{node}}}}") for name, legend in marks),
    ),
    graph(
        "Way to autodrop",
        "percentunit",
        (top("redis_autodrop_nearness", by="node"), "{{app}} {{node}}"),
        max=1,
    ),
    graph(
        "Processor of Redis",
        "percentunit",
        (rate("redis_cpu_user_seconds_total", BUS, "node"), "user {{node}}"),
        (rate("redis_cpu_system_seconds_total", BUS, "node"), "kernel {{node}}"),
        about="Commands are executed by one thread: 100 % is the most.",
    ),
    graph("Reachable", "bool", (own("redis_up", what="min_over_time({}[5m])"), "{{instance}} {{process}}"), max=1),
    graph(
        "Difference of clocks",
        "s",
        (
            f"max by (instance, node) (routemaster_redis_clock_offset_seconds{{{OWN}}})",
            "{{instance}} {{node}}",
        ),
        min=-1,
        about="By how much Redis's clock is ahead.",
    ),
]


each = "{{instance}} {{process}}"
lag = quantile(0.99, "reactor_lag_seconds", BUS, "role")
#: what each process takes and holds
PROCESSES: Final = [
    graph("Processor", "percentunit", (own("process_cpu_seconds_total", what="rate({}[5m])"), each)),
    graph("Memory", "bytes", (own("process_resident_memory_bytes"), each)),
    graph("Connections of clients", "short", (own("connections_open"), each)),
    graph("Subscribers delivered to", "short", (own("leases"), each)),
    graph(
        "Polls and streams",
        "short",
        (own("polls_waiting"), f"polls {each}"),
        (own("streams_open"), f"streams {each}"),
    ),
    graph("Open files", "percentunit", (f"{own('process_open_fds')} / {own('process_max_fds')}", each), max=1),
    graph(
        "Lateness of timers, 99th percentile",
        "s",
        (lag, "{{role}}"),
        about="How long other work keeps a process from what is due.",
    ),
    graph(
        "Starts and stops in an hour",
        "short",
        (
            rise("process_total", BUS, "type, status"),
            "{{type}} {{status}}",
        ),
        (rise("log_dropped_lines_total"), "lost log lines"),
        (rise("metrics_failures_total"), "metrics not sent"),
    ),
    graph(
        "Certificates",
        "s",
        (own("certificate_expires_seconds", by="instance, file"), "{{instance}} {{file}}"),
        about="Until they expire.",
    ),
    graph(
        "Version",
        "short",
        (
            own("build_info", by="instance, process, role, version"),
            "{{instance}} {{process}}: {{role}} {{version}}",
        ),
    ),
]


def _variable(name: str, metric: str, label: str, labels: str) -> Any:
    variable = builders.QueryVariable(name).label(name.capitalize()).datasource(SOURCE)
    query = f"label_values(routemaster_{metric}{{{labels}}}, {label})"
    variable.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.sort(models.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")
    return variable.current(models.VariableOption(text="All", value="$__all"))


def dashboard() -> str:
    """The dashboard as JSON."""
    made = builders.Dashboard("Routemaster").uid("routemaster").tags(["routemaster"]).editable()
    made.description("Events in, events out, and what keeps them: docs/operations.rst explains every metric.")
    made.refresh("30s").time("now-3h", "now").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, metric, labels in (
        ("job", "build_info", ""),
        ("app", "build_info", 'job=~"$job"'),
        ("instance", "build_info", BUS),
        ("subscriber", "subscriber_queue_events", BUS),
        ("topic", "events_published_total", BUS),
    ):
        made.with_variable(_variable(name, metric, name, labels))
    for title, panels in (
        ("Overview", OVERVIEW),
        ("Publishers", PUBLISHERS),
        ("Subscribers", SUBSCRIBERS),
        ("Redis", REDIS),
        ("Processes", PROCESSES),
    ):
        made.with_row(builders.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(dashboard())
