"""The history's thread: whatever happens to the file, the console goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from routemaster.console.history import MAX_JOBS, History
from routemaster.console.history_tables import BUS, SUBSCRIBER, Sample, Wanted
from routemaster.console.model import Change
from tests.console.made import NOW

SAMPLE = Sample("main", BUS, "", NOW, queued=3)
CHANGE = Change(NOW, "main", "paused", "info", "text")


class HistoryTests(TestCase):
    """With a real thread."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp()) / "history.sqlite"

    def started(self, file: Path | None = None) -> History:
        """A history that is stopped at the end of the test."""
        history = History(file or self.file, 1000, reactor)
        history.start()
        self.addCleanup(history.stop)
        return history

    async def samples(self, history: History) -> list[Sample]:
        return await history.samples("main", BUS, "", 0, False)

    async def test_survives_a_restart(self) -> None:
        """Samples and changes are there after a restart; the changes have got their IDs."""
        history = History(self.file, 1000, reactor)
        history.start()
        [stored] = await history.add([SAMPLE], [CHANGE], NOW)
        await history.stop()
        again = self.started()
        self.assertEqual(await self.samples(again), [SAMPLE])
        self.assertEqual((await again.changes(Wanted()), stored.id), ([stored], 1))

    async def test_damaged_file(self) -> None:
        """A damaged file is set aside, which is logged, and a new one is begun."""
        self.file.parent.mkdir()
        self.file.write_bytes(b"damaged" * 1000)
        with capturedLogs() as logs:
            history = self.started()
            await history.add([SAMPLE], [], NOW)
            self.assertEqual(await self.samples(history), [SAMPLE])
        self.assertEqual(self.file.with_name("history.sqlite.damaged").read_bytes()[:7], b"damaged")
        self.assertIn("set aside", str([each.get("note") for each in logs]))

    async def test_damaged_while_running(self) -> None:
        """A file that is damaged while the console runs is replaced, and then used again."""
        history = self.started()
        await history.add([SAMPLE], [], NOW)
        for end in ("", "-wal"):
            damaged = self.file.with_name(self.file.name + end)
            with damaged.open("r+b") as file:
                file.write(b"x" * damaged.stat().st_size)
        with capturedLogs():
            for number in range(10):  # the first ones may still be answered from memory
                await history.add([], [CHANGE], NOW + 100 * number)
                await history.changes(Wanted(before=number))
            await history.add([SAMPLE], [], NOW + 2000)
            self.assertEqual(await self.samples(history), [SAMPLE])

    async def test_no_file(self) -> None:
        """Where no file can be made, history is kept in memory, which is logged."""
        blocked = Path(self.mktemp())
        blocked.write_text("a file, no directory")  # noqa: ASYNC240
        with capturedLogs() as logs:
            history = self.started(blocked / "history.sqlite")
            await history.add([SAMPLE], [], NOW)
            self.assertEqual(await self.samples(history), [SAMPLE])
        self.assertIn("in memory", str([each.get("note") for each in logs]))

    async def test_failures_are_no_errors(self) -> None:
        """What cannot be kept is logged once, and changes go on to the live pages all the same."""
        history = self.started()
        wrong: Any = Sample("main", BUS, "", None)  # type: ignore[arg-type]
        with capturedLogs() as logs:
            for _ in range(3):
                self.assertEqual(await history.add([wrong], [CHANGE], NOW), [CHANGE])
        self.assertEqual(len([each for each in logs if "cannot be used" in each.get("log_format", "")]), 1)
        self.assertEqual(len(await history.add([SAMPLE], [], NOW)), 0)

    async def test_full_disk(self) -> None:
        """When the disk is full, nothing of a reading is kept and nothing else is lost; with room it goes on."""
        history = self.started()
        await history.add([SAMPLE], [CHANGE], NOW)

        async def room(pages: int) -> None:
            limit = f"PRAGMA max_page_count={pages}"
            await history._call(lambda database: list(database._connection.execute(limit)))

        await room(10)
        many = [evolve(SAMPLE, name=f"s{each}", kind=SUBSCRIBER) for each in range(2000)]
        with capturedLogs() as logs:
            self.assertEqual(await history.add(many, [CHANGE], NOW), [CHANGE])
            self.assertEqual(len(await history.changes(Wanted())), 1)
        self.assertIn("full", str([each.get("error") for each in logs]))
        await room(10_000)
        self.assertEqual([each.id for each in await history.add(many, [CHANGE], NOW)], [2])
        self.assertEqual(await self.samples(history), [SAMPLE])

    async def test_bounded(self) -> None:
        """While the disk hangs, only so many jobs wait; a further one keeps and finds nothing, at once."""
        history = History(None, 1000, reactor)
        waiting = [history.add([SAMPLE], [], NOW) for _ in range(MAX_JOBS)]
        with capturedLogs():
            self.assertEqual(self.successResultOf(history.add([SAMPLE], [CHANGE], NOW)), [CHANGE])
            self.assertEqual(self.successResultOf(history.changes(Wanted())), [])
        history.start()
        self.addCleanup(history.stop)
        for each in waiting:
            await each

    def test_hanging_disk(self) -> Deferred[None]:
        """The end of the console does not wait for a disk that hangs."""
        from twisted.internet.task import Clock

        clock = Clock()
        history = History(None, 1000, clock)  # its thread is never started
        ended = history.stop()
        self.assertNoResult(ended)
        clock.advance(5)
        self.assertIsNone(self.successResultOf(ended))
        return succeed(None)
