"""Merging batches that were read from several nodes or in several calls. Pure."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.model import EventID
from routemaster.store.batch_read import Entry, Part, merged, share


def entries(topic: str, *stamps: int) -> list[Entry]:
    return [(topic, EventID(us, n), b"%d" % us) for n, us in enumerate(stamps, 1)]


def stamps(found: list[Entry]) -> list[int]:
    return [entry[1].us for entry in found]


class MergingTests(SynchronousTestCase):
    """One batch out of several readings."""

    def test_order(self) -> None:
        """Events come by time of acceptance, at most so many."""
        parts = [Part(entries("a", 1, 4, 6), False, 100), Part(entries("b", 2, 3, 5), False, 100)]
        found, good = merged(parts, 9, 999, False)
        self.assertEqual((stamps(found), good), ([1, 2, 3, 4, 5, 6], True))
        self.assertEqual(stamps(merged(parts, 4, 999, False)[0]), [1, 2, 3, 4])

    def test_bytes(self) -> None:
        """The first event always fits, the others as long as there is room for them and their commas."""
        parts = [Part(entries("a", 1, 3), False, 100), Part(entries("b", 2), False, 100)]
        for room, expected in ((0, [1]), (3, [1]), (4, [1, 2]), (6, [1, 2, 3])):
            self.assertEqual(stamps(merged(parts, 9, room, False)[0]), expected, room)

    def test_horizon(self) -> None:
        """What came after the first of the readings waits, for an older event may be missing."""
        parts = [Part(entries("a", 1), False, 10), Part(entries("b", 5, 11), False, 12)]
        self.assertEqual(stamps(merged(parts, 9, 999, False)[0]), [1, 5])
        late = [Part([], False, 10), Part(entries("b", 11), False, 12)]
        self.assertEqual(merged(late, 9, 999, False), ([], False))
        self.assertEqual(stamps(merged(late, 9, 999, True)[0]), [11])

    def test_cut(self) -> None:
        """A part that was cut ends the batch, for what is behind it may be older than what others hold."""
        parts = [Part(entries("a", 1, 2), True, 100), Part(entries("b", 3, 9), False, 100)]
        self.assertEqual(merged(parts, 9, 999, False), (parts[0].entries, False))
        self.assertEqual(merged(parts, 2, 999, False), (parts[0].entries, True))
        self.assertEqual(merged(parts, 9, 999, True), (parts[0].entries, True))

    def test_share(self) -> None:
        """Each part is asked for twice its share and some, never for more than all."""
        self.assertEqual([share(100, 2), share(100, 10), share(1, 26)], [100, 28, 1])
