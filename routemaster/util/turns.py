"""Long computations in short steps, between which the reactor does everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from twisted.internet.defer import CancelledError, DeferredSemaphore
from twisted.internet.task import Cooperator

from routemaster.interfaces import Clock

STEP = 0.001  #: seconds of computation in one turn of the reactor
TOGETHER = 8  #: computations that have begun and are not complete; each may hold several times its input

_T = TypeVar("_T")


class Turns:
    """Computations that share the time of the reactor.

    One of at most `STEP` seconds is done at once, unless others are waiting. Those that take longer have one step
    in each turn of the reactor, `TOGETHER` of them, and take turns at it; further ones begin when one is complete.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting = 0
        self._places = DeferredSemaphore(TOGETHER)
        self._cooperator = Cooperator(lambda: lambda: True, lambda step: clock.callLater(0, step))  # type: ignore

    async def collect(self, values: Iterator[_T | None]) -> list[_T]:
        """All values; to compute one must take a few milliseconds at most. What this raises is raised here.

        None is no value: it says that the computation may pause.
        """
        collected: list[_T] = []
        steps = self._steps(values, collected)
        if not self._waiting:
            for _ in steps:
                break
            else:
                return collected
        self._waiting += 1
        try:
            await self._places.acquire()
            try:
                await self._complete(steps)
            finally:
                self._places.release()
        finally:
            self._waiting -= 1
        return collected

    async def _complete(self, steps: Iterator[None]) -> None:
        task = self._cooperator.cooperate(steps)
        try:
            await task.whenDone()
        except CancelledError:
            task.stop()
            raise

    def _steps(self, values: Iterator[_T | None], collected: list[_T]) -> Iterator[None]:
        seconds = self._clock.seconds
        ends = seconds() + STEP
        for value in values:
            if value is not None:
                collected.append(value)
            if seconds() >= ends:
                yield
                ends = seconds() + STEP
