"""The endpoints by which a client, or root for it, pulls its events and acknowledges them.

A monitor may look at the events, but acknowledges none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

from routemaster import strict_json
from routemaster.administration import SubscriberState
from routemaster.errors import HasCallback, Invalid, StoreUnavailable
from routemaster.pull.poller import Answer
from routemaster.pull.service import PullService
from routemaster.pull.stream import Stream
from routemaster.validation import check_cursor, shown
from routemaster.web.access import CLIENTS, MONITORS, Access
from routemaster.web.auth import Principal
from routemaster.web.completion import complete
from routemaster.web.http_server.body_writer import PART, Body
from routemaster.web.query import integer, parameters
from routemaster.web.responses import no_content, ready_json
from routemaster.web.subscribers import Subscribers
from routemaster.web.subscription_api import Route, own_and_named

_BEGIN = b'{"events":'
#: nothing on the way may keep events back
_STREAM_HEADERS = (
    (b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store"), (b"X-Accel-Buffering", b"no"),
)  # fmt: skip


class PullApi:
    """The handlers; of two paths each, see `subscription_api`."""

    def __init__(self, pull: PullService, access: Access, subscribers: Subscribers) -> None:
        self._pull, self._access, self._subscribers = pull, access, subscribers

    def table(self) -> list[Route]:
        """As `SubscriptionApi.table`."""
        return [
            *own_and_named("/events", "GET", self.events),
            *own_and_named("/ack", "POST", self.acknowledge),
            *own_and_named("/stream", "GET", self.stream),
        ]

    def events(self, request: Any, name: str | None = None) -> Deferred[bytes | Body]:
        """GET /subscription/events"""
        # no coroutine of this handler waits with the poll: that would take a kilobyte for each
        return Deferred.fromCoroutine(self._begin(request, name)).addCallback(self._wait, request)

    async def _begin(self, request: Any, name: str | None) -> tuple[SubscriberState, int | None, float]:
        """Acknowledge; returns what `PullService.poll` needs."""
        subscriber = await self._subscribers.token(request, name, reads=b"ack" not in request.args)
        asked = parameters(request, "max", "wait", "ack")
        most, wait = integer(asked, "max"), (integer(asked, "wait") or 0) / 1000
        state = await self._state(subscriber, asked)
        if "ack" in asked:
            await complete(self._pull.acknowledge(state, asked["ack"]))
        request.wait(wait)
        return state, most, wait

    def _wait(self, poll: tuple[SubscriberState, int | None, float], request: Any) -> Deferred[bytes | Body]:
        return self._pull.poll(*poll).addCallback(_answer, request)

    async def acknowledge(self, request: Any, name: str | None = None) -> bytes:
        """POST /subscription/ack"""
        body = request.take_body()
        subscriber = await self._subscribers.token(request, name)
        cursor = check_cursor(strict_json.decode_fields(body))
        state = await self._pull.state(subscriber, waits=False)
        await complete(self._pull.acknowledge(state, cursor))
        return no_content(request)

    async def stream(self, request: Any, name: str | None = None) -> Stream:
        """GET /subscription/stream"""
        headers = request.requestHeaders
        last = b",".join(headers.getRawHeaders(b"Last-Event-ID", ())).decode("latin-1")
        subscriber = await self._subscribers.token(request, name, reads=not last and b"ack" not in request.args)
        asked = parameters(request, "ack")
        if asked.get("ack") not in (None, "sent"):
            raise Invalid(f"ack is invalid: got {shown(asked['ack'])}, expected sent")
        state = await self._state(subscriber, asked)
        if last:
            await complete(self._pull.acknowledge(state, last))
        for header, value in _STREAM_HEADERS:
            request.setHeader(header, value)
        who = CLIENTS if name is None else MONITORS
        reader = self._access.principal(request, who)
        return self._pull.stream(state, "ack" in asked, lambda: self._is_still(reader, headers), reader.role.value)

    def _is_still(self, reader: Principal, headers: Headers) -> bool:
        """Whether these credentials are still the reader's; while they cannot be checked, they are."""
        try:
            return self._access.identify(headers) == reader
        except StoreUnavailable:
            return True

    async def _state(self, subscriber: str, asked: Iterable[str] = ()) -> SubscriberState:
        """The subscription; HasCallback names the parameters that it contradicts."""
        try:
            return await self._pull.state(subscriber)
        except HasCallback as error:
            names = " and ".join(asked)
            if not names:
                raise
            raise HasCallback(f"{error}; {names} cannot be given") from None


def _answer(answer: Answer, request: Any) -> bytes | Body:
    is_long = answer.size > PART and not request.over
    if is_long:
        request.notifyFinish().addBoth(lambda _: answer.sent())
    else:
        answer.sent()
    if request.span is not None:
        request.span.pulled(answer.count, answer.traces)
    end = b',"cursor":"%b","queued":%d}' % (answer.cursor.encode(), answer.queued)
    if is_long:
        return ready_json(request, _LongAnswer(answer, end))
    return ready_json(request, _BEGIN + answer.events + end)


class _LongAnswer:
    """A `body_writer.Body`: a poll's answer is not copied for each of the polls that get it."""

    def __init__(self, answer: Answer, end: bytes) -> None:
        self.source, self._end = answer, end
        self.length = len(_BEGIN) + answer.size + len(end)

    def __iter__(self) -> Iterator[bytes]:
        yield _BEGIN
        for start in range(0, self.source.size, PART):
            yield self.source.events[start : start + PART]
        yield self._end
