"""One computation for all who ask for its result at the same time.

A request that comes while the computation runs waits for the next run, which
serves all that came meanwhile: each result was read from the store after all
its requests had arrived, and contains what their clients wrote before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from copy import copy
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock
from routemaster.util.chunks import paced_chunks

AT_ONCE = 20  #: requests that go on with a result without a pause

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """Runs `work` at most once at the same time."""

    def __init__(self, work: Callable[[], Awaitable[_T]], clock: Clock) -> None:
        self._work, self._clock = work, clock
        self._waiting: list[Deferred[_T]] = []
        self._running = False

    def __call__(self) -> Deferred[_T]:
        """Fires with the result of the next run, or fails as it does; cancelling it does not end the run."""
        result: Deferred[_T] = Deferred()
        self._waiting.append(result)
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run())
        return result

    async def _run(self) -> None:
        while waiting := [each for each in self._waiting if not each.called]:
            self._waiting = []
            try:
                result: _T | Exception = await self._work()
            except Exception as error:
                result = error
            async for some in paced_chunks(waiting, AT_ONCE, self._clock):
                for each in some:
                    if each.called:
                        continue
                    if isinstance(result, Exception):
                        # an exception of its own: one that many raise collects the tracebacks of all
                        each.errback(copy(result) if isinstance(result, StoreUnavailable) else result)
                    else:
                        each.callback(result)
        self._running = False
