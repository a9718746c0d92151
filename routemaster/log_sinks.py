"""Where the log is written: a file, or a descriptor that the process has inherited.

No write waits. A descriptor is not made non-blocking for that: the flag belongs to
the open file, which the process shares with others, such as the shell on the same
terminal. So a pipe or a terminal is opened once more, and a socket, such as that of
systemd's journal, is written with a flag for each write.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TextIO

CHECK_INTERVAL = 1.0  #: seconds between two checks whether the log file was renamed
BUFFER = 2**20        #: bytes that a pipe or a socket may hold, so that a reader that is late loses nothing


class Sink:
    """Where lines are written; the line after a partly written one starts on a new line."""

    _out: Callable[[memoryview], int | None]
    _partial = False

    def write(self, text: str, when: float | None) -> None:
        """Write complete lines; `when`: the time of the event, seconds since the epoch.

        Raises OSError if it fails, possibly after writing a part.
        """
        data = memoryview(("\n" * self._partial + text).encode("utf-8", "backslashreplace"))
        while data:
            written = self._out(data)
            if not written:
                raise BlockingIOError
            data = data[written:]
            self._partial = bool(data)

    def reopen(self) -> None:
        """Open the file that has the name of the log now, if it is a file; never raises."""

    def close(self) -> None:
        """Close what this object has opened."""


def is_journal(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether a stream is systemd's journal, as systemd says in JOURNAL_STREAM: systemd.exec(5)."""
    try:
        found = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        found = None
    return found is not None and environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def sink_for(target: TextIO | Path | None) -> Sink:
    """The sink for a file or a stream. Raises OSError if the file cannot be opened."""
    if isinstance(target, Path):
        return FileSink(target)
    try:
        return DescriptorSink(target.fileno()) if target is not None else StreamSink(None)
    except (OSError, ValueError):  # a stream in memory, or a closed one
        return StreamSink(target)


class StreamSink(Sink):
    """A stream that others open and close."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str, when: float | None) -> None:
        """Write and flush; raises the errors of the stream."""
        if self._stream is None:
            raise OSError("the process has no standard error")
        self._stream.write(text)
        self._stream.flush()


class DescriptorSink(Sink):
    """A descriptor that others open and close; a write that would have to wait fails."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError if the descriptor is closed."""
        self._out, self._close = _non_blocking(descriptor)

    def close(self) -> None:
        """Close what was opened here."""
        self._close()


def _non_blocking(descriptor: int) -> tuple[Callable[[memoryview], int], Callable[[], None]]:
    """A function that writes without waiting, and one that closes what this function has opened."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(descriptor))
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return lambda data: sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL), sock.close
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return partial(os.write, descriptor), lambda: None  # a file: nobody has to read it
    if stat.S_ISFIFO(mode):
        with suppress(OSError):
            if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < BUFFER:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, BUFFER)
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # a terminal of another user, or no /proc
        return partial(_write_if_ready, descriptor), lambda: None
    return partial(os.write, own), partial(os.close, own)


def _write_if_ready(descriptor: int, data: memoryview) -> int:
    """Write at most PIPE_BUF bytes, for which poll(2) guarantees room, unless another process writes too."""
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    if not ready.poll(0):
        raise BlockingIOError
    return os.write(descriptor, data[: select.PIPE_BUF])


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe without a reader is an error, and one that is full fails to be written."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class FileSink(Sink):
    """A file, appended to without a buffer; when it is renamed, the file with its name is opened again."""

    def __init__(self, path: Path) -> None:
        # Twisted changes the working directory when it becomes a daemon.
        self._path = path.absolute()
        self._open()
        self._checked: float | None = None

    def write(self, text: str, when: float | None) -> None:
        """Append the lines to the file that has the name of the log."""
        if when is not None:
            self._follow(when)
        super().write(text, when)

    def reopen(self) -> None:
        """Open the file that has the name now; if that fails, keep the open file."""
        with suppress(OSError):
            self._replace()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        self._file: FileIO = open(self._path, "ab", buffering=0, opener=_open_without_waiting)  # noqa: SIM115
        self._out, self._partial = self._file.write, False

    def _replace(self) -> None:
        before = self._file
        self._open()
        before.close()

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
