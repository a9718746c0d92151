"""A complete request and its answer.

A Twisted Request without cookies, form bodies, resource traversal and HTML,
and without anything that depends on the client's Host header.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, parse_qs
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET, Request

from routemaster.web.http_server.body_writer import PART, Body, OpenBody, Whole
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request_head import Head

_NO_HEADERS = Headers()
_NOWHERE: list[bytes] = []  # there is no resource traversal


class Connection(Protocol):
    """What a request needs of its connection."""

    transport: Any
    deadline: float  #: of the handler, by the reactor's clock
    site: Any  #: its `resource` answers, its `writer` writes long answers

    def answer_head(self, status: int, headers: Headers) -> bytes: ...

    def progressed(self) -> None: ...


class BusRequest(Request):
    """See above."""

    defaultContentType = None
    endpoint = ""  #: its name, if there is one for the request
    span: Any = None  #: with tracing, its span (`routemaster.traces.RequestSpan`), if it has one
    channel: Any
    _log = Logger()

    def __init__(self, channel: Connection) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)

    def start(self, head: Head, body: bytes) -> None:
        """Have the site's resource answer this request."""
        self.method, self.uri, self.clientproto = head.method, head.target, head.version
        self.path, _, query = head.target.partition(b"?")
        self.args = parse_qs(query, 1) if query else {}
        self.requestHeaders = head.headers
        self.content = BytesIO(body)
        self.prepath = self.postpath = _NOWHERE
        self.site = self.channel.site
        self.process()

    def process(self) -> None:
        """Have the site's resource answer; an exception is logged once and answered 500."""
        try:
            answer = self.channel.site.resource.render(self)
            if answer is not NOT_DONE_YET:
                self.send(answer)
        except Exception:
            self.processingFailed(Failure())

    def take_body(self) -> bytes:
        """The body, which the request does not keep: its memory is free when the handler has parsed it."""
        content, self.content = self.content, None
        return b"" if content is None else content.read()

    @property
    def over(self) -> bool:
        """Whether the answer is complete or the client has disconnected."""
        return bool(self.finished or self._disconnected)

    def extend(self, seconds: float) -> None:
        """The handler may take so many seconds more to answer."""
        self.channel.deadline += seconds

    def wait(self, seconds: float) -> None:
        """The handler may take so many seconds more; what was asked is forgotten, as thousands may wait."""
        self.extend(seconds)
        self.requestHeaders, self.args, self.content = _NO_HEADERS, {}, None

    def send(self, body: bytes | Body | OpenBody) -> None:
        """Answer with this body, and with the status and headers set so far; a long one is written in parts."""
        if self.over:
            return
        if self.startedWriting:
            self.write(body)
            self.finish()
            return
        self.startedWriting = 1
        length = len(body) if isinstance(body, bytes) else body.length
        if length is None:
            if self.clientproto == b"HTTP/1.1":
                self.responseHeaders.setRawHeaders(b"Transfer-Encoding", [b"chunked"])
        elif self.code not in NO_BODY_CODES:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
        if self.code in NO_BODY_CODES or self.method == b"HEAD":
            body = b""
        elif isinstance(body, bytes):
            body = Whole(body) if len(body) > PART else body
        elif body.length is not None and body.length <= PART:
            body = b"".join(body)
        head = self.channel.answer_head(self.code, self.responseHeaders)
        if isinstance(body, bytes):
            self.channel.transport.write(head + body)
            self.finish()
        else:
            self.channel.site.writer.begin(self, head, body)

    def write_part(self, part: bytes) -> None:
        """Write a part of a long answer."""
        self.channel.transport.write(part)
        self.channel.progressed()

    def refuse(self, refused: Refused) -> None:
        """Answer with an error."""
        self.setResponseCode(refused.status)
        for name, value in refused.headers:
            self.setHeader(name, value)
        self.send(refused.body)

    def processingFailed(self, reason: Failure) -> Failure:
        """Log an exception of a handler and answer 500; abort if part of the answer is written."""
        ids = {} if self.span is None else self.span.ids
        self._log.failure("a request handler failed", failure=reason, **ids)
        if self.startedWriting and not self.over:
            self.channel.transport.abortConnection()
        else:
            self.responseHeaders = Headers()
            self.refuse(Refused(500, "internal error"))
        return reason

    def getRequestHostname(self) -> bytes:
        """A constant, so that no answer depends on the client's Host header."""
        return b"routemaster"
