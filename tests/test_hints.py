"""Hints: each has one text, and only that text is read back."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from routemaster.hints import (
    EventsDropped,
    SubscriptionChanged,
    TokensChanged,
    TopicGrew,
    WorkerJoined,
    WorkerLeft,
    decode,
)
from routemaster.model import EventID

HINTS = {
    b"t cats 17-3 19-5": TopicGrew("cats", EventID(17, 3), EventID(19, 5)),
    b"s demo--1f2e": SubscriptionChanged("demo--1f2e"),
    b"d demo--1f2e": EventsDropped("demo--1f2e"),
    b"w host-1-ab on": WorkerJoined("host-1-ab"),
    b"w host-1-ab off": WorkerLeft("host-1-ab"),
    b"k": TokensChanged(logged=False),
    b"k log": TokensChanged(logged=True),
}
NO_HINTS = (
    b"", b"t", b"t cats", b"t cats 17-3", b"t cats 17-3 x", b"t cats 17-3 19-5 6-6", b"s", b"s a b", b"w a",
    b"w a up",
    b"k k", b"x", b"T cats 17-3 19-5", b"s \xff", b" k", b"t cats - -",
)  # fmt: skip


class HintTests(SynchronousTestCase):
    """The wake-up channel's texts."""

    def test_both_ways(self) -> None:
        """A hint's text is the one that others of its kind are read from."""
        for text, hint in HINTS.items():
            self.assertEqual(hint.encode(), text)
            self.assertEqual(decode(text), hint)

    def test_others_are_none(self) -> None:
        """What is not a hint, whole and to the letter, is none, and raises nothing."""
        for text in NO_HINTS:
            self.assertIsNone(decode(text), text)
