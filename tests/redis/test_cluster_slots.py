"""Slots of a Redis Cluster, and the errors by which a cluster redirects."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.errors import StoreBroken, StoreUnavailable
from routemaster.redis.cluster_slots import SLOTS, SlotMap, parse_slots, slot_of
from routemaster.redis.errors import NotNow, Redirected, named_error, split_error


class SlotTests(SynchronousTestCase):
    """The slot of a key, and the node of a slot."""

    def test_slots_of_keys(self) -> None:
        """The slot is the CRC16 of the key, or of its hash tag, as in the Redis Cluster specification."""
        for key, slot in ((b"123456789", 12739), (b"foo", 12182), (b"", 0)):
            self.assertEqual(slot_of(key), slot, key)
        for tagged, same in (
            (b"{foo}bar", b"foo"), (b"rm:{t:cats}:log", b"t:cats"), (b"a{foo}{b}", b"foo"), (b"{{foo}}", b"{foo"),
        ):
            self.assertEqual(slot_of(tagged), slot_of(same), tagged)
        for plain in (b"foo{}bar", b"foo{bar", b"foo}bar{"):
            self.assertNotEqual(slot_of(plain), slot_of(b"bar"), plain)

    def test_parse_slots(self) -> None:
        """The reply to CLUSTER SLOTS gives each slot its primary; an empty host is the replying node's."""
        reply = [[0, 99, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.9", 7001, b"replica"]], [100, 200, [b"", 7002]]]
        found = parse_slots([*reply, [201, 201, [None, 7003, b"id", []]]], "asked")
        self.assertEqual(found[0], ("10.0.0.1", 7000))
        self.assertEqual((found[100], found[200], found[201]), (("asked", 7002), ("asked", 7002), ("asked", 7003)))
        self.assertIsNone(found[202])
        self.assertEqual(len(found), SLOTS)
        for odd in (b"OK", [[0]], [[0, 1, []]], [[0, SLOTS, [b"h", 1]]]):
            self.assertRaises(StoreBroken, parse_slots, odd, "asked")

    def test_map(self) -> None:
        """A redirection corrects one slot until the next copy."""
        slots = SlotMap()
        self.assertEqual((slots.owner(5), slots.nodes()), (None, set()))
        slots.copy(parse_slots([[0, SLOTS - 1, [b"a", 1]]], ""))
        slots.move(5, ("b", 2))
        self.assertEqual((slots.owner(4), slots.owner(5)), (("a", 1), ("b", 2)))
        self.assertEqual(slots.nodes(), {("a", 1), ("b", 2)})

    def test_redirections(self) -> None:
        """MOVED and ASK become Redirected with slot, host and port; codes of a passing state become NotNow."""
        for text, told in (
            ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381, False)),
            ("ASK 1 ::1:6381", (1, "::1", 6381, True)),
            ("MOVED 1 :6381", (1, "", 6381, False)),
        ):
            error = named_error(*split_error(text), "Redis")
            self.assertIsInstance(error, Redirected)
            self.assertEqual((error.slot, error.host, error.port, error.asking), told)
        for code in ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "LOADING"):
            self.assertIsInstance(named_error(code, "x", "Redis"), NotNow)
        self.assertNotIsInstance(named_error("OOM", "x", "Redis"), NotNow)
        self.assertIsInstance(named_error("OOM", "x", "Redis"), StoreUnavailable)
