"""Work that is done again and again, and goes on whatever happens to it.

A `LoopingCall` stops for ever after one exception; the services of the bus
must not. Each run starts an interval after the last began, or when the last
has ended if that is later; runs never overlap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock


class Periodic:
    """A `LoopingCall` that survives, reports, and ends in good order."""

    _log = Logger()

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None] | None], interval: float, clock: Clock
    ) -> None:
        """`work` is called every `interval` seconds; `name` stands for it in the log."""
        self._name, self._work, self._interval = name, work, interval
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock  # type: ignore[assignment]
        self._under_way: Deferred[None] | None = None
        self._resting = False

    def start(self) -> None:
        """Work now, and then every interval."""
        self._loop.start(self._interval, now=True)

    def hasten(self) -> None:
        """Work now rather than at the end of the interval."""
        if self._loop.running and self._under_way is None:
            self._loop.reset()
            self._run()

    async def stop(self) -> None:
        """Start no run any more, and wait for the end of one that is under way."""
        if self._loop.running:
            self._loop.stop()
        if self._under_way is not None:
            ended: Deferred[None] = Deferred()
            self._under_way.addBoth(lambda _: ended.callback(None))
            await ended

    def _run(self) -> Deferred[None]:
        if self._under_way is not None:
            return self._under_way
        done: Deferred[None] = Deferred.fromCoroutine(self._once())
        if not done.called:
            self._under_way = done
            done.addBoth(self._ended)
        return done

    def _ended(self, _result: object) -> None:
        self._under_way = None

    async def _once(self) -> None:
        try:
            result = self._work()
            if result is not None:
                await result
        except StoreUnavailable as error:
            if not self._resting:
                self._log.warn("{name} rests until the store answers: {error}", name=self._name, error=error)
            self._resting = True
        except Exception:
            self._log.failure("{name} failed; it will run again", name=self._name)
        else:
            if self._resting:
                self._log.info("{name} goes on", name=self._name)
            self._resting = False
