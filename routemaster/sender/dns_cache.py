"""Host names to addresses, so that no name's trouble becomes another's.

`getaddrinfo` blocks, cannot be cancelled, and may take half a minute over a
dead name. So it runs in threads of its own (never in the reactor's pool), one
look-up for a name at a time, however many ask; whoever asks waits for as long
as it wants to, while the look-up goes on for the next to ask. DNSCache that have
not resolved lately share half of the threads, so the dead can hang these and
no more; at worst a name never seen before waits while as many others hang. A
name that did resolve is answered from memory for `STALE` seconds: after `TTL`
the old answer is still given, and a new one fetched behind it. (Should it be
out of date: TLS checks who is there.)
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from attrs import define
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from routemaster.sender.failure_reasons import DeliveryError, LocalFault, is_local
from routemaster.sender.fair_queue import Closed, FairQueue, Full

T = TypeVar("T")

TTL = 30.0  #: seconds for which an answer is fresh
STALE = 300.0  #: seconds for which an answer is better than none
NEGATIVE_TTL = 5.0  #: seconds for which a failure is believed
THREADS = 32
MAX_WAITING = 1000  #: names
MAX_NAMES = 10_000  #: names remembered
MAX_ADDRESSES = 4  #: tried for one name: more would let a name have us scan ports


class NoAddress(DeliveryError):
    """The name does not resolve."""


class Runner(Protocol):
    """Runs blocking calls elsewhere."""

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """The call's result, in time."""

    def stop(self) -> None:
        """Take no more calls; results still out never arrive."""


class Threads:
    """A few daemon threads, started when needed.

    They are not joined at the end: one may be deep in a look-up.
    """

    def __init__(self, reactor: Any, most: int = THREADS) -> None:
        self._reactor = reactor  # IReactorFromThreads
        self._most = most
        self._calls: SimpleQueue[tuple[Callable[[], Any], Deferred[Any]] | None] = SimpleQueue()
        self._started = 0
        self._pending = 0
        self._stopped = False

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """Queue `call`; its result or error comes in the reactor's thread."""
        result: Deferred[T] = Deferred()
        self._pending += 1
        if self._pending > self._started < self._most:
            self._started += 1
            Thread(target=self._work, name="names", daemon=True).start()
        self._calls.put((call, result))
        return result

    def stop(self) -> None:
        """Let each thread end after what it does now."""
        self._stopped = True
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            call, result = job
            try:
                answer = call()
            except BaseException:
                answer = Failure()
            self._reactor.callFromThread(self._hand_over, result, answer)

    def _hand_over(self, result: Deferred[Any], answer: Any) -> None:
        self._pending -= 1
        if not self._stopped:
            result.callback(answer)


