"""Subscriptions with `max_bytes`: how large a batch is, and when it is full by its bytes."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from routemaster.delivery.filling import Filling
from tests.delivery.deliveries import DeliveryTestCase

#: what was read (waiting, events, bytes, whether that is a full batch), of at most 1,000 bytes in 100 events
#: -> events that are a full batch, events at which to look again
TABLE = [
    ([], 100, 1),                               # nothing is known: the first event tells
    ([(1, 1, 100, False)], 100, 10),
    ([(1, 1, 5, False)], 100, 100),             # `max` comes first
    ([(1, 1, 600, False)], 100, 2),
    ([(1, 1, 100, False), (10, 9, 980, True)], 9, 11),
    ([(1, 1, 100, False), (10, 10, 500, False)], 100, 20),  # smaller ones came
    ([(12, 4, 400, False)], 100, 18),           # not all that wait could be read
    ([(5, 0, 0, False)], 100, 1),
    ([(1, 1, 3000, True)], 1, 2),               # one larger event is a batch
]  # fmt: skip


class FillingTests(SynchronousTestCase):
    """The rule."""

    def test_table(self) -> None:
        """When a batch may be full is estimated by the average of what was read, and known by reading."""
        for reads, full, look_at in TABLE:
            filling = Filling()
            filling.limit(1000)
            for read in reads:
                filling.read(*read)
            self.assertEqual((filling.most(100), filling.wake_at(100)), (full, look_at), reads)
            self.assertEqual(filling.is_unknown(look_at), full == 100 and look_at < 100, reads)
            self.assertFalse(filling.is_unknown(look_at - 1), reads)

    def test_no_limit(self) -> None:
        """Without a limit nothing is read for it."""
        filling = Filling()
        filling.limit(None)
        filling.read(5, 5, 5000, True)
        self.assertEqual((filling.most(100), filling.wake_at(100), filling.is_unknown(99)), (100, 100, False))

    def test_taken(self) -> None:
        """The average outlives a batch; what was full does not."""
        filling = Filling()
        filling.limit(1000)
        filling.read(10, 10, 1000, True)
        filling.taken()
        self.assertEqual((filling.most(100), filling.wake_at(100)), (100, 10))


class MaxBytesTests(DeliveryTestCase):
    """A courier whose subscription has `max_bytes`."""

    def setUp(self) -> None:
        super().setUp()
        self.sender.decode = lambda body: [event["n"] for event in json.loads(body)]

    def publish_sized(self, *sizes: int) -> None:
        """Publish events that take so many bytes in a body, numbered in order."""
        for size in sizes:
            self._count += 1
            known = len(b'{"n":%d,"x":"","id":"%d-1"},' % (self._count, self.clock.seconds() * 1e6))
            padding = b"x" * (size - known - (len(str(self._count)) - 1))
            self.do(self.memory.publish("cats", "pub", [b'{"n":%d,"x":"%s"}' % (self._count, padding)]))

    def test_bounds_the_body(self) -> None:
        """No body of several events is larger; whatever the sizes, all events come, in order."""
        for sizes in ([300] * 20, [100, 900, 100, 1000, 50, 50], [1022, 1023, 1024, 1025]):
            self.setUp()
            self.subscribe("cats", max_bytes=1024, timeout=60_000)
            self.publish_sized(*sizes)
            self.worker()
            self.pass_time(61, step=1)
            received = [number for batch in self.batches for number in batch]
            self.assertEqual(received, list(range(1, len(sizes) + 1)))
            for attempt in self.sender.attempts:
                self.assertTrue(len(attempt.body) <= 1024 or len(attempt.events) == 1)
            if sizes[0] == 300:
                self.assertEqual({len(batch) for batch in self.batches}, {3, 2})

    def test_to_the_byte(self) -> None:
        """Commas and brackets count: events that fill the body to the last byte go together."""
        for second, batches in ((512, [[1, 2]]), (513, [[1], [2]])):
            self.setUp()
            self.subscribe("cats", max_bytes=1024)
            self.publish_sized(511, second)
            self.worker()
            self.assertEqual(self.batches, batches)
        self.assertEqual(len(self.sender.attempts[0].body), 512)

    def test_one_larger_event(self) -> None:
        """An event larger than that goes alone, as soon as it is the oldest."""
        self.subscribe("cats", max_bytes=1024, max=10)
        self.publish_sized(200, 200, 5000, 200)
        self.worker()
        self.assertEqual(self.batches, [[1, 2], [3], [4]])

    def test_full_at_once(self) -> None:
        """A batch that is full by its bytes goes at once, however long the timeout; the rest waits."""
        self.subscribe("cats", max_bytes=1024, timeout=60_000)
        self.worker()
        self.publish_sized(*[200] * 5)
        self.assertEqual(self.batches, [])
        self.publish_sized(200)
        self.assertEqual(self.batches, [[1, 2, 3, 4, 5]])
        self.publish_sized(*[200] * 4)
        self.assertEqual(len(self.batches), 1)
        self.publish_sized(200)
        self.assertEqual(self.batches[1:], [[6, 7, 8, 9, 10]])

    def test_backlog_at_once(self) -> None:
        """Of a backlog all full batches go at once."""
        self.subscribe("cats", max_bytes=1024, timeout=60_000)
        self.publish_sized(*[200] * 23)
        self.worker()
        self.assertEqual([len(batch) for batch in self.batches], [5, 5, 5, 5])

    def test_smaller_than_the_average(self) -> None:
        """Events that became smaller are not sent before the batch is full or the timeout is over."""
        self.subscribe("cats", max_bytes=1024, timeout=60_000)
        self.worker()
        self.publish_sized(*[200] * 6)
        self.publish_sized(*[60] * 10)
        self.assertEqual(len(self.batches), 1)
        self.pass_time(61)
        self.assertEqual(self.batches[1:], [list(range(6, 17))])

    def test_reads_seldom(self) -> None:
        """To know when a batch is full takes a few reads, not one for each event."""
        self.subscribe("cats", max_bytes=100_000, max=10_000, timeout=60_000)
        worker = self.worker()
        self.publish_sized(*[100] * 10)
        self.store.calls.clear()
        reads = []
        read = worker._cache.read

        async def note(*arguments: object) -> object:
            reads.append(arguments)
            return await read(*arguments)  # type: ignore[arg-type]

        worker._cache.read = note  # type: ignore[method-assign, assignment]
        self.publish_sized(*[100] * 900)
        self.assertEqual(self.batches, [])
        self.assertLess(len(reads), 20)

    def test_several_topics(self) -> None:
        """Events of all topics fill a batch together."""
        self.subscribe("cats", "dogs", max_bytes=1024, timeout=60_000)
        self.worker()
        for number in range(10):
            self.do(self.memory.publish("dogs", "pub", [b'{"n":%d,"x":"%s"}' % (number, b"x" * 200)]))
            self.do(self.memory.publish("cats", "pub", [b'{"n":%d,"x":"%s"}' % (number, b"x" * 200)]))
        self.assertEqual({len(batch) for batch in self.batches}, {4})
        self.assertLess(self.queued(), 5)
