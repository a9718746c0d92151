"""The log: each event is one line, and an error while logging never raises.

`observer` returns the Twisted log observer. Its formats:

- text: `2026-01-02T03:04:05.678Z INFO routemaster.web the message`; the
  traceback of a failure follows in indented lines, which cannot be mistaken for
  events; the fields `trace_id` and `span_id` follow the message;
- json: one object on one line, with `time`, `level`, `namespace`, `message`,
  `traceback` for a failure, and the fields of the event that are scalars.

Under systemd, where standard error is the journal, each line begins with its
priority, `<4>` for a warning, see sd-daemon(3): the journal takes that away, and
`journalctl -p warning` finds it. Text has no time there, because the journal has
its own; a JSON object stays as it is, for the programs that read it.

Unprintable characters are escaped and long texts are cut, because topics, URLs
and names come from clients. Nothing is masked here: events must not contain
secrets.

While the log cannot be written (the disk is full, or standard error is a pipe that
no process reads), events are dropped and counted, and nothing waits; the count is
logged before the next event that can be written. The time is that of the event:
nothing here reads a clock.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from threading import RLock
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface.declarations import implementer

from routemaster.log_sinks import Sink, is_journal, sink_for

LONGEST_FIELD = 8 * 1024
LONGEST_TRACEBACK = 64 * 1024

LEVELS = {
    "DEBUG": LogLevel.debug,
    "INFO": LogLevel.info,
    "WARNING": LogLevel.warn,
    "ERROR": LogLevel.error,
    "CRITICAL": LogLevel.critical,
}
LEVEL_NAMES = {level: name for name, level in LEVELS.items()}

#: of syslog, for the journal
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

# Fields that Twisted's legacy logging adds.
LEGACY = {"isError", "system", "format", "why", "failure", "logLevel"}


def observer(target: TextIO | Path | None, level: str, form: str) -> LogObserver:
    """The observer for the options log_file, log_level and log_format.

    None is the standard error of the process, also after Twisted has replaced
    `sys.stderr`. Raises OSError if the file cannot be opened.
    """
    forms: dict[str, Callable[[LogEvent], str]] = {"text": as_text, "json": as_json}
    if target is None and stderr_prefix("INFO"):
        forms = {"text": for_journal(as_text_without_time), "json": for_journal(as_json)}
    return LogObserver(sink_for(target or sys.__stderr__), level, forms[form])


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
    return f"{_time(event) or '-'} {as_text_without_time(event)}"


def as_text_without_time(event: LogEvent) -> str:
    """The same without the time."""
    namespace = printable(str(event.get("log_namespace", "-")), LONGEST_FIELD)
    message = printable(formatEvent(event).rstrip("\n"), LONGEST_FIELD)
    if "trace_id" in event:
        message += printable(f" trace_id={event['trace_id']} span_id={event.get('span_id')}", LONGEST_FIELD)
    lines = [f"{_level(event)} {namespace} {message}\n"]
    lines += [f"    {printable(line, LONGEST_FIELD)}\n" for line in _traceback(event).split("\n") if line]
    return "".join(lines)


def stderr_prefix(level: str) -> str:
    """What a line of a level on standard error begins with: its priority, if that is the journal."""
    return f"<{PRIORITIES[level]}>" if is_journal(sys.__stderr__, os.environ) else ""


def for_journal(render: Callable[[LogEvent], str]) -> Callable[[LogEvent], str]:
    """The same form, each line with its priority for the journal."""

    def rendered(event: LogEvent) -> str:
        prefix = f"<{PRIORITIES[_level(event)]}>"
        return "".join(f"{prefix}{line}\n" for line in render(event).split("\n")[:-1])

    return rendered


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
