"""Samples and changes of the last day, in an SQLite file, so that charts survive a restart.

One thread owns the connection; calls are jobs for it and return Deferreds. The reactor never
waits for the disk. At most MAX_JOBS wait: further ones keep and find nothing. `history_tables`
says what is kept, and for how long.

A file that is damaged or of another version is set aside, as `history.sqlite.damaged`, and a new
one is begun. If there cannot be a file at all (a full disk, a directory that cannot be written),
history is kept in memory until the next start. The console runs in each case.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.console.history_tables import Database, Sample, Wanted
from routemaster.console.model import Change

MAX_JOBS: Final = 100
PATIENCE: Final = 5.0  #: seconds for the jobs that wait when the console stops


class History:
    """See above. All methods are called in the reactor's thread."""

    _log = Logger()

    def __init__(self, file: Path | None, most: int, reactor: Any) -> None:
        """`file`: None for memory; `most`: samples that are kept."""
        self._file, self._most, self._reactor = file, most, reactor
        self._jobs: SimpleQueue[tuple[Callable[[Database], Any], Deferred[Any]] | None] = SimpleQueue()
        self._waiting, self._failed = 0, False
        self._thread = Thread(target=self._run, daemon=True, name="console-history")
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        """Open the file, in the thread."""
        self._thread.start()

    def stop(self) -> Deferred[None]:
        """Finish the jobs that wait, and close the file; a disk that hangs is not waited for."""
        self._jobs.put(None)
        return self._ended.addTimeout(PATIENCE, self._reactor, lambda result, seconds: None)

    def add(self, samples: Sequence[Sample], changes: Sequence[Change], now: float) -> Deferred[list[Change]]:
        """Keep them; fires with the changes and their IDs. A failure is logged, not raised."""
        stored = self._call(lambda database: database.add(samples, changes, now))
        return stored.addErrback(self._not_stored, list(changes))

    def samples(self, bus: str, kind: str, name: str, since: float, coarse: bool) -> Deferred[list[Sample]]:
        """The samples of one line of a chart, oldest first; none if they cannot be read."""
        read = self._call(lambda database: database.samples(bus, kind, name, since, coarse))
        return read.addErrback(self._not_stored, [])

    def changes(self, wanted: Wanted) -> Deferred[list[Change]]:
        """The newest changes first; none if they cannot be read."""
        return self._call(lambda database: database.changes(wanted)).addErrback(self._not_stored, [])

    def _not_stored(self, failure: Failure, instead: Any) -> Any:
        if not self._failed:
            self._log.warn("the history cannot be used: {error}", error=failure.getErrorMessage())
        self._failed = True
        return instead

    def _call(self, work: Callable[[Database], Any]) -> Deferred[Any]:
        if self._waiting >= MAX_JOBS:
            return fail(TimeoutError(f"{MAX_JOBS} jobs wait for the disk"))
        result: Deferred[Any] = Deferred()
        self._waiting += 1
        self._jobs.put((work, result))
        return result

    # -- in the thread

    def _run(self) -> None:
        database, note = opened(self._file, self._most)
        if note:
            self._reactor.callFromThread(self._log.warn, "history: {note}", note=note)
        while (job := self._jobs.get()) is not None:
            work, result = job
            try:
                answer: Any = work(database)
            except Exception:
                answer = Failure()
                if database.is_damaged(answer.value):
                    database.close()
                    database, note = opened(self._file, self._most)
                    self._reactor.callFromThread(self._log.warn, "history: {note}", note=note or "opened again")
            self._reactor.callFromThread(self._done, result, answer)
        database.close()
        self._reactor.callFromThread(self._ended.callback, None)

    def _done(self, result: Deferred[Any], answer: Any) -> None:
        self._waiting -= 1
        if isinstance(answer, Failure):
            result.errback(answer)
        else:
            self._failed = False
            result.callback(answer)


def opened(file: Path | None, most: int) -> tuple[Database, str]:
    """The database: of the file, of a new one if that is damaged, or in memory; and a note on what is wrong."""
    note = ""
    if file is not None:
        try:
            return Database(file, most), ""
        except (sqlite3.OperationalError, OSError) as error:  # a full disk, no rights: the file may be good
            return Database(None, most), f"{file}: {error}; history is kept in memory until the next start"
        except sqlite3.Error as error:
            note = f"{file}: {error}"
        try:
            for end in ("-wal", "-shm"):
                file.with_name(file.name + end).unlink(missing_ok=True)
            if file.exists():
                file.replace(file.with_name(f"{file.name}.damaged"))
            return Database(file, most), f"{note}; it is set aside, and a new one is begun"
        except (sqlite3.Error, OSError) as error:
            note = f"{note}; {error}; history is kept in memory until the next start"
    return Database(None, most), note
