"""An exception as pure data, without anything that hangs on it, and its effigy for the libraries.

A failure holds frames, frames hold variables, and variables hold tokens. A
`Report` is read from a failure at once, and holds no more than names, places
and scrubbed text. The libraries want an exception, though: they get an effigy,
which has the class's name, the message and the traceback, made of frames that
never ran and have no variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, FunctionType, TracebackType

from attrs import frozen
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure

from routemaster.error_reporting.scrub import Scrubber

OUTER, INNER = 10, 40  #: frames kept of a longer traceback, at its two ends
CAUSES = 5             #: exceptions told of a chain of causes

# Their messages quote names of the code, never values.
NAMES_ONLY = (AttributeError, NameError, ImportError, TypeError)

HOME = f"{Path(__file__).parent.parent}{os.sep}"


@frozen
class Frame:
    """A place in the code which the exception went through."""

    file: str
    line: int
    function: str
    module: str

    @property
    def ours(self) -> bool:
        """Whether it is in a module of the bus, rather than of a library."""
        # a failure that has been passed on has forgotten the modules of its frames
        return f"{self.module}.".startswith("routemaster.") or self.file.startswith(HOME)


@frozen
class Fault:
    """One exception: its class, its scrubbed message, its traceback, outermost first."""

    name: str
    module: str
    message: str
    frames: tuple[Frame, ...]


@frozen
class Report:
    """What is told of one fingerprint at a time; the first fault is the exception, the others its causes."""

    faults: tuple[Fault, ...]
    text: str       #: of the log event, scrubbed
    namespace: str  #: of the log event
    folded: int     #: how often it happened besides, since it was last reported


Fingerprint = tuple[str, str, int, str]


def fingerprint(failure: Failure) -> Fingerprint:
    """The class, and file, line and function of the innermost frame of ours, or of any if none is."""
    frames = _frames(failure.getTracebackObject())
    own = [frame for frame in frames if frame.ours] or frames or [Frame("", 0, "", "")]
    kind = failure.type or type(failure.value)
    return f"{kind.__module__}.{kind.__qualname__}", own[-1].file, own[-1].line, own[-1].function


def read(event: LogEvent, failure: Failure, scrubber: Scrubber) -> Report:
    """The report on an event and the failure in it; never raises for what these hold."""
    return Report(
        tuple(_faults(failure, scrubber)),
        scrubber.message(formatEvent(event)),
        str(event.get("log_namespace", "-")),
        0,
    )


def effigy(report: Report) -> Exception:
    """An exception that shows what the report tells, and holds nothing else."""
    made: Exception | None = None
    for fault in reversed(report.faults):
        effect = _raised(fault)
        effect.__cause__ = made
        made = effect
    return made or Exception()


def _faults(failure: Failure, scrubber: Scrubber) -> Iterator[Fault]:
    # the failure's own traceback is longer: it goes up to where the exception was caught
    traceback = failure.getTracebackObject()
    error, seen = failure.value, set[int]()
    while error is not None and id(error) not in seen and len(seen) <= CAUSES:
        yield _fault(error, traceback, scrubber)
        seen.add(id(error))
        error = _cause(error)
        traceback = error.__traceback__ if error is not None else None


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _fault(error: BaseException, traceback: TracebackType | None, scrubber: Scrubber) -> Fault:
    try:
        text = str(error)
    except Exception as broken:
        text = f"no message: {type(broken).__name__}"
    message = scrubber.message(text, names_only=isinstance(error, NAMES_ONLY))
    kind = type(error)
    return Fault(kind.__name__, kind.__module__, message, tuple(_frames(traceback)))


def _frames(traceback: TracebackType | None) -> list[Frame]:
    frames = []
    while traceback is not None:
        code, names = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        module = str(names.get("__name__", ""))
        frames.append(Frame(code.co_filename, traceback.tb_lineno or 1, code.co_name, module))
        traceback = traceback.tb_next
    return frames if len(frames) <= OUTER + INNER else frames[:OUTER] + frames[-INNER:]


def _raised(fault: Fault) -> Exception:
    kind = type(fault.name, (Exception,), {"__module__": fault.module})
    traceback: TracebackType | None = None
    for frame in reversed(fault.frames):
        traceback = TracebackType(traceback, _empty(frame), 0, frame.line)
    error: Exception = kind(fault.message)
    return error.with_traceback(traceback)


def _empty(frame: Frame) -> FrameType:
    """A frame at that place, without variables."""
    code = (lambda: sys._getframe()).__code__.replace(
        co_filename=frame.file, co_name=frame.function, co_qualname=frame.function, co_firstlineno=frame.line
    )
    here: FrameType = FunctionType(code, {"__name__": frame.module, "sys": sys})()
    return here
