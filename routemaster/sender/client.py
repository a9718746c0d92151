"""The sender: a turn in the fair queue, and one exchange for each attempt."""

# mypy: allow-untyped-calls
# (many functions of Twisted and zope.interface have no annotations)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from routemaster.callback_policy import CallbackPolicy
from routemaster.callback_url import parse_callback
from routemaster.interfaces import LastAttempt, Outcome, Trial, Verdict
from routemaster.model import Signing
from routemaster.sender.connection import Key
from routemaster.sender.connection_policy import ConnectionPolicy
from routemaster.sender.dns_cache import DNSCache, Refused, Threads, look_up
from routemaster.sender.exchange import Acknowledging, Exchange
from routemaster.sender.failure_reasons import DeliveryError, one_line
from routemaster.sender.fair_queue import FairQueue, QueueClosed, QueueFull
from routemaster.sender.pool import Pool
from routemaster.sender.target import BadCallback, Target
from routemaster.sender.tls import ClientCertificate, TLSTrust
from routemaster.sender.treq_agent import http_client
from routemaster.sender.trial import TrialExchange
from routemaster.util.work_queue import WorkQueue

PACE = 0.02  #: seconds between attempts to subscribers whose last attempt failed, and a few that had none
LONG = 0.5   #: seconds after which an attempt leaves its place to others that wait
REFUSAL_TIMEOUT = 0.5  #: seconds for the look-up when a client subscribes: it waits for Redis too
MAX_TARGETS = 10_000  #: parsed callbacks that are kept
HASHED_AT_ONCE = 1_048_576  #: bytes; to hash them takes about a millisecond

STOPPING = Outcome(Verdict.LOCAL, error="the bus is stopping")


