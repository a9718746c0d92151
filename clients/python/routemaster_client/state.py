"""What a receiver remembers, in the memory of one process: filter, dirty map, cache. Each is usable alone.

`redis_state` has the same for several processes. All are safe for threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from routemaster_client.model import Event

T = TypeVar("T")
Seen = tuple[int, str, int]  #: of the newest event of a URL: t, topic, number in its topic


def seen(event: Event) -> Seen:
    """What is remembered of an event."""
    return event.t, event.topic, event.number


def is_newer(event: Event, known: Seen | None) -> bool:
    """Whether an event is neither a duplicate of the newest known one of its URL, nor older.

    Of two events of one time in one topic, the number decides.
    """
    if known is None or event.t != known[0]:
        return known is None or event.t > known[0]
    return event.topic != known[1] or event.number > known[2]


def newer(events: Iterable[Event], known: dict[str, Seen]) -> list[Event]:
    """Those of a batch that are newer than what is known of their URLs, and than those before them."""
    fresh = []
    for event in events:
        if is_newer(event, known.get(event.url)):
            known[event.url] = seen(event)
            fresh.append(event)
    return fresh


class MemoryFilter:
    """Passes over duplicates and events that are out of date, by URL and time.

    What a rewind brings again is passed over too. Of more than `capacity` URLs the longest unseen are forgotten.
    """

    blocking = False

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity, self._lock = capacity, threading.Lock()
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def fresh(self, events: Sequence[Event]) -> list[Event]:
        """The events to handle."""
        with self._lock:
            known = {event.url: self._seen[event.url] for event in events if event.url in self._seen}
        return newer(events, known)

    def record(self, events: Sequence[Event]) -> None:
        """Remember events that were handled."""
        with self._lock:
            for event in newer(events, self._seen):
                self._seen.move_to_end(event.url)
            while len(self._seen) > self._capacity:
                self._seen.popitem(last=False)


class DirtyMap:
    """The URLs of resources that changed, each once, until they are swept.

    A receiver marks (`listeners=[dirty]`), and a job sweeps: it fetches each resource, however often it changed.
    """

    blocking = False

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}  # URL -> number of its last mark; the longest marked first
        self._number, self._lock = 0, threading.Lock()

    def mark(self, url: str) -> None:
        """Note that a resource changed."""
        with self._lock:
            self._number += 1
            self._marks.pop(url, None)
            self._marks[url] = self._number

    def notice(self, events: Sequence[Event]) -> None:
        """Mark the resources of events."""
        for url in dict.fromkeys(event.url for event in events):
            self.mark(url)

    def sweep(self, clean: Callable[[str], bool], limit: int | None = None) -> int:
        """Call `clean` with each dirty URL, at most `limit`; returns how many are clean now.

        A URL stays dirty if `clean` returns False, or raises, which ends the sweep, or if it was marked again
        meanwhile.
        """
        with self._lock:
            marks = list(self._marks.items())[:limit]
        return sum(clean(url) and self._unmark(url, number) for url, number in marks)

    def count(self) -> int:
        """How many URLs are dirty."""
        return len(self._marks)

    def _unmark(self, url: str, number: int) -> bool:
        with self._lock:
            if self._marks.get(url) != number:
                return False
            del self._marks[url]
            return True


class Cache(Generic[T]):
    """Fetched resources by URL, each kept until an event of it comes (`listeners=[cache]`).

    `fetch` gets a resource by its URL. What it returns is not kept if an event came meanwhile: it may be older.
    """

    blocking = False

    def __init__(self, fetch: Callable[[str], T], capacity: int = 10_000) -> None:
        self._fetch, self._capacity, self._lock = fetch, capacity, threading.Lock()
        self._values: OrderedDict[str, T] = OrderedDict()
        self._fetching: dict[str, list[list[bool]]] = {}  # URL -> for each fetch under way: is it still valid

    def get(self, url: str) -> T:
        """The resource, from the cache or fetched."""
        with self._lock:
            if url in self._values:
                self._values.move_to_end(url)
                return self._values[url]
            valid = [True]
            self._fetching.setdefault(url, []).append(valid)
        try:
            value = self._fetch(url)
        except BaseException:
            valid[0] = False
            raise
        finally:
            with self._lock:
                if valid[0]:
                    self._values[url] = value
                self._end(url, valid)
        return value

    def invalidate(self, url: str) -> None:
        """Forget a resource."""
        with self._lock:
            self._values.pop(url, None)
            for valid in self._fetching.get(url, ()):
                valid[0] = False

    def _end(self, url: str, valid: list[bool]) -> None:
        """A fetch is over; the lock is held."""
        self._fetching[url] = [each for each in self._fetching[url] if each is not valid]
        if not self._fetching[url]:
            del self._fetching[url]
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)

    def notice(self, events: Sequence[Event]) -> None:
        """Forget the resources of events."""
        for event in events:
            self.invalidate(event.url)
