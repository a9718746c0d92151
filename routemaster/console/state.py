"""The last snapshot of all buses, and what follows from each reading: changes, samples, live pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attrs import evolve
from twisted.internet.defer import Deferred

from routemaster.console.changes import between
from routemaster.console.history import History
from routemaster.console.live import Live
from routemaster.console.model import Bus, Change, Snapshot
from routemaster.console.samples import Sampler


class State:
    """See above."""

    def __init__(
        self, buses: Iterable[Bus], history: History, live: Live, wall: Callable[[], float], most: int
    ) -> None:
        """`wall`: the time of day; `most`: samples that the history keeps; 0: it has none."""
        every = tuple(buses)
        self._history, self._live, self._wall, self._most = history, live, wall, most
        self._samplers = {bus.name: Sampler(most // max(1, len(every))) for bus in every}
        # versions grow over restarts, too: a page that is still open must see that there is a new one
        self.snapshot = Snapshot(int(wall() * 1000), wall(), every)

    def publish(self, bus: Bus) -> None:
        """There is a new reading of a bus."""
        now, old = self._wall(), self.snapshot.bus(bus.name)
        changes = between(old, bus, now) if old else []
        buses = tuple(bus if each.name == bus.name else each for each in self.snapshot.buses)
        self.snapshot = evolve(self.snapshot, version=self.snapshot.version + 1, at=now, buses=buses)
        samples = self._samplers[bus.name].take(bus) if self._most else []
        if samples or changes:
            self._history.add(samples, changes, now).addCallback(self._live.happened)
        self._live.publish(self.snapshot)

    def record(self, changes: Sequence[Change]) -> Deferred[None]:
        """Something happened through the console; fires when it is stored."""
        return self._history.add((), changes, self._wall()).addCallback(self._live.happened)
