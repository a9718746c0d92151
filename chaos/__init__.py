"""Runs the bus under faults, and judges it by what publishers and subscribers saw.

A run is real processes, TLS and Redis, and three accounts that are kept apart:

- `publishers` number the events of each lane (one of a topic's publishers, one
  request under way) and write down each answer: ok, refused, unknown. Nothing
  is ever sent again;
- `receivers` are HTTPS servers in a process of their own, which write down
  each arrival, in order, and what they said to it, and misbehave by script;
- the `churner` writes down when it asked to be subscribed, and was.

Meanwhile `faults` kill, stop and restart the `fleet` and its Redis. In the end
`checker`, which is pure and knows nothing of all this, compares the accounts.

All times are by the machine's monotonic clock, which processes share. The same
seed gives the same faults, victims, pauses, requests and misbehaviour; the
scheduling of processes is not in anybody's hand.

What the bus does not offer for tests is done to it from outside: `launch` runs
the daemon with `failpoints` at which it kills or stops itself, and with
`mutants`, known faults, by which the checker is proved.
"""
