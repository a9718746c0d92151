"""20 healthy subscribers beside hostile ones, and beside dead ones: what it does to the latency of the healthy.

    python bench/hostile.py [--quick] zoo dead crowd

All subscribe to one topic. Each figure is a ratio within one run: the p99 of the
healthy beside the others (twice: while nobody knows them yet, and later) to that
without them, measured before and after. Goal: 1.25 at most.
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
#: Look-ups of names in this domain take as long as those of a DNS that does not answer.
SLOW_DNS = """
import socket, time
getaddrinfo = socket.getaddrinfo
def slow(host, *arguments, **named):
    if str(host).endswith(".slow.example"):
        time.sleep(10)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return getaddrinfo(host, *arguments, **named)
socket.getaddrinfo = slow
"""


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def beside(callbacks: Sequence[str], seconds: float, servers: Servers, *options: str) -> None:
    """Measure the healthy alone, beside subscribers with these callbacks, and alone again."""
    with Bus(*options, clients=HEALTHY + len(callbacks), customize=SLOW_DNS) as bus:
        first = {"type": "noop", "url": "https://www.example.com/things"}
        assert bus.call("POST", f"/topics/{TOPIC}", first) == 204
        port, pid = bus.sink(), bus.process.pid
        for client in range(HEALTHY):
            bus.subscribe(port, client, timeout=0)

        def probe(name: str, seconds: float) -> Seen:
            started, used = time.monotonic(), cpu_seconds(pid)
            others = servers.cpu() if servers else 0.0
            with Probe(bus, 0, RATE, TOPIC, port, HEALTHY) as measured:
                time.sleep(seconds)
            took = time.monotonic() - started
            share = (cpu_seconds(pid) - used) / took
            if servers:
                print(f"  the hostile took {(servers.cpu() - others) / took:.0%} of a core")
            print(
                f"  {name:9} {measured.seen}; {share:.0%} of a core, {resident_mb(pid):.0f} MB, "
                f"{descriptors(pid)} descriptors", flush=True,
            )  # fmt: skip
            return measured.seen

        probe("warm up", 1)
        before = probe("alone", seconds)
        each(bus, range(len(callbacks)), lambda number: bus.subscribe(
            0, HEALTHY + number, callback=callbacks[number]
        ))  # fmt: skip
        found = {"new": probe("new", seconds), "known": probe("known", seconds)}
        unsubscribe(bus, len(callbacks))
        time.sleep(1)
        after = probe("alone", seconds)
        alone = mean(late(seen.delivery, 99) for seen in (before, after))
        for name, seen in found.items():
            print(f"  ratio of p99, {name}: {late(seen.delivery, 99) / alone:.2f} (goal 1.25 at most)", flush=True)
        bus.log.seek(0)
        print(f"  {len(bus.log.readlines())} lines in the log")


def each(bus: Bus, numbers: Sequence[int], call: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(call, numbers):
            pass


def unsubscribe(bus: Bus, count: int) -> None:
    each(bus, range(count), lambda number: bus.call("DELETE", "/subscriber", None, HEALTHY + number))


def zoo(quick: bool) -> None:
    """200 subscribers of all the servers of the tests that violate HTTP or TLS, stall, or send without end."""
    with Servers() as servers:
        callbacks = [f"{url}/{number}" for number, url in enumerate(islice(cycle(servers.urls), 200))]
        beside(callbacks, 5 if quick else 30, servers, "--ca-file", str(servers.ca_file))


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
        beside([f"{servers.urls[0]}/{number}" for number in range(200)], 5 if quick else 30, servers,
               "--ca-file", str(servers.ca_file))  # fmt: skip


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
    print(json.dumps([server.url for server in servers]), flush=True)
    await Deferred()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        react(lambda reactor: Deferred.fromCoroutine(serve(reactor, *sys.argv[2:])))
    else:
        play(__doc__, (zoo, dead, crowd))
