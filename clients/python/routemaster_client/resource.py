"""A receiver as resource of twisted.web, for `Site`, and for Klein's `@app.route(..., branch=True)`.

Handlers run on the reactor: they may return Deferreds or be coroutine functions, and must not block. A filter or
listener that waits for Redis (`blocking`) is called in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from routemaster_client.asgi import drive
from routemaster_client.model import Event
from routemaster_client.receiver import ACCEPTED, Answer, Receiver, Step, failed


class EventsResource(Resource):
    """Answers deliveries."""

    isLeaf = True

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._receiver = receiver

    def render(self, request: Any) -> Any:
        """Start the work; the answer comes when it is done."""
        work = Deferred.fromCoroutine(self._serve(request))
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        work.addCallback(lambda answer: None if gone else _write(request, answer))
        return NOT_DONE_YET

    async def _serve(self, request: Any) -> Answer:
        headers = {
            name.decode("latin-1").lower(): b",".join(values).decode("latin-1")
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        try:
            self._receiver.check_head(request.method.decode("latin-1"), headers)
            events = self._receiver.events(headers, request.content.read(self._receiver.max_body + 1))
            await handle(self._receiver, events)
        except Exception as error:
            return failed(error)
        return ACCEPTED


async def handle(receiver: Receiver, events: Sequence[Event]) -> None:
    """Do the work of a batch on the reactor; raises what a handler raises."""
    await drive(receiver.steps(events), _call)


async def _call(step: Step) -> Any:
    if not step.handler and getattr(getattr(step.function, "__self__", None), "blocking", False):
        return await deferToThread(step.function, step.argument)
    result = step.function(step.argument)
    if iscoroutine(result) or isinstance(result, Deferred):
        return await result
    return result


def _write(request: Any, answer: Answer) -> None:
    request.setResponseCode(answer.status)
    for name, value in answer.all_headers():
        request.setHeader(name.encode(), value.encode())
    request.write(answer.body)
    request.finish()
