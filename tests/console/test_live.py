"""Server-sent events: every page hears of each snapshot, and none that is slow costs anything."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.live import ALIVE, ALIVE_INTERVAL, MAX_CHANGES, MAX_STREAMS, Live, Stream
from routemaster.console.model import Change, Snapshot
from tests.console.made import NOW, bus, subscriber


class Outlet:
    """A connection whose client reads when the test says so."""

    unsent = 0

    def __init__(self, stream: Stream) -> None:
        self.stream, self.pending = stream, 0

    def more(self) -> None:
        self.pending += 1

    def read(self) -> list[tuple[str, Any]]:
        """The events that the client gets now."""
        part = self.stream.next_part()
        assert part is not None
        events = [each for each in part.decode().split("\n\n") if each.startswith("event: ")]
        pairs = (each.split("\n", 1) for each in events)
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


class LiveTests(SynchronousTestCase):
    """Streams."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.live = Live(self.clock)
        self.allowed = True

    def opened(self) -> Outlet:
        stream = self.live.stream(lambda: self.allowed)
        outlet = Outlet(stream)
        stream.begin(outlet)
        return outlet

    def publish(self, version: int) -> None:
        self.live.publish(Snapshot(version, NOW, (bus(subscriber(queued=version, trouble="late")),)))

    def test_snapshots(self) -> None:
        """A stream begins with the last snapshot and gets each new one: what every page shows."""
        self.publish(1)
        outlet = self.opened()
        [(name, data)] = outlet.read()
        self.assertEqual(name, "snapshot")
        self.assertEqual((data["version"], data["at"]), (1, NOW))
        self.assertEqual(
            data["buses"],
            [
                {
                    "name": "main",
                    "reachable": True,
                    "queued": 1,
                    "oldest": None,
                    "received": None,
                    "sent": None,
                    "trouble": 1,
                }
            ],
        )
        self.publish(2)
        self.assertEqual((outlet.pending, outlet.read()[0][1]["version"]), (1, 2))
        self.assertEqual(outlet.read(), [])

    def test_changes(self) -> None:
        """What happened is sent to all, in one line whatever its text is."""
        first, second = self.opened(), self.opened()
        change = Change(NOW, "main", "failing", "error", "line\nline\r\n\nevent: x", "shop")
        self.live.happened([change])
        for outlet in (first, second):
            [(name, data)] = outlet.read()
            self.assertEqual((name, data["text"], data["subscriber"]), ("change", change.text, "shop"))

    def test_slow_reader(self) -> None:
        """A client that does not read gets the newest snapshot and the last changes, not all of them."""
        outlet = self.opened()
        for version in range(1000):
            self.publish(version)
            self.live.happened([Change(NOW, "main", "paused", "info", str(version))])
        events = outlet.read()
        self.assertEqual([data["version"] for name, data in events if name == "snapshot"], [999])
        self.assertEqual(len(events), MAX_CHANGES + 1)
        self.assertEqual(events[-2][1]["text"], "999")

    def test_alive(self) -> None:
        """A quiet stream shows that it is alive, and ends when its session has ended."""
        outlet = self.opened()
        outlet.read()
        self.clock.advance(ALIVE_INTERVAL)
        self.assertEqual((outlet.pending, outlet.stream.next_part()), (1, ALIVE))
        self.allowed = False
        self.clock.advance(ALIVE_INTERVAL)
        self.assertIsNone(outlet.stream.next_part())

    def test_bounded(self) -> None:
        """There are only so many streams; one that ends makes room."""
        outlets = [self.opened() for _ in range(MAX_STREAMS)]
        self.assertTrue(self.live.full)
        outlets[0].stream.lost()
        self.assertFalse(self.live.full)

    def test_stop(self) -> None:
        """At the stop all end, no further one begins, and without streams there is no timer."""
        outlet = self.opened()
        self.live.stop()
        self.assertIsNone(outlet.stream.next_part())
        self.assertTrue(self.live.full)
        outlet.stream.lost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
