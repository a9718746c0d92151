"""What the history keeps, and for how long."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.history_tables import (
    BUS,
    CHANGES_KEPT,
    COARSE,
    COARSE_KEPT,
    FINE_KEPT,
    SUBSCRIBER,
    Database,
    Sample,
    Wanted,
)
from routemaster.console.model import Change
from tests.console.made import NOW

START = NOW // COARSE * COARSE


def sample(at: float, kind: str = BUS, name: str = "", **values: float) -> Sample:
    return Sample("main", kind, name, at, **values)  # type: ignore[arg-type]


def change(at: float = NOW, kind: str = "failing", subscriber: str = "shop", bus: str = "main") -> Change:
    return Change(at, bus, kind, "error", f"{kind} at {at}", subscriber)


class Case(SynchronousTestCase):
    """Has a database in memory."""

    def setUp(self) -> None:
        self.database = self.opened(None)

    def opened(self, file: Path | None, most: int = 10_000) -> Database:
        """A database that is closed at the end of the test."""
        database = Database(file, most)
        self.addCleanup(database.close)
        return database

    def times(self, coarse: bool = False, database: Database | None = None) -> list[float]:
        """Of all samples of the bus."""
        found = (database or self.database).samples("main", BUS, "", 0, coarse)
        return [each.at for each in found]


class SampleTests(Case):
    """Samples in two tiers."""

    def test_kept(self) -> None:
        """A sample is found as it was kept, by bus, kind, name and time."""
        wanted = sample(NOW, SUBSCRIBER, "shop", queued=3, age=1.5, failures=2, received=4, sent=5)
        self.database.add([wanted, sample(NOW, SUBSCRIBER, "crm"), sample(NOW)], [], NOW)
        self.assertEqual(self.database.samples("main", SUBSCRIBER, "shop", 0, False), [wanted])
        self.assertEqual(self.database.samples("main", SUBSCRIBER, "shop", NOW + 1, False), [])
        self.assertEqual(self.database.samples("two", SUBSCRIBER, "shop", 0, False), [])

    def test_summed_up(self) -> None:
        """When five minutes are over, they become one sample: the largest queue and age, the sum of events."""
        for at in range(0, 2 * COARSE, 100):
            self.database.add([sample(START + at, queued=at, age=at / 10, received=10, sent=1)], [], START + at)
        [found] = self.database.samples("main", BUS, "", 0, True)
        self.assertEqual(found, sample(START, queued=200, age=20.0, received=30, sent=3))

    def test_summed_up_after_restart(self) -> None:
        """What was kept before a restart is summed up after it, once."""
        file = Path(self.mktemp())
        first = Database(file, 1000)
        first.add([sample(START + 1, sent=1), sample(START + COARSE + 1, sent=2)], [], START + COARSE + 1)
        first.close()
        second = self.opened(file)
        second.add([sample(START + COARSE + 2, sent=4)], [], START + 2 * COARSE + 1)
        found = second.samples("main", BUS, "", 0, True)
        self.assertEqual([(each.at, each.sent) for each in found], [(START, 1), (START + COARSE, 6)])

    def test_age(self) -> None:
        """Fine samples are kept for an hour, coarse ones for a day."""
        for at in range(0, int(COARSE_KEPT) + 4 * COARSE, COARSE):
            self.database.add([sample(START + at)], [], START + at)
        end = START + COARSE_KEPT + 3 * COARSE
        self.assertEqual(min(self.times()), end - FINE_KEPT)
        self.assertEqual(min(self.times(coarse=True)), end - COARSE_KEPT)

    def test_rows(self) -> None:
        """Only so many samples are kept, half of them of each tier; the oldest go first."""
        database = self.opened(None, 100)
        for number in range(30):
            now = START + 61 * number  # so that each call prunes
            database.add([sample(now, SUBSCRIBER, f"s{each}") for each in range(20)] + [sample(now)], [], now)
        left = sum(
            len(database.samples("main", SUBSCRIBER, f"s{each}", 0, tier))
            for each in range(20)
            for tier in (True, False)
        )
        self.assertLessEqual(left, 100)
        self.assertEqual(self.times(database=database)[-1], START + 61 * 29)
        self.assertEqual(self.times(coarse=True, database=database), [START + 900, START + 1200])

    def test_clock_set_back(self) -> None:
        """Samples of a time that has not come yet, after the clock was set back, are removed."""
        self.database.add([sample(NOW + 10 * COARSE_KEPT)], [], NOW + 10 * COARSE_KEPT)
        self.database.add([sample(NOW)], [], NOW)
        self.assertEqual(self.times(), [NOW])
        self.database.add([sample(NOW + COARSE)], [], NOW + COARSE)
        self.assertEqual(self.times(coarse=True), [NOW // COARSE * COARSE])  # summed up again

    def test_long_pause(self) -> None:
        """After days without the console, it does not sum up each five minutes of them."""
        self.database.add([sample(START)], [], START)
        self.database.add([sample(START + 10 * COARSE_KEPT)], [], START + 10 * COARSE_KEPT)
        self.assertEqual(self.times(coarse=True), [])


class ChangeTests(Case):
    """Changes."""

    def test_wanted(self) -> None:
        """The newest are first; they are selected by bus, kind and subscriber, and continued before an ID."""
        stored = self.database.add(
            [], [change(), change(kind="paused"), change(subscriber="crm"), change(bus="two")], NOW
        )
        self.assertEqual([each.id for each in stored], [1, 2, 3, 4])
        for wanted, ids in (
            (Wanted(), [4, 3, 2, 1]),
            (Wanted(most=2), [4, 3]),
            (Wanted(before=3), [2, 1]),
            (Wanted("two"), [4]),
            (Wanted(kind="paused"), [2]),
            (Wanted(subscriber="crm"), [3]),
            (Wanted("two", "paused"), []),
            (Wanted(bus="' OR 1 --"), []),
        ):
            self.assertEqual([each.id for each in self.database.changes(wanted)], ids, wanted)
        self.assertEqual(self.database.changes(Wanted(before=2)), stored[:1])

    def test_age(self) -> None:
        """They are kept for thirty days."""
        self.database.add([], [change(NOW), change(NOW + 100)], NOW)
        self.database.add([], [], NOW + CHANGES_KEPT + 50)
        self.assertEqual([each.at for each in self.database.changes(Wanted())], [NOW + 100])


class FileTests(Case):
    """Files."""

    def test_private(self) -> None:
        """Only the owner can read the file."""
        file = Path(self.mktemp()) / "new" / "history.sqlite"
        self.opened(file)
        self.assertEqual((file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777), (0o600, 0o700))

    def test_damaged(self) -> None:
        """A file that is no database, or one of other tables, is an error that says so."""
        for content in (b"not a database" * 1000, b"SQLite format 3\0" + bytes(5000)):
            file = Path(self.mktemp())
            file.write_bytes(content)
            error = self.assertRaises(sqlite3.DatabaseError, Database, file, 10)
            self.assertNotIsInstance(error, sqlite3.OperationalError)
        other = Path(self.mktemp())
        with sqlite3.connect(other) as connection:
            connection.execute("CREATE TABLE x (y)")
        connection.close()
        self.assertIn("version 0", str(self.assertRaises(sqlite3.DatabaseError, Database, other, 10)))

    def test_failed_write(self) -> None:
        """A write that fails half-way has kept nothing, and the next one works."""
        self.assertRaises(sqlite3.Error, self.database.add, [sample(NOW)], [change(kind=None)], NOW)  # type: ignore[arg-type]
        self.assertEqual(self.times(), [])
        self.database.add([sample(NOW)], [], NOW)
        self.assertEqual(self.times(), [NOW])
