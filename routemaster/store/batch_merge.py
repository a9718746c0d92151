"""One reading out of several: for topics that do not lie together. Pure.

On a single Redis `read.lua` reads all topics as one snapshot. On a cluster
each slot is read by itself, one after the other, while events come in. An
event that is older than one that was read may so be missing: it was accepted
by a node which had been read before. What keeps the order across topics all
the same is that each part tells when, by its node's clock, it was read: up to
the earliest of these moments nothing is missing, and nothing will be. What is
later waits for the next reading.

The nodes' clocks must agree for that: where they do not, an event may come
before one that is older by no more than their difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge

from attrs import frozen

from routemaster.model import EventID

Entry = tuple[str, EventID, bytes]  #: topic, ID, fragment


@frozen
class Part:
    """The oldest events of topics that lie together, in order of acceptance."""

    entries: Sequence[Entry]
    cut: bool  #: more was there than was asked for
    now: int   #: the time of the reading, microseconds by the node's clock


def share(whole: int, parts: int) -> int:
    """How much to ask of each part, to have enough in all without reading everything several times over."""
    return min(whole, 2 * whole // parts + 8)


def merged(parts: Sequence[Part], most: int, most_bytes: int, final: bool) -> tuple[list[Entry], bool]:
    """At most `most` events and, after the first, `most_bytes` of fragments; whether that is a good batch.

    It is none if a part ended too early to go on, or if everything came too
    late to be sure of the order: then it is worth the while to read again, in
    full. With `final` what there is has to do.
    """
    horizon = min(part.now for part in parts)
    taken: list[Entry] = []
    for us, entry, is_end in merge(*map(_stamped, parts), key=lambda stamped: stamped[0]):
        if us > horizon and (taken or not final):
            return taken, bool(taken)
        most_bytes -= len(entry[2]) + 1
        if taken and most_bytes < 0:
            break
        taken.append(entry)
        if len(taken) == most:
            break
        if is_end:
            return taken, final
    return taken, True


def _stamped(part: Part) -> Iterator[tuple[int, Entry, bool]]:
    """Each event with its time, and whether it is the last of a part that was cut."""
    last = len(part.entries) - 1
    for index, entry in enumerate(part.entries):
        yield entry[1].us, entry, part.cut and index == last
