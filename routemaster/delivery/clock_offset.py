"""What the store's clock shows, told by ours.

Times in the store are by its own clock, which is some way before or behind
that of this machine. Each answer that carries the store's time narrows that
difference down: the clock was read at some moment between sending and now.
"""

from __future__ import annotations

from math import inf

DRIFT = 0.001  #: seconds by which two clocks may part in a second


class ClockOffset:
    """The difference between two clocks, as far as answers have told it."""

    def __init__(self) -> None:
        self._noted_at = 0.0
        self._ahead = (-inf, inf)  #: how far the store's clock is before ours: not less, not more

    def note(self, sent: float, now: float, store_us: int) -> None:
        """The store's clock showed `store_us` at some moment between `sent` and `now`, by ours.

        Quick answers narrow the difference down, and what they told is kept,
        with some allowance for drift, against late ones; an answer that
        contradicts it (a clock was set) begins anew.
        """
        least, most = store_us / 1e6 - now, store_us / 1e6 - sent
        allowance = DRIFT * (1 + abs(now - self._noted_at))
        known_least, known_most = self._ahead[0] - allowance, self._ahead[1] + allowance
        if least <= known_most and known_least <= most:
            least, most = max(least, known_least), min(most, known_most)
        self._ahead, self._noted_at = (least, most), now

    def local(self, us: int) -> float:
        """A time of the store's, in microseconds, as seconds by our clock."""
        return us / 1e6 - sum(self._ahead) / 2
