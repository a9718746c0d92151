"""The console: pages on one or several buses, in a process of its own.

It knows the buses by their API alone. The way of the data:

1. `poller` reads each bus with a monitor key (`bus_client`), every `poll_interval`;
   `reading` and `exposition` make the answers a `model.Bus`.
2. `changes` compares it with the one before: what happened.
3. `history` keeps samples and changes in SQLite; `statsd_push` sends them on.
4. `live` tells open pages that there is a new snapshot; they fetch what they show.
5. `app` and `pages` answer from the last snapshot, from the history, and for details
   of one topic or subscriber from the bus at once; `rendering` has the templates.
6. `control` asks, and then changes a subscription with a root key.
"""
