"""`GET /subscription/stream`: events as they are published, over one connection.

    with bus.stream() as stream:
        for batch in stream:
            for event in batch:
                ...
            bus.acknowledge(batch.cursor)

The clients make the connection (`Source`, `AsyncSource`); what comes over it is read here. The format is that of
server-sent events, as the HTML standard defines it, of which the bus uses `id`, `data` and comments. The libraries
that read it are each bound to one HTTP library, of which this package has three.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol

from routemaster_client.model import Event, Pulled
from routemaster_client.protocol import Call

SILENCE = 15.0  #: seconds after which the bus sends a comment, if it has nothing else to send
_LINE = re.compile(rb"\r\n|\n|\r")


class Source(Protocol):
    """A connection whose answer has begun."""

    def read(self) -> bytes:
        """What has come, as soon as something has; nothing at the end. Raises a BusError if it breaks."""

    def close(self) -> None:
        """Close the connection; safe for threads, and ends a `read` that waits."""


class AsyncSource(Protocol):
    """As `Source`."""

    def read(self) -> Awaitable[bytes]:
        """As `Source.read`."""

    def close(self) -> None:
        """As `Source.close`."""

    def closed(self) -> Awaitable[None]:
        """Done when the connection is gone."""


class Parser:
    """Server-sent events out of the bytes of a connection, which come in parts of any size."""

    def __init__(self) -> None:
        self._rest = b""
        self._id, self._data = "", list[bytes]()  # of the event that is not complete
        self._cursor = ""

    def feed(self, part: bytes) -> Pulled | None:
        """The events that this part completes, with the cursor of the last; None if it completes none.

        Raises ValueError, LookupError or TypeError for what no bus sends.
        """
        text = self._rest + part
        if text.endswith(b"\r"):  # perhaps the first half of an end of line
            text, half = text[:-1], b"\r"
        else:
            half = b""
        *lines, rest = _LINE.split(text)
        self._rest = rest + half
        found: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                found.append(Event.parse(json.loads(b"\n".join(self._data))))
                self._cursor, self._data = self._id, []
        return Pulled(found, self._cursor, len(found)) if found else None

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id":
            self._id = value.decode("ascii")
        elif name == b"data":
            self._data.append(value)


class _Reading:
    """What both kinds of streams have in common."""

    def __init__(self, call: Call[Any]) -> None:
        self._call, self._parser, self._closed = call, Parser(), False

    def _events(self, part: bytes) -> Pulled | None:
        try:
            return self._parser.feed(part)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._call.misunderstood() from None


class Stream(_Reading):
    """Iterates over batches: the events that came together. It ends when the bus ends it, or with `close`.

    Nothing is sent before the first batch is asked for. A connection that breaks raises Unavailable: what was not
    acknowledged comes again over the next one. `queued` of a batch counts the batch alone.
    """

    def __init__(self, call: Call[Any], connect: Callable[[], Source]) -> None:
        super().__init__(call)
        self._connect = connect
        self._source: Source | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Pulled:
        while not self._closed:
            if self._source is None:
                self._source = self._connect()
                continue
            part = self._source.read()
            if not part:
                break
            if batch := self._events(part):
                return batch
        self.close()
        raise StopIteration

    def close(self) -> None:
        """End it; safe for threads and signal handlers, and harmless when repeated."""
        self._closed = True
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Reading):
    """As `Stream`, with `async for` and `async with`."""

    def __init__(self, call: Call[Any], connect: Callable[[], Awaitable[AsyncSource]]) -> None:
        super().__init__(call)
        self._connect = connect
        self._source: AsyncSource | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Pulled:
        while not self._closed:
            if self._source is None:
                self._source = await self._connect()
                continue
            part = await self._source.read()
            if not part:
                break
            if batch := self._events(part):
                return batch
        await self.aclose()
        raise StopAsyncIteration

    def close(self) -> None:
        """End it; harmless when repeated."""
        self._closed = True
        if self._source is not None:
            self._source.close()

    async def aclose(self) -> None:
        """End it, and return when the connection is gone."""
        self.close()
        if self._source is not None:
            await self._source.closed()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
