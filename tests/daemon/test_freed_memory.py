"""Memory that is returned to the system."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.daemon.freed_memory import ENOUGH, FreedMemory


class FreedMemoryTests(SynchronousTestCase):
    """`FreedMemory`."""

    def test_when(self) -> None:
        """Memory is returned when much has become free since the last time, and not again and again."""
        size = ENOUGH
        figures = [0, size - 1, size, 5 * size, 5 * size, 2 * size, 3 * size - 1, 3 * size, 3 * size]
        rest, trimmed = deque(figures), []
        memory = FreedMemory(rest.popleft, lambda: trimmed.append(len(figures) - len(rest) - 1))
        while rest:
            self.successResultOf(ensureDeferred(memory.look()))
        self.assertEqual(trimmed, [2, 3, 7])

    def test_process(self) -> None:
        """The C library is asked, or nothing happens."""
        memory = FreedMemory.of_process()
        self.successResultOf(ensureDeferred(memory.look()))
        self.assertGreaterEqual(memory._free(), 0)
        memory._trim()
