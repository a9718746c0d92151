"""The blocking client in threads and forked processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from twisted.trial.unittest import SynchronousTestCase

from client_tests.scripted import ScriptedServer, answer, real_bus, unique
from routemaster_client import Client

URL = "https://shop.example.com/orders/1"


class SharingTests(SynchronousTestCase):
    """One client for many."""

    def test_threads(self) -> None:
        """Threads share a client: each event is stored once, and each call gets its own answer."""
        topic = unique()
        with real_bus().client(unique()) as bus, ThreadPoolExecutor(8) as threads:
            ids = list(threads.map(lambda n: bus.noop(topic, URL, data=n), range(100)))
            bus.configure_topic(topic)
            self.assertEqual(len(set(ids)), 100)
            self.assertEqual(bus.topic(topic)["events"], 100)

    def test_fork(self) -> None:
        """A forked process makes a connection of its own, and the parent's stays usable."""
        server = ScriptedServer(*[answer(204)] * 3)
        self.addCleanup(server.close)
        bus = Client(server.url, "shop")
        self.addCleanup(bus.close)
        bus.noop("cats", URL)
        child = os.fork()
        if not child:
            try:
                bus.noop("cats", URL)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        bus.noop("cats", URL)
        self.assertEqual([each.connection for each in server.asked], [1, 2, 1])

    def test_use_after_close(self) -> None:
        """A closed client opens connections again when it is used."""
        server = ScriptedServer(*[answer(204)] * 2)
        self.addCleanup(server.close)
        with Client(server.url, "shop") as bus:
            bus.noop("cats", URL)
        bus.noop("cats", URL)
        bus.close()
        self.assertEqual([each.connection for each in server.asked], [1, 2])
