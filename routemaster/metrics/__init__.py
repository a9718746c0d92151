"""Metrics: what the bus counts and measures, and the services that receive it.

- `meter`: counts and observations of this process, in memory.
- `Store.add_counts` adds them to totals in Redis, so that they survive restarts.
- `monitor` makes one `Snapshot` of the gauges and counters of the whole bus.
- `printing`, `statsd` and `datadog` export snapshots: one process sends what
  counters grew by since the last export. `prometheus` is the text of
  `GET /metrics`: any process answers, with totals.

Tags show the part of a token before `--`. A metric has at most
`meter.MAX_SERIES` combinations of tags in a process.
"""
