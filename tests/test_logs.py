"""The log: each event is one line, and an error while logging never raises."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher
from twisted.logger import LegacyLogObserverWrapper as Legacy
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as LegacyPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from routemaster.log_sinks import BUFFER, DescriptorSink, FileSink, _write_if_ready, is_journal
from routemaster.logs import (
    LEVELS,
    LONGEST_FIELD,
    LONGEST_TRACEBACK,
    LogObserver,
    as_json,
    as_text,
    as_text_without_time,
    for_journal,
    observer,
)

WHEN = 1_767_323_045.678
DANGEROUS = "\n\r\t\0\x1b[31m\x7f\x85\x9b\u2028\u2029\u202e\ud800"


def event(message: str = "hello", **fields: Any) -> dict[str, Any]:
    """An event as Twisted makes it."""
    return {
        "log_time": WHEN,
        "log_level": LogLevel.info,
        "log_namespace": "routemaster.web",
        "log_format": "{text}",
        "text": message,
    } | fields


def failure(sentence: str) -> Failure:
    """A failure with a traceback."""
    try:
        raise ValueError(sentence)
    except ValueError:
        return Failure()


class JournalTests(SynchronousTestCase):
    """The form for systemd's journal."""

    def test_priorities(self) -> None:
        """Each line begins with its priority, those of a traceback too; text has no time."""
        render = for_journal(as_text_without_time)
        self.assertEqual(render(event()), "<6>INFO routemaster.web hello\n")
        for level, priority in (("DEBUG", 7), ("WARNING", 4), ("ERROR", 3)):
            rendered = render(event(log_level=LEVELS[level]))
            self.assertEqual(rendered, f"<{priority}>{level} routemaster.web hello\n")
        lines = render(event(log_level=LogLevel.critical, log_failure=failure("x"))).splitlines()
        self.assertGreater(len(lines), 2)
        self.assertEqual({line[:3] for line in lines}, {"<2>"})

    def test_json(self) -> None:
        """A JSON object stays whole behind its priority."""
        line = for_journal(as_json)(event())
        self.assertEqual(line[:3], "<6>")
        self.assertEqual(json.loads(line[3:]), json.loads(as_json(event())))

    def test_recognized(self) -> None:
        """The journal is recognized by device and inode of the stream, as systemd gives them."""
        with Path(self.mktemp()).open("w+") as file, Path(self.mktemp()).open("w+") as other:
            found = os.fstat(file.fileno())
            environment = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
            self.assertTrue(is_journal(file, environment))
            for stream in (other, None, StringIO()):
                self.assertFalse(is_journal(stream, environment))
            for given in ({}, {"JOURNAL_STREAM": "x"}, {"JOURNAL_STREAM": ""}):
                self.assertFalse(is_journal(file, given))
        self.assertFalse(is_journal(file, environment))  # it is closed


class TextTests(SynchronousTestCase):
    """The text format."""

    def test_line(self) -> None:
        """A line has the time in UTC to the millisecond, level, namespace and message."""
        self.assertEqual(as_text(event()), "2026-01-02T03:04:05.678Z INFO routemaster.web hello\n")

    def test_bare(self) -> None:
        """An event without any field is a line too."""
        self.assertEqual(as_text({}), "- INFO - \n")
        for when in ("soon", None, float("nan"), 1e300):
            self.assertEqual(as_text({"log_time": when, "log_format": "x"}), "- INFO - x\n")

    def test_escapes(self) -> None:
        """Unprintable characters in message and namespace are escaped; letters of any script stay."""
        line = as_text(event(f"a{DANGEROUS}b é 猫", log_namespace=f"n{DANGEROUS}"))
        escaped = r"\n\r\t\x00\x1b[31m\x7f\x85\x9b\u2028\u2029\u202e\ud800"
        self.assertEqual(line, f"2026-01-02T03:04:05.678Z INFO n{escaped} a{escaped}b é 猫\n")

    def test_cap(self) -> None:
        """A message is cut to LONGEST_FIELD characters, before and after escaping."""
        for text in ("x" * 10**6, "\x1b" * LONGEST_FIELD):
            line = as_text(event(text))
            self.assertTrue(line.endswith("…\n"))
            self.assertEqual(len(line), len(as_text(event(""))) + LONGEST_FIELD)

    def test_traceback(self) -> None:
        """The traceback of a failure follows in indented lines, for any message."""
        lines = as_text(event(log_failure=failure("bad\n2026 INFO forged\r\x1b"))).splitlines()
        self.assertIn("INFO routemaster.web hello", lines[0])
        self.assertTrue(all(line.startswith("    ") for line in lines[1:]))
        self.assertIn("    2026 INFO forged\\r\\x1b", lines)

    def test_long_traceback(self) -> None:
        """The middle of a long traceback is left out."""
        text = as_text(event(log_failure=failure("x\n" * LONGEST_TRACEBACK)))
        self.assertIn("\n    …\n", text)
        self.assertIn("Traceback", text)

    def test_broken_failure(self) -> None:
        """If formatting the traceback fails, the message is still logged."""
        self.assertIn("hello\n    no traceback: AttributeError", as_text(event(log_failure=object())))

    @given(st.text(), st.text())
    def test_any_text(self, message: str, cause: str) -> None:
        """For any texts, exactly one line is not indented."""
        lines = as_text(event(message, log_failure=failure(cause))).splitlines()
        self.assertEqual([line for line in lines if not line.startswith("    ")], lines[:1])


