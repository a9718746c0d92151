"""Streams of the fake bus: as its clients read those of the real one."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from routemaster_client.model import Event
from routemaster_client.testing.fake_rules import Refusal
from routemaster_client.testing.fake_state import FakeSubscription, received
from routemaster_client.testing.fake_topics import shown

PAUSE = 0.005  #: seconds between two looks at the queue


class FakeStream:
    """A stream of one subscription; `find` returns it, or raises Refusal when it is gone or has a callback."""

    def __init__(
        self, find: Callable[[], FakeSubscription], sent: bool, lock: AbstractContextManager[Any]
    ) -> None:  # fmt: skip
        self._find, self._acknowledges, self._lock = find, sent, lock
        self._closed = False
        self._rewinds, self._at = -1, 0  #: since which rewind, and the last event on its way

    def close(self) -> None:
        """End it."""
        self._closed = True

    def step(self) -> bytes | None:
        """What is to be read now; None: nothing yet; nothing at all at the end."""
        with self._lock:
            return b"" if self._closed else self._next()

    def _next(self) -> bytes | None:
        try:
            subscription = self._find()
        except Refusal:
            return b""
        if subscription.rewinds != self._rewinds:
            self._rewinds, self._at = subscription.rewinds, 0
        waiting = subscription.queue
        ahead = sum(received(event) <= self._at for event in waiting)
        batch = [] if subscription.paused else waiting[ahead: max(ahead, subscription.most)]
        if not batch:
            return None
        self._at = received(batch[-1])
        text = b"".join(_encoded(event, subscription.cursor([event])) for event in batch)
        if self._acknowledges:
            subscription.take(batch, "acknowledged")
        return text


class BlockingStream:
    """As `streaming.Source`."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream, self.close = stream, stream.close

    def read(self) -> bytes:
        while (part := self._stream.step()) is None:
            time.sleep(PAUSE)
        return part


class WaitingStream:
    """As `streaming.AsyncSource`; `sleep` waits as the client's event loop does."""

    def __init__(self, stream: FakeStream, sleep: Callable[[float], Awaitable[object]]) -> None:
        self._stream, self._sleep, self.close = stream, sleep, stream.close

    async def read(self) -> bytes:
        while (part := self._stream.step()) is None:
            await self._sleep(PAUSE)
        return part

    async def closed(self) -> None:
        """Nothing to wait for."""


def _encoded(event: Event, cursor: str) -> bytes:
    return f"id: {cursor}\ndata: {json.dumps(shown(event))}\n\n".encode()
