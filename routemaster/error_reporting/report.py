"""An exception as plain data, and a sanitized exception made from it for the libraries.

A failure refers to frames, and frames to variables, which may hold tokens. A
`Report` holds only names, places and scrubbed text. The libraries need an
exception object: `sanitized_exception` makes one with the name of the class,
the scrubbed message and a traceback of frames without variables.
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

OUTER, INNER = 10, 40  #: frames kept at the two ends of a longer traceback
CAUSES = 5             #: reported of a chain

# Messages of these quote names in the code, never values.
NAMES_ONLY = (AttributeError, NameError, ImportError, TypeError)

HOME = f"{Path(__file__).parent.parent}{os.sep}"


@frozen
class Frame:
    """One frame of a traceback."""

    file: str
    line: int
    function: str
    module: str

    @property
    def own(self) -> bool:
        """Whether it is in a module of the bus, not of a library."""
        # a failure that was passed between Deferreds has no modules in its frames
        return f"{self.module}.".startswith("routemaster.") or self.file.startswith(HOME)


@frozen
class ExceptionInfo:
    """One exception: its class, its scrubbed message, its traceback with the outermost frame first."""

    name: str
    module: str
    message: str
    frames: tuple[Frame, ...]


@frozen
class Report:
    """What is sent: an exception and its causes, in this order."""

    exceptions: tuple[ExceptionInfo, ...]
    text: str       #: of the log event, scrubbed
    namespace: str  #: of the log event
    folded: int     #: repetitions since the last report with the same fingerprint


Fingerprint = tuple[str, str, int, str]


def fingerprint(failure: Failure) -> Fingerprint:
    """The class, and file, line and function of the innermost frame of the bus, or of the innermost one."""
    frames = _frames(failure.getTracebackObject())
    own = [frame for frame in frames if frame.own] or frames or [Frame("", 0, "", "")]
    kind = failure.type or type(failure.value)
    return f"{kind.__module__}.{kind.__qualname__}", own[-1].file, own[-1].line, own[-1].function


def read(event: LogEvent, failure: Failure, scrubber: Scrubber) -> Report:
    """The report for a log event and its failure; never raises because of their contents."""
    return Report(
        tuple(_chain(failure, scrubber)),
        scrubber.message(formatEvent(event)),
        str(event.get("log_namespace", "-")),
        0,
    )


def sanitized_exception(report: Report) -> Exception:
    """An exception with the data of the report and no other."""
    made: Exception | None = None
    for info in reversed(report.exceptions):
        effect = _raised(info)
        effect.__cause__ = made
        made = effect
    return made or Exception()


def _chain(failure: Failure, scrubber: Scrubber) -> Iterator[ExceptionInfo]:
    # the failure's traceback is longer: it includes the frames above the one that caught the exception
    traceback = failure.getTracebackObject()
    error, seen = failure.value, set[int]()
    while error is not None and id(error) not in seen and len(seen) <= CAUSES:
        yield _exception_info(error, traceback, scrubber)
        seen.add(id(error))
        error = _cause(error)
        traceback = error.__traceback__ if error is not None else None


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _exception_info(error: BaseException, traceback: TracebackType | None, scrubber: Scrubber) -> ExceptionInfo:
    try:
        text = str(error)
    except Exception as broken:
        text = f"no message: {type(broken).__name__}"
    message = scrubber.message(text, names_only=isinstance(error, NAMES_ONLY))
    kind = type(error)
    return ExceptionInfo(kind.__name__, kind.__module__, message, tuple(_frames(traceback)))


def _frames(traceback: TracebackType | None) -> list[Frame]:
    frames = []
    while traceback is not None:
        code, names = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        module = str(names.get("__name__", ""))
        frames.append(Frame(code.co_filename, traceback.tb_lineno or 1, code.co_name, module))
        traceback = traceback.tb_next
    return frames if len(frames) <= OUTER + INNER else frames[:OUTER] + frames[-INNER:]


def _raised(info: ExceptionInfo) -> Exception:
    kind = type(info.name, (Exception,), {"__module__": info.module})
    traceback: TracebackType | None = None
    for frame in reversed(info.frames):
        traceback = TracebackType(traceback, _empty(frame), 0, frame.line)
    error: Exception = kind(info.message)
    return error.with_traceback(traceback)


def _empty(frame: Frame) -> FrameType:
    """A frame with this place, without variables."""
    code = (lambda: sys._getframe()).__code__.replace(
        co_filename=frame.file, co_name=frame.function, co_qualname=frame.function, co_firstlineno=frame.line
    )
    here: FrameType = FunctionType(code, {"__name__": frame.module, "sys": sys})()
    return here
