"""Long computing, cut into pieces: between two of them everybody else gets a turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from twisted.internet.task import deferLater

from routemaster.interfaces import Clock
from routemaster.model import chunks

_T = TypeVar("_T")


async def pieces(items: Sequence[_T], size: int, clock: Clock) -> AsyncIterator[Sequence[_T]]:
    """`items` in pieces of at most `size`, each in a turn of the reactor of its own."""
    for number, piece in enumerate(chunks(items, size)):
        if number:
            await deferLater(clock, 0, lambda: None)  # type: ignore[arg-type]
        yield piece
