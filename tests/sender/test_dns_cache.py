"""DNS look-ups and their cache."""

from __future__ import annotations

from gc import collect
from queue import SimpleQueue
from threading import Event, current_thread
from typing import Any
from weakref import ref

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from routemaster.sender import dns_cache
from routemaster.sender.dns_cache import MAX_WAITING, DNSCache, NoAddress, Refused, Threads, choose
from routemaster.sender.failure_reasons import DeliveryError
from routemaster.sender.fair_queue import QueueFull


class FakeThreads:
    """Records look-ups, which a test answers."""

    def __init__(self) -> None:
        self.look_ups: list[Deferred[Any]] = []

    def run(self, call: object) -> Deferred[Any]:
        self.look_ups.append(Deferred())
        return self.look_ups[-1]

    def stop(self) -> None:
        """Nothing runs."""


class DNSCacheTests(SynchronousTestCase):
    """The cache, on a test clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        threads: Any = FakeThreads()
        self.look_ups = threads.look_ups
        self.cache = DNSCache(self.clock, threads)

    def addresses(self, name: str, timeout: float = 2.0) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.cache.addresses(name, timeout))

    def test_literals(self) -> None:
        """An IP address is returned without a look-up."""
        for literal in ("127.0.0.1", "::1"):
            self.assertEqual(self.successResultOf(self.addresses(literal)), (literal,))
        self.assertEqual(self.look_ups, [])

    def test_no_exception_is_raised_twice(self) -> None:
        """Each caller gets an exception of its own, so that none keeps the frames of another attempt."""
        waiting = [self.addresses("a.example") for _ in range(2)]
        self.look_ups[0].errback(NoAddress("the host name a.example does not resolve"))
        failures = [each.value for each in map(self.failureResultOf, waiting)]
        failures += [self.failureResultOf(self.addresses("a.example")).value for _ in range(3)]
        self.assertEqual(len(set(map(id, failures))), 5)
        self.assertEqual({(type(each), str(each)) for each in failures}, {(NoAddress, str(failures[0]))})

    def test_failed_attempts_keep_nothing(self) -> None:
        """What an attempt holds is freed when its look-up fails, though the failure is cached."""

        class Batch:
            """Held by the frame of an attempt."""

        async def attempt(batch: Batch) -> None:
            await self.cache.addresses("a.example", 2.0)

        batches = []
        for number in range(4):
            batch = Batch()
            batches.append(ref(batch))
            failed = Deferred.fromCoroutine(attempt(batch))
            if not number:
                self.look_ups[0].errback(NoAddress("a.example"))
            self.failureResultOf(failed, NoAddress)
            del batch, failed
        collect()
        self.assertEqual([each() for each in batches], [None] * 4)

    def test_single_flight(self) -> None:
        """Concurrent callers share one look-up."""
        callers = [self.addresses("a.example") for _ in range(5)]
        [look_up] = self.look_ups
        look_up.callback(["192.0.2.1"])
        for each in callers:
            self.assertEqual(self.successResultOf(each), ("192.0.2.1",))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_expiry(self) -> None:
        """An answer is used while fresh, then during the next look-up, and not after `STALE`."""
        self.addresses("a.example")
        self.look_ups[0].callback(["192.0.2.1"])
        self.clock.advance(dns_cache.TTL - 1)
        self.successResultOf(self.addresses("a.example"))
        self.assertEqual(len(self.look_ups), 1)
        self.clock.advance(2)
        self.assertEqual(self.successResultOf(self.addresses("a.example")), ("192.0.2.1",))
        self.assertEqual(len(self.look_ups), 2)
        self.clock.advance(dns_cache.STALE)
        waiting = self.addresses("a.example")
        self.assertNoResult(waiting)
        self.look_ups[1].callback(["192.0.2.2"])
        self.assertEqual(self.successResultOf(waiting), ("192.0.2.2",))

    def test_failed_refresh(self) -> None:
        """If the refresh fails, the old answer stays in use, and the next refresh waits for `NEGATIVE_TTL`."""
        self.addresses("a.example")
        self.look_ups[0].callback(["192.0.2.1"])
        self.clock.advance(dns_cache.TTL + 1)
        self.addresses("a.example")
        self.look_ups[1].errback(NoAddress("no"))
        self.assertEqual(self.successResultOf(self.addresses("a.example")), ("192.0.2.1",))
        self.assertEqual(len(self.look_ups), 2)
        self.clock.advance(dns_cache.NEGATIVE_TTL)
        self.addresses("a.example")
        self.assertEqual(len(self.look_ups), 3)

    def test_negative(self) -> None:
        """A failure is cached for `NEGATIVE_TTL`."""
        first = self.addresses("no.example")
        self.look_ups[0].errback(NoAddress("no"))
        self.failureResultOf(first, NoAddress)
        self.failureResultOf(self.addresses("no.example"), NoAddress)
        self.assertEqual(len(self.look_ups), 1)
        self.clock.advance(dns_cache.NEGATIVE_TTL)
        self.assertNoResult(self.addresses("no.example"))
        self.assertEqual(len(self.look_ups), 2)

    def test_deadline(self) -> None:
        """A caller's timeout does not end the look-up: its answer serves the next caller."""
        late = self.addresses("slow.example", 2.0)
        self.clock.advance(2.0)
        self.failureResultOf(late, DeliveryError)
        self.look_ups[0].callback(["192.0.2.1"])
        self.assertEqual(self.successResultOf(self.addresses("slow.example")), ("192.0.2.1",))
        self.assertEqual(len(self.look_ups), 1)

    def test_cancelled(self) -> None:
        """Cancelling one caller leaves no timer and does not affect the others."""
        one, two = self.addresses("a.example"), self.addresses("a.example")
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.look_ups[0].callback(["192.0.2.1"])
        self.successResultOf(two)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_limits(self) -> None:
        """Names never looked up use three quarters of the threads, and at most `MAX_WAITING` wait."""
        used = dns_cache.THREADS * 3 // 4
        waiting = [self.addresses(f"dead{n}.example") for n in range(used + MAX_WAITING)]
        self.assertEqual(len(self.look_ups), used)
        self.failureResultOf(self.addresses("more.example"), QueueFull)
        self.cache.close()
        for each in waiting:
            self.failureResultOf(each, DeliveryError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cache_size(self) -> None:
        """The cache holds at most `MAX_NAMES` names, and drops the oldest."""
        self.patch(dns_cache, "MAX_NAMES", 3)
        for n in range(5):
            self.addresses(f"n{n}.example")
            self.look_ups[-1].callback(["192.0.2.1"])
        for n in (4, 3, 2):
            self.successResultOf(self.addresses(f"n{n}.example"))
        self.assertEqual(len(self.look_ups), 5)
        self.assertNoResult(self.addresses("n1.example"))

    def test_stop(self) -> None:
        """Look-ups run in daemon threads, and `stop` does not wait for one that hangs."""
        threads, hanging, daemon = Threads(reactor), Event(), SimpleQueue[bool]()
        self.addCleanup(hanging.set)

        def hang() -> None:
            daemon.put(current_thread().daemon)
            hanging.wait(10)

        threads.run(hang)
        self.assertTrue(daemon.get(timeout=10))
        threads.stop()

    def test_every_address_is_checked(self) -> None:
        """All of an answer is checked, not only the `MAX_ADDRESSES` that are used; a refusal is cached."""
        self.refused = "192.0.2.9"
        cache = self.checked(lambda name: [f"192.0.2.{n}" for n in range(10)])
        for _ in range(2):
            failed = Deferred.fromCoroutine(cache.addresses("a.example", 1.0))
            self.assertEqual(str(self.failureResultOf(failed, Refused).value), "192.0.2.9")
        self.assertEqual(self.asked, ["a.example"])  # the refusal is cached
        self.clock.advance(dns_cache.NEGATIVE_TTL)
        self.refused = "none"
        self.assertEqual(len(self.successResultOf(Deferred.fromCoroutine(cache.addresses("a.example", 1.0)))), 4)

    def test_rebinding(self) -> None:
        """An answer with a refused address replaces an earlier one, which a failed look-up does not."""
        answers: list[Any] = [["192.0.2.1"], NoAddress("none"), ["192.0.2.1", "192.0.2.2"], NoAddress("none")]

        def resolve(name: str) -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return list(answer)

        self.refused = "192.0.2.2"
        cache = self.checked(resolve)
        for pause, expected in ((dns_cache.TTL, True), (dns_cache.NEGATIVE_TTL, True), (0, False)):
            found = Deferred.fromCoroutine(cache.addresses("a.example", 1.0))
            if expected:
                self.assertEqual(self.successResultOf(found), ("192.0.2.1",))
            else:
                self.failureResultOf(found, Refused)
            self.clock.advance(pause)
            if pause:  # an outdated answer is returned while the next look-up runs
                Deferred.fromCoroutine(cache.addresses("a.example", 1.0)).addErrback(lambda _: None)
        self.assertEqual(len(answers), 1)

    def checked(self, resolve: Any) -> DNSCache:
        """A cache whose look-ups end at once, and whose check refuses `refused`."""
        self.asked: list[str] = []

        class Caller:
            def run(self, call: Any) -> Deferred[Any]:
                return maybeDeferred(call)

        def ask(name: str) -> Any:
            self.asked.append(name)
            return resolve(name)

        def check(name: str, addresses: Any) -> None:
            if self.refused in map(str, addresses):
                raise Refused(self.refused)

        threads: Any = Caller()
        return DNSCache(self.clock, threads, ask, check)

    def test_literal_is_checked(self) -> None:
        """An IP address is checked, and returned as it was checked."""
        self.refused = "127.0.0.1"
        cache = self.checked(lambda name: [])
        self.failureResultOf(Deferred.fromCoroutine(cache.addresses("127.0.0.1", 1.0)), Refused)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(cache.addresses("::FFFF", 1.0))), ("::ffff",))
        self.assertEqual(self.asked, [])

    def test_choice(self) -> None:
        """At most four different addresses are returned, IPv6 and IPv4 in turn."""
        self.assertEqual(choose(["::1", "::2", "::3", "1.1.1.1", "::1"]), ("::1", "1.1.1.1", "::2", "::3"))
        self.assertEqual(len(choose([f"192.0.2.{n}" for n in range(99)])), 4)
        self.assertEqual(choose(["1.1.1.1"]), ("1.1.1.1",))
