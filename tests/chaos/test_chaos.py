"""The bus under faults, for a few seconds each, and the checker against known violations.

`python -m chaos` runs the same for longer. A test that fails prints its seed;
ROUTEMASTER_TEST_SEED repeats it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from math import inf
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore, gatherResults
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from chaos import records
from chaos.checker import KINDS, judge
from chaos.cluster import has_tls
from chaos.failpoints import LOCATIONS, Failpoint
from chaos.faults import FAULTS, named
from chaos.figures import Injection, figures
from chaos.host_faults import EMBEDDED
from chaos.mutants import MUTANTS, NEED_OPERATIONS
from chaos.operations import HABITS
from chaos.plan import Plan, Report
from chaos.records import Allowed, Arrival, Evidence, Mark, Outcome, Rollback, Sent, Window
from chaos.run import run
from chaos.version_change import EARLIER
from routemaster.testing.redis_server import servers

ROOT = Path(__file__).resolve().parents[2]
SMALL = Plan(seed=0, events=300, rate=500, roles=("web", "web", "worker", "worker"), subscribers=4, kills=0)
SPECIAL = {"failpoint", EARLIER, *EMBEDDED}
SHORT = [name for name, fault in FAULTS.items() if not fault.seconds and name not in SPECIAL]
STRICT = [name for name in SHORT if not FAULTS[name].repeats]  #: these excuse no repeated delivery
LENIENT = [name for name in SHORT if FAULTS[name].repeats]
KILLS = ("web-kill", "worker-kill", "redis-kill", "all-kill")
#: for long enough that calls to Redis time out; those of clocks need libfaketime
HOST = ("black-hole:2", "half-open:2", "slow-link:2", "link-reset:0.5", "disk-full:1", "no-descriptors:1",
        "no-connects:2")  # fmt: skip


def a(number: int, lane: int = 1, topic: str = "a") -> Mark:
    return topic, lane, number


def sent(number: int, last: int = 0, outcome: Outcome = Outcome.OK, lane: int = 1, topic: str = "a") -> Sent:
    """Published at its number's second, answered half a second later."""
    return Sent(topic, lane, number, last or number, outcome, number, number + 0.5)


def came(
    began: float, *marks: Mark, status: int | None = 204, ended: float | None = None, to: str = "s"
) -> Arrival:
    """Came, and was answered a tenth of a second later."""
    return Arrival(to, marks, began, began + 0.1 if ended is None else ended, status)


EVER = Window("s", "a", -2, -1)
GOOD = Evidence([sent(1), sent(2), sent(3)], [came(4, a(1), a(2)), came(5, a(3))], [EVER], {"s": 0}, {"a": 3})
NOTHING = Allowed()
UNKNOWN, REFUSED = Outcome.UNKNOWN, Outcome.REFUSED


