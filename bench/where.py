"""The CPU time of one publication and of one delivery, by part of the code, sampled from outside.

    pip install py-spy; python bench/where.py [SECONDS]

py-spy samples the running daemon while it uses the CPU; a sample counts for the
innermost frame that is assigned to a part. Times are the daemon's CPU seconds
for each publication or delivery, divided by those samples.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from bus import URL, Bus, cpu_seconds, seen
from load import Result, run

#: part of our code -> modules, by how their names begin
PARTS = {
    "HTTP: parsing, answers": ("web/framing", "web/channel", "web/site"),
    "HTTP: routing, request": ("web/routing", "web/request", "web/answers"),
    "authentication": ("web/auth",),
    "JSON, checks, fragment": ("strictjson", "rules", "model", "web/api"),
    "the store, group commit": ("store/", "group_commit"),
    "metrics, log": ("metrics", "logs", "delivery/telling", "delivery/repeats", "delivery/measures"),
    "couriers": ("delivery",),
    "treq, pool": ("sender",),
}


def about(stack: list[str]) -> str | None:
    """What a sample, outermost frame first, is about; None: not the reactor's thread."""
    leaf = stack[-1]
    if any("twisted/_threads/" in frame for frame in stack):
        return None
    if "epollreactor.py" in leaf:
        return "epoll, registrations"
    if any(word in leaf for word in ("untilConcludes", "recvmsg", "Connection.doRead (twisted", "_SendmsgMixin")):
        to_redis = any("internet/unix.py" in frame for frame in stack)
        return f"system calls, {'Redis' if to_redis else 'HTTP'}"
    if any(word in leaf for word in ("OpenSSL", "protocols/tls.py")):
        return "TLS"
    for frame in reversed(stack):
        if "(routemaster/" in frame:
            module = frame.partition("(routemaster/")[2]
            return next((part for part, names in PARTS.items() if module.startswith(names)), "other")
    return "Twisted"


def sampled(bus: Bus, seconds: float) -> tuple[Counter[str], float]:
    """Samples by what they are about, and the processor time meanwhile, in seconds."""
    before = cpu_seconds(bus.process.pid)
    with tempfile.NamedTemporaryFile() as raw:
        command = ["py-spy", "record", "-r", "500", "-d", str(round(seconds)), "-f", "raw", "-o", raw.name]
        subprocess.run([*command, "--pid", str(bus.process.pid)], check=True, capture_output=True)
        found: Counter[str] = Counter()
        for line in Path(raw.name).read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            if (what := about(stack.split(";"))) is not None:
                found[what] += int(count)
    return found, cpu_seconds(bus.process.pid) - before


def tell(name: str, found: Counter[str], used: float, count: float) -> None:
    each = used / count * 1e6
    print(f"one {name}: {each:.0f} µs")
    for what, samples in found.most_common():
        print(f"  {each * samples / found.total():6.1f} µs  {what}")


def publication(seconds: float) -> None:
    """Single events on 16 connections; the subscriber waits."""
    with Bus() as bus:
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        bus.subscribe(9, timeout=3_600_000, max=10_000)
        results: list[Result] = []
        load = threading.Thread(target=lambda: results.append(bus.load([bus.request()], seconds + 4)))
        load.start()
        time.sleep(2)
        found, used = sampled(bus, seconds)
        load.join()
    tell("publication", found, used, results[0].rate * seconds)


def delivery(seconds: float) -> None:
    """A backlog to one subscriber, one event in a batch, one batch at a time."""
    with Bus() as bus:
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        bus.subscribe(9, timeout=3_600_000, max=10_000)
        run("127.0.0.1", bus.port, [bus.request(1000)], connections=2, count=100)
        port = bus.sink()
        bus.subscribe(port, max=1)
        time.sleep(2)
        before = seen(port)["batches"]
        found, used = sampled(bus, seconds)
        tell("delivery", found, used, seen(port)["batches"] - before)


if __name__ == "__main__":
    for measure in (publication, delivery):
        measure(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
