"""DNS look-ups in own threads, with a cache, so that a slow name does not delay other names.

`getaddrinfo` blocks, cannot be cancelled, and may take half a minute for a name
whose servers do not answer. So it runs in threads of its own and not in the
reactor's thread pool. One look-up per name runs at a time; a caller waits up to
its own timeout, and the look-up continues for the next caller. Names whose last
look-up failed have at most half of the threads, and those that were never looked
up at most three quarters.

A successful answer is fresh for `TTL` seconds. After that, up to `STALE`
seconds, it is still returned while a new look-up runs. An outdated address is
no danger: TLS verifies the server.

Nothing but what the cache returns is connected to. It checks each name, and each
address of an answer, the same parsed value that it returns; if one address is
refused, so is the name, even if an earlier answer was not.
"""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Thread
from typing import Any, TypeVar

from attrs import define
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from routemaster.callback_policy import is_address
from routemaster.interfaces import LastAttempt
from routemaster.sender.failure_reasons import DeliveryError, LocalFault, is_local
from routemaster.sender.fair_queue import FairQueue, QueueClosed, QueueFull

T = TypeVar("T")
MakeError = Callable[[], DeliveryError]  #: makes a new exception for each caller
Addresses = tuple[str, ...]
Check = Callable[[str, Sequence[IPv4Address | IPv6Address]], None]  #: raises DeliveryError; see `DNSCache`
Callers = list[Deferred[Addresses]]

TTL = 30.0  #: seconds for which an answer is fresh
STALE = 300.0  #: seconds for which an answer is returned at all
NEGATIVE_TTL = 5.0  #: seconds for which a failure is cached
THREADS = 32
MAX_WAITING = 1000  #: names that wait for a thread
MAX_NAMES = 10_000  #: names in the cache
MAX_ADDRESSES = 4  #: tried for one name; a limit, so that a name cannot make the bus scan a network


class NoAddress(DeliveryError):
    """The name does not resolve."""


class Refused(DeliveryError):
    """The bus may not connect to the host; the message says which rule refuses it."""


class Threads(ThreadPool):
    """Daemon threads for look-ups, started when needed."""

    threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def __init__(self, reactor: Any) -> None:
        super().__init__(0, THREADS, "dns")
        self._reactor = reactor
        self.start()

    def run(self, call: Callable[[], T]) -> Deferred[T]:
        """The result or error of a blocking call."""
        return deferToThreadPool(self._reactor, self, call)

    def stop(self) -> None:
        """End each thread after its present call, without waiting for it: a look-up cannot be cancelled."""
        self.threads.clear()  # `ThreadPool.stop` joins them
        if not self.joined:
            super().stop()