class CheckerTests(SynchronousTestCase):
    """The checker classifies violations, and reports none where there is none."""

    def table(self, rows: dict[str, tuple[Evidence, dict[str, int]]], allowed: Allowed = NOTHING) -> None:
        for what, (evidence, wrong) in rows.items():
            self.assertEqual(judge(evidence, allowed).wrong(), wrong, what)

    def test_delivered(self) -> None:
        """What was accepted for a subscriber must be taken by it; lost if it will not be, stuck if it may."""
        missing = evolve(GOOD, arrivals=[came(4, a(1)), came(5, a(2))])
        self.table({
            "everything": (GOOD, {}),
            "the last is not there": (missing, {"lost": 1}),
            "the last waits": (evolve(missing, queued={"s": 1}), {"stuck": 1}),
            "one that others passed is lost though something waits": (
                evolve(GOOD, arrivals=[came(4, a(1)), came(5, a(3))], queued={"s": 1}), {"lost": 1}),
            "what was not acknowledged is not delivered": (
                evolve(GOOD, arrivals=[came(4, a(1), a(2)), came(5, a(3), status=500)]), {"lost": 1}),
            "nothing came at all": (evolve(GOOD, arrivals=[]), {"lost": 3}),
            "a bulk counts each event": (
                evolve(GOOD, sent=[sent(1, 9)], arrivals=[came(10, a(1), a(9))], stored={}), {"lost": 7}),
            "unknown need not come": (
                evolve(missing, sent=[sent(1), sent(2), sent(3, outcome=UNKNOWN)], stored={"a": 2}), {}),
            "unknown may come": (evolve(GOOD, sent=[sent(1), sent(2), sent(3, outcome=UNKNOWN)]), {}),
        })  # fmt: skip

    def test_invented(self) -> None:
        """Nothing may come that nobody published, or that was refused."""
        strange = evolve(GOOD.arrivals[1], strange=("GET /elsewhere",))
        self.table({
            "never published": (evolve(GOOD, arrivals=[*GOOD.arrivals, came(6, a(4))]), {"invented": 1}),
            "not like that": (evolve(GOOD, arrivals=[GOOD.arrivals[0], strange]), {"invented": 1}),
            "refused": (evolve(GOOD, sent=[*GOOD.sent[:2], sent(3, outcome=REFUSED)]), {"refused": 1}),
        })  # fmt: skip

    def test_windows(self) -> None:
        """An event comes to those who were subscribed when it was accepted; near the edges it may."""
        def at(asked: float, granted: float, leaving: float = inf, left: float = inf) -> Window:
            return Window("s", "a", asked, granted, leaving, left)

        some = evolve(GOOD, arrivals=[came(4, a(2))])
        self.table({
            "subscribed between the first and the second": (evolve(some, windows=[at(1.6, 1.9, 2.6, 2.9)]), {}),
            "the first came though it was before": (evolve(GOOD, windows=[at(1.6, 1.9)]), {"unsubscribed": 1}),
            "the last came though it was after": (evolve(GOOD, windows=[at(0, 0, 2.6, 2.9)]), {"unsubscribed": 1}),
            "at the edges both may come": (evolve(GOOD, windows=[at(1.2, 1.3, 3.1, 3.2)]), {}),
            "or not": (evolve(some, windows=[at(1.2, 1.3, 3.1, 3.2)]), {}),
            "unknown may have been accepted later": (
                evolve(GOOD, windows=[at(1.6, 1.9)], sent=[sent(1, outcome=UNKNOWN), *GOOD.sent[1:]]), {}),
            "what is owed at the end is owed still": (
                evolve(some, arrivals=[], windows=[at(0, 0, 4, 4)]), {"lost": 3}),
            "but not to one who wants nothing more": (
                evolve(some, arrivals=[], windows=[evolve(at(0, 0, 4, 4), dissolved=True)]), {}),
            "two stays": (
                evolve(GOOD, arrivals=[came(4, a(1), a(3))], windows=[at(0, 0, 1.6, 1.7), at(2.6, 2.7)]), {}),
        })  # fmt: skip

    def test_order(self) -> None:
        """A lane's accepted events come in order, and all subscribers see a topic in the same one."""
        both = [EVER, evolve(EVER, subscriber="t")]
        lanes = evolve(GOOD, sent=[sent(1), sent(1, lane=2), sent(2)], windows=both)
        one = [a(1), a(1, 2), a(2)]
        self.table({
            "the later first": (
                evolve(GOOD, arrivals=[came(4, a(2)), came(5, a(1)), came(6, a(3))]), {"reordered": 1}),
            "within a batch": (evolve(GOOD, arrivals=[came(4, a(1), a(3), a(2))]), {"reordered": 1}),
            "twice in a batch": (evolve(GOOD, arrivals=[came(4, a(1), a(2), a(2), a(3))]), {"reordered": 1}),
            "the redelivered batch": (
                evolve(GOOD, arrivals=[came(4, a(1), a(2), status=500), came(5, a(2), a(1), a(3))]),
                {"reordered": 1}),
            "unknown has no place in its lane": (
                evolve(GOOD, sent=[sent(1, outcome=UNKNOWN), sent(2), sent(3)],
                       arrivals=[came(4, a(2), a(1), a(3))]), {}),
            "lanes have no order": (
                evolve(lanes, arrivals=[came(4, *one), came(4, *one, to="t")]), {}),
            "but one": (
                evolve(lanes, arrivals=[came(4, *one), came(4, a(1, 2), a(1), a(2), to="t")]), {"reordered": 1}),
            "who came later sees a part of it": (
                evolve(lanes, windows=[EVER, Window("t", "a", 1.2, 1.7)],
                       arrivals=[came(4, *one), came(4, a(1, 2), a(2), to="t")]), {}),
        })  # fmt: skip

    def test_late(self) -> None:
        """What comes for a subscription that was removed with its backlog is not out of the next one's order."""
        def windows(dissolved: bool, left: float = 2.8) -> list[Window]:
            return [Window("s", "a", -2, -1, 2.7, left, dissolved), Window("s", "a", 2.8, 2.9)]

        late = evolve(GOOD, arrivals=[came(4, a(3)), came(5, a(1), a(2))])
        another = [came(4, a(1), a(2), to="t"), came(5, a(3), to="t")]
        self.table({
            "removed": (evolve(late, windows=windows(True)), {}),
            "nor is another one's": (
                evolve(late, arrivals=late.arrivals + another,
                       windows=[*windows(True), evolve(EVER, subscriber="t")]), {}),
            "left, and its backlog is delivered": (evolve(late, windows=windows(False)), {"reordered": 2}),
            "not removed yet": (evolve(late, windows=windows(True, left=9)), {"reordered": 2}),
            "with one that is in time": (
                evolve(late, arrivals=[came(4, a(3)), came(5, a(2), a(3), a(1))], windows=windows(True)),
                {"reordered": 3, "repeated": 1}),
        })  # fmt: skip

    def test_repeated(self) -> None:
        """What was acknowledged comes again only as often as faults excuse, for each subscriber."""
        again = evolve(GOOD, arrivals=[*GOOD.arrivals, came(6, a(3))])
        failed = [came(4, a(1), status=500), came(5, a(1), status=None), came(6, a(1), a(2)), came(7, a(3))]
        rows = {
            "after failures": (evolve(GOOD, arrivals=failed), {}),
            "after a success": (again, {"repeated": 1}),
            "with what is new": (
                evolve(GOOD, arrivals=[came(4, a(1), a(2)), came(5, a(2), a(3))]), {"repeated": 1}),
            "twice": (evolve(again, arrivals=[*again.arrivals, came(7, a(3))]), {"repeated": 2}),
            "once, in three attempts": (
                evolve(GOOD, arrivals=[*GOOD.arrivals, came(6, a(3), status=500), came(7, a(3), status=None),
                                       came(8, a(3))]), {"repeated": 1}),
        }  # fmt: skip
        self.table(rows)
        self.table({what: (evidence, {k: n - 1 for k, n in wrong.items() if n > 1})
                    for what, (evidence, wrong) in rows.items()}, Allowed(repeats=1))  # fmt: skip
        self.assertEqual(judge(again, Allowed(repeats=5)).repeats, 1)

    def test_rolled_back(self) -> None:
        """What Redis has lost need not come, and what it has forgotten may come again, and no more than that."""
        first = [came(4, a(1)), came(5, a(2)), came(6, a(3))]

        def lost(acknowledged: int, *events: Mark) -> Evidence:
            forgotten = {("s", "a"): acknowledged, ("t", "a"): 3}
            return evolve(GOOD, arrivals=first, rollbacks=[Rollback(7, frozenset(events), forgotten)])

        def again(evidence: Evidence, *arrivals: Arrival) -> Evidence:
            return evolve(evidence, arrivals=[*first, *arrivals])

        self.table({
            "an event that nobody got": (evolve(lost(0, a(3)), arrivals=first[:2]), {}),
            "another than that": (evolve(lost(0, a(3)), arrivals=first[:1]), {"lost": 1}),
            "the last delivery, whose acknowledgement was not stored": (again(lost(0), came(8, a(3))), {}),
            "one acknowledgement besides": (again(lost(1), came(8, a(2), a(3))), {}),
            "more than was forgotten": (again(lost(1), came(8, a(1))), {"repeated": 1}),
            "before it was forgotten": (again(lost(3), came(6.5, a(1))), {"repeated": 1}),
            "twice after it was forgotten": (again(lost(3), came(8, a(1)), came(9, a(1))), {"repeated": 1}),
        })  # fmt: skip

    def test_overlapped(self) -> None:
        """One delivery at a time: one that is under way still when the next comes needs an excuse."""
        over = [came(4, a(1), a(2), status=None, ended=6), came(5, a(1), a(2)), came(5.5, a(3))]
        rows = {
            "side by side": (evolve(GOOD, arrivals=over), {"overlapped": 1}),
            "never ended": (evolve(GOOD, arrivals=[evolve(over[0], ended=inf), *over[1:]]), {"overlapped": 1}),
        }
        self.table(rows)
        self.table({what: (evidence, {}) for what, (evidence, _) in rows.items()}, Allowed(overlaps=1))

    def test_doubled(self) -> None:
        """A topic holds no more than was accepted, or came with its outcome unknown."""
        self.table({
            "one too many": (evolve(GOOD, stored={"a": 4}), {"doubled": 1}),
            "unknown, and came": (evolve(GOOD, sent=[*GOOD.sent[:2], sent(3, outcome=UNKNOWN)]), {}),
        })  # fmt: skip

    def test_events(self) -> None:
        """What comes is compared with what was published in all its parts."""
        for number in (1, 2, 3, 4):
            mark = ("cats", 3, number)
            delivered = {"topic": "cats", "t": 5, **records.event(mark)}
            delivered["t"] = delivered.pop("timestamp", 5)
            self.assertEqual(records.mark_of(delivered), mark)
            for part in ("topic", "type", "url", "data"):
                self.assertIsNone(records.mark_of({**delivered, part: "else"}), part)
                rest = {name: value for name, value in delivered.items() if name != part}
                self.assertIsNone(records.mark_of(rest), part)
            self.assertIsNone(records.mark_of({**delivered, "more": 1}))
        self.assertIsNone(records.mark_of({"topic": "cats", **records.event(("cats", 3, 1)), "t": 2}))
        self.assertIsNone(records.mark_of([]))

    def test_figures(self) -> None:
        """Figures are what can be counted by hand."""
        published = [sent(1), sent(2), sent(5, 6), sent(7, 8, REFUSED), sent(9, outcome=UNKNOWN)]
        arrivals = [came(4, a(1), a(2), status=500), came(5, a(1), a(2)), came(8, a(5))]
        evidence = evolve(GOOD, sent=published, arrivals=arrivals)
        shown = figures(evidence, [Injection("x", 5.5, 6), Injection("y", 2.5, 3)], "s")
        expected = {
            "accepted": 4, "refused": 2, "unknown": 1, "deliveries": 3, "acknowledged": 2, "publish_silence": 3.0,
            "delivery_silence": 3.0, "publish_recovery": 3.0, "delivery_recovery": 2.5, "publish_healing": 2.5,
            "delivery_healing": 2.0, "latency_p50_ms": 3000.0, "latency_p99_ms": 3000.0,
        }  # fmt: skip
        self.assertEqual(shown, expected)

    def test_healing(self) -> None:
        """A fault heals until each topic accepts, and a delivery comes, or the next fault begins."""
        published = [sent(1), sent(9), sent(3, topic="b"), sent(9, topic="b")]
        arrivals = [came(3.5, a(2, topic="b")), came(7, a(1), a(3, topic="b"))]
        evidence = evolve(GOOD, sent=published, arrivals=arrivals)
        for injections, publications, deliveries in (
            ([Injection("x", 2, 3)], 6.5, 0.5),
            ([Injection("x", 2, 3), Injection("y", 5, 6)], 3.5, 1.0),
            ([Injection("x", 2, 3), Injection("y", 2.5, 6)], 3.5, 1.0),
            ([Injection("x", 2, 10)], 0.0, 0.0),
        ):
            shown = figures(evidence, injections, "s")
            healed = shown["publish_healing"], shown["delivery_healing"]
            self.assertEqual(healed, (publications, deliveries), injections)


