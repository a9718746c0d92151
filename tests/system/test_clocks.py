"""The wall clock of one process jumps, forwards and backwards by an hour, under load (libfaketime).

The process is the bus or its Redis. Its monotonic clock goes on, as a system's does when its time is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest

from chaos.fleet import stretched
from routemaster.testing.daemon import Daemon
from routemaster.testing.redis_server import PrivateRedis, servers
from routemaster.testing.zoo import Answer
from tests.system.test_system import Load, Sink, SystemCase, until

HOUR = 3600
JUMPS = (HOUR, -HOUR, 0)  #: from the right time, one after the other
LEASE_TTL = 2.0  #: seconds
FAILURES = 3  #: that are waited for after each jump; a few more may come
LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


def library() -> str:
    """The path of libfaketime; SkipTest if it is not installed."""
    found = [str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])]
    if not found:
        raise SkipTest("libfaketime is not here: install Debian's package faketime")
    return found[0]


class Clock:
    """The wall clock of a process that is started with its `environment`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip

    def set(self, seconds: int) -> None:
        """Have it differ by so many seconds from the right time; the process notices within a second."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


class FakedRedis(PrivateRedis):
    """A Redis with a clock of its own."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(servers()[-1])  # the newer ones of Debian do not start with libfaketime
        self._variables = [f"{name}={value}" for name, value in clock.environment.items()]

    def command(self) -> list[str]:
        return ["/usr/bin/env", *self._variables, *super().command()]

    def ahead(self) -> float:
        """By how many seconds its clock is ahead."""
        return int(self.call(b"TIME").split(b"\r\n")[2]) - time.time()


class ClockTests(SystemCase):
    """Nothing is lost, repeated or out of order, and deliveries go on."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock(self.place / "clock")

    async def start(self, redis: PrivateRedis, **environment: str) -> tuple[Daemon, Sink, Load]:
        self.addCleanup(redis.stop)
        redis.start()
        daemon = self.daemon("--redis-url", redis.url, "--lease-ttl", f"{LEASE_TTL:g}", "--max-backoff-ms", "1000",
                             **environment)  # fmt: skip
        await daemon.start()
        return daemon, *await self.under_load(daemon)

    async def jump_about(self, sink: Sink, load: Load, ahead: Callable[[], Any]) -> None:
        """Set the clock again and again; `ahead` returns by how much the process thinks it is ahead."""
        await load.further(50)
        for jump in JUMPS:
            self.clock.set(jump)
            limit = reactor.seconds() + stretched(20)
            while abs(await ahead() - jump) > 60:
                self.assertLess(reactor.seconds(), limit, f"the process does not notice {jump:+d} s")
                await deferLater(reactor, 0.05)
            await self.goes_on(sink, load)
            sink.default = Answer(503)  # the pause after a failure is stored, with the time at which it ends
            failures = len(sink.received) + FAILURES
            await until(lambda failures=failures: len(sink.received) >= failures, "attempts that fail")
            sink.default = Answer(204)
            await self.goes_on(sink, load)

    async def goes_on(self, sink: Sink, load: Load) -> None:
        """Events that are accepted from now on are delivered, none later than a lease is taken over."""
        await load.further(20)
        due, seen = set(load.accepted), 0

        def delivered() -> bool:
            nonlocal seen
            new = sink.batches[seen:]
            seen += len(new)
            due.difference_update((event["topic"], *event["data"]) for batch in new for event in batch)
            return not due

        await until(delivered, "delivery of what was accepted before", 2 * LEASE_TTL)

    async def test_bus(self) -> None:
        """The bus's clock jumps."""
        redis = PrivateRedis(servers()[0])
        daemon, sink, load = await self.start(redis, **self.clock.environment)
        client = self.client(daemon)

        async def ahead() -> float:
            date = (await client.ask("GET", "/health")).headers.getRawHeaders("date")[0]
            return parsedate_to_datetime(date).timestamp() - time.time()

        await self.jump_about(sink, load, ahead)
        await self.settle(load, sink, 2 * FAILURES * len(JUMPS))
        self.assertNotIn("Traceback", daemon.log)
        self.assertEqual(await daemon.stop(), 0)

    async def test_redis(self) -> None:
        """Redis's clock jumps."""
        redis = FakedRedis(self.clock)
        daemon, sink, load = await self.start(redis)

        async def ahead() -> float:
            return redis.ahead()

        await self.jump_about(sink, load, ahead)
        await self.settle(load, sink, 2 * FAILURES * len(JUMPS))
        self.assertNotIn("Traceback", daemon.log)
        self.assertEqual(await daemon.stop(), 0)
