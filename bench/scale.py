"""How the bus scales: processes, subscribers, a long backlog, a steady stream, unreachable subscribers.

    python bench/scale.py [--quick] processes thousand backlog steady dead

Each figure is a ratio within one run, as in `figures.py`, or a time with its goal.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from bus import URL, Bus, play, seen, unverified
from load import run

from routemaster.testing.redis_server import PrivateRedis, servers

SHARE, PERIOD = 0.2, 0.02  #: of a core that each process gets where they are held back; seconds
WAITING = {"timeout": 3_600_000, "max": 10_000}  #: a subscription to which nothing is delivered for a while


def made(bus: Bus) -> None:
    """Make the topic."""
    assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204


def children(parent: int) -> list[int]:
    """The processes of a bus of several."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(each) for each in listed if b"routemaster" in Path(f"/proc/{each}/cmdline").read_bytes()]


@contextmanager
def held_back(processes: Sequence[int]) -> Iterator[None]:
    """Let each process run for a share of the time only, one after another: who asks them has a core to itself."""
    going = True
    gap = PERIOD / len(processes) - PERIOD * SHARE

    def pulse() -> None:
        while going:
            for each in processes:
                os.kill(each, signal.SIGCONT)
                time.sleep(PERIOD * SHARE)
                os.kill(each, signal.SIGSTOP)
                time.sleep(gap)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        going = False
        thread.join()
        for each in processes:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def processes(quick: bool) -> None:
    """Ingest of two processes against one, each held to a fifth of a core: the load needs room too."""
    ratios = []
    for _ in range(2 if quick else 5):
        rates = {}
        for count in (1, 2):
            with Bus("--processes", str(count)) as bus:
                made(bus)
                bus.subscribe(9, **WAITING)
                time.sleep(1)
                pids = children(bus.process.pid) if count > 1 else [bus.process.pid]
                assert len(pids) == count, pids
                with held_back(pids):
                    # a process of its own: this one's thread has pulses to give
                    rates[count] = loaded(bus, 2.0 if quick else 5.0)
        ratios.append(rates[2] / rates[1])
        print(f"  1 process {rates[1]:.0f}/s, 2 processes {rates[2]:.0f}/s")
    print(f"processes ratio {median(ratios):.2f} (goal 1.5)")


