"""Converts the store's times to the local clock.

Each reply that carries the store's time bounds the offset: the store read its
clock between the moment of sending and the moment of the reply.
"""

from __future__ import annotations

from math import inf

DRIFT = 0.001  #: seconds by which two clocks may drift apart in a second


class ClockOffset:
    """The difference between the store's clock and the one here, as an interval."""

    def __init__(self) -> None:
        self._observed_at = 0.0
        self._offset = (-inf, inf)  #: seconds by which the store's clock is ahead: at least, at most

    def observe(self, sent: float, now: float, store_us: int) -> None:
        """The store's clock showed `store_us` microseconds at some moment between `sent` and `now`.

        Quick replies narrow the interval; a late one widens it by an allowance
        for drift only. A reply that contradicts the interval (a clock
        was set) starts a new one.
        """
        least, most = store_us / 1e6 - now, store_us / 1e6 - sent
        allowance = DRIFT * (1 + abs(now - self._observed_at))
        known_least, known_most = self._offset[0] - allowance, self._offset[1] + allowance
        if least <= known_most and known_least <= most:
            least, most = max(least, known_least), min(most, known_most)
        self._offset, self._observed_at = (least, most), now

    def local(self, us: int) -> float:
        """A time of the store, in microseconds, as seconds by the clock here."""
        return us / 1e6 - sum(self._offset) / 2

    def stored(self, seconds: float) -> float:
        """A time by the clock here as seconds since the epoch by the store's clock."""
        return seconds + sum(self._offset) / 2
