"""One run: start all parts, inject faults under load, drain the backlogs, stop, and check the records."""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import trustme
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater

from chaos.checker import judge
from chaos.cluster import ClusterWithFaults
from chaos.deciders import Deciders
from chaos.embedded import EmbeddedUnderTest
from chaos.faults import SERVES, Scene, named
from chaos.figures import Injection, figures
from chaos.fleet import Fleet, RedisUnderTest, stretched, until
from chaos.host_faults import LINK
from chaos.mutants import NEED_FAILURES
from chaos.operations import HABITS, ROOT
from chaos.plan import Plan, Report
from chaos.publishers import Churner, Publishers
from chaos.receivers import Receivers
from chaos.records import Allowed, Evidence, Outcome, Rollback, Sent, Window, event
from chaos.redis import RedisWithFaults
from chaos.release import Release
from chaos.version_change import EARLIER
from routemaster.testing.daemon import LOOPBACK, Client

BATCH = 20        #: the most events in one delivery
POLL = 0.2        #: seconds between two queries of the backlogs
HEALTHY = "sub0"  #: the subscriber that never misbehaves, and is subscribed to all topics
CHURNER = "churner"
#: behaviours of receivers, by their approximate percentage of requests
FAILURES = {"slow": 5.0, "fail": 6.0, "wait": 2.0, "redirect": 1.0, "cut": 3.0, "half": 2.0, "refuse": 0.5,
           "hang": 0.2}  # fmt: skip


