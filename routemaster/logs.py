"""The log: each event is one line, and an error while logging never raises.

`observer` returns the Twisted log observer. Its formats:

- text: `2026-01-02T03:04:05.678Z INFO routemaster.web the message`; the
  traceback of a failure follows in indented lines, which cannot be mistaken for
  events;
- json: one object on one line, with `time`, `level`, `namespace`, `message`,
  `traceback` for a failure, and the fields of the event that are scalars.

Unprintable characters are escaped and long texts are cut, because topics, URLs
and names come from clients. Nothing is masked here: events must not contain
secrets.

A log file that was renamed is opened again. While it cannot be written, events
are dropped and counted; the count is logged before the next event that can be
written. The time is that of the event: nothing here reads a clock.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from math import isfinite
from pathlib import Path
from threading import RLock
from typing import Any, Protocol, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface.declarations import implementer

LONGEST_FIELD = 8 * 1024
LONGEST_TRACEBACK = 64 * 1024
CHECK_INTERVAL = 1.0

LEVELS = {
    "DEBUG": LogLevel.debug,
    "INFO": LogLevel.info,
    "WARNING": LogLevel.warn,
    "ERROR": LogLevel.error,
    "CRITICAL": LogLevel.critical,
}
LEVEL_NAMES = {level: name for name, level in LEVELS.items()}

# Fields that Twisted's legacy logging adds.
LEGACY = {"isError", "system", "format", "why", "failure", "logLevel"}


def observer(target: TextIO | Path | None, level: str, form: str) -> LogObserver:
    """The observer for the options log_file, log_level and log_format.

    None is the standard error of the process, also after Twisted has replaced
    `sys.stderr`. Raises OSError if the file cannot be opened.
    """
    sink: Sink = FileSink(target) if isinstance(target, Path) else StreamSink(target or sys.__stderr__)
    return LogObserver(sink, level, {"text": as_text, "json": as_json}[form])


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class LogObserver:
    """Writes the events of a level and above to a sink, and never raises.

    `dropped`: events that could not be written since the start.
    """

    def __init__(self, sink: Sink, level: str, render: Callable[[LogEvent], str]) -> None:
        names = list(LEVELS)
        self.dropped = 0
        self._unreported = 0
        self._sink = sink
        self._wanted = frozenset(names[names.index(level) :])
        self._render = render
        # Reentrant: threads log too, and a signal handler may call `reopen` during a write.
        self._lock = RLock()

    def __call__(self, event: LogEvent) -> None:
        """Write the event, if its level is enabled."""
        if _level(event) not in self._wanted:
            return
        text = self._rendered(event)
        with self._lock:
            if self._unreported:
                text = self._rendered(_loss(event, self._unreported)) + text
            try:
                self._sink.write(text, event.get("log_time"))
            except Exception:
                self.dropped += 1
                self._unreported += 1
            else:
                self._unreported = 0

    def reopen(self) -> None:
        """Open the log file again after a rotation (SIGHUP)."""
        with self._lock:
            self._sink.reopen()

    def close(self) -> None:
        """Close the file, if there is one; later events are dropped."""
        with self._lock:
            self._sink.close()

    def _rendered(self, event: LogEvent) -> str:
        try:
            return self._render(event)
        except Exception as error:
            plain = {key: event.get(key) for key in ("log_time", "log_level")}
            plain["log_namespace"] = __name__
            plain["log_format"] = f"formatting an event failed: {type(error).__name__}"
            return self._render(plain)


def _loss(event: LogEvent, lost: int) -> LogEvent:
    """The event with the number of lost events, written before `event`."""
    return {
        "log_time": event.get("log_time"),
        "log_level": LogLevel.warn,
        "log_namespace": __name__,
        "log_format": "{lost} log events were lost: the log could not be written",
        "lost": lost,
    }


def as_text(event: LogEvent) -> str:
    """The event as one line, and its traceback, if it has one, as indented lines."""
    namespace = printable(str(event.get("log_namespace", "-")), LONGEST_FIELD)
    message = printable(formatEvent(event).rstrip("\n"), LONGEST_FIELD)
    lines = [f"{_time(event) or '-'} {_level(event)} {namespace} {message}\n"]
    lines += [f"    {printable(line, LONGEST_FIELD)}\n" for line in _traceback(event).split("\n") if line]
    return "".join(lines)


def as_json(event: LogEvent) -> str:
    """The event as one JSON object in ASCII, on one line."""
    fields = {
        _cut(name, LONGEST_FIELD): _scalar(value)
        for name, value in event.items()
        if not name.startswith("log_") and name not in LEGACY and _is_scalar(value)
    }
    fields |= {
        "time": _time(event),
        "level": _level(event),
        "namespace": str(event.get("log_namespace", "-")),
        "message": _cut(formatEvent(event), LONGEST_FIELD),
    }
    if traceback := _traceback(event):
        fields["traceback"] = traceback
    # DEL is the only control character of ASCII that JSON does not escape.
    return json.dumps(fields, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def printable(text: str, longest: int) -> str:
    """The text with unprintable characters escaped, cut to `longest` characters."""
    cut = _cut(text, longest)
    if cut.isprintable():
        return cut
    escaped = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
    return _cut("".join(escaped), longest)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _level(event: LogEvent) -> str:
    level = event.get("log_level", LogLevel.info)
    if level is LogLevel.info and event.get("log_namespace") == "log_legacy":
        return "DEBUG"  # Twisted's older modules log there what they open and close
    return LEVEL_NAMES.get(level, "INFO")


def _time(event: LogEvent) -> str | None:
    """The time of the event in UTC to the millisecond; None if it has none."""
    try:
        moment = datetime.fromtimestamp(event["log_time"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(event: LogEvent) -> str:
    """The traceback of the event's failure, if it has one; the middle of a long one is left out."""
    failure = event.get("log_failure")
    if failure is None:
        return ""
    try:
        text = str(failure.getTraceback())
    except Exception as error:
        return f"no traceback: {type(error).__name__}"
    half = LONGEST_TRACEBACK // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n…\n{text[-half:]}"


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value, LONGEST_FIELD)
    return repr(value) if isinstance(value, float) and not isfinite(value) else value


