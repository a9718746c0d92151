"""Long work, cut into pieces with rests between them, so that events need not wait for its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from routemaster.interfaces import Clock
from routemaster.model import chunks

REST = 0.005  #: seconds; a piece should take a small part of it

_T = TypeVar("_T")


async def pieces(items: Sequence[_T], size: int, clock: Clock) -> AsyncIterator[Sequence[_T]]:
    """`items` in pieces of at most `size`, with a rest between two of them."""
    for number, piece in enumerate(chunks(items, size)):
        if number:
            await _rest(clock)
        yield piece


async def unhurried(source: AsyncIterator[_T], clock: Clock) -> AsyncIterator[_T]:
    """What another gives in pieces, with a rest between two of them."""
    begun = False
    async for piece in source:
        if begun:
            await _rest(clock)
        begun = True
        yield piece


def _rest(clock: Clock) -> Deferred[None]:
    return deferLater(clock, REST, lambda: None)  # type: ignore[arg-type]
