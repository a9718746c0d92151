"""What a connection waits for, one thing at a time, until its deadline.

The site checks the deadlines of all connections once a second and calls `expire` on those that
have passed; no request sets or cancels a timer.

===========  =====================================  ==============  ====================
state        waits for                              limit           after the deadline
===========  =====================================  ==============  ====================
FRESH        the first byte (and a TLS handshake)   `fresh`         close
HEAD         the end of a request's head            `head`          408, close
BODY         the end of its body                    `body`          408, close
HANDLING     the handler's answer                   `handling`      abort
IDLE         the first byte of another request      `idle`          close
CLOSING      the client to read the rest and close  `closing`, see  abort
                                                    `refuse`
===========  =====================================  ==============  ====================

In every state but CLOSING, a client that does not read what is written to it
is aborted after `response`.

When the site stops, a client between two requests may have sent the next one
already, and a new client is about to send its first: closing at once would
fail these requests. So a FRESH channel stays open for FRESH_DRAIN seconds and
an IDLE one for IDLE_DRAIN; requests in this time are answered with
`Connection: close`. A request that is sent just as its connection closes gets
no answer: clients that reuse connections retry it (RFC 9112 section 9.3.1).
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """See above."""

    FRESH = "fresh"
    HEAD = "head"
    BODY = "body"
    HANDLING = "handling"
    IDLE = "idle"
    CLOSING = "closing"
