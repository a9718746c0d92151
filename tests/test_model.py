"""The values of `model`: names, event IDs, cursors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.model import Cursor, EventID, Span, public_name


class NameTests(SynchronousTestCase):
    """Public names of tokens."""

    def test_public_names(self) -> None:
        """The public name of a token ends before its first `--`."""
        for token, name in {
            "demo": "demo", "a--b": "a", "a-b--c--d": "a-b", "a--": "a", "--secret": "unnamed", "a-b": "a-b",
        }.items():  # fmt: skip
            self.assertEqual(public_name(token), name)


class PositionTests(SynchronousTestCase):
    """Event IDs and cursors."""

    @given(st.integers(0, 2**53), st.integers(0, 2**63 - 1))
    def test_ids(self, us: int, n: int) -> None:
        """An ID equals the ID parsed from its text; IDs compare by time, then by number."""
        written = EventID(us, n)
        self.assertEqual(EventID.parse(bytes(written)), written)
        self.assertEqual(bytes(written), str(written).encode())
        self.assertEqual((written.us, written.n), (us, n))
        self.assertLess(written, EventID(us, n + 1))
        self.assertLess(written, EventID(us + 1, 0))

    def test_cursors(self) -> None:
        """A cursor is parsed from its text; its backlog is the number of events in its spans."""
        cursor = Cursor.parse(b"7 9 3 1 5-2/6-4 8-10/")
        first, second = Span(EventID(5, 2), EventID(6, 4)), Span(EventID(8, 10), None)
        self.assertEqual(cursor, Cursor(7, 9, 3, (first, second), 1))
        self.assertTrue(cursor.open)
        self.assertEqual(cursor.backlog(EventID(9, 15)), 2 + 5)
        left = Cursor.parse(b"7 9 3 0 5-2/6-4")
        self.assertFalse(left.open)
        self.assertEqual(left.backlog(EventID(9, 15)), 2)
        over = Cursor.parse(b"7 9 3 0")
        self.assertFalse(over.open)
        self.assertEqual(over.backlog(EventID(9, 15)), 0)
