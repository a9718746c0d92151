"""Items are cut into chunks, with pauses between them."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.util.chunks import PAUSE, chunks, paced_chunks


class ChunkTests(SynchronousTestCase):
    """Chunks of items in their order."""

    def test_chunks(self) -> None:
        """Chunks have at most the given size and keep the order; without items there is none."""
        self.assertEqual(list(chunks([], 2)), [])
        self.assertEqual(list(chunks([1, 2], 2)), [[1, 2]])
        self.assertEqual(list(chunks(iter([1, 2, 3]), 2)), [[1, 2], [3]])

    def test_paced_chunks(self) -> None:
        """There is a pause between two chunks, and none before the first."""
        clock, seen = Clock(), []

        async def collect() -> None:
            async for chunk in paced_chunks([1, 2, 3], 2, clock):
                seen.append(chunk)

        done = Deferred.fromCoroutine(collect())
        self.assertEqual(seen, [[1, 2]])
        clock.advance(PAUSE)
        self.assertEqual(seen, [[1, 2], [3]])
        self.successResultOf(done)
