"""The tables of the history, in SQLite: what is kept of samples and changes, and for how long.

Two tiers: *fine* samples of each reading for FINE_KEPT seconds, and *coarse* ones of
COARSE seconds each for COARSE_KEPT, summed up from the fine ones by SQL. At most `most`
samples are kept, half of them of each tier; the oldest go first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from routemaster.console.model import Change

FINE_KEPT: Final = 3600.0  #: seconds
COARSE: Final = 300  #: seconds of one coarse sample
COARSE_KEPT: Final = 86400.0  #: seconds
CHANGES_KEPT: Final = 30 * 86400.0  #: seconds
MAX_CHANGES: Final = 20_000
VERSION: Final = 1  #: of the tables
_PRUNED: Final = 60.0  #: seconds between two prunings

_TABLES: Final = f"""
CREATE TABLE sample (
    tier INTEGER NOT NULL, bus TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL,
    queued INTEGER, age REAL, failures INTEGER, received REAL, sent REAL,
    PRIMARY KEY (tier, bus, kind, name, at)
) WITHOUT ROWID;
CREATE INDEX sample_at ON sample (tier, at);
CREATE TABLE change (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, bus TEXT NOT NULL, kind TEXT NOT NULL,
    severity TEXT NOT NULL, text TEXT NOT NULL, subscriber TEXT NOT NULL, topic TEXT NOT NULL, user TEXT NOT NULL
);
PRAGMA user_version = {VERSION};
"""
_INSERT: Final = "INSERT OR REPLACE INTO sample VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SUM_UP: Final = """
INSERT OR REPLACE INTO sample
SELECT 1, bus, kind, name, :start, max(queued), max(age), max(failures), sum(received), sum(sent)
FROM sample WHERE tier = 0 AND at >= :start AND at < :end GROUP BY bus, kind, name
"""

BUS, TOPIC, SUBSCRIBER = "bus", "topic", "subscriber"


@frozen
class Sample:
    """What was measured of a bus, a topic or a subscriber at one time.

    `received` and `sent` are events since the sample before, not rates: sums stay exact. None: not known.
    """

    bus: str
    kind: str  #: bus, topic, subscriber
    name: str  #: empty for the bus
    at: float
    queued: int | None = None
    age: float | None = None  #: seconds that the oldest event waits
    failures: int | None = None
    received: float | None = None
    sent: float | None = None


@frozen
class Wanted:
    """Which changes are wanted: of one bus, kind or subscriber, older than `before`; empty and 0: all."""

    bus: str = ""
    kind: str = ""
    subscriber: str = ""
    before: int = 0
    most: int = 50


class Database:
    """The tables; used by one thread."""

    def __init__(self, file: Path | None, most: int) -> None:
        """Raises sqlite3.Error: the file is damaged or of another version, or cannot be made."""
        self._most, self._pruned_at, self._summed = most, 0.0, 0
        if file is not None:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
        self._connection = sqlite3.connect(
            ":memory:" if file is None else str(file), isolation_level=None, timeout=2
        )
        try:
            self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._connection.executescript(_TABLES)
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"its tables are of version {version}, expected {VERSION}")
        if execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("it is damaged")
        last = execute("SELECT max(at) FROM sample WHERE tier = 1").fetchone()[0]
        self._summed = 0 if last is None else int(last) + COARSE

    def is_damaged(self, error: BaseException) -> bool:
        """Whether an error says that the file cannot be used any more."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        return damaged and not isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError)

    def add(self, samples: Iterable[Sample], changes: Iterable[Change], now: float) -> list[Change]:
        """Keep them, sum up and prune what is due; in one transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            rows = [
                (0, each.bus, each.kind, each.name, each.at, each.queued, each.age, each.failures, each.received,
                 each.sent) for each in samples
            ]  # fmt: skip
            self._connection.executemany(_INSERT, rows)
            stored = [self._add_change(each) for each in changes]
            self._sum_up(now)
            if not self._pruned_at <= now < self._pruned_at + _PRUNED:
                self._prune(now)
                self._pruned_at = now
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                execute("ROLLBACK")
            raise
        execute("COMMIT")
        return stored

    def _add_change(self, each: Change) -> Change:
        values = each.at, each.bus, each.kind, each.severity, each.text, each.subscriber, each.topic, each.user
        cursor = self._connection.execute("INSERT INTO change VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return Change(*values, id=cursor.lastrowid or 0)

    def _sum_up(self, now: float) -> None:
        """Make the coarse samples of all periods that are over."""
        current = int(now) // COARSE * COARSE
        if not self._summed:
            first = self._connection.execute("SELECT min(at) FROM sample WHERE tier = 0").fetchone()[0]
            self._summed = current if first is None else int(first) // COARSE * COARSE
        # not in the future, either: the clock was set back
        self._summed = min(max(self._summed, current - int(FINE_KEPT)), current)
        while self._summed < current:
            self._connection.execute(_SUM_UP, {"start": self._summed, "end": self._summed + COARSE})
            self._summed += COARSE

    def _prune(self, now: float) -> None:
        execute = self._connection.execute
        for tier, kept in ((0, FINE_KEPT), (1, COARSE_KEPT)):
            execute("DELETE FROM sample WHERE tier = ? AND at < ?", (tier, now - kept))
            execute("DELETE FROM sample WHERE tier = ? AND at > ?", (tier, now + COARSE))  # the clock was set back
        for tier in (0, 1):
            surplus = (
                execute("SELECT count(*) FROM sample WHERE tier = ?", (tier,)).fetchone()[0] - self._most // 2
            )
            if surplus > 0:
                last = execute(
                    "SELECT at FROM sample WHERE tier = ? ORDER BY at LIMIT 1 OFFSET ?", (tier, surplus - 1)
                ).fetchone()[0]
                execute("DELETE FROM sample WHERE tier = ? AND at <= ?", (tier, last))
        execute("DELETE FROM change WHERE at < ? OR id <= (SELECT max(id) FROM change) - ?",
                (now - CHANGES_KEPT, MAX_CHANGES))  # fmt: skip

    def samples(self, bus: str, kind: str, name: str, since: float, coarse: bool) -> list[Sample]:
        """See `History`."""
        rows = self._connection.execute(
            "SELECT at, queued, age, failures, received, sent FROM sample "
            "WHERE tier = ? AND bus = ? AND kind = ? AND name = ? AND at >= ? ORDER BY at",
            (int(coarse), bus, kind, name, since),
        )
        return [Sample(bus, kind, name, *row) for row in rows]

    def changes(self, wanted: Wanted) -> list[Change]:
        """See `History`."""
        conditions, values = ["1"], list[Any]()
        for column in ("bus", "kind", "subscriber"):
            if getattr(wanted, column):
                conditions.append(f"{column} = ?")
                values.append(getattr(wanted, column))
        if wanted.before:
            conditions.append("id < ?")
            values.append(wanted.before)
        query = (
            "SELECT at, bus, kind, severity, text, subscriber, topic, user, id FROM change "  # noqa: S608  # columns
            f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"
        )
        return [Change(*row) for row in self._connection.execute(query, (*values, wanted.most))]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
