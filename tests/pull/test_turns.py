"""Work in turns of the reactor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from routemaster.pull.turns import AT_ONCE, Turns


class Reactor:
    """Runs what is scheduled one turn at a time."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], None]] = []

    def callLater(self, delay: float, call: Callable[[], None]) -> None:
        assert delay == 0
        self.scheduled.append(call)

    def turn(self) -> None:
        calls, self.scheduled = self.scheduled, []
        for call in calls:
            call()


class TurnsTests(SynchronousTestCase):
    """`Turns`."""

    def setUp(self) -> None:
        self.reactor: Any = Reactor()
        self.turns = Turns(self.reactor)
        self.added: list[int] = []
        self.done: list[int] = []

    def add(self, count: int) -> None:
        for number in range(len(self.added), len(self.added) + count):
            self.added.append(number)
            self.turns.add(partial(self.done.append, number))

    def test_order(self) -> None:
        """Calls run in order, never at once, at most `AT_ONCE` in a turn."""
        self.add(2 * AT_ONCE + 1)
        self.assertEqual(self.done, [])
        for count in (AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1):
            self.reactor.turn()
            self.assertEqual(self.done, list(range(count)))
        self.assertEqual(self.reactor.scheduled, [])

    def test_added_meanwhile(self) -> None:
        """What a call adds runs in the next turn, which is scheduled once."""
        self.turns.add(lambda: self.add(1))
        self.reactor.turn()
        self.assertEqual((self.done, len(self.reactor.scheduled)), ([], 1))
        self.reactor.turn()
        self.assertEqual((self.done, self.reactor.scheduled), ([0], []))
