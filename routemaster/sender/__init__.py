"""One POST to one subscriber's server, through treq; its result is an `Outcome`, whatever the server does.

Theory of operation
===================

`TreqSender.turn` waits in the fair queue; `Turn.post` makes one attempt. An
`Exchange` takes or opens a connection, posts, and reads the answer. The
modules, in the order in which an attempt passes them:

===================  =========================================================
`client`             the sender: turns, and one exchange for each attempt
`target`             a callback and a uuid, parsed once: address, path, headers
`signature`          the headers by which a receiver verifies a signed delivery
`fair_queue`         who may send now: limits, in total and for each server
`exchange`           one POST and its answer, with one deadline
`treq_agent`         what treq runs on: connections of the pool, no cookies
`pool`               opens, keeps, reuses and closes connections
`dns_cache`          host names to addresses: own threads, cache
`connection_policy`  refuses names and addresses where callbacks may not point
`tls`                certificates and host names are verified, the own is shown
`tls_transport`      what a server sends below HTTP is limited
`connection`         HTTP/1.1, with heads of limited size
`response_head`      heads as browsers read them, for Twisted's parser
`chunk_decoder`      the chunked transfer coding
`failure_reasons`    exceptions to a verdict and one sentence for the operator
===================  =========================================================

*One deadline.* One timer covers DNS look-up, connect, TLS, sending, head and
body. When it fires, or the caller cancels, the socket is aborted. At the end of
an exchange its connection is either in the pool or aborted. Waiting for a turn
is not part of the deadline, because it says nothing about the subscriber.

*What acknowledges.* A valid head with 200 or 204, and the complete body or
64 KiB of it; less if it comes in many small pieces, so that an answer without end
costs the same in any chunking. A body with neither Content-Length nor chunks ends with the
connection (RFC 9112 section 6.3), with or without TLS's close_notify.

*A stale connection.* A server may close an idle connection at the moment it is
used. If the connection was used before, and no byte of the answer arrived, the
POST is repeated once on a new connection, within the same deadline.

*Isolation.* The queue serves servers (host and port) round robin. Subscribers
whose last attempt failed hold at most half of the places, of all and of any
server; with those to which nothing was ever delivered, three quarters. The same
holds for names in the DNS. So a subscriber whose last attempt succeeded waits for
none of these, however many hang. An attempt that takes half a second while others
wait leaves its place at the server to one of them: even if as many subscribers
of one server as it has places hang for the first time, all at once, the others
there wait no longer than that. Only if more than `max_open` hang at once, all
after a success, do others wait until these time out. Attempts to subscribers
whose last one failed start one by one, 100 to 500 in a second, so that they do
not all time out at the same moment.

What of the libraries runs
==========================

For a delivery on a kept connection: treq's `HTTPClient.post` with Twisted's
`CookieAgent` and `ContentDecoderAgent`, which do nothing here, and the client
in `twisted.web._newclient` (`Request`, `HTTP11ClientProtocol`,
`HTTPClientParser`), which writes the request and parses the answer.

The table lists the parts in place of a library's. Gain: processor time of one
delivery with the library's part, divided by that with this one; medians of 11
rounds in which one part at a time was replaced, 50 attempts at once.

==========================  ====  ==============================================
part                        gain  fault that it prevents
==========================  ====  ==============================================
`Pool`, not                 1.2   open connections have no limit; busy ones
`HTTPConnectionPool`              cannot be aborted; idle ones wait for the
                                  server's close_notify without limit; a stale
                                  one fails the attempt
own `IAgent`, not `Agent`   1.4   the exchange does not know its connection, so
                                  that the deadline cannot abort it
`PreparedURL`, not          1.4
hyperlink's conversion
`NoCookies`, not                  64 KiB of Set-Cookie take 50 ms to parse, and a
`CookieJar`                       bad date writes a warning to standard error
the exchange as producer,   1.1   the agent cannot report the connection
not `FileBodyProducer`
`read_head` before          0.95  heads without limit, a log line for each 1xx,
Twisted's parser                  answers that two parsers read differently
`ChunkDecoder`, not               spaces around a size, and bare LF, fail the
Twisted's                         answer; small chunks take 1.6 times as long
`DNSCache`, not                   slow names fill the reactor's thread pool
`reactor.nameResolver`
`TLSTransport`, not               messages of TLS itself without a limit; a
`BufferingTLSTransport`           connection that is cut stays in a reference cycle
`TLSTrust`, not                   the CA bundle in memory once for each host;
`optionsForClientTLS`             "certificate verify failed" as the only reason
==========================  ====  ==============================================

treq itself takes 22 % of the time. The private names of the libraries that are
used are listed, and tested, in `tests/sender/test_private_names.py`.
"""

from routemaster.sender.client import TreqSender

__all__ = ["TreqSender"]
