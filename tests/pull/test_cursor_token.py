"""The cursors of pulled events: what they carry, and which are refused."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from routemaster.administration import Ack
from routemaster.errors import Invalid
from routemaster.model import EventID
from routemaster.pull.cursor_token import MOST_TOPICS, CursorTokens, Place

OURS = CursorTokens("svc--s1", 7)


def place(topic: str = "cats", rewinds: int = 0) -> Place:
    made = Place(topic, 3, rewinds, EventID(1_699_999_999_000_000, 5))
    made.reach(EventID(1_700_000_000_000_000, 12))
    return made


class CursorTokenTests(SynchronousTestCase):
    """`CursorTokens`."""

    @given(
        st.lists(
            st.tuples(
                st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=32),
                *[st.integers(0, 2**40)] * 2, *[st.integers(0, 2**53)] * 4,
            ),
            max_size=5,
        )
    )  # fmt: skip
    def test_same(self, values: list[tuple[str, int, int, int, int, int, int]]) -> None:
        """A cursor acknowledges exactly the places that it was made of."""
        made, expected = [], []
        for topic, membership, rewinds, us, n, later_us, later_n in values:
            each, last = Place(topic, membership, rewinds, EventID(us, n)), EventID(us + later_us, n + later_n)
            each.reach(last)
            made.append(each)
            expected.append(Ack(topic, membership, last, EventID(us, n), rewinds))
        self.assertEqual(OURS.decode(OURS.encode(made)), expected)

    def test_empty(self) -> None:
        """A cursor of no places is valid, and acknowledges nothing."""
        self.assertEqual(OURS.decode(OURS.encode([])), [])

    def test_size(self) -> None:
        """The largest cursor, of the longest topic names, fits a request's head with room to spare."""
        longest = [place("x" * 30 + f"{n:02}", rewinds=200) for n in range(MOST_TOPICS)]
        text = OURS.encode(longest)
        self.assertLess(len(text), 6000)
        self.assertRegex(text, r"^[A-Za-z0-9_-]+$")
        self.assertEqual(len(OURS.decode(text)), MOST_TOPICS)

    def test_refused(self) -> None:
        """Anything but a cursor of this very subscription is refused."""
        good = OURS.encode([place()])
        raw = urlsafe_b64decode(good + "=" * (-len(good) % 4))

        def text(content: bytes) -> str:
            return urlsafe_b64encode(content).rstrip(b"=").decode()

        other_version = b"\x02" + raw[1:-12]
        for case, cursor in {
            "nothing": "",
            "a word": "oldest",
            "no base64": "ä" * 40,
            "white space": f" {good}",
            "a line more": f"{good}\n",
            "padding": f"{good}==",
            "cut": good[:-4],
            "longer": f"{good}AAAA",
            "one character": "A",
            "another subscriber's": CursorTokens("svc--s2", 7).encode([place()]),
            "of a subscription before": CursorTokens("svc--s1", 6).encode([place()]),
            "key parts shifted": CursorTokens("svc--s1 7", 7).encode([place()]),
            "the check alone": text(raw[-12:]),
            "another format": text(other_version + OURS._check(other_version)),
            "no places": text(raw[:-20] + OURS._check(raw[:-20])),
        }.items():
            with self.assertRaises(Invalid, msg=case) as refused:
                OURS.decode(cursor)
            self.assertEqual(
                str(refused.exception),
                "cursor is invalid: expected one that this subscription was given with its events",
            )

    def test_every_bit_counts(self) -> None:
        """A cursor in which any one bit differs is refused."""
        good = OURS.encode([place()])
        raw = urlsafe_b64decode(good + "=" * (-len(good) % 4))
        for bit in range(8 * len(raw)):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            text = urlsafe_b64encode(changed).rstrip(b"=").decode()
            self.assertRaises(Invalid, OURS.decode, text)
