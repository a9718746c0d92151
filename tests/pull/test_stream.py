"""Streams: what is sent, what acknowledges it, how much may be on its way, and when a stream ends."""

from __future__ import annotations

import gc
import json
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred

from routemaster.errors import Invalid
from routemaster.hints import SubscriptionChanged
from routemaster.model import TopicSettings
from routemaster.pull.reading import Reading
from routemaster.pull.service import TOGETHER, PullService
from routemaster.pull.stream import COMMENT_INTERVAL, PART_BYTES, SENT_CHECK, STORE_RETRY, Stream
from tests.pull.case import PullCase


@frozen
class Event:
    """What the stream sent for one event."""

    cursor: str
    n: int


class Connection:
    """The connection of a client, which reads all that comes, unless `reads` is set to False."""

    def __init__(self, clock: Any, stream: Stream) -> None:
        self._clock, self._stream = clock, stream
        self.text = b""
        self.reads = True
        self.complete = False
        self.unsent = 0  #: what the client's TCP has not taken
        self.parts: list[int] = []
        stream.begin(self)
        self.more()

    def more(self) -> None:
        self._clock.callLater(0, self._write)

    def _write(self) -> None:
        while self.reads and not self.complete:
            part = self._stream.next_part()
            if part is None:
                self.complete = True
                self._stream.lost()
            elif not part:
                return
            else:
                self.parts.append(len(part))
                self.text += part

    def resume(self) -> None:
        self.reads = True
        self._write()

    def disconnect(self) -> None:
        self.complete = True
        self._stream.lost()

    @property
    def comments(self) -> list[str]:
        return [block[1:].strip() for block in self._blocks() if block.startswith(":")]

    @property
    def events(self) -> list[Event]:
        found = []
        for block in self._blocks():
            if not block.startswith(":"):
                first, second = block.split("\n")
                assert first.startswith("id: "), block
                assert second.startswith("data: {"), block
                found.append(Event(first[4:], json.loads(second[6:])["n"]))
        return found

    @property
    def numbers(self) -> list[int]:
        return [event.n for event in self.events]

    def _blocks(self) -> list[str]:
        *blocks, rest = self.text.decode().split("\n\n")
        assert not rest, rest
        return blocks


class StreamCase(PullCase):
    """Streams with connections."""

    def stream(self, last: str = "", sent: bool = False, service: PullService | None = None) -> Connection:
        """A stream as the API makes it."""
        service = service or self.pull

        async def begin() -> Stream:
            state = await service.state("sub")
            if last:
                await service.acknowledge(state, last)
            return service.stream(state, sent, lambda: self.allowed)

        connection = Connection(self.clock, self.do(begin()))
        self.turn()
        return connection

    def setUp(self) -> None:
        super().setUp()
        self.allowed = True

    def take(self, event: Event, service: PullService | None = None) -> None:
        """Acknowledge up to an event."""
        service = service or self.pull
        self.do(service.acknowledge(self.do(service.state("sub")), event.cursor))
        self.turn()


