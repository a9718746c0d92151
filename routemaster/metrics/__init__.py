"""What the bus measures of itself, and who is told.

- `meter`: parts count and observe; costs a dictionary look-up, no I/O.
- The store adds up what all processes have counted (`Store.add_counts`), so
  that totals survive restarts.
- `measure` turns the store's facts and totals into one `Snapshot`.
- Adapters tell it: `printing`, `statsd` and `datadog` are told by the one
  process that holds the office of monitor, and get what counters have grown by
  since they were last told; `prometheus` is asked, anywhere, and gets totals.

DNSCache and tags are contract section 6. A tag shows the part of a token before
`--`; a metric has at most `meter.MAX_SERIES` combinations of tags.
"""