def look_up(name: str) -> Sequence[str]:
    """The addresses of a name in the system's order of preference; blocks.

    Errors: `NoAddress`; `LocalFault` if file descriptors are lacking, which
    `getaddrinfo` reports as a name that does not exist.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        try:
            socket.socket().close()
        except OSError as shortage:
            raise LocalFault(f"DNS look-up failed: {shortage.strerror}") from None
        if is_local(error):
            raise LocalFault(f"DNS look-up failed: {error}") from None
        why = getattr(error, "strerror", None) or error
        raise NoAddress(f"the host name {name} does not resolve ({why})") from None
    return [str(entry[4][0]) for entry in found]


def choose(addresses: Sequence[str]) -> Addresses:
    """At most `MAX_ADDRESSES` different ones, IPv6 and IPv4 in turn (RFC 8305 section 4)."""
    unique = list(dict.fromkeys(addresses))
    first = [address for address in unique if isIPv6Address(address) == isIPv6Address(unique[0])]
    others = [address for address in unique if address not in first]
    in_turn = [address for pair in zip(first, others, strict=False) for address in pair]
    return tuple((in_turn + first[len(others):] + others[len(first):])[:MAX_ADDRESSES])


@define
class _Entry:
    """The cached result of a look-up; times in the clock's seconds.

    It holds no exception: the traceback of one that is raised again and again
    grows, and keeps every frame that raised it, with the batch of each attempt.
    """

    addresses: Addresses
    error: MakeError | None
    fresh_until: float
    usable_until: float


def allow_all(name: str, addresses: Sequence[IPv4Address | IPv6Address]) -> None:
    """The `Check` that refuses nothing."""


class DNSCache:
    """Resolves host names."""

    def __init__(
        self,
        clock: Any,
        threads: Threads,
        resolve: Callable[[str], Sequence[str]] = look_up,
        check: Check = allow_all,
    ) -> None:
        """
        Args:
            resolve: looks up one name; blocks, in a thread.
            check: raises `Refused` if the bus may not connect to a name, or to one of all the
                addresses of an answer; without addresses only the name is known. Called in any thread.
        """
        self._clock = clock  # IReactorTime
        self._threads = threads
        self._resolve = resolve
        self._check = check
        self._queue = FairQueue(THREADS, 1, max_waiting=MAX_WAITING)
        self._entries: dict[str, _Entry] = {}  # oldest first
        self._waiting: dict[str, Callers] = {}  # callers, by the name that is being looked up

    async def addresses(self, name: str, timeout: float) -> Addresses:
        """Up to `MAX_ADDRESSES` addresses of `name`, best first; waits at most `timeout` seconds.

        Errors: `DeliveryError`, `Refused`, `LocalFault`, `QueueFull`, `QueueClosed`.
        """
        if is_address(name):
            literal = ip_address(name)
            self._check(name, (literal,))
            return (str(literal),)
        self._check(name, ())
        now = self._clock.seconds()
        entry = self._entries.get(name)
        if entry is not None and now < entry.usable_until:
            if now >= entry.fresh_until and name not in self._waiting:
                try:
                    self._start(name)
                except QueueFull:
                    entry.fresh_until = now + NEGATIVE_TTL
            if entry.error is not None:
                raise entry.error()
            return entry.addresses
        answer: Deferred[Addresses] = Deferred()
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._start(name, answer)
        else:
            waiting.append(answer)
        late = DeliveryError(f"the DNS look-up of {name} took over {timeout:g} s")
        timer = self._clock.callLater(timeout, lambda: answer.errback(late))
        try:
            return await answer
        finally:
            if timer.active():
                timer.cancel()
            if answer in waiting:
                waiting.remove(answer)

    def prefer(self, name: str, address: str) -> None:
        """Return `address` first from now on, because a connection to it succeeded."""
        entry = self._entries.get(name)
        if entry is not None and address in entry.addresses:
            entry.addresses = (address, *(other for other in entry.addresses if other != address))

    def close(self) -> None:
        """Fail all waiting callers with `LocalFault`; the threads end after their present look-ups."""
        self._queue.close()
        self._threads.stop()
        for waiting in tuple(self._waiting.values()):
            self._answer(waiting, (), partial(LocalFault, "the bus is stopping"))

    def _start(self, name: str, *callers: Deferred[Addresses]) -> Callers:
        """Start a look-up for `callers`; returns the list to which later callers are added."""
        entry = self._entries.get(name)
        last = LastAttempt.NONE
        if entry is not None:
            last = LastAttempt.SUCCEEDED if entry.error is None else LastAttempt.FAILED
        turn = self._queue.enter(name, last)
        waiting = self._waiting[name] = list(callers)
        Deferred.fromCoroutine(self._look_up(name, last, turn, waiting))
        return waiting

    async def _look_up(
        self, name: str, last: LastAttempt, turn: Deferred[None] | None, waiting: Callers
    ) -> None:  # fmt: skip
        addresses: Addresses = ()
        error: MakeError | None = None
        local = False
        try:
            if turn is not None:
                await turn
            try:
                addresses = choose(await self._threads.run(partial(self._find, name)))
            except DeliveryError as known:
                error = partial(type(known), str(known))
                local = isinstance(known, LocalFault)
                if isinstance(known, Refused):
                    self._entries.pop(name, None)  # an earlier answer is used no more
            self._store(name, addresses, error, local)
            self._queue.leave(name, last)
        except QueueClosed:
            error = partial(LocalFault, "the bus is stopping")
        except Exception as unexpected:
            error = partial(DeliveryError, f"the DNS look-up of {name} failed: {unexpected}")
            self._queue.leave(name, last)
        del self._waiting[name]
        self._answer(waiting, addresses, error)

    def _find(self, name: str) -> Sequence[str]:
        """All addresses of a name, checked, in canonical notation; blocks."""
        found = self._resolve(name)
        try:
            addresses = [ip_address(text) for text in found]
        except ValueError as error:
            raise Refused(f"the DNS look-up of {name} is refused: {error}") from None
        self._check(name, addresses)
        return [str(address) for address in addresses]

    def _answer(self, waiting: Callers, addresses: Addresses, error: MakeError | None) -> None:
        while waiting:
            caller = waiting.pop(0)
            if error is None:
                caller.callback(addresses)
            else:
                caller.errback(error())

    def _store(self, name: str, addresses: Addresses, error: MakeError | None, local: bool) -> None:
        now = self._clock.seconds()
        entry = self._entries.pop(name, None)
        if error is None:
            entry = _Entry(addresses, None, now + TTL, now + STALE)
        elif entry is not None and entry.error is None and now < entry.usable_until:
            entry.fresh_until = now + NEGATIVE_TTL  # the old answer stays in use
        elif local:
            return
        else:
            entry = _Entry((), error, now + NEGATIVE_TTL, now + NEGATIVE_TTL)
        self._entries[name] = entry
        if len(self._entries) > MAX_NAMES:
            del self._entries[next(iter(self._entries))]