class NamesTests(SynchronousTestCase):
    """What is asked for by name is there."""

    def test_failpoints(self) -> None:
        """A failpoint is read as it is written; one that cannot be is refused with what is allowed."""
        for text in ("before-post:1:kill", "after-renew:3:sleep=2.5", "before-publish:2:raise"):
            self.assertEqual(str(Failpoint.parse(text)), text)
        for wrong, why in {
            "before-post": "name:nth:action", "before-post:x:kill": "name:nth:action",
            "nowhere:1:kill": "after-post",
            "before-post:0:kill": "a name of", "before-post:1:shout": "an action of kill",
        }.items():  # fmt: skip
            with self.assertRaisesRegex(ValueError, why):
                Failpoint.parse(wrong)

    def test_faults(self) -> None:
        """A fault that there is none of is refused with those that there are."""
        self.assertIs(named("failpoint:before-post"), FAULTS["failpoint"])
        self.assertIs(named("black-hole:30"), FAULTS["black-hole"])
        for wrong in ("earthquake", "web-kill:now", "failpoint:nowhere", "web-kill:3", "black-hole:long"):
            with self.assertRaisesRegex(ValueError, "worker-kill"):
                named(wrong)

    def test_kinds(self) -> None:
        """Each kind of wrong but those that need no bus is proved by a mutant."""
        proved = set().union(*(kinds for _, kinds in MUTANTS.values()))
        self.assertEqual(set(KINDS) - proved, {"invented", "unsubscribed"})


