"""One run: everything is started, hurt while events flow, left in peace, asked, stopped, and judged."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trustme
from attrs import asdict, field, frozen
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater

from chaos.account import Allowed, Evidence, Outcome, Sent, Window, event
from chaos.checker import Verdict, judge
from chaos.faults import Scene, named
from chaos.figures import Strike, figures
from chaos.fleet import Fleet, RedisUnderTest, stretched
from chaos.mutants import NEED_FAILURES
from chaos.publishers import Churner, Publishers
from chaos.receivers import Receivers
from routemaster.testing.daemon import LOOPBACK, Client
from routemaster.testing.redis_server import PrivateRedis, servers

BATCH = 20        #: the most events in one delivery
LOOK = 0.2        #: seconds between looks at what is still owed
CERTAIN = 1.0     #: seconds for an arrival to be on account after the bus says that nothing is owed
HEALTHY = "sub0"  #: the subscriber that never misbehaves, and is subscribed to all topics
CHURNER = "churner"
#: habits of receivers, and how often of some hundred times they are met, more or less
TROUBLE = {"slow": 5.0, "fail": 6.0, "wait": 2.0, "redirect": 1.0, "cut": 3.0, "half": 2.0, "refuse": 0.5,
           "hang": 0.2}  # fmt: skip


@frozen
class Plan:
    """What a run is to be; times in seconds."""

    seed: int
    faults: tuple[str, ...] = ("none",)  #: they strike in turn
    kills: int = 3          #: strikes in all
    events: int = 2000      #: to be accepted at least
    rate: float = 600.0     #: events in a second, all lanes together
    roles: tuple[str, ...] = ("web", "web", "worker", "worker", "worker")
    topics: int = 3
    lanes: int = 2          #: of each topic
    subscribers: int = 6
    bulk: int = 20          #: the most events in one request
    at_once: int = 1        #: strikes that may be under way together
    lease_ttl: float = 2.0
    patience: float = 30.0  #: without a new arrival, while something is owed, until it counts as stuck
    fsync: str = "always"   #: of Redis's append-only file
    shared: bool = False    #: whether publishers' processes share a listening socket
    mutant: str = ""
    well_behaved: bool = False  #: whether receivers take everything


@frozen
class Report:
    """What came of a run."""

    plan: Plan
    verdict: Verdict = field(repr=False)
    allowed: Allowed
    figures: Mapping[str, Any]
    troubles: list[str]  #: beyond the checker's: an exit status, a traceback, an answer out of the contract

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not self.verdict.wrong() and not self.troubles

    def told(self) -> str:
        """What is wrong, in words, with the seed."""
        return f"seed {self.plan.seed}: {self.verdict.wrong()} {self.verdict.examples()} {self.troubles[:5]}"

    def line(self) -> str:
        """For the ledger."""
        facts = {
            "good": self.good, **asdict(self.plan), "wrong": self.verdict.wrong(), "troubles": self.troubles[:20],
            "repeats": self.verdict.repeats, "overlaps": self.verdict.overlaps, "allowed": asdict(self.allowed),
            **self.figures,
        }  # fmt: skip
        return json.dumps(facts)


class Run:
    """The parts of one run, and their order. `redis` is started and stopped by whoever gives it."""

    def __init__(self, reactor: Any, plan: Plan, redis: RedisUnderTest, place: Path) -> None:
        self._reactor, self._plan, self._redis = reactor, plan, redis
        self._chance = random.Random(plan.seed)  # must be repeatable
        self._clients: list[Client] = []
        self._windows: list[Window] = []
        self._primed: list[Sent] = []
        self._strikes: list[Strike] = []
        self._troubles: list[str] = []
        self._queued: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._topics = [f"topic_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[: plan.topics]]
        self._names = [HEALTHY, *(f"sub{number}" for number in range(1, plan.subscribers))]
        ca = trustme.CA()
        leaf = ca.issue_cert(LOOPBACK, "localhost")
        self._roots = place / "roots.pem"
        ca.cert_pem.write_to_path(str(self._roots))
        pem, key = place / "own.pem", place / "own.key"
        leaf.private_key_and_cert_chain_pem.write_to_path(str(pem))
        leaf.private_key_pem.write_to_path(str(key))
        self.fleet = Fleet(
            reactor, place, plan.roles, self._options(pem, key), shared=plan.shared, mutant=plan.mutant
        )
        habits = {name: self._habits(name) for name in (*self._names, CHURNER)}
        self.receivers = Receivers(reactor, pem, str(plan.seed), habits)

    def _options(self, pem: Path, key: Path) -> list[str]:
        tokens = ["publisher", *self._names, CHURNER]
        return [
            "--redis-url", self._redis.url, "--clients", ",".join(tokens), "--certificate", str(pem),
            "--private-key", str(key), "--ca-file", str(self._roots), "--lease-ttl", f"{self._plan.lease_ttl:g}",
            "--timeout", "5", "--retry-delay", "20", "--max-backoff-ms", "500", "--grace", "10",
            "--metric-collection-service", "none",
            # without it a Redis that is full for a moment has autodrop take away what is owed, rightly
            "--redis-max-mem", "4000000000",
        ]  # fmt: skip

    def _habits(self, name: str) -> dict[str, float]:
        if self._plan.well_behaved or name == HEALTHY:
            return {}
        if self._plan.mutant in NEED_FAILURES:
            return {"fail": 1.0}
        return {"take": 80.0, **{habit: weight * self._chance.uniform(0, 2) for habit, weight in TROUBLE.items()}}

    def _client(self, token: str) -> Client:
        client = Client(self._reactor, self._choose(), token, self._roots)
        self._clients.append(client)
        return client

    def _choose(self) -> Any:
        return self.fleet.choose(self._chance)

    # -- the order of things

    async def play(self) -> Report:
        """Do it all; whatever happens, nothing is left running."""
        try:
            starting = (self.fleet.start(), self.receivers.start())
            await gatherResults([Deferred.fromCoroutine(each) for each in starting])
            await self._prime()
            publishers, churner = self._begin()
            try:
                await self._hurt(publishers, churner)
            finally:
                await publishers.stop()
                await churner.finish()
            await self._drain(publishers)
            try:
                await self.fleet.stop()
            except RuntimeError as error:
                self._troubles.append(str(error))
            return self._report(publishers, churner)
        finally:
            await self.fleet.end()
            await self.receivers.stop()
            for client in self._clients:
                await client.close()

    async def _prime(self) -> None:
        """Create the topics by their first events, and subscribe to them."""
        client = self._client("publisher")
        for topic in self._topics:
            began = time.monotonic()
            await self._ok(client, "POST", f"/topics/{topic}", event((topic, 0, 1)))
            self._primed.append(Sent(topic, 0, 1, 1, Outcome.OK, began, time.monotonic()))
        while len((await client.ask("GET", "/topics")).json) < len(self._topics):
            await deferLater(self._reactor, 0.02)  # one of the mutants answers before it has stored
        for name in self._names:
            number = len(self._topics) if name == HEALTHY else self._chance.randint(1, len(self._topics))
            topics = sorted(self._chance.sample(self._topics, number))
            body = {"topics": topics, "callback": self.receivers.urls[name], "uuid": "u",
                    "timeout": self._chance.choice((0, 50)), "max": BATCH}  # fmt: skip
            asked = time.monotonic()
            await self._ok(self._client(name), "POST", "/subscription", body)
            self._windows += [Window(name, topic, asked, time.monotonic()) for topic in topics]

    async def _ok(self, client: Client, method: str, path: str, body: Any) -> None:
        answer = await client.ask(method, path, body)
        if answer.status != 204:
            raise RuntimeError(f"{method} {path} is answered {answer.status} {answer.body!r}")

    def _begin(self) -> tuple[Publishers, Churner]:
        plan = self._plan
        lanes = [(topic, lane, self._client("publisher")) for topic in self._topics
                 for lane in range(1, plan.lanes + 1)]  # fmt: skip
        own = [random.Random(self._chance.random()) for _ in range(2)]  # must be repeatable
        publishers = Publishers(self._reactor, own[0], lanes, self._choose, plan.rate, plan.bulk)
        callback, client = self.receivers.urls[CHURNER], self._client(CHURNER)
        churner = Churner(self._reactor, own[1], client, self._choose, CHURNER, callback, self._topics)
        return publishers, churner

    async def _hurt(self, publishers: Publishers, churner: Churner) -> None:
        """Strike at even shares of the events, until all are accepted and all is whole again."""
        plan = self._plan
        scene = Scene(
            self._reactor, self.fleet, self._redis, DeferredLock(), publishers, churner, plan.lease_ttl
        )
        order = [plan.faults[number % len(plan.faults)] for number in range(plan.kills)]
        self._chance.shuffle(order)
        coming = iter([(number, name, random.Random(self._chance.random())) for number, name in enumerate(order)])

        async def strike_on() -> None:
            for number, name, chance in coming:
                await self._accepted(publishers, plan.events * (number + 1) / (plan.kills + 1))
                began = time.monotonic()
                await named(name).strike(scene, chance, name.partition(":")[2])
                self._strikes.append(Strike(name, began, time.monotonic()))
                await scene.rest(chance.uniform(0, 0.3))

        await gatherResults([Deferred.fromCoroutine(strike_on()) for _ in range(plan.at_once)])
        await self._accepted(publishers, plan.events)

    async def _accepted(self, publishers: Publishers, count: float) -> None:
        """Wait for so many; RuntimeError if publishing stands still for too long."""
        last, since = -1, time.monotonic()
        while publishers.count < count:
            if publishers.count > last:
                last, since = publishers.count, time.monotonic()
            elif time.monotonic() - since > stretched(self._plan.patience):
                raise RuntimeError(f"nothing is accepted any more, after {last} events")
            await deferLater(self._reactor, 0.01)

    async def _drain(self, publishers: Publishers) -> None:
        """Wait until nothing is owed, or nothing comes any more."""
        self.receivers.calm()
        fresh, since, certain = -1, time.monotonic(), None
        while True:
            now = time.monotonic()
            if self.receivers.fresh > fresh:
                fresh, since = self.receivers.fresh, now
            missing = any(publishers.accepted[window.topic] - self.receivers.taken[window.subscriber, window.topic]
                          for window in self._windows)  # fmt: skip
            settled = await self._ask_bus()
            certain = (certain or now) if settled else None
            if settled and (not missing or now - (certain or now) > CERTAIN):
                return
            if now - since > stretched(self._plan.patience):
                return
            await deferLater(self._reactor, LOOK)

    async def _ask_bus(self) -> bool:
        """Learn what it says is stored and queued; whether it says that nothing waits."""
        client = self._clients[0]
        client.daemon = self._choose()
        try:
            topics = await client.ask("GET", "/topics")
            subscriptions = await client.ask("GET", "/subscriptions")
        except Exception:
            return False
        if (topics.status, subscriptions.status) != (200, 200):
            return False
        self._stored = {each["name"]: each["events"] for each in topics.json}
        self._queued = {each["subscriber"]: each["events"]["queued"] for each in subscriptions.json}
        return not any(self._queued.values())

    def keep(self, folder: Path) -> None:
        """Write down what may explain a verdict: logs, strikes, arrivals."""
        folder.mkdir(parents=True, exist_ok=True)
        for member in self.fleet.members:
            (folder / f"{member.name}.log").write_text(member.log)
        (folder / "redis.log").write_text(getattr(self._redis, "log", ""))
        (folder / "strikes").write_text("\n".join(map(str, self._strikes)))
        (folder / "arrivals").write_text("\n".join(map(str, self.receivers.arrivals)))
        (folder / "receivers.log").write_text(self.receivers.log)

    def _report(self, publishers: Publishers, churner: Churner) -> Report:
        sent = [*self._primed, *publishers.sent]
        windows = [*self._windows, *churner.windows]
        evidence = Evidence(sent, self.receivers.arrivals, windows, self._queued, self._stored)
        lost = max((self.fleet.leases_lost(name) for name in (*self._names, CHURNER)), default=0)
        excused = [named(strike.name).excuses(1) for strike in self._strikes]
        # a worker that the machine keeps from renewing its lease in time is a fault like any other
        allowed = Allowed(
            lost + sum(each.repeats for each in excused), lost + sum(each.overlaps for each in excused)
        )
        shown = figures(evidence, self._strikes, HEALTHY) | {
            "strikes": len(self._strikes), "leases_lost": lost, "reasons": dict(publishers.reasons),
            "queued": sum(self._queued.values()), "stored": self._stored,
        }  # fmt: skip
        troubles = [*self._troubles, *publishers.strange, *churner.troubles, *self.fleet.amiss()]
        return Report(self._plan, judge(evidence, allowed), allowed, shown, troubles)


async def run(
    reactor: Any, plan: Plan, redis: Callable[[], RedisUnderTest] | None = None, keep: Path | None = None
) -> Report:
    """Play a plan in a folder of its own, on a Redis of its own, and leave nothing behind.

    In the folder `keep` the logs and accounts of a run that is not good are left.
    """
    place = Path(tempfile.mkdtemp(prefix="rm-"))
    under_test = redis() if redis else private_redis(plan.fsync)
    try:
        under_test.start()
        playing = Run(reactor, plan, under_test, place)
        report = await playing.play()
        if not report.good and keep is not None:
            playing.keep(keep)
        return report
    finally:
        under_test.stop()
        shutil.rmtree(place, ignore_errors=True)


def private_redis(fsync: str) -> PrivateRedis:
    """The newest server of this machine, with an append-only file."""
    return PrivateRedis(servers()[0], "--appendonly", "yes", "--appendfsync", fsync)
