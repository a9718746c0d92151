"""The last snapshot of all buses, and what follows from each reading: changes, samples, live pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from routemaster.console.changes import between
from routemaster.console.history import History
from routemaster.console.history_tables import Sample
from routemaster.console.live import Live
from routemaster.console.model import Bus, Change, Snapshot
from routemaster.console.samples import Sampler


class State:
    """See above."""

    def __init__(
        self, buses: Iterable[Bus], history: History, live: Live, wall: Callable[[], float], most: int,
        in_thread: Callable[..., Any],
    ) -> None:  # fmt: skip
        """`wall`: the time of day; `most`: samples that the history keeps, or 0; `in_thread`: see `Poller`."""
        every = tuple(buses)
        self._history, self._live, self._wall, self._most = history, live, wall, most
        self._in_thread = in_thread
        self._samplers = {bus.name: Sampler(most // max(1, len(every))) for bus in every}
        # versions grow over restarts, too: a page that is still open must see that there is a new one
        self.snapshot = Snapshot(int(wall() * 1000), wall(), every)

    def publish(self, bus: Bus) -> Deferred[None]:
        """There is a new reading of a bus; fires when it is in the snapshot. Call it when the last one has."""
        return Deferred.fromCoroutine(self._publish(bus))

    async def _publish(self, bus: Bus) -> None:
        now = self._wall()
        changes, samples = await self._in_thread(self._compare, self.snapshot.bus(bus.name), bus, now)
        buses = tuple(bus if each.name == bus.name else each for each in self.snapshot.buses)
        self.snapshot = evolve(self.snapshot, version=self.snapshot.version + 1, at=now, buses=buses)
        if samples or changes:
            self._history.add(samples, changes, now).addCallback(self._live.happened)
        self._live.publish(self.snapshot)

    def _compare(self, old: Bus | None, new: Bus, now: float) -> tuple[list[Change], list[Sample]]:
        """What happened, and the samples; with thousands of subscribers that takes a while."""
        changes = between(old, new, now) if old else []
        return changes, self._samplers[new.name].take(new) if self._most else []

    def record(self, changes: Sequence[Change]) -> Deferred[None]:
        """Something happened through the console; fires when it is stored."""
        return self._history.add((), changes, self._wall()).addCallback(self._live.happened)
