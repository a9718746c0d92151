"""A request that arrived whole, and its one answer.

Twisted's Request with the costly or trusting parts left out: no cookies, no
form bodies, no traversal of resources, no HTML, and nothing that depends on
the Host which the client sent.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http import NO_BODY_CODES, parse_qs
from twisted.web.server import NOT_DONE_YET, Request

from routemaster.web.http_server.request_head import Head

if TYPE_CHECKING:
    from routemaster.web.http_server.connection import BusChannel


def error_body(sentence: str) -> bytes:
    """The JSON by which every refusal is told."""
    return json.dumps({"error": sentence}).encode()


class BusRequest(Request):
    """See above. `content` is in memory and complete; read it before the first `await`."""

    defaultContentType = None
    channel: BusChannel
    _log = Logger()

    def __init__(self, channel: BusChannel) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)

    def start(self, head: Head, body: bytes) -> None:
        """Take what the channel has read, and have the site's resource answer."""
        self.method, self.uri, self.clientproto = head.method, head.target, head.version
        self.path, _, query = head.target.partition(b"?")
        self.args = parse_qs(query, 1) if query else {}
        self.requestHeaders = head.headers
        self.content = BytesIO(body)
        self.prepath, self.postpath = [], []
        self.site = self.channel.site
        self.process()

    def process(self) -> None:
        """Have the site's resource answer; whatever it raises ends in one log entry and a 500."""
        try:
            self.render(self.channel.site.resource)
        except Exception:
            self.processingFailed(Failure())

    def render(self, resource: Any) -> None:
        try:
            body = resource.render(self)
        except UnsupportedMethod as unsupported:
            self.setHeader(b"Allow", b", ".join(unsupported.allowedMethods))
            self.send_error(405, "this method is not allowed here")
        else:
            if body is not NOT_DONE_YET:
                self.send(body)

    @property
    def over(self) -> bool:
        """Nothing can be answered any more: the answer is complete, or the client has gone."""
        return bool(self.finished or self._disconnected)

    def send(self, body: bytes) -> None:
        """Answer with the status and the headers set so far and this body, at one stroke."""
        if self.over:
            return
        if self.startedWriting:
            self.write(body)
        else:
            self.startedWriting = 1
            if self.code in NO_BODY_CODES:
                body = b""
            else:
                self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
                if self.method == b"HEAD":
                    body = b""
            head = self.channel.answer_head(self.code, self.responseHeaders)
            self.sentLength = len(body)
            self.channel.transport.write(head + body)
        self.finish()

    def send_error(self, status: int, sentence: str) -> None:
        """Answer with a status and one sentence, as JSON."""
        self.setResponseCode(status)
        self.setHeader(b"Content-Type", b"application/json")
        self.send(error_body(sentence))

    def processingFailed(self, reason: Failure) -> Failure:
        """A bug in a handler: log it once, answer 500; close if part of another answer is out."""
        self._log.failure("a request handler failed", failure=reason)
        if self.startedWriting and not self.over:
            self.channel.transport.abortConnection()
        else:
            self.responseHeaders = type(self.responseHeaders)()
            self.send_error(500, "the bus failed to handle this request")
        return reason

    def getRequestHostname(self) -> bytes:
        """A constant: what the client claims as Host decides nothing and is never said back."""
        return b"routemaster"
