"""Items cut into chunks, and long work that pauses between two chunks so that other work gets its turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from routemaster.interfaces import Clock

PAUSE = 0.005  #: seconds between two chunks; the work on one chunk should take a small part of it

_T = TypeVar("_T")


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """`items` in their order, in lists of at most `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


async def paced_chunks(items: Iterable[_T], size: int, clock: Clock) -> AsyncIterator[list[_T]]:
    """Chunks of `items` of at most `size`, with a pause between two of them."""
    for number, chunk in enumerate(chunks(items, size)):
        if number:
            await _pause(clock)
        yield chunk


async def paced(source: AsyncIterator[_T], clock: Clock, pause: float = PAUSE) -> AsyncIterator[_T]:
    """The values of `source`, with a pause between two of them."""
    first = True
    async for value in source:
        if not first:
            await _pause(clock, pause)
        first = False
        yield value


def _pause(clock: Clock, seconds: float = PAUSE) -> Deferred[None]:
    return deferLater(clock, seconds, lambda: None)  # type: ignore[arg-type]
