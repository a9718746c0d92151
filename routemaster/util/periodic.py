"""Periodic work that survives its own exceptions.

Twisted's `LoopingCall` stops for ever after one exception. A `Periodic` logs
the exception and runs again. A run starts one interval after the previous run
started, or when that has ended if it takes longer; runs never overlap.

`hasten` during a run causes another run right after it, because the current
run may have read its data already.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from routemaster.errors import StoreUnavailable, WrongType
from routemaster.interfaces import Clock, Timer
from routemaster.util.log_throttle import LogThrottle


class Periodic:
    """Runs its work until it is stopped."""

    _log = Logger()

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None] | None], interval: float, clock: Clock
    ) -> None:
        """`work` is called every `interval` seconds; log lines contain `name`."""
        self._name, self._work, self._interval, self._clock = name, work, interval, clock
        self._loop: Deferred[None] | None = None
        self._sleep: Deferred[None] | None = None
        self._running = self._hastened = self._paused = False
        self._throttle = LogThrottle()

    def start(self) -> None:
        """Run now, and then every interval."""
        self._running = True
        self._loop = Deferred.fromCoroutine(self._run())

    def hasten(self) -> None:
        """Run now rather than at the end of the interval."""
        self._hastened = True
        self._wake()

    async def stop(self) -> None:
        """Start no further run, and wait for the end of the current one."""
        self._running = False
        self._wake()
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop

    async def _run(self) -> None:
        while self._running:
            self._hastened = False
            next_run = self._clock.seconds() + self._interval
            await self._run_once()
            if self._running and not self._hastened:
                await self._sleep_until(next_run)

    async def _sleep_until(self, then: float) -> None:
        """Sleep until `then`, `hasten` or `stop`; also if `then` has passed, so that the reactor gets its turn."""
        # never longer than the interval: the clock may have been set back
        delay = min(max(0.0, then - self._clock.seconds()), self._interval)
        self._sleep = Deferred()
        timer: Timer = self._clock.callLater(delay, self._wake)
        await self._sleep
        if timer.active():
            timer.cancel()

    def _wake(self) -> None:
        sleep, self._sleep = self._sleep, None
        if sleep is not None:
            sleep.callback(None)

    async def _run_once(self) -> None:
        try:
            result = self._work()
            if result is not None:
                await result
        except StoreUnavailable as error:
            self._pause(f"Redis unavailable: {error}")
        except WrongType as error:  # and its keys are logged
            self._pause(str(error))
        except Exception:
            self._log_failure(Failure())
        else:
            recovered = self._throttle.succeeded(self._clock.seconds())
            if self._paused or recovered is not None:
                self._log.info("{name} resumed", name=self._name)
            self._paused = False

    def _pause(self, why: str) -> None:
        if not self._paused:
            self._log.warn("{name} paused: {why}", name=self._name, why=why)
        self._paused = True

    def _log_failure(self, failure: Failure) -> None:
        since = self._throttle.failed(self._clock.seconds(), repr(failure.value))
        if since is None:
            return
        if since.failures == 1:
            self._log.failure("{name} failed; it will run again", failure, name=self._name)
        else:
            line = "{name} failed, {failures} times since the last line; it will run again"
            self._log.failure(line, failure, name=self._name, failures=since.failures)