class JsonTests(SynchronousTestCase):
    """The JSON format."""

    def test_object(self) -> None:
        """An event is one object with the common fields and its own scalars."""
        line = as_json(
            event(
                topic="cats", count=3, ratio=0.5, ok=True, none=None, log_source=self, thing=object(), names=["a"]
            )
        )
        self.assertEqual(
            json.loads(line),
            {
                "time": "2026-01-02T03:04:05.678Z",
                "level": "INFO",
                "namespace": "routemaster.web",
                "message": "hello",
                "text": "hello",
                "topic": "cats",
                "count": 3,
                "ratio": 0.5,
                "ok": True,
                "none": None,
            },
        )

    def test_time_unknown(self) -> None:
        """The time of an event without one is null."""
        self.assertIsNone(json.loads(as_json({}))["time"])

    def test_own_names_win(self) -> None:
        """A field of the event cannot replace the level, the time or the message."""
        fields = json.loads(as_json(event() | dict.fromkeys(("level", "time", "message", "namespace"), "forged")))
        self.assertNotIn("forged", fields.values())

    def test_not_finite(self) -> None:
        """NaN and infinity are strings, because JSON has no numbers for them."""
        fields = json.loads(as_json(event(a=float("nan"), b=float("-inf"))))
        self.assertEqual((fields["a"], fields["b"]), ("nan", "-inf"))

    def test_traceback(self) -> None:
        """The traceback of a failure is one string."""
        fields = json.loads(as_json(event(log_failure=failure("bad"))))
        self.assertIn("ValueError: bad", fields["traceback"])

    def test_cap(self) -> None:
        """Each string is cut to its maximum length."""
        fields = json.loads(as_json(event("x" * 10**6)))
        self.assertEqual({len(fields["message"]), len(fields["text"])}, {LONGEST_FIELD})

    @given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.floats()))
    def test_any_text(self, message: str, fields: dict[str, Any]) -> None:
        """Any event is one line of printable ASCII, and one JSON object."""
        line = as_json(fields | event(message))
        self.assertTrue(line[:-1].isprintable() and line.isascii() and line.endswith("\n"))
        self.assertEqual(json.loads(line)["message"], message)