class TreqSender:
    """The Sender that delivers (`routemaster.interfaces.Sender`)."""

    def __init__(
        self,
        reactor: Any,
        *,
        user_agent: str,
        connect_timeout: float = 2.0,
        timeout: float = 20.0,
        acknowledge: Collection[int] = (200, 204),
        verify: bool = True,
        ca_files: Sequence[Path] = (),
        client_certificate: Path | None = None,
        client_private_key: Path | None = None,
        max_open: int = 1000,
        max_per_server: int = 100,
        resolve: Callable[[str], Sequence[str]] = look_up,
        policy: CallbackPolicy = CallbackPolicy(),  # noqa: B008  # immutable
        loopback: Callable[[], bool | None] = lambda: False,
    ) -> None:
        """`connect_timeout`: seconds for look-up and TCP; `timeout`: seconds for the whole exchange.

        `max_open`: attempts, and connections, at the same time; `max_per_server`:
        for one host and port. `acknowledge`: the statuses that acknowledge. `resolve`
        looks a name up; it blocks, in a thread. `client_certificate` and its key are shown to servers that ask.
        `loopback` returns whether the bus itself listens on loopback alone, None before its ports are open.
        Raises `ConfigError` if one of `ca_files` or the client's pair cannot be used.
        """
        self._reactor = reactor
        self._timeout = timeout
        self._user_agent = user_agent
        self._acknowledging = Acknowledging(acknowledge)
        self._dns = DNSCache(reactor, Threads(reactor), resolve, ConnectionPolicy(policy, loopback).check)
        trust = TLSTrust(verify, ca_files)
        self.pool = Pool(reactor, self._dns, trust, max_open=max_open, connect_timeout=connect_timeout)
        self.client_certificate: ClientCertificate | None = None
        if client_certificate is not None and client_private_key is not None:
            pair = client_certificate, client_private_key
            self.client_certificate = ClientCertificate(*pair, trust, self.pool.retire)
        self.queue = FairQueue(max_open, max_per_server, paced=True)
        self._pacer: Any = None
        self._watch: Any = None
        self.under_way: dict[Turn, None] = {}  #: oldest first
        self.claims: Counter[Key] = Counter()  #: idle connections that turns count on
        self._client = http_client(self.pool)
        self._writing = WorkQueue(reactor)
        self._targets: dict[tuple[str, str | None], Target] = {}  # oldest first
        self._exchanges: set[Exchange] = set()

    def turn(self, callback: str, uuid: str | None, last: LastAttempt = LastAttempt.NONE) -> Turn:
        """`interfaces.Sender.turn`."""
        return Turn(self, callback, uuid, last)

    async def exchange(
        self, target: Target, body: bytes, attempt: int, signing: Signing | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Outcome:  # fmt: skip
        """POST `body` to `target` at once; for `Turn`."""
        if headers is not None:
            target = target.extended(headers)
        if signing is not None:
            target = await self._signed(target, signing, body)
        if self.queue.closed:
            return STOPPING
        exchange = Exchange(
            self._client, self._reactor, self._writing, self._timeout, self._acknowledging, target, body, attempt
        )
        self._exchanges.add(exchange)
        try:
            exchange.post()
            return await exchange.done
        finally:
            self._exchanges.discard(exchange)

    async def _signed(self, target: Target, signing: Signing, body: bytes) -> Target:
        """The target with the signature of a body. Large bodies are hashed in a thread, beside the reactor."""
        if len(body) * (1 + len(signing.secrets)) <= HASHED_AT_ONCE:  # for the ID, and for each signature
            return target.signed(signing, body)
        threads = self._reactor.getThreadPool()
        return await deferToThreadPool(self._reactor, threads, target.signed, signing, body)

    async def try_out(
        self, callback: str, uuid: str | None, body: bytes, signing: Signing | None = None
    ) -> Trial:
        """`interfaces.Sender.try_out`."""
        if self.queue.closed:
            return Trial(STOPPING, 0.0, "", "")
        try:
            target = self.target(callback, uuid)
        except BadCallback as fault:
            return Trial(Outcome(Verdict.FAILED, error=one_line(str(fault))), 0.0, "", "")
        if signing is not None:
            target = target.signed(signing, body)
        trial = TrialExchange(
            self._client, self._reactor, self._writing, self._timeout, self._acknowledging, target, body, 1
        )
        self._exchanges.add(trial)
        try:
            return await trial.run()
        finally:
            self._exchanges.discard(trial)

    async def refusal(self, callback: str | None) -> str:
        """`interfaces.Sender.refusal`."""
        parts = parse_callback(callback)
        try:
            if parts is not None:
                await self._dns.addresses(parts.host, REFUSAL_TIMEOUT)
        except Refused as refused:
            return str(refused)
        except (DeliveryError, QueueFull, QueueClosed):
            pass
        return ""

    async def close(self) -> None:
        """Abort the exchanges under way (outcome: LOCAL, the bus is stopping) and close every connection."""
        self.queue.close()
        for timer in (self._pacer, self._watch):
            if timer is not None and timer.active():
                timer.cancel()
        for exchange in tuple(self._exchanges):
            exchange.fail(Failure(QueueClosed()))
        self._writing.stop()
        self._dns.close()
        await self.pool.close()

    def target(self, callback: str, uuid: str | None) -> Target:
        """The parsed callback; raises `BadCallback`. For `Turn`."""
        target = self._targets.get((callback, uuid))
        if target is None:
            target = Target.parse(callback, uuid, self._user_agent)
            self._targets[callback, uuid] = target
            if len(self._targets) > MAX_TARGETS:
                del self._targets[next(iter(self._targets))]
        return target

    def seconds(self) -> float:
        """The time, for `Turn`."""
        return float(self._reactor.seconds())

    def pace(self) -> None:
        """Have the queue go on when it is time; for `Turn`."""
        if self._pacer is None and self.queue.needs_tick:
            self._pacer = self._reactor.callLater(PACE, self._start_next)
        if self._watch is None and self.queue.delays_others and not self.queue.closed:
            self._watch = self._reactor.callLater(LONG, self._demote)

    def _start_next(self) -> None:
        self._pacer = None
        self.queue.tick()
        self.pace()

    def _demote(self) -> None:
        self._watch = None
        started = self.seconds() - LONG
        for turn in tuple(self.under_way):
            if turn.began > started or not self.queue.delays_others:
                break
            turn.demote()
        self.pace()


class Turn:
    """A place among the attempts under way, from `async with` to its end (`interfaces.Turn`)."""

    def __init__(self, sender: TreqSender, callback: str, uuid: str | None, last: LastAttempt) -> None:
        self._sender, self._callback, self._uuid, self._last = sender, callback, uuid, last
        self._target: Target | None = None
        self._refusal: Outcome | None = None
        self._claims: Key | None = None  # an idle connection of this key
        self.began = 0.0  #: when it was given

    async def __aenter__(self) -> Turn:
        sender = self._sender
        try:
            target = sender.target(self._callback, self._uuid)
            waiting = sender.queue.enter(target.key, self._last)
            sender.pace()
            if waiting is not None:
                await waiting
        except BadCallback as fault:
            self._refusal = Outcome(Verdict.FAILED, error=one_line(str(fault)))
        except QueueClosed:
            self._refusal = STOPPING
        else:
            self._target, self.began = target, sender.seconds()
            sender.under_way[self] = None
        return self

    def connected(self) -> bool:
        """`interfaces.Turn.connected`."""
        if self._target is not None and self._claims is None:
            key, claims = self._target.key, self._sender.claims
            if self._sender.pool.count(key) > claims[key]:
                self._claims = key
                claims[key] += 1
        return self._claims is not None

    def _disclaim(self) -> None:
        key, self._claims = self._claims, None
        if key is not None:
            self._sender.claims[key] -= 1
            if not self._sender.claims[key]:
                del self._sender.claims[key]

    def demote(self) -> None:
        """Leave the place to another attempt, if one waits for it."""
        if self._last is not LastAttempt.FAILED and self._target is not None:
            if self._sender.queue.demote(self._target.key, self._last):
                self._last = LastAttempt.FAILED

    async def post(
        self, body: bytes, number: int = 1, signing: Signing | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Outcome:  # fmt: skip
        """`interfaces.Turn.post`."""
        self._disclaim()
        if self._refusal is not None or self._target is None:
            return self._refusal or STOPPING
        return await self._sender.exchange(self._target, body, number, signing, headers)

    async def __aexit__(self, *error: object) -> None:
        self._disclaim()
        if self._target is not None:
            del self._sender.under_way[self]
            self._sender.queue.leave(self._target.key, self._last)
            self._sender.pace()