class EventsTests(StreamCase):
    """What is sent."""

    def test_events(self) -> None:
        """What waits is sent at once, in order, after a first comment; what comes later as it comes."""
        self.subscribe("cats", "dogs")
        self.publish("cats", 2)
        self.publish("dogs")
        connection = self.stream()
        self.assertEqual(connection.comments, ["stream of events"])
        self.assertTrue(connection.text.startswith(b": stream of events\n\nid: "))
        self.assertRegex(connection.text, rb'\n\nid: [\w-]+\ndata: \{"n":1,"id":"\d+-2"\}\n\n')
        self.publish("dogs", 2)
        self.turn()
        self.assertEqual(connection.numbers, [1, 2, 3, 4, 5])

    def test_cursors(self) -> None:
        """An event's cursor acknowledges it and all before it, in all topics, and none after it."""
        self.subscribe("cats", "dogs")
        for topic in ("cats", "dogs", "cats", "dogs"):
            self.publish(topic)
        connection = self.stream()
        self.take(connection.events[2])
        self.assertEqual((self.facts().sent, self.facts().queued), (3, 1))
        self.take(connection.events[1])
        self.assertEqual((self.facts().sent, self.facts().queued), (3, 1))
        self.assertEqual(connection.numbers, [1, 2, 3, 4])

    def test_reconnected(self) -> None:
        """A client that reconnects with its last cursor gets what follows that event, in any process."""
        self.subscribe("cats")
        self.publish("cats", 4)
        connection = self.stream()
        connection.disconnect()
        again = self.stream(last=connection.events[1].cursor, service=self.service())
        self.assertEqual(again.numbers, [3, 4])
        self.assertEqual(self.facts().sent, 2)
        without = self.stream()
        self.assertEqual(without.numbers, [3, 4])

    def test_foreign_cursor(self) -> None:
        """A last cursor of another subscription is refused."""
        self.subscribe("cats")
        self.subscribe("cats", name="other", create=False)
        self.publish("cats")
        other = self.pulled(name="other")
        self.turn()
        acknowledging = self.pull.acknowledge(self.do(self.pull.state("sub")), other.cursor)
        self.failureResultOf(Deferred.fromCoroutine(acknowledging), Invalid)
        self.assertEqual(self.facts().queued, 1)

    def test_polled_cursor(self) -> None:
        """Cursors of polls and of streams are the same."""
        self.subscribe("cats")
        self.publish("cats", 3)
        connection = self.stream()
        answer = self.pulled(most=2)
        self.acknowledge(answer)
        self.turn()
        self.assertEqual(self.facts().queued, 1)
        self.assertEqual(connection.numbers, [1, 2, 3])

    def test_timeout(self) -> None:
        """With a `timeout` events come when the oldest has waited so long, or when `max` wait."""
        self.subscribe("cats", timeout=2000, max=3)
        connection = self.stream()
        self.publish("cats")
        self.turn(1)
        self.publish("cats")
        self.turn(0.75)
        self.assertEqual(connection.numbers, [])
        self.turn(0.5)
        self.assertEqual(connection.numbers, [1, 2])
        self.take(connection.events[1])
        self.publish("cats", 2)
        self.turn()
        self.assertEqual(connection.numbers, [1, 2])
        self.publish("cats")
        self.turn()
        self.assertEqual(connection.numbers, [1, 2, 3, 4, 5])

    def test_lost_while_it_waits_for_a_turn(self) -> None:
        """A stream whose connection is lost before its turn comes acknowledges nothing with that turn."""
        self.subscribe("cats")
        connection = self.stream(sent=True)
        self.turn()
        connection.unsent = 100
        self.publish("cats", 3)
        self.turn()
        self.turn()
        self.assertEqual(connection.numbers, [1, 2, 3])
        ends: list[Deferred[None]] = []

        async def read() -> None:
            async with self.pull._shared.turns:
                ends.append(Deferred())
                await ends[-1]

        for _ in range(TOGETHER):
            Deferred.fromCoroutine(read())
        self.turn(SENT_CHECK[0])
        connection.disconnect()
        connection.unsent = 0
        for end in ends:
            end.callback(None)
        self.turn()
        self.turn()
        self.assertEqual((self.facts().sent, self.facts().queued), (0, 3))

    def test_a_due_batch_is_sent_whole(self) -> None:
        """What was due together is sent together, though it takes several reads."""
        self.subscribe("cats", timeout=60_000, max=700)
        self.publish("cats", 700)
        connection = self.stream()
        self.assertEqual(len(connection.numbers), 700)
        self.assertGreater(len(connection.parts), 2)

    def test_rewind_and_skip(self) -> None:
        """After a rewind events come again; what is skipped does not come."""
        self.subscribe("cats")
        self.do(self.memory.configure_topic("cats", "pub", TopicSettings(history=3_600_000)))
        connection = self.stream()
        self.publish("cats", 2)
        self.turn()
        self.take(connection.events[0])
        self.do(self.memory.pause("sub"))
        self.publish("cats")
        self.do(self.memory.skip("sub", None))
        self.do(self.memory.resume("sub"))
        self.turn()
        self.assertEqual(connection.numbers, [1, 2])
        self.do(self.memory.rewind("sub", 0))
        self.turn()
        self.assertEqual(connection.numbers, [1, 2, 1, 2, 3])

    def test_retention(self) -> None:
        """An event that expires while the client does not read is not sent."""
        self.subscribe("cats", retention=1000, max=1)
        self.publish("cats", 2)
        connection = self.stream()
        self.turn(2)
        self.publish("cats")
        self.take(connection.events[0])
        self.assertEqual(connection.numbers, [1, 3])
        facts = self.facts()
        self.assertEqual((facts.expired + facts.sent, facts.queued, facts.added), (2, 1, 3))

    def test_dropped(self) -> None:
        """Events that autodrop removes while they wait are passed over, and counted."""
        self.subscribe("cats", max=1)
        self.publish("cats", 3)
        connection = self.stream()
        self.do(self.memory.drop_oldest(100))
        self.publish("cats")
        self.take(connection.events[0])
        self.assertEqual(connection.numbers, [1, 4])
        self.take(connection.events[1])
        facts = self.facts()
        self.assertEqual((facts.sent + facts.dropped, facts.queued), (4, 0))