def loaded(bus: Bus, seconds: float, connections: int = 32) -> float:
    """The rate at which a load generator in a process of its own is answered."""
    request = bus.state / "request"
    request.write_bytes(bus.request())
    command = [sys.executable, str(Path(__file__).with_name("load.py")), "127.0.0.1", str(bus.port), str(request)]
    done = subprocess.run([*command, str(connections), str(seconds)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[1].removesuffix("/s"))


def thousand(quick: bool) -> None:
    """Single events, 1,000 subscribers of the topic against one; they wait: only ingest is measured."""
    ratios = []
    for _ in range(2 if quick else 5):
        rates = {}
        for subscribers in (1, 1000):
            with Bus(clients=1000) as bus:
                made(bus)
                for client in range(subscribers):
                    bus.subscribe(9, client, **WAITING)
                bus.load([bus.request()], 0.2)  # with those to come fewer than fill a batch
                rates[subscribers] = run("127.0.0.1", bus.port, [bus.request()], count=6000).rate
        ratios.append(rates[1000] / rates[1])
        print(f"  1 subscriber {rates[1]:.0f}/s, 1,000 subscribers {rates[1000]:.0f}/s")
    print(f"thousand ratio {median(ratios):.2f} (goal 0.9)")


def backlog(quick: bool) -> None:
    """A backlog of 1,000,000 events against none: ingest, delivery of others, the first delivery after a start."""
    events = 100_000 if quick else 1_000_000
    ingest: dict[int, list[float]] = {0: [], events: []}
    delivery: dict[int, list[float]] = {0: [], events: []}
    redis = PrivateRedis(servers()[-1], "--appendonly", "yes")
    redis.start()
    try:
        for owed in (0, events):
            options = ("--redis-url", f"unix://{redis.socket_path}", "--redis-max-mem", str(10**10))
            with Bus(*options, clients=2) as bus:
                made(bus)
                bus.subscribe(9, **WAITING)
                if owed:
                    run("127.0.0.1", bus.port, [bus.request(1000)], connections=2, count=owed // 1000)
                    assert bus.queued() >= owed
                port = bus.sink()
                for _ in range(2 if quick else 5):
                    bus.subscribe(9, 1, **WAITING)
                    ingest[owed].append(bus.load([bus.request()], 1.0 if quick else 3.0).rate)
                    delivery[owed].append(drained(bus, port, 20_000 if quick else 100_000))
                    assert bus.call("DELETE", "/subscriber", None, 1) == 204
                if owed:
                    first_delivery(bus, port)
            redis.flush()
    finally:
        redis.stop()
    for name, rates in (("ingest", ingest), ("delivery", delivery)):
        none, many = median(rates[0]), median(rates[events])
        print(f"backlog {name} ratio {many / none:.2f} (goal 0.9): {many:.0f} against {none:.0f} events/s")


def drained(bus: Bus, port: int, events: int) -> float:
    """Events for each second at which the second client's backlog goes out, 100 in a batch."""
    run("127.0.0.1", bus.port, [bus.request(1000)], connections=2, count=events // 1000)
    before, started = seen(port)["events"], time.monotonic()
    bus.subscribe(port, 1, max=100)
    while (arrived := seen(port)["events"] - before) < events and time.monotonic() < started + 60:
        time.sleep(0.02)
    return float(arrived / (time.monotonic() - started))


def first_delivery(bus: Bus, port: int) -> None:
    """Restart the bus; seconds until the first delivery of the backlog."""
    bus.subscribe(port, 0, timeout=3_600_000, max=100)
    bus.stop()
    before, started = seen(port)["events"], time.monotonic()
    bus.start()
    while seen(port)["events"] == before and time.monotonic() < started + 60:
        time.sleep(0.01)
    elapsed = time.monotonic() - started
    print(f"backlog first delivery {elapsed:.2f} s after the start (goal 5), the imports of Python included")


def steady(quick: bool) -> None:
    """From the start of the POST to arrival: 500 events/s on a schedule, timeout 0, one and ten subscribers."""
    for subscribers, goals in ((1, "5 and 20"), (10, "10 and 40")):
        with Bus(clients=10) as bus:
            made(bus)
            port = bus.sink()
            for client in range(subscribers):
                bus.subscribe(port, client, timeout=0)
            times = streamed(bus, port, 500, 2 if quick else 20, subscribers)
        print(f"steady {subscribers} subscribers: {spread(times)} (goal {goals})")


def streamed(bus: Bus, port: int, rate: int, seconds: int, subscribers: int) -> list[float]:
    """Milliseconds from publication to arrival of a stream of so many events each second, ascending."""
    credential = base64.b64encode(f"{bus.tokens[0]}:".encode()).decode()
    headers = {"Authorization": f"Basic {credential}"}
    count, lock, numbers = rate * seconds, threading.Lock(), iter(range(rate * seconds))
    start, before = time.monotonic() + 0.1, len(seen(port)["latencies"])

    def publish() -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", bus.port, context=unverified())
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            body = {"type": "update", "url": URL % number, "data": {"sent": time.monotonic_ns()}}
            connection.request("POST", "/topics/things", json.dumps(body), headers)
            assert connection.getresponse().read() == b""

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limit = time.monotonic() + 10
    while len(times := seen(port)["latencies"][before:]) < count * subscribers and time.monotonic() < limit:
        time.sleep(0.1)
    assert len(times) >= count * subscribers, (len(times), count * subscribers)
    return sorted(times)


def spread(times: Sequence[float]) -> str:
    """The median, the 99th percentile and the maximum."""
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    return f"p50 {middle:.1f} ms, p99 {late:.1f} ms, longest {times[-1]:.1f} ms"


def black_hole() -> tuple[int, list[socket.socket]]:
    """A port at which connecting hangs: its listen queue is full, and nothing accepts."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        with suppress(BlockingIOError):
            filler.connect(listener.getsockname())
        fillers.append(filler)
    return int(listener.getsockname()[1]), [listener, *fillers]


def dead(quick: bool) -> None:
    """20 healthy subscribers at 50 events/s, beside 2,000 of a server that hangs, or 10,000 that refuse."""
    hanging, refusing, seconds = (200, 500, 5) if quick else (2000, 10_000, 60)
    port_of_none, held = black_hole()
    closed = socket.socket()
    closed.bind(("", 0))  # it does not listen

    def hangs(number: int) -> str:
        return f"https://localhost:{port_of_none}/events"

    def refuses(number: int) -> str:
        return f"https://127.1.{number >> 8}.{number & 255}:{closed.getsockname()[1]}/events"

    alone = beside(0, hangs, seconds)
    for name, others, callback in (("hanging", hanging, hangs), ("refusing", refusing, refuses)):
        p99 = beside(others, callback, seconds)
        print(f"dead {name} ratio {p99 / alone:.2f} (goal 1.25 at most)", flush=True)
    for each in (*held, closed):
        each.close()


def beside(others: int, callback: Callable[[int], str], seconds: int) -> float:
    """The p99 of healthy subscribers beside `others` that are dead."""
    with Bus(clients=20 + others) as bus:
        made(bus)
        port = bus.sink()
        for client in range(20):
            bus.subscribe(port, client, timeout=0)
        for number in range(others):
            bus.subscribe(0, 20 + number, timeout=0, callback=callback(number))
        first = streamed(bus, port, 50, 10, 20)  # while nobody knows yet who is dead
        times = streamed(bus, port, 50, seconds, 20)
        health = [one["health"] for one in bus.call("GET", "/subscriptions", read=True)]
        last = max(time.time() - one["last_attempt"] for one in health)
    print(f"  {others} dead: {spread(times)}; in the first 10 s {spread(first)}")
    print(f"  each was tried within the last {last:.1f} s (the longest pause is 60)", flush=True)
    return times[int(len(times) * 0.99)]


if __name__ == "__main__":
    play(__doc__, (processes, thousand, backlog, steady, dead))
