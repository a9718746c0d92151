"""Autodrop: drops the oldest events before Redis is out of memory.

Otherwise the backlog of one dead subscriber fills Redis until no event can be
published. Two marks follow from Redis's memory limit and the part to keep free:

- above the high mark (`max - min_free`) the oldest events over all topics are
  dropped, in bounded steps, whichever subscribers have them in their backlog,
- until the low mark (`max - 2 * min_free`) is reached, or no event is left.

On a cluster the marks apply to each node, and to the topics stored there.

Halfway between the marks it logs a warning; the gauge
`redis.autodrop_nearness` reports the position between them. Several processes
may run it at once: each event is dropped and counted once, and at most one
step too many is dropped.
"""

from __future__ import annotations

from collections import Counter

from attrs import frozen
from twisted.logger import Logger

from routemaster.interfaces import Store
from routemaster.model import StoreStats, public_name

STEP = 500     #: events dropped from a log at once
WARNING = 0.5  #: nearness above which a warning is logged


@frozen
class Marks:
    """The limit of Redis's memory, and the marks, in bytes."""

    max_mem: int
    low: int
    high: int

    def nearness(self, used: int) -> float:
        """The position between the low mark (0, or below) and the high one (1): above 1 events are dropped."""
        between = self.high - self.low
        return max(0.0, (used - self.low) / between) if between > 0 else float(used > self.high)


def marks(max_mem: int, min_free: int, configured: bool, own_limit: int) -> Marks:
    """The marks in force.

    `own_limit` is Redis's maxmemory (0: none); it replaces `max_mem` unless
    that was `configured`. `min_free` is then at most a tenth of it.
    """
    if own_limit and not configured:
        max_mem, min_free = own_limit, min(min_free, own_limit // 10)
    return Marks(max_mem, max_mem - 2 * min_free, max_mem - min_free)


class Autodrop:
    """Checks the memory of each node, and drops events above the high mark; call `run` periodically."""

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
        """Check each node once. Raises StoreUnavailable, after logging the events dropped until then."""
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
                # 0 ends the loop: the node is unavailable
                used = next((each.bytes_used for each in await self._store.stats() if each.node == node), 0)
        finally:
            self._log_losses(events, lost)

    def _warn(self, figures: StoreStats, limits: Marks) -> None:
        node, near = figures.node, limits.nearness(figures.bytes_used) > WARNING
        if near and node not in self._warned:
            self._log.warn(
                "{redis} uses {used} bytes; above {high} the oldest events are dropped: find the subscriber that "
                "falls behind, or give Redis more memory",
                redis=_name(node), used=figures.bytes_used, high=limits.high,
            )  # fmt: skip
        (self._warned.add if near else self._warned.discard)(node)

    def _log_losses(self, events: int, lost: Counter[str]) -> None:
        if events:
            self._log.error("autodrop removed {events} events from the logs", events=events)
        for subscriber, count in sorted(lost.items()):
            self._log.error(
                "autodrop: {name} lost {count} events", name=public_name(subscriber), count=count
            )


def _name(node: str) -> str:
    return f"Redis at {node}" if node else "Redis"
