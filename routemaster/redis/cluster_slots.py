"""The slots of a Redis Cluster: the slot of a key, and the node of a slot. Pure.

A cluster divides its keys over 16,384 slots, by the CRC16 of the key or of its
hash tag: what is between the first `{` and the next `}`. Each slot belongs to
one primary, and may move to another at any time.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any

from routemaster.errors import StoreBroken

SLOTS = 16384

HostPort = tuple[str, int]  #: of a node, as the cluster announces it


def slot_of(key: bytes) -> int:
    """The slot of a key."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def parse_slots(reply: Any, host: str) -> list[HostPort | None]:
    """The primary of each slot, from the reply to CLUSTER SLOTS; None for a slot without a node.

    `host` is the node that replied: a node may announce itself with an empty
    host. Raises StoreBroken for a reply of another form.
    """
    found: list[HostPort | None] = [None] * SLOTS
    try:
        for first, last, (announced, port, *_), *_replicas in reply:
            node = announced.decode("ascii") if announced else host, int(port)
            found[first : last + 1] = [node] * (last + 1 - first)
    except (TypeError, ValueError, AttributeError):
        raise StoreBroken("the reply to CLUSTER SLOTS is invalid") from None
    if len(found) != SLOTS:
        raise StoreBroken("the reply to CLUSTER SLOTS has slots that do not exist")
    return found


class SlotMap:
    """The node of each slot: copied from the cluster, corrected by redirections."""

    def __init__(self) -> None:
        self._owners: list[HostPort | None] = [None] * SLOTS

    def owner(self, slot: int) -> HostPort | None:
        """The node that has a slot, as far as is known."""
        return self._owners[slot]

    def nodes(self) -> set[HostPort]:
        """All nodes that have a slot."""
        return {node for node in self._owners if node is not None}

    def copy(self, found: list[HostPort | None]) -> None:
        """Replace the whole table."""
        self._owners = found

    def move(self, slot: int, node: HostPort) -> None:
        """Set the node of one slot."""
        self._owners[slot] = node
