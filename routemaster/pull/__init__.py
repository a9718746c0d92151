"""Events that subscribers pull: waiting polls, streams, and the cursors by which they acknowledge.

A pulled subscription has cursors and no courier: no lease, no worker. Whichever process gets the
request reads behind the cursors (`reading`). `poller` answers polls, `stream` is a poll that is answered
again and again, `cursor_token` is the form in which a client sees how far it has come, and `service`
is what a process has of all that: one index of wake-ups, one cache, a poller for each client that waits.
"""
