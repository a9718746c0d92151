"""20 healthy subscribers beside hostile ones, and beside dead ones: what it does to the latency of the healthy.

    python bench/hostile.py [--quick] zoo dead crowd

All subscribe to one topic. Each figure is a ratio within one run: the p99 of the healthy beside
the others to that beside as many harmless subscribers, which answer 204 and keep their connections.
Goal: 1.25 at most. The harmless ones, because 200 more subscribers of a topic are 200 more
attempts for each event, whoever they are: what they cost is the price of a fan-out (`fair.py fanout`), and
that of hostility is what comes on top. Both get the same events at the same rate, and are played by one
process that gives way to others (nice 19). Both are measured twice: from their first attempts on
("new"), and later ("known"); the harmless ones before and after the hostile ones, like the healthy alone,
which is only for comparison.

A busy machine measures its scheduler. So beside each p99 stand the processor time of the
bus and of the servers, and the turns of the bus's reactor that took more than LONG of it: who is served
then waits. These say more than the ratio if the machine is busy.
If PROFILE is in the environment, the bus runs under cProfile, and leaves its statistics in that file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any

from bus import Bus, cpu_seconds, play, resident_mb
from probe import Probe, Seen, late
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from routemaster.testing.hostile_answers import ZOO, answering
from routemaster.testing.hostile_tls import (
    AES_GCM,
    BEFORE_TLS,
    black_hole,
    renegotiates,
    requests_handshakes,
)
from routemaster.testing.odd_answers import ANSWERS, MALFORMED
from routemaster.testing.zoo import Authority, Behaviour, ScriptedServer, Wire, demand_certificate

HEALTHY, RATE, TOPIC = 20, 10, "things"
AGES = "new", "known"
LONG = 5  #: milliseconds of processor time of a turn of the reactor
#: What the daemon runs at first. Look-ups of names in this domain take as long as those of a DNS that does not
#: answer. How much processor time each longer turn of the reactor takes is written to a file beside this one.
CUSTOMIZE = """
import os, socket, sys, time
from twisted.internet.base import ReactorBase
getaddrinfo = socket.getaddrinfo
def slow(host, *arguments, **named):
    if str(host).endswith(".slow.example"):
        time.sleep(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return getaddrinfo(host, *arguments, **named)
socket.getaddrinfo = slow

turns = open(os.path.join(os.path.dirname(__file__), "turns"), "a", buffering=1)
run, began = ReactorBase.runUntilCurrent, 0.0
def timed(self):
    global began
    now = time.thread_time()
    if began and now - began > 0.001:
        print(now - began, file=turns)
    began = now
    run(self)
ReactorBase.runUntilCurrent = timed
"""
PROFILE = """
import atexit, cProfile, time
profile = cProfile.Profile(time.thread_time)
atexit.register(lambda: (profile.disable(), profile.dump_stats(os.environ["PROFILE"])))
profile.enable()
"""


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def beside(callbacks: Sequence[str], seconds: float, servers: Servers) -> None:
    """Measure the healthy beside subscribers with these callbacks, and beside harmless ones before and after."""
    customize = CUSTOMIZE + PROFILE * ("PROFILE" in os.environ)
    calm = [f"{servers.harmless}/{number}" for number in range(len(callbacks))]
    with Bus(
        "--ca-file", str(servers.ca_file), clients=HEALTHY + len(callbacks), customize=customize
    ) as bus:  # fmt: skip
        run = Run(bus, seconds, servers)
        run.measure("alone", "")
        before = run.with_others("harmless", calm)
        found = run.with_others("hostile", callbacks)
        after = run.with_others("harmless", calm)
        run.measure("alone", "")
        bus.log.seek(0)
        print(f"  {len(bus.log.readlines())} lines in the log")
    for age in AGES:
        usual = mean(late(seen[age].delivery, 99) for seen in (before, after))
        print(
            f"  ratio of p99, {age}: {late(found[age].delivery, 99) / usual:.2f} (goal 1.25 at most)", flush=True
        )


class Run:
    """The bus with its healthy subscribers."""

    def __init__(self, bus: Bus, seconds: float, servers: Servers) -> None:
        """`seconds`: of each measurement; `servers`: of the others."""
        self._bus, self._seconds, self._servers = bus, seconds, servers
        first = {"type": "noop", "url": "https://www.example.com/things"}
        assert bus.call("POST", f"/topics/{TOPIC}", first) == 204
        self._port = bus.sink()
        for client in range(HEALTHY):
            bus.subscribe(self._port, client, timeout=0)
        with Probe(bus, 0, RATE, TOPIC, self._port, HEALTHY):
            time.sleep(1)  # warm up

    def with_others(self, name: str, callbacks: Sequence[str]) -> dict[str, Seen]:
        """Measure beside subscribers with these callbacks: what the healthy saw, by age of the others."""
        bus, numbers = self._bus, range(len(callbacks))
        each(numbers, lambda number: bus.subscribe(0, HEALTHY + number, callback=callbacks[number]))
        found = {age: self.measure(name, age) for age in AGES}
        each(numbers, lambda number: bus.call("DELETE", "/subscriber", None, HEALTHY + number))
        time.sleep(1)
        return found

    def measure(self, name: str, age: str) -> Seen:
        """One measurement."""
        bus, pid, began = self._bus, self._bus.process.pid, time.monotonic()
        used, others, known = cpu_seconds(pid), self._servers.cpu(), len(self._turns())
        with Probe(bus, 0, RATE, TOPIC, self._port, HEALTHY) as probe:
            time.sleep(self._seconds)
        took, turns = time.monotonic() - began, self._turns()[known:]
        long = [turn for turn in turns if turn > LONG]
        busy, others = (cpu_seconds(pid) - used) / took, (self._servers.cpu() - others) / took
        print(
            f"  {name:8} {age:5} {probe.seen}; bus {busy:.0%} of a core, servers {others:.0%}; turns over "
            f"{LONG} ms {sum(long) / took / 10:.1f} %, longest {max(turns, default=1):.1f} ms; "
            f"{resident_mb(pid):.0f} MB, {descriptors(pid)} descriptors", flush=True,
        )  # fmt: skip
        return probe.seen

    def _turns(self) -> list[float]:
        """Milliseconds of processor time of the reactor's turns so far."""
        return [1000 * float(line) for line in (self._bus.state / "turns").read_text().splitlines()]


def each(numbers: Sequence[int], call: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(call, numbers):
            pass


def zoo(quick: bool) -> None:
    """200 subscribers of all the servers of the tests that violate HTTP or TLS, stall, or send without end."""
    with Servers() as servers:
        callbacks = [f"{url}/{number}" for number, url in enumerate(islice(cycle(servers.urls), 200))]
        beside(callbacks, 5 if quick else 30, servers)


def dead(quick: bool) -> None:
    """2,000 subscribers: of which a third does not connect, a third does no TLS, a third has no DNS."""
    count = 200 if quick else 2000
    with Servers("no_handshake") as servers, black_hole() as port:
        kinds = (
            lambda number: f"https://127.0.0.1:{port}/{number}",
            lambda number: f"{servers.urls[0]}/{number}",
            lambda number: f"https://host{number}.slow.example/",
        )
        beside([kinds[number % 3](number) for number in range(count)], 5 if quick else 30, servers)


def crowd(quick: bool) -> None:
    """200 subscribers of one host and port that answers after 2 s, beside healthy ones of another."""
    with Servers("answers_slowly") as servers:
        beside([f"{servers.urls[0]}/{number}" for number in range(200)], 5 if quick else 30, servers)


class Servers:
    """Hostile servers in a process of their own, which gives way to others."""

    def __init__(self, *names: str) -> None:
        """`names`: which behaviours; none: all."""
        self._names = names

    def __enter__(self) -> Servers:
        self._folder = tempfile.TemporaryDirectory()
        self.ca_file = Path(self._folder.name) / "ca.pem"
        command = [sys.executable, __file__, "--serve", str(self.ca_file), *self._names]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.urls: list[str] = json.loads(self._process.stdout.readline())
        self.harmless = self.urls.pop()  #: of one that answers as it should
        return self

    def cpu(self) -> float:
        """Processor seconds so far."""
        return cpu_seconds(self._process.pid)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


async def answers_slowly(wire: Wire) -> None:
    while True:
        await wire.request()
        await wire.sleep(2)
        wire.write(ANSWERS["chunked"])


async def serve(reactor: Any, ca_file: str, *names: str) -> None:
    """Run the servers, print their callbacks, and go on until the process is killed."""
    os.nice(19)
    authority, now = Authority(), datetime.now(UTC)
    authority.write(Path(ca_file))
    good, day = authority.issue(), timedelta(days=1)
    expired = authority.issue(not_before=now - 2 * day, not_after=now - day)
    old = authority.issue(**AES_GCM)
    rows: list[tuple[str, Behaviour, Any]] = [
        *((name, behaviour, good) for name, behaviour in ZOO.items()),
        *((name, behaviour, None) for name, behaviour in BEFORE_TLS.items()),
        *((str(number), answering(answer), good) for number, answer in enumerate(MALFORMED.values())),
        ("expired", ZOO["silent"], expired), ("unknown", ZOO["silent"], Authority().issue()),
        ("client's", ZOO["silent"], demand_certificate(authority.issue())),
        ("renegotiates", renegotiates, old), ("requests_handshakes", requests_handshakes, old),
        ("answers_slowly", answers_slowly, good),
    ]  # fmt: skip
    servers = [ScriptedServer(reactor, options, behaviour) for name, behaviour, options in rows
               if not names or name in names]  # fmt: skip
    servers.append(ScriptedServer(reactor, good, answering(b"HTTP/1.1 204 No Content\r\n\r\n")))
    print(json.dumps([server.url for server in servers]), flush=True)
    await Deferred()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        react(lambda reactor: Deferred.fromCoroutine(serve(reactor, *sys.argv[2:])))
    else:
        play(__doc__, (zoo, dead, crowd))