class WindowTests(StreamCase):
    """How much may be on its way."""

    def test_unacknowledged(self) -> None:
        """At most `max` events are on their way; acknowledging through another process lets others follow."""
        self.subscribe("cats", max=3)
        self.publish("cats", 8)
        connection = self.stream()
        self.assertEqual(connection.numbers, [1, 2, 3])
        self.take(connection.events[1], service=self.service())
        self.assertEqual(connection.numbers, [1, 2, 3, 4, 5])
        self.take(connection.events[4])
        self.assertEqual(connection.numbers, [1, 2, 3, 4, 5, 6, 7, 8])

    def test_two_topics(self) -> None:
        """The events of all topics count together."""
        self.subscribe("cats", "dogs", max=3)
        for _ in range(3):
            self.publish("cats")
            self.publish("dogs")
        connection = self.stream()
        self.assertEqual(connection.numbers, [1, 2, 3])
        self.take(connection.events[0])
        self.assertEqual(connection.numbers, [1, 2, 3, 4])

    def test_many_topics(self) -> None:
        """The events on their way are of 64 topics at most, so that their cursor fits a header."""
        topics = ["t_" + "abcdefgh"[n // 10] + "abcdefghij"[n % 10] for n in range(70)]
        self.subscribe(*topics)
        for topic in topics:
            self.publish(topic)
        connection = self.stream()
        self.assertEqual(connection.numbers, list(range(1, 65)))
        self.publish(topics[0])
        self.turn()
        self.assertEqual(connection.numbers, list(range(1, 65)))
        self.take(connection.events[9])
        self.assertEqual(connection.numbers, list(range(1, 72)))
        self.assertLess(max(len(event.cursor) for event in connection.events), 6000)

    def test_lost_acknowledgement(self) -> None:
        """If the hint of an acknowledgement is lost, the next comment finds it."""
        self.subscribe("cats", max=1)
        self.publish("cats", 2)
        connection = self.stream()
        self.lose_hints = True
        self.take(connection.events[0])
        self.assertEqual(connection.numbers, [1])
        self.turn(COMMENT_INTERVAL)
        self.assertEqual(connection.numbers, [1, 2])

    def test_slow_client(self) -> None:
        """Nothing is read or buffered for a client that does not read."""
        self.subscribe("cats", max=10_000)
        self.publish("cats", 1)
        connection = self.stream()
        connection.reads = False
        self.publish("cats", 5000)
        self.turn()
        held = connection._stream._part
        self.assertLess(len(held), 4 * PART_BYTES)
        calls = self.store.calls.copy()
        self.turn(4 * COMMENT_INTERVAL)
        self.assertEqual((self.store.calls - calls)["read"], 0)
        self.assertLessEqual(len(connection._stream._part), len(held))
        connection.resume()
        self.turn()
        self.assertEqual(connection.numbers, list(range(1, 5002)))
        self.assertLess(max(connection.parts), 4 * PART_BYTES)

    def test_paused(self) -> None:
        """While the subscription is paused only comments are sent; resuming goes on at once."""
        self.subscribe("cats")
        connection = self.stream()
        self.do(self.memory.pause("sub"))
        self.publish("cats")
        self.turn(COMMENT_INTERVAL)
        self.assertEqual((connection.numbers, len(connection.comments)), ([], 2))
        self.do(self.memory.resume("sub"))
        self.turn()
        self.assertEqual(connection.numbers, [1])


class SentTests(StreamCase):
    """`ack=sent`."""

    def test_taken(self) -> None:
        """What the client's TCP has taken is acknowledged, and others follow without a word from the client."""
        self.subscribe("cats", max=2)
        self.publish("cats", 5)
        connection = self.stream(sent=True)
        self.assertEqual(connection.numbers, [1, 2])
        for _ in range(4):
            self.turn(SENT_CHECK[0])
        self.assertEqual(connection.numbers, [1, 2, 3, 4, 5])
        self.assertEqual((self.facts().sent, self.facts().queued), (5, 0))

    def test_not_taken(self) -> None:
        """Nothing is acknowledged while bytes are under way; a connection that breaks then loses nothing."""
        self.subscribe("cats", max=2)
        self.publish("cats", 3)
        connection = self.stream(sent=True)
        connection.unsent = 1
        self.turn(10)
        self.assertEqual((connection.numbers, self.facts().sent), ([1, 2], 0))
        connection.disconnect()
        self.turn(10)
        self.assertEqual(self.facts().sent, 0)
        self.assertEqual(self.stream().numbers, [1, 2])

    def test_checks_are_seldom(self) -> None:
        """A client that takes nothing is looked at less and less often, and costs no call to the store."""
        self.subscribe("cats")
        self.publish("cats")
        connection = self.stream(sent=True)
        connection.unsent = 1
        self.turn(1)
        calls = self.store.calls.copy()
        self.turn(2 * SENT_CHECK[1])
        self.assertEqual(self.store.calls - calls, {})
        connection.unsent = 0
        self.turn(2 * SENT_CHECK[1])
        self.assertEqual(self.facts().sent, 1)

    def test_blocked(self) -> None:
        """What is not yet written is not acknowledged."""
        self.subscribe("cats")
        connection = self.stream(sent=True)
        connection.reads = False
        self.publish("cats")
        self.turn(1)
        self.assertEqual(self.facts().sent, 0)


class EndTests(StreamCase):
    """Comments, ends and disturbances."""

    def test_comments(self) -> None:
        """A comment every 15 s, without a call to the store."""
        self.subscribe("cats")
        connection = self.stream()
        calls = self.store.calls.copy()
        for count in range(2, 6):
            self.turn(COMMENT_INTERVAL - 0.25)
            self.assertEqual(len(connection.comments), count - 1)
            self.turn(0.25)
            self.assertEqual(len(connection.comments), count)
        self.assertEqual(self.store.calls - calls, {})

    def test_second(self) -> None:
        """A second stream of the client in this process ends the first, with a comment, even if that is dead."""
        self.subscribe("cats")
        first = self.stream()
        dead = self.stream()
        self.assertTrue(first.complete)
        self.assertEqual(first.comments[-1], "another stream of this client has begun")
        dead.reads = False
        third = self.stream()
        self.publish("cats")
        self.turn()
        self.assertEqual((third.numbers, self.pull.streams), ([1], 1))
        dead.resume()
        self.assertTrue(dead.complete)

    def test_second_is_over_first(self) -> None:
        """A stream that was ended while it waits for the store may be over after the one that ended it."""
        self.subscribe("cats")
        first, gate = self.stream(), self.store.delay("state")
        self.pull.on_hint(SubscriptionChanged("sub"))
        self.turn()
        second = self.stream()
        self.assertFalse(gate.called)
        second.disconnect()
        self.turn()
        self.assertEqual(self.pull.streams, 0)
        gate.callback(None)
        self.turn()
        gc.collect()  # which reports unhandled errors
        self.assertEqual((first.complete, self.pull.streams), (True, 0))

    def test_freed_at_once(self) -> None:
        """A stream that is over is free at once, without the garbage collector."""
        self.subscribe("cats")
        self.publish("cats")
        garbage = self.garbage(Stream, Reading)
        connection = self.stream()
        self.turn()
        connection.disconnect()
        self.turn()
        del connection
        self.assertEqual(self.pull.streams, 0)
        self.assertEqual(garbage(), [])

    def test_stop(self) -> None:
        """A stop ends streams with a comment; nothing that is not acknowledged is lost."""
        self.subscribe("cats")
        self.publish("cats")
        connection = self.stream()
        self.do(self.pull.stop())
        self.turn()
        self.assertTrue(connection.complete)
        self.assertEqual(connection.comments[-1], "the bus stops")
        late = self.stream()
        self.assertTrue(late.complete)
        self.assertEqual(self.stream(service=self.service()).numbers, [1])

    def test_subscription_ends(self) -> None:
        """A stream ends when its subscription does, or gets a callback."""
        self.subscribe("cats")
        connection = self.stream()
        self.do(self.memory.unsubscribe("sub"))
        self.turn()
        self.assertTrue(connection.complete)
        self.subscribe("cats")
        connection = self.stream()
        self.subscribe("cats", create=False, callback="https://sub.example/")
        self.turn()
        self.assertTrue(connection.complete)
        self.assertIn("callback", connection.comments[-1])

    def test_topics_change(self) -> None:
        """A topic that is subscribed to later is streamed, too."""
        self.subscribe("dogs", name="other")
        self.subscribe("cats")
        connection = self.stream()
        self.publish("cats")
        self.turn()
        self.subscribe("cats", "dogs", create=False)
        self.publish("dogs")
        self.turn()
        self.assertEqual(connection.numbers, [1, 2])

    def test_credentials(self) -> None:
        """When the client's token is removed, the stream ends with the next comment."""
        self.subscribe("cats")
        connection = self.stream()
        self.allowed = False
        self.turn(COMMENT_INTERVAL)
        self.assertTrue(connection.complete)
        self.assertEqual(connection.comments[-1], "credentials are not valid any more")

    def test_disconnected(self) -> None:
        """When the client disconnects, nothing of the stream is left."""
        self.subscribe("cats")
        connection = self.stream()
        connection.disconnect()
        self.assertEqual(self.pull.subscribers, 0)
        self.publish("cats")
        self.turn(60)
        self.assertEqual(connection.numbers, [])

    def test_store_unavailable(self) -> None:
        """While the store is unavailable comments go on, and events follow when it is back."""
        self.subscribe("cats")
        connection = self.stream()
        self.publish("cats")
        self.store.unavailable = True
        for _ in range(32):
            self.turn(0.5)
        self.assertFalse(connection.complete)
        self.assertEqual((connection.numbers, len(connection.comments)), ([], 2))
        self.store.recover()
        self.turn(STORE_RETRY)
        self.assertEqual(connection.numbers, [1])

    def test_internal_error(self) -> None:
        """An unexpected exception is logged once, and ends the stream."""
        self.subscribe("cats")
        connection = self.stream()
        self.store.fail_next("read", error=ValueError("a bug"))
        self.publish("cats")
        self.turn()
        self.assertTrue(connection.complete)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_lost_hint(self) -> None:
        """A sweep replaces a lost hint."""
        self.subscribe("cats")
        connection = self.stream()
        self.lose_hints = True
        self.publish("cats")
        self.turn()
        self.assertEqual(connection.numbers, [])
        self.do(self.pull.sweep())
        self.turn()
        self.assertEqual(connection.numbers, [1])

    def test_lost_writes(self) -> None:
        """When the store may have lost its last writes, what is not acknowledged is sent again."""
        self.subscribe("cats")
        self.publish("cats", 2)
        connection = self.stream()
        self.take(connection.events[0])
        self.pull.reload_all()
        self.turn()
        self.assertEqual(connection.numbers, [1, 2, 2])

    def test_acknowledged_while_read(self) -> None:
        """What is acknowledged after a part was read and before it is sent is not sent again, hint or not."""
        for self.lose_hints in (False, True):
            with self.subTest(lose_hints=self.lose_hints):
                self.setUp()
                self.subscribe("cats")
                self.publish("cats", 2)
                connection = self.stream()
                reading = self.store.delay("read")
                self.pull.reload_all()
                self.turn()
                self.assertEqual(connection.numbers, [1, 2])
                self.take(connection.events[1])
                reading.callback(None)
                self.turn()
                self.assertEqual(connection.numbers, [1, 2])
                connection.disconnect()

    def test_acknowledged_all_the_time(self) -> None:
        """A part is read again only once: a client that acknowledges without pause still gets events."""
        self.subscribe("cats")
        self.publish("cats", 3)
        connection = self.stream()
        readings = self.store.delay("read"), self.store.delay("read")
        self.pull.reload_all()
        self.turn()
        for event, reading in zip(connection.events, readings, strict=False):
            self.pull._cache.clear()  # so that it is read from the store again
            self.take(event)
            reading.callback(None)
            self.turn()
        self.assertEqual(connection.numbers, [1, 2, 3, 2, 3])
