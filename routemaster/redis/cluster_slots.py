"""The slots of a Redis Cluster: which key lies in which, and which node has which. Pure.

A cluster divides its keys over 16,384 slots, by a checksum of the key or, if
it has one, of its hash tag: what stands between the first `{` and the next
`}`. Each slot belongs to one node, and may move to another at any time.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any

from routemaster.errors import StoreBroken

SLOTS = 16384

Position = tuple[str, int]  #: host and port of a node, as the cluster announces them


def slot_of(key: bytes) -> int:
    """The slot in which a key lies."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def owners(reply: Any, asked: str) -> list[Position | None]:
    """Each slot's primary, from what CLUSTER SLOTS answered; None: nobody has the slot.

    A node that does not know its own host, or is not to tell it, leaves it
    empty: then it is `asked`, the host that was asked. StoreBroken for an
    answer of another form.
    """
    found: list[Position | None] = [None] * SLOTS
    try:
        for first, last, (host, port, *_), *_replicas in reply:
            place = host.decode("ascii") if host else asked, int(port)
            found[first : last + 1] = [place] * (last + 1 - first)
    except (TypeError, ValueError, AttributeError):
        raise StoreBroken("it answered CLUSTER SLOTS in a form that is not understood") from None
    if len(found) != SLOTS:
        raise StoreBroken("it told of slots that do not exist")
    return found


class SlotMap:
    """Which node has which slot: copied from the cluster, and corrected by its redirections."""

    def __init__(self) -> None:
        self._owners: list[Position | None] = [None] * SLOTS

    def owner(self, slot: int) -> Position | None:
        """The node that has a slot, as far as is known."""
        return self._owners[slot]

    def places(self) -> set[Position]:
        """All nodes that have a slot."""
        return {place for place in self._owners if place is not None}

    def copy(self, found: list[Position | None]) -> None:
        """Take over what a node of the cluster tells of all slots."""
        self._owners = found

    def move(self, slot: int, place: Position) -> None:
        """A node said that the slot is another's."""
        self._owners[slot] = place
