"""The way out to subscribers: one POST through treq, one `Outcome`, whatever the other side does.

Theory of operation
===================

`TreqSender.send` is one attempt. It waits for a *slot*, asks for the body, then
an `Exchange` takes or opens a *connection*, posts, reads the answer, and says
what came of it. Rooms, in the way of the data:

=============  ===============================================================
`target`       a callback and a uuid, parsed once: address, path, headers
`slots`        who may go now: caps in total and for each key, fair, pure
`names`        host name -> addresses: own threads, cache, single flight
`trust`        TLS: one context for all, each host's name checked
`connection`   HTTP/1.1 below the parser: strict heads, counted bytes
`pool`         opens, keeps, reuses, and closes connections
`reasons`      an exception -> whose fault, and one line for the operator
`client`       treq, the exchange, the sender
=============  ===============================================================

*Through treq.* The request is made by `treq.client.HTTPClient`, with redirects
and buffering off and a cookie jar that keeps nothing. Beneath it lies an agent
of our own, which speaks `identity` in place of treq's gzip, hides
`Content-Encoding` so that nothing is decoded, and takes the connection from a
pool of our own. treq hands the body producer down untouched, so the `Exchange`
is the producer: the agent tells it which connection it got, and thus every
phase has something certain to abort.

*One deadline.* A timer covers look-up, connect, TLS, sending, head and body.
When it fires, or the caller cancels, the socket is aborted: Twisted's polite
closing waits for the peer's close_notify, for ever if need be. At the end of an
exchange its connection is either back in the pool or aborted; there is no third
way. Waiting for a slot is not part of the deadline: that is our own business
and says nothing about the subscriber.

*What counts.* An acknowledgement is a well-formed head of 200 or 204 and the
whole body, or 64 KiB of it. A body with neither length nor chunks ends with the
connection, and then only TLS's close_notify tells an end from a cut: without it
the answer was cut short and the batch comes again. A duplicate is permitted, a
loss is not.

*A stale connection.* A server may close a kept connection just as we use it. If
the connection had served before and not a byte came back, the exchange is made
once more, at once, on a new one, within the same deadline.

*Isolation.* FairQueue are shared fairly by server, that is host and port; those
whose last attempt brought no answer, and those never tried, share at most half
of them. The same holds for
look-ups. So dead peers, however many, leave room for those that live. Where the
last attempt brought no answer the next ones begin one by one, not all in the
moment in which others have timed out. Whoever waits for a slot holds no batch:
memory is for the attempts under way.
"""

from routemaster.sender.client import TreqSender

__all__ = ["TreqSender"]