class Run:
    """The parts of one run, and their order. The caller starts and stops `redis`."""

    def __init__(self, reactor: Any, plan: Plan, redis: RedisUnderTest, place: Path) -> None:
        self._reactor, self._plan, self._redis = reactor, plan, redis
        self._link = redis.insert_links(reactor) if plan.named(LINK) else None
        self._chance = random.Random(plan.seed)  # must be repeatable
        self._clients: list[Client] = []
        self._windows: list[Window] = []
        self._primed: list[Sent] = []
        self._injections: list[Injection] = []
        self._problems: list[str] = []
        self._queued: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._rollbacks: list[Rollback] = []
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
            reactor, place, plan.roles, self._options(pem, key), shared=plan.shared, mutant=plan.mutant,
            clock=plan.named({"bus-clock"}),
            release=Release.unpack(place / "release") if plan.named({EARLIER}) else None,
        )
        self._deciders = Deciders(reactor, self._chance, self._topics) if plan.operations else None
        behaviours = {name: self._behaviours(name) for name in (*self._names, CHURNER)}
        if self._deciders is not None:
            behaviours |= self._deciders.behaviours
        self.receivers = Receivers(reactor, pem, str(plan.seed), behaviours)

    def _options(self, pem: Path, key: Path) -> list[str]:
        tokens = ["publisher", *self._names, CHURNER, *HABITS]
        return [
            "--root-key", ROOT,
            *(["--redis-url", self._redis.url] if self._redis.url else []), "--clients", ",".join(tokens),
            "--certificate", str(pem), "--private-key", str(key), "--ca-file", str(self._roots),
            "--lease-ttl", f"{self._plan.lease_ttl:g}",
            "--timeout", "5", "--retry-delay", "20", "--max-backoff-ms", "500", "--grace", "10",
            "--metric-collection-service", "none",
            # otherwise autodrop removes events while Redis is out of memory
            "--redis-max-mem", "4000000000",
        ]  # fmt: skip

    def _behaviours(self, name: str) -> dict[str, float]:
        if self._plan.well_behaved or name == HEALTHY:
            return {}
        if self._plan.mutant in NEED_FAILURES:
            return {"fail": 1.0}
        return {"take": 80.0, **{name: weight * self._chance.uniform(0, 2) for name, weight in FAILURES.items()}}

    def _client(self, token: str) -> Client:
        client = Client(self._reactor, self._choose(), token, self._roots)
        self._clients.append(client)
        return client

    def _choose(self) -> Any:
        return self.fleet.choose(self._chance)

    # -- the order of things

    async def play(self) -> Report:
        """Run all steps; no process is left running, whatever happens."""
        try:
            await until(self._reactor, self._redis.ready, "Redis serves", SERVES)
            starting = (self.fleet.start(), self.receivers.start())
            await gatherResults([Deferred.fromCoroutine(each) for each in starting])
            await self._prime()
            publishers, churner = self._begin()
            try:
                await self._inject_faults(publishers, churner)
            finally:
                await publishers.stop()
                await churner.finish()
                if self._deciders is not None:
                    await self._deciders.finish()
            await self._drain()
            if self._deciders is not None:
                await self._deciders.close_books()
            try:
                await self.fleet.stop()
            except RuntimeError as error:
                self._problems.append(str(error))
            return self._report(publishers, churner)
        finally:
            await self.fleet.end()
            await self.receivers.stop()
            if self._link is not None:
                await self._link.stop()
            for client in self._clients:
                await client.close()

    async def _prime(self) -> None:
        """Create the topics by their first events, and subscribe to them."""
        client = self._client("publisher")
        if self._deciders is not None:
            await self._deciders.configure(client)
        for topic in self._topics:
            began = time.monotonic()
            await self._ok(client, "POST", f"/topics/{topic}", event((topic, 0, 1)))
            self._primed.append(Sent(topic, 0, 1, 1, Outcome.OK, began, time.monotonic()))
        while len((await client.ask("GET", "/topics")).json) < len(self._topics):
            await deferLater(self._reactor, 0.02)  # the mutant early-answer answers before it has stored
        for name in self._names:
            number = len(self._topics) if name == HEALTHY else self._chance.randint(1, len(self._topics))
            topics = sorted(self._chance.sample(self._topics, number))
            body = {"topics": topics, "callback": self.receivers.urls[name], "uuid": "u",
                    "timeout": self._chance.choice(self._plan.timeouts), "max": BATCH}  # fmt: skip
            asked = time.monotonic()
            await self._ok(self._client(name), "POST", "/subscription", body)
            self._windows += [Window(name, topic, asked, time.monotonic()) for topic in topics]
        if self._deciders is not None:
            await self._deciders.start(self._client, self._choose, self.receivers.urls)

    async def _ok(self, client: Client, method: str, path: str, body: Any) -> None:
        """Send a request until it is answered 204; on a busy machine Redis may be late even without a fault."""
        limit = time.monotonic() + stretched(SERVES)
        while True:
            answer = await client.ask(method, path, body)
            if answer.status == 204:
                return
            refused = answer.status == 503 and "outcome" not in answer.json
            if not refused or time.monotonic() > limit:
                raise RuntimeError(f"{method} {path} is answered {answer.status} {answer.body!r}")
            await deferLater(self._reactor, POLL)

    def _begin(self) -> tuple[Publishers, Churner]:
        plan = self._plan
        lanes = [(topic, lane, self._client("publisher")) for topic in self._topics
                 for lane in range(1, plan.lanes + 1)]  # fmt: skip
        own = [random.Random(self._chance.random()) for _ in range(2)]  # must be repeatable
        publishers = Publishers(self._reactor, own[0], lanes, self._choose, plan.rate, plan.bulk)
        callback, client = self.receivers.urls[CHURNER], self._client(CHURNER)
        churner = Churner(self._reactor, own[1], client, self._choose, CHURNER, callback, self._topics)
        return publishers, churner

    async def _inject_faults(self, publishers: Publishers, churner: Churner) -> None:
        """Inject the faults at even shares of the events, until all events are accepted."""
        plan = self._plan
        scene = Scene(
            self._reactor, self.fleet, self._redis, DeferredLock(), publishers, churner, plan.lease_ttl,
            self.receivers, self._health, self._rollbacks, self._link,
        )
        order = [plan.faults[number % len(plan.faults)] for number in range(plan.kills)]
        self._chance.shuffle(order)
        coming = iter([(number, name, random.Random(self._chance.random())) for number, name in enumerate(order)])

        async def inject_next() -> None:
            for number, name, chance in coming:
                await self._accepted(publishers, plan.events * (number + 1) / (plan.kills + 1))
                began = time.monotonic()
                fault = named(name)
                await fault.inject(scene, chance, name.partition(":")[2] or str(fault.seconds or ""))
                self._injections.append(Injection(name, began, time.monotonic()))
                await scene.rest(chance.uniform(0, 0.3))

        await gatherResults([Deferred.fromCoroutine(inject_next()) for _ in range(plan.at_once)])
        await self._accepted(publishers, plan.events)

    async def _accepted(self, publishers: Publishers, count: float) -> None:
        """Wait for so many accepted events; RuntimeError if none is accepted for too long."""
        last, since = -1, time.monotonic()
        while publishers.count < count:
            if publishers.count > last:
                last, since = publishers.count, time.monotonic()
            elif time.monotonic() - since > stretched(self._plan.patience):
                raise RuntimeError(f"no event is accepted any more, after {last} events")
            await deferLater(self._reactor, 0.01)

    async def _drain(self) -> None:
        """Wait until all backlogs are empty, or no delivery arrives for `patience`."""
        self.receivers.calm()
        progress, since = -1, time.monotonic()
        while not await self._ask_bus():
            now = time.monotonic()
            reached = self.receivers.progress + (self._deciders.progress if self._deciders else 0)
            if reached > progress:
                progress, since = reached, now
            if now - since > stretched(self._plan.patience):
                break
            await deferLater(self._reactor, POLL)
        await self.receivers.synced()

    async def _health(self) -> Mapping[str, Any]:
        found: list[Mapping[str, Any]] = []

        async def ask() -> None:
            self._clients[0].daemon = self._choose()
            answer = await self._clients[0].ask("GET", "/subscriptions")
            if answer.status == 200:
                found.extend(each["health"] for each in answer.json if each["subscriber"] == HEALTHY)

        while not found:  # another fault may be under way
            with suppress(Exception):
                await ask()
            await deferLater(self._reactor, POLL)
        return found[0]

    async def _ask_bus(self) -> bool:
        """Query what is stored and queued; whether all backlogs are empty."""
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
        """Write logs, injected faults and deliveries to files."""
        folder.mkdir(parents=True, exist_ok=True)
        for member in self.fleet.members:
            (folder / f"{member.name}.log").write_text(member.log)
        (folder / "redis.log").write_text(getattr(self._redis, "log", ""))
        (folder / "injections").write_text("\n".join(map(str, self._injections)))
        (folder / "arrivals").write_text("\n".join(map(str, self.receivers.arrivals)))
        (folder / "receivers.log").write_text(self.receivers.log)
        if self._deciders is not None:
            (folder / "decisions").write_text(self._deciders.records())

    def _report(self, publishers: Publishers, churner: Churner) -> Report:
        sent = [*self._primed, *publishers.sent]
        windows = [*self._windows, *churner.windows]
        arrivals, rollbacks = self.receivers.arrivals, self._rollbacks
        evidence = Evidence(
            sent, [each for each in arrivals if each.subscriber not in HABITS], windows, self._queued,
            self._stored, rollbacks,
        )  # fmt: skip
        lost = max((self.fleet.leases_lost(name) for name in (*self._names, CHURNER, *HABITS)), default=0)
        excused = [named(injection.name).excuses(1) for injection in self._injections]
        # a lease that is lost because the machine is busy counts as a fault
        allowed = Allowed(
            lost + sum(each.repeats for each in excused), lost + sum(each.overlaps for each in excused)
        )
        shown = figures(evidence, self._injections, HEALTHY) | {
            "injections": len(self._injections), "leases_lost": lost, "reasons": dict(publishers.reasons),
            "queued": sum(self._queued.values()), "stored": self._stored,
            "dropped": sum(len(each.dropped) for each in rollbacks), "versions": dict(self.fleet.versions()),
        }  # fmt: skip
        problems = [*self._problems, *publishers.strange, *churner.problems, *self.fleet.log_errors()]
        verdict = judge(evidence, allowed)
        if self._deciders is not None:
            witness = [each for each in arrivals if each.subscriber == HEALTHY]
            books, shown["books"] = self._deciders.judged(sent, arrivals, witness, allowed)
            verdict, problems = verdict.joined(books), [*problems, *self._deciders.problems]
        return Report(self._plan, verdict, allowed, shown, problems)


def _redis(plan: Plan, place: Path) -> RedisUnderTest:
    if plan.redis == "embedded":
        if len(plan.roles) > 1:
            raise ValueError("an embedded Redis is for one daemon: give one role, such as all*2")
        return EmbeddedUnderTest(place / f"{plan.roles[0].partition('*')[0]}0")
    if plan.redis == "single":
        return RedisWithFaults(plan.fsync, plan.named({"redis-clock"}))
    return ClusterWithFaults(plan.fsync, plan.redis == "tls-cluster")


async def run(reactor: Any, plan: Plan, keep: Path | None = None) -> Report:
    """Run a plan in a temporary folder, on a private Redis, and remove both.

    The logs and records of a failed run are kept in the folder `keep`.
    """
    place = Path(tempfile.mkdtemp(prefix="rm-"))
    under_test = _redis(plan, place)
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
