"""Returns memory that has become free to the system.

The C library keeps what was freed for later use: after 5,000 connections with something to say the process
would be as large as while they were open. glibc's `malloc_trim` returns it, in about 0.2 ms for a megabyte. So it
is called only when much has become free since the last time. Other C libraries do not need it, or have nothing
like it: then this does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar

from routemaster.interfaces import Clock
from routemaster.util.periodic import Periodic

ENOUGH = 8 * 1024 * 1024  #: bytes that must have become free
CHECK = 2.0               #: seconds between two looks


def task(clock: Clock) -> Periodic:
    """Does it for this process."""
    return Periodic("return of freed memory", FreedMemory.of_process().look, CHECK, clock)


class FreedMemory:
    """See above.

    Args:
        free: returns how many bytes of the process's memory are free.
        trim: returns them to the system; they still count as free.
    """

    def __init__(self, free: Callable[[], int], trim: Callable[[], object]) -> None:
        self._free, self._trim = free, trim
        self._least = free()  # since the last time

    async def look(self) -> None:
        """Return memory if it is worth it; called every CHECK seconds."""
        free = self._free()
        self._least = min(self._least, free)
        if free - self._least >= ENOUGH:
            self._trim()
            self._least = free

    @classmethod
    def of_process(cls) -> FreedMemory:
        """That of this process."""
        library = ctypes.CDLL(None)
        if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
            return cls(lambda: 0, lambda: None)
        library.mallinfo2.restype = _Figures
        return cls(lambda: int(library.mallinfo2().free), lambda: library.malloc_trim(0))


class _Figures(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_: ClassVar[Any] = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "chunks", "fast_chunks", "mapped", "mapped_bytes"),
            *("unused", "fast_bytes", "used", "free", "top"),
        )
    ]
