"""Work that is done again and again, and goes on whatever happens to it.

A `LoopingCall` stops for ever after one exception; the services of the bus
must not. Each run starts an interval after the last began, or when the last
has ended if that is later; runs never overlap.

A hint may come while a run is under way, which may have looked already: then
another run follows it at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable
from routemaster.interfaces import Clock, Timer
from routemaster.util.log_throttle import LogThrottle


class Periodic:
    """Runs its work until it is stopped."""

    _log = Logger()

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None] | None], interval: float, clock: Clock
    ) -> None:
        """`work` is called every `interval` seconds; `name` stands for it in the log."""
        self._name, self._work, self._interval, self._clock = name, work, interval, clock
        self._loop: Deferred[None] | None = None
        self._sleep: Deferred[None] | None = None
        self._running = self._hinted = self._resting = False
        self._repeats = LogThrottle()

    def start(self) -> None:
        """Work now, and then every interval."""
        self._running = True
        self._loop = Deferred.fromCoroutine(self._keep_on())

    def hasten(self) -> None:
        """Work now rather than at the end of the interval."""
        self._hinted = True
        self._wake()

    async def stop(self) -> None:
        """Start no run any more, and wait for the end of one that is under way."""
        self._running = False
        self._wake()
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop

    async def _keep_on(self) -> None:
        while self._running:
            self._hinted = False
            next_run = self._clock.seconds() + self._interval
            await self._once()
            if self._running and not self._hinted:
                await self._until(next_run)

    async def _until(self, then: float) -> None:
        """Sleep until a time, a hint or the end; however late it is, others get a turn."""
        self._sleep = Deferred()
        timer: Timer = self._clock.callLater(self._left(then), self._wake)
        await self._sleep
        if timer.active():
            timer.cancel()

    def _left(self, then: float) -> float:
        """Seconds to wait; never more than the interval, should the clock have been set back."""
        return min(max(0.0, then - self._clock.seconds()), self._interval)

    def _wake(self) -> None:
        sleep, self._sleep = self._sleep, None
        if sleep is not None:
            sleep.callback(None)

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
            self._failed(Failure())
        else:
            again = self._repeats.succeeded(self._clock.seconds())
            if self._resting or again is not None:
                self._log.info("{name} goes on", name=self._name)
            self._resting = False

    def _failed(self, failure: Failure) -> None:
        since = self._repeats.failed(self._clock.seconds(), repr(failure.value))
        if since is None:
            return
        if since.failures == 1:
            self._log.failure("{name} failed; it will run again", failure, name=self._name)
        else:
            line = "{name} failed, {failures} times since the last line; it will run again"
            self._log.failure(line, failure, name=self._name, failures=since.failures)