class Sink(Protocol):
    """Where lines are written."""

    def write(self, text: str, when: float | None) -> None:
        """Write complete lines; `when`: the time of the event, seconds since the epoch. Raises if it fails."""

    def reopen(self) -> None:
        """Open the file that has the name of the log now; never raises."""

    def close(self) -> None:
        """Close what this object has opened."""


class StreamSink:
    """A stream that others open and close."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str, when: float | None) -> None:
        """Write and flush; raises the errors of the stream."""
        if self._stream is None:
            raise OSError("the process has no standard error")
        self._stream.write(text)
        self._stream.flush()

    def reopen(self) -> None:
        """Do nothing: a stream has no name."""

    def close(self) -> None:
        """Do nothing: others close the stream."""


class FileSink:
    """A file, appended to without a buffer; when it is renamed, the file with its name is opened again."""

    def __init__(self, path: Path) -> None:
        # Twisted changes the working directory when it becomes a daemon.
        self._path = path.absolute()
        self._file = self._opened()
        self._checked: float | None = None
        self._partial = False

    def write(self, text: str, when: float | None) -> None:
        """Append the lines; raises OSError if that fails, possibly after writing a part."""
        if when is not None:
            self._follow(when)
        data = memoryview(("\n" * self._partial + text).encode("utf-8", "backslashreplace"))
        while data:
            written = self._file.write(data)
            if not written:
                raise BlockingIOError
            data = data[written:]
            self._partial = bool(data)

    def reopen(self) -> None:
        """Open the file that has the name now; if that fails, keep the open file."""
        with suppress(OSError):
            self._replace()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _opened(self) -> FileIO:
        return open(self._path, "ab", buffering=0)

    def _replace(self) -> None:
        opened = self._opened()
        self._file.close()
        self._file = opened
        self._partial = False

    def _follow(self, now: float) -> None:
        """Check, at most once a second, whether the file still has its name; if not, open the file that has it."""
        if self._checked is not None and abs(now - self._checked) < CHECK_INTERVAL:
            return
        self._checked = now
        if self._in_place():
            return
        try:
            self._replace()
        except OSError:
            # A renamed file can still be read, a deleted one cannot.
            if os.fstat(self._file.fileno()).st_nlink == 0:
                self._checked = None
                raise

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False
