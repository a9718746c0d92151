"""The base of the tests of pulled subscriptions: services on a memory store, with a test clock."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.hints import decode
from routemaster.model import Subscription
from routemaster.pull.poller import Answer
from routemaster.pull.service import PullService
from routemaster.store.memory_store import MemoryStore
from tests.delivery.deliveries import FaultyStore

NOW = 1_700_000_000.0


def numbers(answer: Answer) -> list[int]:
    """The numbers of the events in an answer."""
    return [event["n"] for event in json.loads(answer.events)]


class PullCase(SynchronousTestCase):
    """Services of several processes on one store; after each test no poll waits, and no timer is left."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.memory = MemoryStore(self.clock, 10.0, self._hint)
        self.store = FaultyStore(self.memory, self.clock)
        self.services: list[PullService] = []
        self.pull = self.service()
        self.lose_hints = False
        self._count = 0
        self.addCleanup(self._stop_all)

    def service(self, max_bytes: int = 1 << 23) -> PullService:
        """Another process."""
        service = PullService(self.store, self.clock, max_bytes)  # type: ignore[arg-type]
        self.services.append(service)
        self.do(service.sweep())
        return service

    def _hint(self, message: bytes) -> None:
        hint = decode(message)
        if not self.lose_hints and hint is not None:
            for service in self.services:
                service.on_hint(hint)

    def _stop_all(self) -> None:
        self.store.recover()
        for service in self.services:
            self.do(service.stop())
        self.clock.advance(0)
        for service in self.services:
            self.assertEqual(service.waiting, 0)
            self.assertEqual(service.subscribers, 0)
            self.assertEqual(service._index.topics(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- doing

    def do(self, work: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def subscribe(self, *topics: str, name: str = "sub", create: bool = True, **options: Any) -> None:
        """Create the topics and subscribe to them, without a callback."""
        for topic in topics if create else ():
            self.do(self.memory.publish(topic, "pub", [b"{}"]))
        options = {"callback": None, "timeout": 0, "max": 100, **options}
        self.do(self.memory.subscribe(Subscription(name, topics, **options)))

    def publish(self, topic: str, count: int = 1) -> list[int]:
        """Publish events, numbered in order over all topics; return the numbers."""
        numbered = [self._count + 1 + place for place in range(count)]
        self._count += count
        self.do(self.memory.publish(topic, "pub", [b'{"n":%d}' % number for number in numbered]))
        return numbered

    def poll(
        self, wait: float = 0, most: int | None = None, ack: Answer | None = None, name: str = "sub",
        service: PullService | None = None,
    ) -> Deferred[Answer]:  # fmt: skip
        """A poll as the API makes it, when the turns of those before are free again."""
        service = service or self.pull
        self.clock.advance(0)

        async def poll() -> Answer:
            state = await service.state(name)
            if ack is not None:
                await service.acknowledge(state, ack.cursor)
            return await service.poll(state, most, wait)

        return Deferred.fromCoroutine(poll())

    def pulled(self, **options: Any) -> Answer:
        """The answer to a poll that does not wait."""
        return self.successResultOf(self.poll(**options))

    def acknowledge(self, answer: Answer, name: str = "sub", service: PullService | None = None) -> None:
        service = service or self.pull
        self.clock.advance(0)
        self.do(service.acknowledge(self.do(service.state(name)), answer.cursor))

    def garbage(self, *kinds: type) -> Callable[[], list[object]]:
        """What finds the objects of these kinds that from now on only the garbage collector would free."""
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        self.addCleanup(gc.garbage.clear)
        self.addCleanup(gc.set_debug, 0)

        def find() -> list[object]:
            gc.collect()
            return [each for each in gc.garbage if isinstance(each, kinds)]

        return find

    def turn(self, seconds: float = 0) -> None:
        """Let what was woken run, after some time."""
        self.clock.advance(seconds)
        self.clock.advance(0)

    # -- seeing

    def facts(self, name: str = "sub") -> Any:
        return self.do(self.memory.subscription(name))