class RunCase(TestCase):
    """Runs with a random or a given seed."""

    timeout = 240

    async def play(self, plan: Plan) -> Report:
        seed = int(os.environ.get("ROUTEMASTER_TEST_SEED", "0")) or random.randrange(1 << 30)
        return await run(reactor, evolve(plan, seed=seed))

    async def survive(self, **changes: Any) -> Report:
        report = await self.play(evolve(SMALL, **changes))
        self.assertTrue(report.good, report.summary())
        self.assertEqual(report.figures["injections"], report.plan.kills)
        return report


class FaultTests(RunCase):
    """Under every fault no event is lost, invented or reordered, and repeats are bounded."""

    async def test_strict(self) -> None:
        """No delivery is repeated while workers and Redis run."""
        report = await self.survive(faults=tuple(STRICT), kills=len(STRICT))
        if not report.figures["leases_lost"]:  # as they may be where other programs take the machine
            self.assertEqual((report.verdict.repeats, report.verdict.overlaps), (0, 0))

    async def test_lenient(self) -> None:
        """When a worker, Redis or everything is killed or stands still, a batch at most is repeated each time."""
        await self.survive(faults=tuple(LENIENT), kills=len(LENIENT))

    async def test_host(self) -> None:
        """When the network to Redis, its disk, or descriptors fail, a batch at most is repeated each time."""
        await self.survive(faults=HOST, kills=len(HOST))

    async def test_cluster(self) -> None:
        """A cluster with TLS and the minimal user: killed or cut off, a node costs nothing but time."""
        kind = "tls-cluster" if has_tls(servers()[0]) else "cluster"
        await self.survive(redis=kind, faults=("redis-kill", "node-cut:3", "worker-kill"), kills=3)

    async def test_append_only_file(self) -> None:
        """Of a file that was cut or damaged the log says how to go on, and only what was in the end is lost."""
        report = await self.survive(redis="embedded", roles=("all",), faults=("aof-cut", "aof-damage"), kills=2)
        self.assertGreater(report.figures["dropped"], 0)

    async def test_failpoints(self) -> None:
        """Killed or stopped at each step of its own work, a process leaves nothing that the next does not do."""
        places = tuple(f"failpoint:{name}" for name in LOCATIONS)
        await self.survive(faults=places, kills=len(places), at_once=3, subscribers=8)


