"""Where an event is for one subscriber, computed from its cursor and its cuts. Pure.

The cursor says what waits. What it has passed was delivered, unless the cuts
say otherwise: ranges of numbers with the reason, the last few of them (`_cursor.lua`).
"""

from __future__ import annotations

from collections.abc import Iterator

from routemaster.model import CUT_KINDS, Cursor, EventID, Whereabouts


def whereabouts(subscriber: str, cursor: Cursor, cuts: str, event: EventID) -> Whereabouts:
    """Where the event is."""
    ahead = 0
    for span in cursor.spans:
        if span.after.n < event.n and (span.until is None or event.n <= span.until.n):
            return Whereabouts(subscriber, "queued", ahead + event.n - span.after.n - 1)
        if span.until is not None:
            ahead += span.until.n - span.after.n
    # of several the last one prevails: an event that came again may have gone another way
    reasons = [reason for reason, first, last in _ranges(cuts) if first <= event.n <= last]
    if reasons:
        return Whereabouts(subscriber, reasons[-1])
    if not cursor.spans:
        return Whereabouts(subscriber, "unknown")  # it has left the topic, and nothing says when
    if event.n > cursor.spans[-1].after.n:
        return Whereabouts(subscriber, "not subscribed")  # since it left the topic
    return Whereabouts(subscriber, "acknowledged")


def _ranges(cuts: str) -> Iterator[tuple[str, int, int]]:
    for word in cuts.split():
        first, _, last = word[1:].partition("-")
        yield CUT_KINDS[word[0]], int(first), int(last)
