"""How many waiting events fill a batch by their bytes, when the subscription has `max_bytes`. Pure.

Sizes are known only of what was read. So the number of events at which a batch
may be full is estimated, from the average of those read last; when so many
wait, they are read, and then it is known. An event that is much larger than
those before it may fill a batch unnoticed: it goes when the oldest has waited
`timeout`.
"""

from __future__ import annotations


class Filling:
    """One subscriber's waiting events, by their bytes."""

    def __init__(self) -> None:
        self.max_bytes: int | None = None
        self._average = 0.0  #: bytes of an event; 0: none was read
        self._full: int | None = None  #: how many of the waiting events fill a batch; None: not known
        self._look_at = 1    #: how many have to wait before they are read for that

    def limit(self, max_bytes: int | None) -> None:
        """The subscription allows so many bytes in a batch of several events; None: any number."""
        self.max_bytes = max_bytes
        self.taken()

    def taken(self) -> None:
        """The waiting events are others now."""
        self._full = None
        self._look_at = self._more(self.max_bytes or 0)

    def read(self, waiting: int, events: int, size: int, is_full: bool) -> None:
        """Of those that wait, the oldest so many events have so many bytes; whether they are a full batch."""
        if self.max_bytes is None or not events:
            return
        self._average = size / events
        self._full = events if is_full else None
        self._look_at = max(events, waiting) + self._more(self.max_bytes - size)

    def _more(self, room: int) -> int:
        return max(1, int(room / self._average)) if self._average else 1

    def most(self, maximum: int) -> int:
        """How many events are a full batch, if `maximum` are one whatever their bytes."""
        return maximum if self._full is None else min(maximum, self._full)

    def wake_at(self, maximum: int) -> int:
        """How many events have to wait for a change."""
        return maximum if self.max_bytes is None else min(maximum, self._look_at)

    def is_unknown(self, waiting: int) -> bool:
        """Whether so many events may be a full batch, and have to be read to know it."""
        return self.max_bytes is not None and self._full is None and waiting >= self._look_at
