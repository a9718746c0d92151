"""Slots of a Redis Cluster, and readings of several put together: the pure parts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.model import EventID
from routemaster.redis.cluster_slots import SLOTS, SlotMap, owners, slot_of
from routemaster.redis.errors import NotNow, Redirected, dissect, named_error
from routemaster.store.batch_read import Entry, Part, merged, share


class SlotTests(SynchronousTestCase):
    """Which key lies where."""

    def test_slots_of_keys(self) -> None:
        """The slot is the CRC16 of the key, or of its hash tag, as Redis's own documents say."""
        for key, slot in ((b"123456789", 12739), (b"foo", 12182), (b"", 0)):
            self.assertEqual(slot_of(key), slot, key)
        for tagged, same in (
            (b"{foo}bar", b"foo"), (b"rm:{t:cats}:log", b"t:cats"), (b"a{foo}{b}", b"foo"), (b"{{foo}}", b"{foo"),
        ):
            self.assertEqual(slot_of(tagged), slot_of(same), tagged)
        for plain in (b"foo{}bar", b"foo{bar", b"foo}bar{"):
            self.assertNotEqual(slot_of(plain), slot_of(b"bar"), plain)

    def test_owners(self) -> None:
        """The answer to CLUSTER SLOTS gives each slot its primary; a host left out is the one that was asked."""
        reply = [[0, 99, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.9", 7001, b"replica"]], [100, 200, [b"", 7002]]]
        found = owners([*reply, [201, 201, [None, 7003, b"id", []]]], "asked")
        self.assertEqual(found[0], ("10.0.0.1", 7000))
        self.assertEqual((found[100], found[200], found[201]), (("asked", 7002), ("asked", 7002), ("asked", 7003)))
        self.assertIsNone(found[202])
        self.assertEqual(len(found), SLOTS)
        for odd in (b"OK", [[0]], [[0, 1, []]], [[0, SLOTS, [b"h", 1]]]):
            self.assertRaises(StoreBroken, owners, odd, "asked")

    def test_map(self) -> None:
        """A redirection corrects one slot until the next copy."""
        slots = SlotMap()
        self.assertEqual((slots.owner(5), slots.places()), (None, set()))
        slots.copy(owners([[0, SLOTS - 1, [b"a", 1]]], ""))
        slots.move(5, ("b", 2))
        self.assertEqual((slots.owner(4), slots.owner(5)), (("a", 1), ("b", 2)))
        self.assertEqual(slots.places(), {("a", 1), ("b", 2)})

    def test_redirections(self) -> None:
        """MOVED and ASK say where to, and that nothing was executed; what passes soon is worth another try."""
        for text, told in (
            ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381, False)),
            ("ASK 1 ::1:6381", (1, "::1", 6381, True)),
            ("MOVED 1 :6381", (1, "", 6381, False)),
        ):
            error = named_error(*dissect(text), "Redis")
            self.assertIsInstance(error, Redirected)
            self.assertEqual((error.slot, error.host, error.port, error.asking), told)
        for code in ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "LOADING"):
            self.assertIsInstance(named_error(code, "x", "Redis"), NotNow)
        self.assertNotIsInstance(named_error("OOM", "x", "Redis"), NotNow)
        self.assertIsInstance(named_error("OOM", "x", "Redis"), StoreUnavailable)


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
