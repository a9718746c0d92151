"""A receiver as ASGI application, for uvicorn, hypercorn, and to be mounted in FastAPI or Starlette.

    app = asgi(receiver)

Handlers may be coroutine functions; others are called in a thread, so that they may block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from routemaster_client.model import Event
from routemaster_client.receiver import ACCEPTED, Answer, Receiver, Refused, Step, Steps, failed

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def asgi(receiver: Receiver) -> Callable[[Any, Receive, Send], Awaitable[None]]:
    """The application. It answers every path."""

    async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] != "http":
            raise ValueError(f"a receiver does not serve {scope['type']}")
        answer = await _serve(receiver, scope, receive)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.all_headers()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        return None

    return app


async def handle(receiver: Receiver, events: Sequence[Event]) -> None:
    """Do the work of a batch on an event loop; raises what a handler raises."""
    await drive(receiver.steps(events), _call)


async def drive(steps: Steps, call: Callable[[Step], Awaitable[Any]]) -> None:
    """Make the calls of `steps`, one after another."""
    try:
        step = next(steps)
        while True:
            try:
                result = await call(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration:
        return


async def _call(step: Step) -> Any:
    if iscoroutinefunction(step.function):
        return await step.function(step.argument)
    result = await asyncio.to_thread(step.function, step.argument)
    return await result if isawaitable(result) else result


async def _serve(receiver: Receiver, scope: Mapping[str, Any], receive: Receive) -> Answer:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        receiver.check_head(scope["method"], headers)
        await handle(receiver, receiver.events(headers, await _body(receiver, receive)))
    except Exception as error:
        return failed(error)
    return ACCEPTED


async def _body(receiver: Receiver, receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request is cut short")
        body += message.get("body", b"")
        if len(body) > receiver.max_body:
            raise receiver.too_large()
        if not message.get("more_body"):
            return bytes(body)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
