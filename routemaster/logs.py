"""The log: one event is one line, whatever a stranger put into it, and logging never breaks the bus.

`observer` makes the Twisted log observer which the wiring installs. What it
writes of an event:

- text: `2026-01-02T03:04:05.678Z INFO routemaster.web the message`; the
  traceback of a failure follows, indented, so that no line of it can pass for
  an event;
- json: one object on one line, with `time`, `level`, `namespace`, `message`,
  for a failure `traceback`, and those fields of the event which are scalars.

What cannot be printed is escaped and what is too long is cut, for topics,
URLs and names come from outside. Nothing is masked here: a secret must not
get into an event to begin with.

A file is opened anew when it was moved away. While it cannot be written,
events are dropped and counted; before the first that can be written again
stands one that tells how many were lost. Time is that of the events: nothing
here reads a clock.
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

# Twisted's older interface leaves these in the events that pass through it.
LEGACY = {"isError", "system", "format", "why", "failure", "logLevel"}


def observer(target: TextIO | Path | None, level: str, form: str) -> LogObserver:
    """The observer which the options log_file, log_level and log_format describe.

    None is the process's own standard error, even after Twisted has put its
    logger in the place of `sys.stderr`. Raises OSError if a file cannot be
    opened to begin with.
    """
    sink: Sink = FileSink(target) if isinstance(target, Path) else StreamSink(target or sys.__stderr__)
    return LogObserver(sink, level, {"text": as_text, "json": as_json}[form])


@implementer(ILogObserver)  # type: ignore[no-untyped-call]  # zope.interface has no types
class LogObserver:
    """Writes the events of a level and above to a sink, and survives whatever goes wrong there.

    `dropped` counts the events that could not be written since the start.
    """

    def __init__(self, sink: Sink, level: str, render: Callable[[LogEvent], str]) -> None:
        names = list(LEVELS)
        self.dropped = 0
        self._unreported = 0
        self._sink = sink
        self._wanted = frozenset(names[names.index(level) :])
        self._render = render
        # Threads log too; and a signal's handler may reopen in the midst of a write.
        self._lock = RLock()

    def __call__(self, event: LogEvent) -> None:
        """Write the event, if its level asks for it; never raises."""
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
        """Open the log file anew, after a rotation has moved it (SIGHUP); never raises."""
        with self._lock:
            self._sink.reopen()

    def close(self) -> None:
        """Close the file, if there is one: what comes later is dropped."""
        with self._lock:
            self._sink.close()

    def _rendered(self, event: LogEvent) -> str:
        try:
            return self._render(event)
        except Exception as error:
            plain = {key: event.get(key) for key in ("log_time", "log_level")}
            plain["log_namespace"] = __name__
            plain["log_format"] = f"an event could not be written down: {type(error).__name__}"
            return self._render(plain)


def _loss(event: LogEvent, lost: int) -> LogEvent:
    """The event which tells, just before another one, how many were lost."""
    return {
        "log_time": event.get("log_time"),
        "log_level": LogLevel.warn,
        "log_namespace": __name__,
        "log_format": "{lost} log events were lost, for the log could not be written",
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
    # DEL is the one control character of ASCII that JSON lets through.
    return json.dumps(fields, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def printable(text: str, longest: int) -> str:
    """The text on one line: what cannot be printed escaped, and cut to `longest` characters."""
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
        return "DEBUG"  # Twisted's older parts say there what they open and close
    return LEVEL_NAMES.get(level, "INFO")


def _time(event: LogEvent) -> str | None:
    """When the event happened, in UTC to the millisecond; None if it does not tell."""
    try:
        moment = datetime.fromtimestamp(event["log_time"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(event: LogEvent) -> str:
    """The traceback of the event's failure, if it has one, without its middle if it is too long."""
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
    """Where the lines go."""

    def write(self, text: str, when: float | None) -> None:
        """Write whole lines, of an event of that time (seconds since the epoch); raises if it cannot."""

    def reopen(self) -> None:
        """Begin again with what has the name of the log now; never raises."""

    def close(self) -> None:
        """End, if it is ours to end."""


class StreamSink:
    """A stream that is somebody else's to open and to close."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str, when: float | None) -> None:
        """Write and flush; raises what the stream raises."""
        if self._stream is None:
            raise OSError("the process has no standard error")
        self._stream.write(text)
        self._stream.flush()

    def reopen(self) -> None:
        """Nothing: a stream has no name."""

    def close(self) -> None:
        """Nothing: the stream is not ours."""


class FileSink:
    """A file, appended to without a buffer, and followed by name when it is moved away."""

    def __init__(self, path: Path) -> None:
        # Twisted changes the directory when it becomes a daemon.
        self._path = path.absolute()
        self._file = self._opened()
        self._checked: float | None = None
        self._torn = False

    def write(self, text: str, when: float | None) -> None:
        """Append the lines; raises OSError if that fails, perhaps with a part of them written."""
        if when is not None:
            self._follow(when)
        data = memoryview(("\n" * self._torn + text).encode("utf-8", "backslashreplace"))
        while data:
            written = self._file.write(data)
            if not written:
                raise BlockingIOError
            data = data[written:]
            self._torn = bool(data)

    def reopen(self) -> None:
        """Open what has the file's name now; if that fails, go on with the file as it is."""
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
        self._torn = False

    def _follow(self, now: float) -> None:
        """Look, at most once a second, whether the file still has its name; open that name if not."""
        if self._checked is not None and abs(now - self._checked) < CHECK_INTERVAL:
            return
        self._checked = now
        if self._in_place():
            return
        try:
            self._replace()
        except OSError:
            # Better a file that was moved than none; but what is deleted nobody will read.
            if os.fstat(self._file.fileno()).st_nlink == 0:
                self._checked = None
                raise

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False
