"""Runs the bus under injected faults, and checks it by the records of publishers and subscribers.

A run is real processes, TLS and Redis, and three independent records:

- `publishers` number the events of each lane (one of a topic's publishers, one
  request under way) and record each answer: ok, refused, unknown. Nothing
  is ever sent again;
- `receivers` are HTTPS servers in a process of their own, which record
  each delivery and their answer, in order, and fail at random;
- the `churner` records when it requested each subscription, and when it was granted.

Meanwhile `faults` kill, stop and restart the `fleet` and its Redis, and `host_faults`
the network, disk, descriptors and clocks that they use. At the end
`checker`, a pure function of the records, compares them.

All times are by the machine's monotonic clock, which processes share. The same
seed gives the same faults, processes, pauses, requests and failures; the
scheduling of processes is not controlled.

`launch` patches the daemon from outside: with `failpoints`, at which it kills or
stops itself, and with `mutants`, known bugs that the checker must detect.
"""