class OperationsTests(RunCase):
    """While subscribers decide for themselves, their books balance under kills, and nothing is lost."""

    async def operate(self, **changes: Any) -> None:
        report = await self.survive(operations=True, subscribers=2, rate=200, **changes)
        books = report.figures["books"]
        for decision in ("rewind", "skip", "pause", "readings"):
            self.assertGreater(books[decision], 0, books)
        self.assertEqual(books["lasting"], len(HABITS))

    async def test_kills(self) -> None:
        """SIGKILL to a web process, a worker, Redis, and all together."""
        await self.operate(faults=KILLS, kills=4, events=800)

    async def test_cluster(self) -> None:
        """SIGKILL to a node of a cluster, and to a worker."""
        await self.operate(redis="cluster", faults=("redis-kill", "worker-kill"), kills=2, events=500)


class MutantTests(RunCase):
    """The checker detects a known bug in the bus."""

    timeout = 600

    async def test_each_is_caught(self) -> None:
        """Each mutant causes a violation of a kind that the checker reports."""
        turns = DeferredSemaphore(3)  # most of each is waiting

        async def wrong_with(name: str) -> dict[str, int]:
            # an answer that comes too early is only wrong if the store then fails
            faults, kills = (("redis-kill",), 1) if name == "early-answer" else ((), 0)
            plan = evolve(SMALL, events=200, roles=("all", "all"), faults=faults, kills=kills, patience=3.0)
            plan = evolve(plan, mutant=name, operations=name in NEED_OPERATIONS)
            return (await self.play(plan)).verdict.wrong()

        found = await DeferredList(  # of all: those that go on when one fails would leave processes
            [turns.run(lambda name=name: Deferred.fromCoroutine(wrong_with(name))) for name in MUTANTS],
            consumeErrors=True,
        )
        for (name, (_, kinds)), (succeeded, wrong) in zip(MUTANTS.items(), found, strict=True):
            if not succeeded:
                wrong.raiseException()
            self.assertTrue(kinds & wrong.keys(), f"{name}: {wrong}")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


