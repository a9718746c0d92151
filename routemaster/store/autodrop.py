"""Dropping the oldest events before Redis is full: an exception, never business as usual.

Without it a subscriber that is dead and was never unsubscribed fills Redis
until nothing can be published. Two marks, from the memory that Redis may use
and the part of it to be kept free:

- above the high mark (`max - min_free`) the oldest events over all topics are
  dropped, in bounded steps, whoever they are owed to,
- until the low mark (`max - 2 * min_free`) is reached, or nothing is left.

On a cluster each node is full by itself: the marks hold for each, and what is
dropped are the oldest events of the topics that lie there.

Past half of the way from the low to the high mark it warns; the gauge
`redis.autodrop_nearness` tells how far it is. It may run in several processes
at once: each event is dropped and counted once, and at most a step too much
goes. Design section 6.
"""

from __future__ import annotations

from collections import Counter

from attrs import frozen
from twisted.logger import Logger

from routemaster.interfaces import Store
from routemaster.model import StoreStats, public_name

STEP = 500     #: events dropped from a log at once
WARNING = 0.5  #: nearness from which on an operator should look


@frozen
class Marks:
    """Bytes of Redis's memory in use at which something happens."""

    max_mem: int
    low: int
    high: int

    def nearness(self, used: int) -> float:
        """How far it is from the low mark (0, and below it) to the high one (1): above 1 events are dropped."""
        between = self.high - self.low
        return max(0.0, (used - self.low) / between) if between > 0 else float(used > self.high)


def marks(max_mem: int, min_free: int, configured: bool, own_limit: int) -> Marks:
    """The marks in force.

    `own_limit` is Redis's maxmemory (0: none); it replaces `max_mem` unless
    that was `configured`. What is kept free is then at most a tenth of it.
    """
    if own_limit and not configured:
        max_mem, min_free = own_limit, min(min_free, own_limit // 10)
    return Marks(max_mem, max_mem - 2 * min_free, max_mem - min_free)


class Autodrop:
    """Looks, and drops if it must; `run` is for every 30 seconds or so."""

    _log = Logger()

    def __init__(self, store: Store, max_mem: int, min_free: int, configured: bool) -> None:
        """Bytes; `configured` is false if `max_mem` is only the default."""
        self._store = store
        self._limits = (max_mem, min_free, configured)
        self._warned: set[str] = set()  #: nodes that are nearly full

    def marks(self, figures: StoreStats) -> Marks:
        """The marks in force now on a node."""
        return marks(*self._limits, figures.max_memory)

    async def run(self) -> None:
        """One look at each node. Raises StoreUnavailable; what was dropped until then is logged all the same."""
        for figures in await self._store.stats():
            limits = self.marks(figures)
            self._warn(figures, limits)
            if figures.bytes_used > limits.high:
                await self._make_room(figures, limits)

    async def _make_room(self, figures: StoreStats, limits: Marks) -> None:
        node, used = figures.node, figures.bytes_used
        events, lost = 0, Counter[str]()
        try:
            while used > limits.low:
                dropped = await self._store.drop_oldest(STEP, node)
                if not dropped.events:
                    self._log.error(
                        "{redis} uses {used} bytes, above the low mark of {low}, and no event is left to drop: "
                        "give it more memory, or find who else uses it",
                        redis=_name(node), used=used, low=limits.low,
                    )  # fmt: skip
                    break
                events += dropped.events
                lost.update(dropped.lost)
                # a node that cannot be asked any more is left alone
                used = next((each.bytes_used for each in await self._store.stats() if each.node == node), 0)
        finally:
            self._tell(events, lost)

    def _warn(self, figures: StoreStats, limits: Marks) -> None:
        node, near = figures.node, limits.nearness(figures.bytes_used) > WARNING
        if near and node not in self._warned:
            self._log.warn(
                "{redis} uses {used} bytes; above {high} the oldest events are dropped: find the subscriber that "
                "falls behind, or give Redis more memory",
                redis=_name(node), used=figures.bytes_used, high=limits.high,
            )  # fmt: skip
        (self._warned.add if near else self._warned.discard)(node)

    def _tell(self, events: int, lost: Counter[str]) -> None:
        if events:
            self._log.error("autodrop removed {events} events from the logs", events=events)
        for subscriber, count in sorted(lost.items()):
            self._log.error(
                "autodrop: {name} lost {count} events", name=public_name(subscriber), count=count
            )


def _name(node: str) -> str:
    return f"Redis at {node}" if node else "Redis"
