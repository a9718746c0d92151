"""Server-sent events for open pages: that there is a new snapshot, and what happened.

Each message is made once, and shared by all streams. A stream keeps at most the newest
snapshot and MAX_CHANGES changes that its client has not read yet, so a slow reader costs
nothing but its connection, which the HTTP server ends when the client reads nothing at all.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import asdict

from routemaster.console.model import Change, Snapshot
from routemaster.interfaces import Clock
from routemaster.web.http_server.body_writer import Outlet

ALIVE_INTERVAL: Final = 15.0    #: seconds
MAX_STREAMS: Final = 100
MAX_CHANGES: Final = 100  #: that wait for one client
ALIVE: Final = b"event: alive\ndata: {}\n\n"  #: an event, because pages do not see comments
RETRY: Final = 3000  #: ms after which a browser connects again


class Stream:
    """One client's stream; an `OpenBody`."""

    length = None
    source = None

    def __init__(self, live: Live, first: bytes, allowed: Callable[[], bool]) -> None:
        """`allowed`: whether the client's session still exists."""
        self._live, self._allowed = live, allowed
        self._snapshot = first
        self._changes: deque[bytes] = deque(maxlen=MAX_CHANGES)
        self._alive = b"retry: %d\n\n" % RETRY
        self._outlet: Outlet | None = None
        self._ended = False

    def begin(self, outlet: Outlet) -> None:
        """See `OpenBody`."""
        self._outlet = outlet
        self._live.opened(self)

    def next_part(self) -> bytes | None:
        """See `OpenBody`."""
        if self._ended:
            return None
        part = b"".join([self._alive, *self._changes, self._snapshot])
        self._alive, self._snapshot = b"", b""
        self._changes.clear()
        return part

    def lost(self) -> None:
        """See `OpenBody`."""
        self._live.closed(self)

    def send(self, snapshot: bytes, changes: Iterable[bytes] = ()) -> None:
        """Replace the snapshot that waits, and add changes."""
        self._snapshot = snapshot or self._snapshot
        self._changes.extend(changes)
        self._more()

    def keep_alive(self) -> None:
        """Show page and proxies that the connection is alive; end it if the session has ended."""
        if not self._allowed():
            self.end()
            return
        self._alive = self._alive or ALIVE
        self._more()

    def end(self) -> None:
        """End the answer when the client has read what was written."""
        self._ended = True
        self._more()

    def _more(self) -> None:
        if self._outlet is not None:
            self._outlet.more()


class Live:
    """All streams."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._streams: set[Stream] = set()
        self._timer: Any = None
        self._last = b""
        self._stopped = False

    @property
    def open(self) -> int:
        """The number of open streams."""
        return len(self._streams)

    @property
    def full(self) -> bool:
        """Whether no further stream is accepted."""
        return self._stopped or len(self._streams) >= MAX_STREAMS

    def stream(self, allowed: Callable[[], bool]) -> Stream:
        """A new stream, which begins with the last snapshot."""
        return Stream(self, self._last, allowed)

    def publish(self, snapshot: Snapshot) -> None:
        """Tell all streams of a new snapshot."""
        self._last = message("snapshot", outline(snapshot))
        for each in list(self._streams):
            each.send(self._last)

    def happened(self, changes: Iterable[Change]) -> None:
        """Tell all streams what happened."""
        messages = [message("change", asdict(each)) for each in changes]
        if messages:
            for each in list(self._streams):
                each.send(b"", messages)

    def opened(self, stream: Stream) -> None:
        """A stream's answer has begun."""
        self._streams.add(stream)
        if self._timer is None:
            self._timer = self._clock.callLater(ALIVE_INTERVAL, self._keep_alive)

    def closed(self, stream: Stream) -> None:
        """A stream's answer is over."""
        self._streams.discard(stream)
        if not self._streams and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        """End all streams."""
        self._stopped = True
        for each in list(self._streams):
            each.end()

    def _keep_alive(self) -> None:
        self._timer = self._clock.callLater(ALIVE_INTERVAL, self._keep_alive)
        for each in list(self._streams):
            each.keep_alive()


def message(event: str, data: object) -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), json.dumps(data, separators=(",", ":")).encode())


def outline(snapshot: Snapshot) -> dict[str, Any]:
    """What every page shows of the buses."""
    return {
        "version": snapshot.version,
        "at": snapshot.at,
        "buses": [
            {
                "name": bus.name, "reachable": bus.reachable, "queued": bus.queued, "oldest": bus.oldest,
                "received": bus.received, "sent": bus.sent, "trouble": len(bus.in_trouble),
            }
            for bus in snapshot.buses
        ],
    }  # fmt: skip
