"""What follows from each reading."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import maybeDeferred

from routemaster.console.history_tables import BUS, Wanted
from routemaster.console.live import Live
from routemaster.console.model import Change
from routemaster.console.state import State
from tests.console.desk import Desk
from tests.console.made import NOW, bus, subscriber


class StateTests(Desk):
    """With a history in memory."""

    def changes(self) -> list[Change]:
        return self.successResultOf(self.history.changes(Wanted()))

    def test_reading(self) -> None:
        """A reading makes a new snapshot with a greater version, a sample, and what happened, with its ID."""
        before = self.state.snapshot
        self.state.publish(bus(subscriber(trouble="failing", failures=1, last_error="x")))
        after = self.state.snapshot
        self.assertGreater(after.version, before.version)
        self.assertEqual([each.name for each in after.buses], ["main"])
        self.assertEqual([each.kind for each in self.changes()], ["failing", "subscribed"])
        self.assertEqual([each.id for each in self.changes()], [2, 1])
        self.assertEqual(len(self.successResultOf(self.history.samples("main", BUS, "", 0, False))), 1)

    def test_live_pages(self) -> None:
        """Open pages hear of the snapshot and of what happened, which has its ID by then."""
        heard: list[object] = []
        self.patch(Live, "publish", lambda live, snapshot: heard.append(snapshot.version))
        self.patch(Live, "happened", lambda live, changes: heard.extend(each.id for each in changes))
        self.state.publish(bus(subscriber()))
        self.assertEqual(heard, [1, self.state.snapshot.version])
        self.successResultOf(self.state.record([Change(NOW, "main", "control", "info", "x")]))
        self.assertEqual(heard[2:], [2])

    def test_one_of_several(self) -> None:
        """A reading of one bus leaves the others as they are."""
        two = evolve(bus(), name="two")
        state = State([bus(), two], self.history, self.live, self.time, 100, maybeDeferred)
        state.publish(bus(subscriber()))
        self.assertIs(state.snapshot.buses[1], two)
        self.assertEqual(len(state.snapshot.buses[0].subscribers), 1)

    def test_without_history(self) -> None:
        """With no room for samples none are made; what happened is kept all the same."""
        state = State([bus()], self.history, self.live, self.time, 0, maybeDeferred)
        state.publish(bus(subscriber()))
        self.assertEqual(self.successResultOf(self.history.samples("main", BUS, "", 0, False)), [])
        self.assertEqual([each.kind for each in self.changes()], ["subscribed"])

    def test_version_after_restart(self) -> None:
        """The versions of a console that has restarted are greater: a page that is open still sees what is new."""
        self.state.publish(bus())
        self.clock.advance(1)
        again = State([bus()], self.history, self.live, self.time, 0, maybeDeferred)
        self.assertGreater(again.snapshot.version, self.state.snapshot.version)
