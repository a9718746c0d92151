"""What tracing costs: processor time of the bus for each event, published singly and delivered to one subscriber.

    python bench/tracing.py [--quick] [--against PYTHON] [off on memory]

`off`: without the option, against the Python of another checkout, one without tracing. `on`: with the option,
against without it: publications that are not sampled, and ones that are, sent to a collector in another process,
which discards them. The ways alternate, because other work on the machine changes their speed; each figure is the
median of the ratios of neighbours, with the smallest and the largest. `memory`: bytes of an event in Redis.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

from bus import URL, Bus, cpu_seconds, seen
from figures import used_memory
from load import run

TRACE = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-01", f"00-{TRACE}-00"
ON = ("--tracing", "otlp")


class Collector:
    """A process that answers 200 to every POST."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--collect"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def collect() -> None:
    """Be a collector."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def traced(request: bytes, traceparent: str) -> bytes:
    """The request with a context."""
    return request.replace(b"\r\n", f"\r\ntraceparent: {traceparent}\r\n".encode(), 1)


def measure(
    count: int, options: Sequence[str] = (), context: str = "", python: str = sys.executable
) -> tuple[float, float]:
    """Microseconds of the bus, and of its Redis, for each event, from the request to the acknowledged delivery."""
    with Bus(*options, python=python) as bus:
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        port = bus.sink()
        bus.subscribe(port, timeout=50, max=100)
        request = traced(bus.request(), context) if context else bus.request()
        run("127.0.0.1", bus.port, [request], count=count // 10)
        done(port, count // 10)
        before = list(map(cpu_seconds, bus.pids()))
        run("127.0.0.1", bus.port, [request], count=count)
        done(port, count + count // 10)
        used = [now - then for now, then in zip(map(cpu_seconds, bus.pids()), before, strict=True)]
    return used[0] / count * 1e6, used[1] / count * 1e6


def done(port: int, events: int) -> None:
    """Wait until the sink has so many events."""
    while seen(port)["events"] < events:
        time.sleep(0.05)


def compare(name: str, rounds: int, count: int, one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Print the ratio of two ways."""
    ratios, redis = [], []
    for number in range(rounds):
        ways = [one, other] if number % 2 else [other, one]
        found = {id(way): measure(count, **way) for way in ways}  # type: ignore[arg-type]
        (first, of_first), (second, of_second) = found[id(one)], found[id(other)]
        ratios.append(first / second)
        redis.append(of_first / of_second)
        print(f"  {first:.0f} us an event against {second:.0f}, Redis {of_first:.0f} against {of_second:.0f}")
    print(
        f"{name}: processor time {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"Redis {median(redis):.3f} ({min(redis):.3f} to {max(redis):.3f})"
    )


def off(quick: bool, against: str) -> None:
    """Without the option, against another checkout."""
    if against:
        rounds, count = (2, 1500) if quick else (10, 6000)
        compare("off against before", rounds, count, {}, {"python": against})


def on(quick: bool, against: str) -> None:
    """With the option, against without it."""
    rounds, count = (2, 1500) if quick else (6, 6000)
    collector = Collector()
    try:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        for name, context in {"not sampled": UNSAMPLED, "sampled": SAMPLED}.items():
            way = {"options": ON, "context": context}
            with variables(environment):
                compare(name, rounds, count, way, {"context": context})
    finally:
        collector.stop()


def memory(quick: bool, against: str) -> None:
    """Redis's memory for each event, with and without a context."""
    taken = {}
    for options, context in (((), ""), (ON, ""), (ON, SAMPLED)):
        with variables({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}), Bus(*options) as bus:
            assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
            bus.subscribe(9)
            before = used_memory(bus)
            request = traced(bus.request(1000), context) if context else bus.request(1000)
            run("127.0.0.1", bus.port, [request], connections=2, count=20)
            taken[options, context] = (used_memory(bus) - before) / bus.queued()
    plain, without, kept = taken.values()
    print(f"memory: {plain:.0f} bytes an event, with tracing {without:.0f}, with a context {kept:.0f}")


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, for buses that are started inside."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


if __name__ == "__main__":
    if sys.argv[1:] == ["--collect"]:
        collect()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds each: to see that it works")
    parser.add_argument("--against", default="", metavar="PYTHON", help="of another checkout, for `off`")
    parser.add_argument("figures", nargs="*", help="all if none is named")
    arguments = parser.parse_args()
    for figure in (off, on, memory):
        if figure.__name__ in (arguments.figures or ("off", "on", "memory")):
            figure(arguments.quick, arguments.against)
