"""Publishing without waiting: events go to a bounded queue, and a thread sends them in bulks.

A topic's events are sent in the order in which they were queued. While the bus is unavailable the thread tries
again for ever, with a growing pause; the queue fills, and then new events are dropped. Also dropped is what the
bus refuses, each event for itself (a bulk that it refuses is halved until the bad event is alone), and what has
an unknown outcome, unless the client was made with `retry_unknown`. Each drop is counted, logged, and given to
`on_drop`.

The queue lives in the process: what is in it when the process is killed is lost. It is flushed when the
interpreter exits (which `os._exit`, and so a child of multiprocessing, skips: call `close` there). A forked
process begins with an empty queue; its parent sends what the parent queued.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from routemaster_client import calls
from routemaster_client.blocking import Client
from routemaster_client.errors import BusError, Invalid, OutcomeUnknown, Unavailable
from routemaster_client.model import EventType, NewEvent, Time
from routemaster_client.rules import MAX_BULK, MAX_BULK_BYTES, event_json, topic_name

LONGEST = 10.0  #: seconds between two attempts
Drop = Callable[[str, Sequence[NewEvent], BusError], object]
Entry = tuple[NewEvent, bytes]  #: an event, and its JSON
_log = logging.getLogger("routemaster_client")


class QueueFull(BusError):
    """The queue of the background publisher is full: the event is dropped."""


class BackgroundPublisher:
    """Publishes in the background, over a blocking client.

    with BackgroundPublisher(Client(url, token)) as publisher:
        publisher.created("orders", "https://shop.example.com/orders/1")

    Its methods return at once, True if the event is queued, False if the queue is full. They raise `Invalid` for
    an event that the bus would refuse. Threads may share one.

    Args:
        capacity: the most events in the queue, and with them those that are being sent.
        linger: seconds that an event may wait for others, so that they share a request.
        on_drop: called with topic, events and error; if the queue is full by the thread that publishes, else by
            the one that sends.
        exit_timeout: seconds that the end of the interpreter waits for the queue.
    """

    def __init__(
        self, client: Client, *, capacity: int = 10_000, linger: float = 0.02, on_drop: Drop | None = None,
        exit_timeout: float = 10.0,
    ) -> None:  # fmt: skip
        if capacity < 1:
            raise Invalid(f"capacity is invalid: got {capacity!r:.60}, expected an integer from 1")
        self._client, self._capacity, self._linger = client, capacity, linger
        self._on_drop, self._exit_timeout = on_drop, exit_timeout
        self._closed = False
        self._reset()
        _publishers.add(self)

    def _reset(self) -> None:
        """Begin with an empty queue: at first, and in a forked process."""
        self._condition = threading.Condition()
        self._topics: dict[str, deque[Entry]] = {}  # the first has waited longest
        self._pending = 0  # events queued and under way
        self._urgent = 0   # how many wait for the queue to be empty
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self.published = 0  #: events that the bus has accepted
        self.dropped = 0    #: events that were not published

    def __repr__(self) -> str:
        counts = f"{self._pending} pending, {self.published} published, {self.dropped} dropped"
        return f"<BackgroundPublisher: {counts}>"

    @property
    def pending(self) -> int:
        """Events queued and under way."""
        return self._pending

    def created(self, topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> bool:
        """Queue that the resource at `url` was created."""
        return self._event("create", topic, url, timestamp, data)

    def updated(self, topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> bool:
        """Queue that the resource at `url` was changed."""
        return self._event("update", topic, url, timestamp, data)

    def deleted(self, topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> bool:
        """Queue that the resource at `url` was deleted."""
        return self._event("delete", topic, url, timestamp, data)

    def noop(self, topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> bool:
        """Queue that the resource at `url` exists, unchanged."""
        return self._event("noop", topic, url, timestamp, data)

    def publish(self, topic: str, event: NewEvent) -> bool:
        """Queue an event."""
        entry = event, event_json(event)
        topic_name(topic)
        with self._condition:
            if self._closed:
                raise RuntimeError("the background publisher is closed")
            if self._pending < self._capacity:
                self._put(topic, entry)
                return True
        self._drop(topic, [entry], QueueFull(f"{topic}: event dropped, {self._capacity} wait already"))
        return False

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything queued is published or dropped; False if that takes over `timeout` seconds."""
        with self._condition:
            self._urgent += 1
            self._condition.notify_all()
            try:
                return self._condition.wait_for(lambda: not self._pending, timeout)
            finally:
                self._urgent -= 1

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more, and flush; as `flush`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        _publishers.discard(self)
        return self.flush(self._exit_timeout if timeout is None else timeout)

    def __enter__(self) -> BackgroundPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _event(self, type: EventType, topic: str, url: str, timestamp: Time | None, data: Any) -> bool:
        return self.publish(topic, NewEvent(type, url, timestamp, data))

    def _put(self, topic: str, entry: Entry) -> None:
        """Queue an entry, and start or wake the thread where that is needed; the lock is held."""
        queue = self._topics.get(topic)
        if queue is None:
            queue = self._topics[topic] = deque()
        queue.append(entry)
        self._pending += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="routemaster-publisher", daemon=True)
            self._thread.start()
        elif self._pending == 1 or len(queue) == MAX_BULK:
            self._condition.notify_all()

    def _run(self) -> None:
        """The thread; it ends when the publisher is closed and the queue empty."""
        while bulk := self._next():
            topic, entries = bulk
            try:
                self._send(topic, entries)
            except Exception as error:  # a bug here must not end the thread
                _log.exception("publishing failed")
                self._drop(topic, entries, BusError(f"{topic}: {error!r}"))
            with self._condition:
                self._pending -= len(entries)
                self._condition.notify_all()

    def _next(self) -> tuple[str, list[Entry]] | None:
        """Wait for events; returns the next bulk, of the topic that has waited longest; None if closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._topics or self._closed)
            if not self._topics:
                return None
            if self._linger > 0:
                self._condition.wait_for(self._is_due, self._linger)
            topic = next(iter(self._topics))
            queue, entries, size = self._topics.pop(topic), list[Entry](), 2
            while queue and len(entries) < MAX_BULK and size + len(queue[0][1]) < MAX_BULK_BYTES:
                entries.append(queue.popleft())
                size += len(entries[-1][1]) + 1
            if not entries:  # larger than any bulk: the bus judges
                entries.append(queue.popleft())
            if queue:
                self._topics[topic] = queue
            return topic, entries

    def _is_due(self) -> bool:
        return bool(self._urgent) or self._closed or len(next(iter(self._topics.values()))) >= MAX_BULK

    def _send(self, topic: str, entries: list[Entry]) -> None:
        """Publish a bulk, by halves if the bus refuses it; returns when all of it is published or dropped."""
        waiting = [entries]
        while waiting:
            part = waiting.pop()
            try:
                self._publish(topic, part)
            except Invalid as error:
                if len(part) == 1:
                    self._drop(topic, part, error)
                else:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
            except BusError as error:
                self._drop(topic, part, error)
            else:
                self.published += len(part)

    def _publish(self, topic: str, part: list[Entry]) -> None:
        """Publish a bulk, as often as it takes; raises BusError for one that is to be dropped."""
        call = calls.bulk_of(topic, b"[%b]" % b",".join([text for _, text in part]))
        repeated = (Unavailable, OutcomeUnknown) if self._client.settings.retry_unknown else Unavailable
        wait = 0.2
        while True:
            try:
                self._client.call(call)
            except repeated as error:
                _log.warning("publishing %d events failed, next attempt in %.1f s: %s", len(part), wait, error)
                self._pause(max(wait, error.retry_after or 0.0))
                wait = min(2 * wait, LONGEST)
            else:
                return

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds * (0.5 + random.random() / 2))  # noqa: S311

    def _drop(self, topic: str, entries: Sequence[Entry], error: BusError) -> None:
        with self._condition:
            first, self.dropped = not self.dropped, self.dropped + len(entries)
        if first or not isinstance(error, QueueFull):
            _log.error("dropped %d events of topic %s: %s", len(entries), topic, error)
        if self._on_drop is not None:
            try:
                self._on_drop(topic, [event for event, _ in entries], error)
            except Exception:
                _log.exception("on_drop failed")


_publishers: weakref.WeakSet[BackgroundPublisher] = weakref.WeakSet()


def _after_fork() -> None:
    for publisher in list(_publishers):
        publisher._reset()


def _at_exit() -> None:
    for publisher in list(_publishers):
        with suppress(Exception):
            if not publisher.close():
                _log.error("the process ends, %d events are not published", publisher.pending)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