def look_up(name: str) -> Sequence[str]:
    """Ask the system, blocking: addresses in the system's order of preference.

    Errors: `NoAddress`; `LocalFault` if it is for lack of descriptors, which
    the system's resolver reports as a name that does not exist.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as fault:
        try:
            socket.socket().close()
        except OSError as shortage:
            raise LocalFault(f"no name look-up: {shortage.strerror}") from None
        if is_local(fault):
            raise LocalFault(f"no name look-up: {fault}") from None
        why = getattr(fault, "strerror", None) or fault
        raise NoAddress(f"the name {name} does not resolve ({why})") from None
    return [str(entry[4][0]) for entry in found]


def choose(addresses: Sequence[str]) -> tuple[str, ...]:
    """At most `MAX_ADDRESSES`, each once, the families in turn."""
    unique = list(dict.fromkeys(addresses))
    first = [address for address in unique if isIPv6Address(address) == isIPv6Address(unique[0])]
    others = [address for address in unique if address not in first]
    turns = [address for pair in zip(first, others, strict=False) for address in pair]
    return tuple((turns + first[len(others):] + others[len(first):])[:MAX_ADDRESSES])


@define
class _Known:
    addresses: tuple[str, ...]
    error: DeliveryError | None
    fresh_until: float
    usable_until: float


class DNSCache:
    """The resolver: `addresses` is its one question."""

    def __init__(
        self, clock: Any, runner: Runner, ask: Callable[[str], Sequence[str]] = look_up
    ) -> None:
        self._clock: Any = clock  # IReactorTime
        self._runner = runner
        self._ask = ask
        self._slots = FairQueue(THREADS, 1, max_waiting=MAX_WAITING)
        self._known: dict[str, _Known] = {}  # oldest first
        self._asking: dict[str, list[Deferred[tuple[str, ...]]]] = {}
        self._flights: set[Deferred[None]] = set()

    async def addresses(self, name: str, timeout: float) -> tuple[str, ...]:
        """Up to four addresses, best first; waits at most `timeout` seconds.

        Errors: `DeliveryError` with the sentence, `LocalFault`, `Full`, `Closed`.
        """
        if isIPAddress(name) or isIPv6Address(name):
            return (name,)
        now = self._clock.seconds()
        known = self._known.get(name)
        if known is not None and now < known.usable_until:
            if now >= known.fresh_until and name not in self._asking:
                try:
                    self._start(name)
                except Full:
                    known.fresh_until = now + NEGATIVE_TTL
            if known.error is not None:
                raise known.error
            return known.addresses
        answer: Deferred[tuple[str, ...]] = Deferred()
        waiting = self._asking.get(name)
        if waiting is None:
            waiting = self._start(name, answer)
        else:
            waiting.append(answer)
        late = DeliveryError(f"the look-up of {name} took over {timeout:g} s")
        timer = self._clock.callLater(timeout, lambda: answer.errback(late))
        try:
            return await answer
        finally:
            if timer.active():
                timer.cancel()
            if answer in waiting:
                waiting.remove(answer)

    def prefer(self, name: str, address: str) -> None:
        """Try `address` first from now on: it answered where others before it did not."""
        known = self._known.get(name)
        if known is not None and address in known.addresses:
            known.addresses = (address, *(other for other in known.addresses if other != address))

    def close(self) -> None:
        """End all waiting with `Closed`; threads end on their own."""
        self._slots.close()
        self._runner.stop()
        for flight in tuple(self._flights):
            flight.cancel()

    def _start(self, name: str, *first: Deferred[tuple[str, ...]]) -> list[Deferred[tuple[str, ...]]]:
        turn = self._slots.enter(name)
        waiting = self._asking[name] = list(first)
        flight = Deferred.fromCoroutine(self._fly(name, turn, waiting))
        self._flights.add(flight)
        flight.addBoth(lambda _: self._flights.discard(flight))
        return waiting

    async def _fly(
        self, name: str, turn: Deferred[None] | None, waiting: list[Deferred[tuple[str, ...]]]
    ) -> None:
        answer: tuple[str, ...] = ()
        fault: DeliveryError | None = None
        try:
            if turn is not None:
                await turn
            try:
                answer = choose(await self._runner.run(partial(self._ask, name)))
            except DeliveryError as reason:
                fault = reason
            self._remember(name, answer, fault)
            self._slots.leave(name, proven=fault is None)
        except (CancelledError, Closed):
            fault = LocalFault("the bus is stopping")
        except Exception as unexpected:
            fault = DeliveryError(f"the look-up of {name} failed: {unexpected}")
            self._slots.leave(name, proven=False)
        del self._asking[name]
        while waiting:
            listener = waiting.pop(0)
            if fault is None:
                listener.callback(answer)
            else:
                listener.errback(fault)

    def _remember(self, name: str, answer: tuple[str, ...], fault: DeliveryError | None) -> None:
        now = self._clock.seconds()
        known = self._known.pop(name, None)
        if fault is None:
            known = _Known(answer, None, now + TTL, now + STALE)
        elif known is not None and known.error is None and now < known.usable_until:
            known.fresh_until = now + NEGATIVE_TTL  # an old answer is better than none
        elif isinstance(fault, LocalFault):
            return
        else:
            known = _Known((), fault, now + NEGATIVE_TTL, now + NEGATIVE_TTL)
        self._known[name] = known
        if len(self._known) > MAX_NAMES:
            del self._known[next(iter(self._known))]
