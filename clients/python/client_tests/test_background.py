"""The background publisher: bulks, order, what is dropped, exit and fork."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import ScriptedServer, answer, real_bus, unique
from routemaster_client import Client, Invalid, NewEvent
from routemaster_client.background import BackgroundPublisher, QueueFull

URL = "https://shop.example.com/orders/1"
OK = answer(204)
BUSY = answer(503, {"error": "Redis is loading"}, Retry_After=0)
BAD = answer(400, {"error": "event 1: data is invalid"})


class BackgroundTests(SynchronousTestCase):
    """One publisher on a scripted server or the real bus."""

    def setUp(self) -> None:
        logging.getLogger("routemaster_client").addHandler(logging.NullHandler())
        self.drops: list[tuple[str, Any, type[Exception]]] = []

    def publisher(self, *script: bytes, unknown: bool = False, **options: Any) -> BackgroundPublisher:
        self.server = ScriptedServer(*script)
        self.addCleanup(self.server.close)
        client = Client(self.server.url, "shop", retries=0, retry_unknown=unknown)
        self.addCleanup(client.close)
        made = BackgroundPublisher(client, on_drop=self.on_drop, **options)
        made._pause = lambda seconds: None  # type: ignore[method-assign]
        self.addCleanup(made.close, 0)
        return made

    def on_drop(self, topic: str, events: Any, error: Exception) -> None:
        self.drops.append((topic, [event.data for event in events], type(error)))

    def bulks(self) -> list[list[Any]]:
        return [[event["data"] for event in json.loads(each.body)] for each in self.server.asked]

    def test_bulks(self) -> None:
        """Events that are queued while others are sent go together, in order, each topic's for itself."""
        publisher = self.publisher(*[OK] * 9, linger=60)
        for n in range(5):
            publisher.noop("cats", URL, data=n)
            publisher.noop("dogs", URL, data=n)
        self.assertTrue(publisher.flush(20))
        self.assertEqual(self.bulks(), [[0, 1, 2, 3, 4]] * 2)
        self.assertEqual([each.line.split()[1] for each in self.server.asked], ["/topics/cats", "/topics/dogs"])
        self.assertEqual((publisher.published, publisher.dropped, publisher.pending), (10, 0, 0))

    def test_full_bulks_do_not_wait(self) -> None:
        """A bulk is sent as soon as it is full, and has at most 1,000 events."""
        publisher = self.publisher(*[OK] * 3, linger=3600)
        for n in range(2000):
            publisher.noop("cats", URL, data=n)
        with publisher._condition:
            self.assertTrue(publisher._condition.wait_for(lambda: not publisher.pending, 30))
        self.assertEqual([len(each) for each in self.bulks()], [1000, 1000])

    def test_bytes(self) -> None:
        """A bulk has at most 1 MiB; a larger event goes alone."""
        publisher = self.publisher(*[OK] * 9, linger=60)
        for size in (400_000, 400_000, 400_000, 2_000_000):
            publisher.noop("cats", URL, data="x" * size)
        self.assertTrue(publisher.close(20))
        self.assertEqual([len(each) for each in self.bulks()], [2, 1, 1])

    def test_unavailable(self) -> None:
        """While the bus is unavailable nothing is lost, and nothing sent twice."""
        publisher = self.publisher(BUSY, BUSY, BUSY, OK, linger=0)
        publisher.noop("cats", URL, data=1)
        self.assertTrue(publisher.flush(20))
        self.assertEqual(self.bulks(), [[1]] * 4)
        self.assertEqual((publisher.published, self.drops), (1, []))

    def test_bad_event(self) -> None:
        """Of a bulk that is refused only the bad event is dropped; the others keep their order."""
        publisher = self.publisher(BAD, BAD, OK, BAD, OK, linger=60)
        for n in range(4):
            publisher.noop("cats", URL, data=n)
        self.assertTrue(publisher.flush(20))
        self.assertEqual(self.bulks(), [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3]])
        self.assertEqual(self.drops, [("cats", [1], Invalid)])
        self.assertEqual((publisher.published, publisher.dropped), (3, 1))

    def test_unknown_outcome(self) -> None:
        """What may have been stored is dropped, unless the client may send it twice."""
        lost = answer(503, {"error": "lost", "outcome": "unknown"}, Retry_After=0)
        for unknown, published in ((False, 0), (True, 1)):
            publisher = self.publisher(lost, OK, unknown=unknown, linger=0)
            publisher.noop("cats", URL)
            self.assertTrue(publisher.flush(20))
            self.assertEqual((publisher.published, publisher.dropped), (published, 1 - published))

    def test_full_queue(self) -> None:
        """A full queue refuses at once, counts, and calls back; a callback that fails harms nothing."""
        publisher = self.publisher(OK, linger=60, capacity=2)
        self.assertEqual([publisher.noop("cats", URL, data=n) for n in range(3)], [True, True, False])
        self.assertEqual(self.drops, [("cats", [2], QueueFull)])
        publisher._on_drop = lambda *args: 1 / 0
        self.assertFalse(publisher.noop("cats", URL, data=3))
        self.assertTrue(publisher.flush(20))
        self.assertEqual((publisher.published, publisher.dropped), (2, 2))

    def test_invalid(self) -> None:
        """An event that the bus would refuse is refused where it is published."""
        publisher = self.publisher()
        for topic, url in (("Cats", URL), ("cats", "x")):
            with self.assertRaises(Invalid):
                publisher.noop(topic, url)
        self.assertEqual(publisher.pending, 0)

    def test_close(self) -> None:
        """A closed publisher accepts nothing, and its thread ends."""
        publisher = self.publisher(OK, linger=3600)
        publisher.noop("cats", URL)
        thread = publisher._thread
        assert thread is not None
        self.assertTrue(publisher.close(20))
        with self.assertRaisesRegex(RuntimeError, "closed"):
            publisher.noop("cats", URL)
        thread.join(20)
        self.assertFalse(thread.is_alive())

    def test_threads(self) -> None:
        """Many threads publish at once: the bus has every event once, those of one thread in their order."""
        topic = unique()
        bus = real_bus()
        with bus.client(unique()) as client:
            client.configure_topic(topic, history=600_000)
            with BackgroundPublisher(client) as publisher:
                threads = [
                    threading.Thread(target=lambda name=name: [
                        publisher.noop(topic, URL, data=[name, n]) for n in range(200)
                    ]) for name in range(5)
                ]  # fmt: skip
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            found, page = [], client.topic_events(topic)
            while page["events"]:
                found += [tuple(event["data"]) for event in page["events"]]
                page = client.topic_events(topic, after=page["events"][-1]["id"])
        self.assertEqual(sorted(found), [(name, n) for name in range(5) for n in range(200)])
        for name in range(5):
            self.assertEqual([n for each, n in found if each == name], list(range(200)))

    def test_exit(self) -> None:
        """The end of the interpreter flushes the queue."""
        self.publisher(OK)
        program = (
            "from routemaster_client import Client\n"
            "from routemaster_client.background import BackgroundPublisher\n"
            f"p = BackgroundPublisher(Client({self.server.url!r}, 'shop'), linger=3600)\n"
            f"p.noop('cats', {URL!r}, data=1)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        self.assertEqual(self.bulks(), [[1]])

    def test_fork(self) -> None:
        """A forked process sends what it queues itself, and the parent what it has queued; nothing twice."""
        publisher = self.publisher(OK, OK, linger=3600)
        publisher.publish("cats", NewEvent("noop", URL, data="parent"))
        child = os.fork()
        if not child:
            try:
                publisher.noop("cats", URL, data="child")
                publisher.flush(20)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        self.assertTrue(publisher.flush(20))
        self.assertEqual(self.bulks(), [["child"], ["parent"]])
