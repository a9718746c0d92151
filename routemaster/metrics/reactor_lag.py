"""Measures how late timers run: how long other work keeps the reactor from what is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from routemaster.interfaces import Clock, Timer

INTERVAL: Final = 1.0  #: seconds between two measurements


class ReactorLag:
    """Observes the lag of one timer after another."""

    def __init__(self, clock: Clock, observe: Callable[[float], None]) -> None:
        """`observe` gets milliseconds."""
        self._clock, self._observe = clock, observe
        self._timer: Timer | None = None

    def start(self) -> None:
        """Measure from now on."""
        self._due = self._clock.seconds() + INTERVAL
        self._timer = self._clock.callLater(INTERVAL, self._measure)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self) -> None:
        self._observe(max(0.0, self._clock.seconds() - self._due) * 1000)
        self.start()