class CommandTests(TestCase):
    """`python -m chaos`, as it is called by hand."""

    timeout = 240

    async def test_command(self) -> None:
        """It plays what it is told, prints seed and table, and adds a line to a file; wrong is status 1."""
        results = str(Path(self.mktemp()).absolute())  # noqa: ASYNC240  # no file is touched
        small = ["--events", "60", "--roles", "all", "--subscribers", "2", "--seed", "5", "--results", results]

        async def call(*arguments: str) -> tuple[str, int]:
            command = ["-m", "chaos", *small, *arguments]
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            out, err, status = await getProcessOutputAndValue(sys.executable, command, environment, os.getcwd())
            return (out + err).decode(), status

        (said, status), (wrong, failed) = await gatherResults([
            Deferred.fromCoroutine(call("--fault", "script-flush+none", "--kills", "2")),
            Deferred.fromCoroutine(call("--fault", "none", "--kills", "0", "--mutant", "unordered-read")),
        ])  # fmt: skip
        self.assertEqual(status, 0, said)
        self.assertRegex(said, r"^seed 5\n.*accepted.*\n2 faults .* good\n$")
        self.assertEqual(failed, 1, wrong)
        self.assertRegex(wrong, "WRONG seed 5: .*reordered")
        lines = sorted(_lines(results), key=lambda line: json.loads(line)["good"])
        self.assertEqual([json.loads(line)["good"] for line in lines], [False, True])
        self.assertGreaterEqual(json.loads(lines[1])["accepted"], 60)
