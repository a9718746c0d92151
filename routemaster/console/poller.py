"""Reads one bus again and again, and survives whatever it answers.

A reading is three requests: the topics, the subscriptions and the metrics. On a bus with
thousands of subscribers these cost it time: the next reading begins after at least
`SHARE` times what the last one took, and so does the next request for metrics. A bus that
does not answer is asked again every interval, one that refuses the key after `REFUSED` seconds.

A bus that gives no answer keeps what was read before, with the reason and since when. If only
Redis is unavailable, the bus is reachable, and its lists are those of the reading before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from routemaster.console.bus_client import BusClient, BusError
from routemaster.console.credentials import Credentials
from routemaster.console.exposition import read_metrics
from routemaster.console.model import Bus, Measured
from routemaster.console.reading import (
    BadAnswer,
    read_subscribers,
    read_topics,
    topic_rates,
    with_rates,
    with_trouble,
)
from routemaster.interfaces import Clock
from routemaster.util.gather import gather
from routemaster.util.periodic import Periodic

REFRESH = 2.0  #: seconds for a reading that somebody waits for
SHARE = 10  #: the next reading begins at least so many times the duration of the last one after its beginning
REFUSED = 30.0  #: seconds until a key that was refused is shown again, unless it is replaced
LONGEST = 300.0  #: seconds until the next reading, however long the last one took

_T = TypeVar("_T")


@frozen
class Poll:
    """When a bus is read, and when a subscriber is late; in seconds."""

    interval: float = 5.0
    late_after: float = 300.0


class Poller:
    """Reads one bus."""

    _log = Logger()

    def __init__(
        self, bus: Bus, client: BusClient, credentials: Credentials, poll: Poll, clock: Clock,
        wall: Callable[[], float], in_thread: Callable[..., Any], publish: Callable[[Bus], Any],
    ) -> None:  # fmt: skip
        """
        Args:
            bus: its name and URL; nothing was read yet.
            wall: the time of day.
            in_thread: calls a function, perhaps in a thread; returns an awaitable of its result.
            publish: is called with each reading; returns an awaitable.
        """
        self.bus, self.exposition = bus, b""
        self._client, self._key, self._poll, self._clock = client, credentials.monitor_key, poll, clock
        self._wall, self._in_thread, self._publish = wall, in_thread, publish
        self._read_at: float | None = None  # by `clock`, the last lists
        self._measure_at = self._poll_at = 0.0
        self._last_error = ""
        self._waiting: list[Deferred[None]] = []
        self._under_way: Deferred[Bus] | None = None
        self._refused: tuple[str, float] | None = None  # the key, and until when it is not shown again
        self._task = Periodic(f"reading bus {bus.name}", self.read, poll.interval, clock)

    def start(self) -> None:
        """Read now, and then every interval."""
        self._task.start()

    def refresh(self) -> Deferred[None]:
        """Read now, because something was changed; fires after that, or when it takes too long."""
        refreshed: Deferred[None] = Deferred()
        self._waiting.append(refreshed)
        self._poll_at = 0.0
        self._task.hasten()
        clock: Any = self._clock
        return refreshed.addTimeout(REFRESH, clock, lambda result, seconds: None)

    async def stop(self) -> None:
        """Stop reading; a reading under way is given up."""
        stopped = Deferred.fromCoroutine(self._task.stop())
        if self._under_way is not None:
            self._under_way.cancel()
        await stopped
        await self._client.close()

    async def read(self) -> None:
        """Read once, unless the last reading took so long that the bus needs a rest."""
        began = self._clock.seconds()
        if began < self._poll_at or self._is_refused(began):
            return
        waiting, self._waiting = self._waiting, []
        self._under_way = Deferred.fromCoroutine(self._reading(began))
        try:
            bus = await self._under_way
        except CancelledError:
            return
        except (BusError, BadAnswer) as error:
            bus, rest = self._failed(str(error)), 0.0
            if isinstance(error, BusError) and error.status in (401, 429):
                self._refused = self._key.read(), self._clock.seconds() + REFUSED
        except Exception:  # figures of the past must not look as if they were of now
            self._log.failure("reading bus {bus} failed", bus=self.bus.name)
            bus, rest = self._failed("its answers cannot be read: the console's log has the reason"), REFUSED
        else:
            rest = min(SHARE * (self._clock.seconds() - began), LONGEST)
        finally:
            self._under_way = None
        self._poll_at = began + rest
        self._tell(bus)
        self.bus = bus
        await self._publish(bus)
        for each in waiting:
            if not each.called:
                each.callback(None)

    def _is_refused(self, now: float) -> bool:
        """Whether the bus has refused this key lately: it blocks addresses from which too many come."""
        return self._refused is not None and now < self._refused[1] and self._key.read() == self._refused[0]

    def _failed(self, why: str) -> Bus:
        self._measure_at, self._read_at = 0.0, None
        since = self.bus.unreachable_since
        return evolve(
            self.bus, error=why, unreachable_since=self._wall() if since is None else since,
            received=None, sent=None,
        )  # fmt: skip

    async def _reading(self, began: float) -> Bus:
        asked = self._measure(began), self._lists(began)
        measured, lists = await gather([Deferred.fromCoroutine(each) for each in asked])
        now = self._wall()
        bus = evolve(self.bus, at=now, error="", unreachable_since=None, measured=measured, redis_up=True)
        if measured is not None and measured.certificate_expires_in is not None:
            if measured is not self.bus.measured:
                bus = evolve(bus, certificate_expires=now + measured.certificate_expires_in)
        if isinstance(lists, BusError):
            self._read_at = None
            return evolve(bus, redis_up=False, error=str(lists), received=None, sent=None)
        return evolve(bus, **lists)

    async def _measure(self, began: float) -> Measured | None:
        if began < self._measure_at:
            return self.bus.measured
        answer = await self._client.get(self._key, "metrics")
        self.exposition = answer.body
        measured: Measured = await self._in_thread(read_metrics, answer.body)
        took = self._clock.seconds() - began
        self._measure_at = began + min(SHARE * took, LONGEST)
        return measured

    async def _lists(self, began: float) -> dict[str, Any] | BusError:
        """Topics and subscribers with their rates; the error if only Redis is unavailable."""
        try:
            topics = await self._client.get(self._key, "topics")
            subscriptions = await self._client.get(self._key, "subscriptions")
        except BusError as error:
            if error.status == 503:
                return error
            raise
        elapsed = None if self._read_at is None else began - self._read_at
        self._read_at = began
        lists: dict[str, Any] = await self._in_thread(
            _evaluate, self.bus, topics.body, subscriptions.body, elapsed, self._wall(), self._poll.late_after
        )
        return lists

    def _tell(self, bus: Bus) -> None:
        """Log when a bus becomes unreachable, for another reason, or reachable again."""
        if bus.error and bus.error != self._last_error:
            self._log.warn("bus {bus}: {error}", bus=bus.name, error=bus.error)
        elif self._last_error and not bus.error:
            self._log.info("bus {bus}: reachable again", bus=bus.name)
        self._last_error = bus.error


def _evaluate(
    old: Bus, topics: bytes, subscriptions: bytes, elapsed: float | None, now: float, late_after: float
) -> dict[str, Any]:
    """The fields of `Bus` that two answers give; runs in a thread."""
    found = topic_rates(read_topics(topics), {each.name: each for each in old.topics}, elapsed)
    before = {each.name: each for each in old.subscribers}
    subscribers = with_trouble(with_rates(read_subscribers(subscriptions), before, elapsed), now, late_after)
    rates: dict[str, float | None] = {"received": None, "sent": None}
    if elapsed:
        rates["received"] = sum(each.rate or 0 for each in found)
        rates["sent"] = sum(each.rate_out or 0 for each in subscribers)
    return {"topics": found, "subscribers": subscribers, **rates}
