"""Autodrop: drops the oldest events before Redis is out of memory.

Otherwise the backlog of one dead subscriber fills Redis until no event can be
published. Two marks follow from Redis's memory limit and the part to keep free:

- above the high mark (`max - min_free`) the oldest events over all topics are
  dropped, in bounded steps, whichever subscribers have them in their backlog,
- until the low mark (`max - 2 * min_free`) is reached, or no event is left.

If other data fill Redis, so that dropping every event would not reach the low
mark, the backlogs are kept as they are: only events that have come since
Redis was last below the high mark (or since the first check, if it never was)
are made up for, and an error reports how many bytes are no events.

On a cluster the marks apply to each node, and to the topics stored there.

Halfway between the marks it logs a warning, which says which of the two will
happen; the gauge
`redis.autodrop_nearness` reports the position between them. Several processes
may run it at once: each event is dropped and counted once, and at most one
step too many is dropped. An event that is dropped while it is in flight counts
as dropped only if its attempt fails: see `Store.drop_oldest`.
"""

from __future__ import annotations

from attrs import frozen
from twisted.logger import Logger, LogLevel

from routemaster.interfaces import Store
from routemaster.model import StoreStats

STEP = 500     #: events dropped from a log at once
WARNING = 0.5  #: nearness above which a warning is logged

DROPPED_SOON = (
    "{redis} uses {used} bytes; above {high} the oldest events are dropped: find the subscriber that "
    "falls behind, or give Redis more memory"
)
NO_USE_SOON = (
    "{redis} uses {used} bytes, and {others} of them are not this bus's: above {high} Redis is nearly full, and "
    "dropping events would not help; find who else uses it, or give it more memory"
)
NO_USE = (
    "{redis} uses {used} bytes, of which {others} are no events of this bus: dropping all events would not reach "
    "the low mark of {low}; find who else uses it, or give it more memory"
)


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
        self._told: set[tuple[str, str]] = set()  #: nodes that are nearly full, and what is logged about them
        self._kept: dict[str, int] = {}  #: bytes of events that are not dropped if other data fill a node

    def marks(self, figures: StoreStats) -> Marks:
        """The marks in force now on a node."""
        return marks(*self._limits, figures.max_memory)

    async def run(self) -> None:
        """Check each node once. Raises StoreUnavailable, after logging the events dropped until then."""
        for figures in await self._store.stats():
            limits = self.marks(figures)
            if limits.nearness(figures.bytes_used) <= WARNING:
                self._told = {(node, line) for node, line in self._told if node != figures.node}
            if figures.bytes_used > limits.low:
                await self._check(figures, limits)
            else:
                self._kept.pop(figures.node, None)

    async def _check(self, figures: StoreStats, limits: Marks) -> None:
        node, used = figures.node, figures.bytes_used
        events = await self._store.log_bytes(node)
        if limits.nearness(used) > WARNING:
            self._tell(figures, limits, used - events)
        if used <= limits.high:
            self._kept[node] = events
        elif used - events <= limits.low:
            await self._make_room(node, used, limits.low)
        else:
            grown = events - self._kept.setdefault(node, events)
            await self._make_room(node, used, used - max(0, grown))

    async def _make_room(self, node: str, used: int, limit: int) -> None:
        """Drop events until a node that uses `used` bytes uses at most `limit`."""
        events = 0
        try:
            while used > limit:
                dropped = await self._store.drop_oldest(STEP, node)
                if not dropped:
                    self._log.error(
                        "{redis} uses {used} bytes, above the mark of {limit}, and no event is left to drop: "
                        "give it more memory, or find who else uses it",
                        redis=_name(node), used=used, limit=limit,
                    )  # fmt: skip
                    break
                events += dropped
                # 0 ends the loop: the node is unavailable
                used = next((each.bytes_used for each in await self._store.stats() if each.node == node), 0)
        finally:
            if events:
                self._log.error("autodrop removed {events} events from the logs", events=events)
        if events:
            await self._store.clean_up()  # counts what each subscriber has lost

    def _tell(self, figures: StoreStats, limits: Marks, others: int) -> None:
        """Log once, until there is room again, what happens above the high mark; `others`: bytes of other data."""
        used = figures.bytes_used
        if others > limits.low:
            level, line = (LogLevel.error, NO_USE) if used > limits.high else (LogLevel.warn, NO_USE_SOON)
        else:
            level, line = LogLevel.warn, DROPPED_SOON
        if (figures.node, line) not in self._told:
            self._told.add((figures.node, line))
            self._log.emit(
                level, line, redis=_name(figures.node), used=used, others=others, low=limits.low, high=limits.high
            )


def _name(node: str) -> str:
    return f"Redis at {node}" if node else "Redis"