class ObserverTests(SynchronousTestCase):
    """The observer: levels, and its interface to Twisted."""

    def test_interface(self) -> None:
        """The observer implements ILogObserver."""
        verifyObject(ILogObserver, observer(StringIO(), "INFO", "text"))

    def test_levels(self) -> None:
        """Events of the level and above are written; an unknown level is INFO."""
        for number, (wanted, _) in enumerate(LEVELS.items()):
            stream = StringIO()
            observe = observer(stream, wanted, "text")
            for level in LEVELS.values():
                observe(event(log_level=level))
            self.assertEqual([line.split()[1] for line in stream.getvalue().splitlines()], list(LEVELS)[number:])
        stream = StringIO()
        observer(stream, "INFO", "text")(event(log_level="loud"))
        self.assertIn(" INFO ", stream.getvalue())

    def test_logger(self) -> None:
        """Events of Logger and of the legacy API are written, without legacy fields."""
        for form in ("text", "json"):
            stream = StringIO()
            observe = observer(stream, "DEBUG", form)
            publisher = LogPublisher(Legacy(lambda event: None), observe)
            Logger("routemaster.x", observer=publisher).error("{n} gone", n=3)
            LegacyPublisher(observerPublisher=publisher, publishPublisher=publisher).msg("old\n")
            first, second = stream.getvalue().splitlines()
            self.assertIn("3 gone", first)
            self.assertIn("old", second)
            self.assertIn("DEBUG", second, "what the old interface says by the way is for those who look closely")
            if form == "json":
                self.assertEqual(set(json.loads(first)), {"time", "level", "namespace", "message", "n"})

    def test_standard_error(self) -> None:
        """Without a target the log is written to the original standard error."""
        true, replaced = StringIO(), StringIO()
        self.patch(sys, "__stderr__", true)
        self.patch(sys, "stderr", replaced)
        observer(None, "INFO", "text")(event())
        self.assertIn("hello", true.getvalue())
        self.assertEqual(replaced.getvalue(), "")

    def test_no_standard_error(self) -> None:
        """Without standard error events are counted as dropped."""
        self.patch(sys, "__stderr__", None)
        observe = observer(None, "INFO", "text")
        observe(event())
        self.assertEqual(observe.dropped, 1)

    def test_unrenderable(self) -> None:
        """If formatting an event fails, the type of the error is logged, and nothing is raised."""
        stream = StringIO()
        observe = observer(stream, "INFO", "json")
        observe(event(huge=10**5000))
        self.assertIn("formatting an event failed: ValueError", json.loads(stream.getvalue())["message"])

    def test_closed_stream(self) -> None:
        """With a closed stream events are dropped, and nothing is raised."""
        stream = StringIO()
        stream.close()
        observe = observer(stream, "INFO", "text")
        observe(event())
        observe.reopen()
        self.assertEqual(observe.dropped, 1)


