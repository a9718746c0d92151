"""Publish and deliver while processes and Redis are killed, stopped and restarted; then check the records.

    python -m chaos                              # every fault by itself, a few injections of each
    python -m chaos --fault worker-kill --events 20000 --kills 20
    python -m chaos --fault web-kill+worker-kill+redis-kill --events 100000 --kills 50
    python -m chaos --fault mixed --at-once 2    # all faults in one run, two at a time
    python -m chaos --operations --fault web-kill+worker-kill+redis-kill+all-kill
    python -m chaos --mutant cursor-too-far      # a known bug in the bus: the checker must detect it

A line for each run goes to the table, and as JSON to a file. The status is
1 if anything was lost, invented, reordered, stuck, or repeated more often than
the faults allow. The package `chaos` describes the method.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from chaos.faults import FAULTS, named
from chaos.host_faults import CLOCK, IMPOSSIBLE
from chaos.mutants import MUTANTS, NEED_OPERATIONS
from chaos.plan import REDISES, Plan, Report
from chaos.redis import has_faketime
from chaos.run import run

COLUMNS = ("injections", "accepted", "refused", "unknown", "deliveries", "repeats", "overlaps", "leases_lost",
           "publish_recovery", "delivery_recovery", "publish_healing", "delivery_healing",
           "latency_p99_ms")  # fmt: skip


def plans(given: Any) -> list[Plan]:
    """One plan for each fault, or for several joined by `+`; `mixed` is all that are possible here."""
    seed = given.seed if given.seed is not None else random.randrange(1 << 30)
    impossible = IMPOSSIBLE[given.redis]
    possible = [name for name in FAULTS if name not in impossible and (name not in CLOCK or has_faketime())]
    names = given.fault or possible
    everything = "+".join(name for name in possible if name != "none")
    groups = [tuple((everything if name == "mixed" else name).split("+")) for name in names]
    for name in (name for group in groups for name in group):
        named(name)
        if name.partition(":")[0] in impossible:
            raise ValueError(f"{name} is not possible with --redis {given.redis}")
    roles = ("all",) if given.redis == "embedded" else Plan(seed).roles
    if given.roles:
        roles = tuple(given.roles.split(","))
    return [
        Plan(
            seed=seed, faults=group, kills=given.kills, events=given.events, rate=given.rate,
            roles=roles, subscribers=given.subscribers, topics=given.topics,
            at_once=given.at_once, lease_ttl=given.lease_ttl, patience=given.patience, fsync=given.fsync,
            shared=given.shared, redis=given.redis, mutant=given.mutant,
            operations=given.operations or given.mutant in NEED_OPERATIONS,
            timeouts=tuple(map(int, given.timeouts.split(","))),
        )
        for group in groups
    ]  # fmt: skip


def row(report: Report) -> str:
    """One line of the table."""
    name = report.plan.faults[0] if len(report.plan.faults) == 1 else f"{len(report.plan.faults)} faults"
    figures = {**report.figures, "repeats": report.verdict.repeats, "overlaps": report.verdict.overlaps}
    cells = "".join(f"{figures[column]!s:>{len(column) + 2}}" for column in COLUMNS)
    return f"{name:<28}{cells}  " + ("good" if report.good else f"WRONG {report.summary()}")


async def main(reactor: Any, given: Any) -> None:
    """Run the plans, one after another."""
    todo = plans(given)
    print(f"seed {todo[0].seed}", flush=True)
    print(f"{'fault':<28}" + "".join(f"  {column}" for column in COLUMNS), flush=True)
    good = True
    for plan in todo:
        report = await run(reactor, plan, keep=given.keep)
        good = good and report.good
        print(row(report), flush=True)
        if given.results:
            with given.results.open("a") as results:
                results.write(report.line() + "\n")
    if not good:
        sys.exit(1)


def arguments() -> argparse.Namespace:
    """The parsed command line."""
    default = Plan(seed=0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--fault", action="append", help="may be repeated: a run for each; several in one run are joined by +, "
        "all of them are mixed (those of clocks only where libfaketime is installed); "
        f"default: a run for each of {', '.join(FAULTS)}")  # fmt: skip
    add("--events", type=int, default=default.events, help="to be accepted at least (default %(default)s)")
    add("--kills", type=int, default=default.kills, help="faults injected (default %(default)s)")
    add("--seed", type=int, help="default: a new one, which is printed")
    add("--rate", type=float, default=default.rate, help="events in a second (default %(default)s)")
    add("--roles",
        help="one for each daemon; `web*2` is one with two processes "
        f"(default {','.join(default.roles)}; all with an embedded Redis)")  # fmt: skip
    add("--subscribers", type=int, default=default.subscribers, help="(default %(default)s)")
    add("--topics", type=int, default=default.topics, help="(default %(default)s)")
    add("--at-once", type=int, default=default.at_once, help="faults under way together (default %(default)s)")
    add("--lease-ttl", type=float, default=default.lease_ttl, help="seconds (default %(default)s)")
    add("--patience", type=float, default=default.patience,
        help="seconds without a delivery until a backlog counts as stuck (default %(default)s)")  # fmt: skip
    add("--fsync", choices=("always", "everysec", "no"), default=default.fsync,
        help="of Redis's append-only file (default %(default)s)")  # fmt: skip
    add("--timeouts", default=",".join(map(str, default.timeouts)),
        help="milliseconds, of subscriptions at random (default %(default)s)")  # fmt: skip
    add("--redis", choices=REDISES, default=default.redis,
        help="one server, a cluster of three nodes, or that of the one daemon (default %(default)s)")  # fmt: skip
    add("--shared", action="store_true", help="publishers' processes share one listening socket")
    add("--operations", action="store_true",
        help="besides, ten subscribers pause, rewind, skip, expire, park, leave and pull events at random, "
        "and their books must balance")  # fmt: skip
    add("--mutant", choices=("", *MUTANTS), default="", help="a known bug to put into the bus")
    add("--results", type=Path, help="file to which a line of JSON is added for each run")
    add("--keep", type=Path, help="folder for the logs and records of a failed run")
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, asked)))