class FileTests(SynchronousTestCase):
    """The log file."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "rm.log"

    def opened(self) -> LogObserver:
        """An observer that writes to the file."""
        observe = observer(self.path, "INFO", "text")
        self.addCleanup(observe.close)
        return observe

    def messages(self, path: Path | None = None) -> list[str]:
        """The messages in the file."""
        return [line.split(" ", 3)[3] for line in (path or self.path).read_text().splitlines()]

    def test_appends(self) -> None:
        """Each event is appended to the file at once."""
        self.opened()(event("one"))
        self.opened()(event("two é"))
        self.assertEqual(self.messages(), ["one", "two é"])

    def test_cannot_be_opened(self) -> None:
        """A file that cannot be opened at the start is an error."""
        self.assertRaises(OSError, observer, self.directory / "none" / "rm.log", "INFO", "text")

    def test_reopen(self) -> None:
        """After `reopen` events are written to the file that has the name now."""
        observe, moved = self.opened(), self.directory / "rm.log.1"
        observe(event("one"))
        self.path.rename(moved)
        observe.reopen()
        observe(event("two"))
        self.assertEqual((self.messages(moved), self.messages()), (["one"], ["two"]))

    def test_moved_and_removed(self) -> None:
        """A file that was renamed or deleted is opened again, checked at most once a second."""
        observe, moved = self.opened(), self.directory / "rm.log.1"
        observe(event("one"))
        self.path.rename(moved)
        observe(event("two", log_time=WHEN + 0.9))
        observe(event("three", log_time=WHEN + 1.0))
        self.assertEqual((self.messages(moved), self.messages()), (["one", "two"], ["three"]))
        self.path.unlink()
        observe(event("four", log_time=WHEN - 100))
        self.assertEqual(self.messages(), ["four"])

    def test_moved_for_good(self) -> None:
        """While the name cannot be opened, events are written to the renamed file."""
        observe, moved = self.opened(), Path(self.mktemp())
        self.path.rename(moved)
        self.directory.rmdir()
        observe.reopen()
        observe(event("one"))
        self.assertEqual((self.messages(moved), observe.dropped), (["one"], 0))

    def test_removed_for_good(self) -> None:
        """If the file was deleted, events are counted as dropped until the name can be opened again."""
        observe = self.opened()
        self.path.unlink()
        self.directory.rmdir()
        observe(event("one"))
        observe(event("two"))
        self.assertEqual(observe.dropped, 2)
        self.directory.mkdir()
        observe(event("three"))
        lost = "2 log events were lost: the log could not be written"
        self.assertEqual(self.messages(), [lost, "three"])

    def test_disk_full(self) -> None:
        """On a full disk events are dropped, and their number is logged when there is space again."""
        self.path.symlink_to("/dev/full")
        observe = self.opened()
        observe(event("one"))
        observe(event("two"))
        self.path.unlink()
        observe.reopen()
        observe(event("three"))
        observe(event("four"))
        self.assertEqual(self.messages()[0][:23], "2 log events were lost:")
        self.assertEqual((self.messages()[1:], observe.dropped), (["three", "four"], 2))

    def test_named_pipe(self) -> None:
        """A named pipe as log file must have a reader, and when it is full, events are dropped."""
        os.mkfifo(self.path)
        self.assertRaises(OSError, self.opened)
        reading = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        observe = self.opened()
        for _ in range(200):
            observe(event("x" * 1000))
        self.assertGreater(observe.dropped, 0)
        self.assertIn(b"x" * 1000, os.read(reading, 65536))

    def test_torn_line(self) -> None:
        """The event after a partly written line starts on a new line."""
        sink = FileSink(self.path)
        self.addCleanup(sink.close)
        write, rooms = sink._out, [5, 0, 100, 100]
        sink._out = lambda data: write(data[: rooms.pop(0)])
        self.assertRaises(BlockingIOError, sink.write, "one and more\n", WHEN)
        sink.write("two\n", WHEN)
        sink.write("three\n", WHEN)
        self.assertEqual(self.path.read_text(), "one a\ntwo\nthree\n")


class DescriptorTests(SynchronousTestCase):
    """Standard error of the process: no write waits for a reader."""

    def filled(self, reading: Any, writing: Any) -> None:
        """Write to a descriptor that nobody reads until it is full, then read, and compare."""
        stream = open(writing, "w", closefd=False)  # noqa: SIM115
        self.addCleanup(stream.close)
        observe = observer(stream, "INFO", "text")
        self.addCleanup(observe.close)
        count = 0
        while observe.dropped < 3:
            count += 1
            observe(event(f"{count:01000}"))
        self.assertTrue(os.get_blocking(writing), "others that share the open file expect it to block")
        os.set_blocking(reading, False)
        text = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                text += os.read(reading, 65536)
        observe(event("last"))
        text += os.read(reading, 65536)
        lines = text.decode().splitlines()
        self.assertGreater(len(text), BUFFER // 8)
        self.assertTrue(lines[-1].endswith("last"))
        self.assertIn("3 log events were lost", lines[-2])
        self.assertTrue(lines[0].endswith(f"{1:01000}"))

    def test_pipe(self) -> None:
        """When a pipe is full, events are dropped and counted, and written again when there is room."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        self.filled(reading, writing)

    def test_socket(self) -> None:
        """A socket, such as systemd's journal, is like a pipe."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.filled(theirs.fileno(), ours.fileno())

    def test_terminal(self) -> None:
        """A terminal whose output is stopped, or not read, is like a pipe."""
        reading, writing = os.openpty()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        observe = LogObserver(DescriptorSink(writing), "INFO", as_text)
        self.addCleanup(observe.close)
        for _ in range(1000):
            observe(event("x" * 1000))
        self.assertGreater(observe.dropped, 0)
        self.assertTrue(os.get_blocking(writing))

    def test_without_proc(self) -> None:
        """A pipe that cannot be opened once more is written only when it has room."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        with self.assertRaises(BlockingIOError):
            while True:
                self.assertGreater(_write_if_ready(writing, memoryview(b"x" * 10_000)), 0)

    def test_no_reader(self) -> None:
        """When the reader has exited, events are dropped and counted."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        observe = LogObserver(DescriptorSink(writing), "INFO", as_text)
        self.addCleanup(observe.close)
        os.close(reading)
        observe(event())
        self.assertEqual(observe.dropped, 1)

    def test_file(self) -> None:
        """A file as standard error is appended to at its position."""
        path = Path(self.mktemp())
        with path.open("w", encoding="utf-8") as stream:
            stream.write("before\n")
            stream.flush()
            observer(stream, "INFO", "text")(event("é"))
        self.assertRegex(path.read_text("utf-8"), "^before\n20.* é\n$")
