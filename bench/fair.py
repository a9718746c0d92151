"""What one client's load does to another's events, and what a delivery to many costs.

    python bench/fair.py [--quick] [--cluster] [--against PYTHON [--rounds N]] burst slow topics fanout

Beside each load another client publishes 100 events a second to a topic of its
own, with one healthy subscriber at timeout 0: first alone, then beside the load.
Goals: its p99 grows by at most 100 ms, and no answer but 204. PYTHON is that of
another checkout's environment: both are measured in turn, and compared. With
--cluster the bus uses three Redis nodes on loopback.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, product
from statistics import median
from string import ascii_lowercase

from bus import Bus, cpu_seconds, resident_mb, seen
from load import run
from probe import Probe, late

from routemaster.testing.redis_cluster import PrivateCluster
from routemaster.testing.redis_server import servers

Figures = dict[str, float]
DELIVERIES = 1000  #: for the cost of one
WAITING = {"timeout": 3_600_000, "max": 10_000}  #: nothing is delivered before 10,000 events are there


class Place:
    """A bus with its Redis; the last client is the probe's."""

    def __init__(self, bus: Bus, redis: list[int], options: argparse.Namespace) -> None:
        self.bus, self._redis, self._options = bus, redis, options
        self.refused = 0  #: answers to the load other than 204
        self.publish("things", 1)
        self.probe = Probe(bus, len(bus.tokens) - 1)

    def cpu(self) -> tuple[float, float]:
        """Processor time of the bus and of Redis so far, in seconds."""
        return cpu_seconds(self.bus.process.pid), sum(map(cpu_seconds, self._redis))

    def publish(self, topic: str, events: int, in_one: int = 1, data: object = None) -> None:
        """Publish events, so many in a request, one request after another, each until it is accepted."""
        missing, request = events // in_one, self.bus.request(in_one, topic, data)
        limit = time.monotonic() + self._options.patience
        while missing:
            if time.monotonic() > limit:
                print(f"  {missing * in_one} of {events} events were refused for {self._options.patience:.0f} s")
                return
            answers = run("127.0.0.1", self.bus.port, [request], connections=1, count=missing).statuses
            missing -= answers[204]
            if refused := answers.total() - answers[204]:
                self.refused += refused
                time.sleep(0.2)

    def arrived(self, port: int, events: int) -> int:
        """Wait until a sink has so many events; how many there are in the end."""
        limit = time.monotonic() + self._options.patience
        while (there := int(seen(port)["events"])) < events:
            if time.monotonic() > limit:
                print(f"  {there} of {events} events arrived in {self._options.patience:.0f} s")
                break
            time.sleep(0.1)
        return there

    def subscribe(self, port: int, client: int, **options: object) -> None:
        """Subscribe to "things" until it is accepted."""
        body = {"topics": ["things"], "callback": f"https://localhost:{port}/events", **options}
        while self.bus.call("POST", "/subscription", body, client) != 204:
            self.refused += 1

    def beside(self, load: Callable[[], None]) -> Figures:
        """What the probe sees alone and beside the load."""
        with self.probe:
            time.sleep(self._options.seconds)
        alone = self.probe.seen
        print(f"  alone   {alone}", flush=True)
        with self.probe:
            load()
        loaded = self.probe.seen
        print(f"  beside  {loaded}; the load's refused {self.refused}")
        figures = {
            f"{name} p99 longer by ms": late(times, 99) - late(before, 99)
            for name, times, before in (
                ("publish", loaded.publish, alone.publish), ("delivery", loaded.delivery, alone.delivery)
            )
        }  # fmt: skip
        figures["refused"] = loaded.refused + self.refused
        figures["peak MB of the bus"] = resident_mb(self.bus.process.pid, "VmHWM")
        return figures


@contextmanager
def place(options: argparse.Namespace, python: str, clients: int, *further: str) -> Iterator[Place]:
    """A bus with so many clients and one for the probe."""
    with ExitStack() as stack:
        arguments = ["--redis-max-mem", str(10**10), *further]
        if options.cluster:
            cluster = PrivateCluster(servers()[0], 3, 0, "--appendonly", "yes")
            stack.callback(cluster.stop)
            cluster.start()
            arguments += ["--redis-url", cluster.url]
        bus = stack.enter_context(Bus(*arguments, clients=clients + 1, python=python))
        redis = [node.pid for node in cluster.nodes] if options.cluster else bus.pids()[1:]
        yield Place(bus, redis, options)


def burst(options: argparse.Namespace, python: str) -> Figures:
    """Subscribers at `max` 10,000 and `timeout` 1 h, a burst in one topic, until less than a batch is left."""
    subscribers, events = options.subscribers or 100, options.events
    print(f"  {subscribers} subscribers, {events} events, 1,000 in a request")
    with place(options, python, subscribers) as here:
        port, rate = here.bus.sink(), 0.0
        for client in range(subscribers):
            here.subscribe(port, client, **WAITING)

        def load() -> None:
            nonlocal rate
            started = time.monotonic()
            here.publish("things", events, 1000)
            print(f"  published in {time.monotonic() - started:.1f} s", flush=True)
            # as bytes get scarce batches are smaller: what is left of the events is no whole batch
            rate = here.arrived(port, (events - WAITING["max"] + 1) * subscribers) / (time.monotonic() - started)

        figures = here.beside(load)
    return figures | {"delivered events/s": rate}


def slow(options: argparse.Namespace, python: str) -> Figures:
    """Receivers that read slowly, a backlog of 24 MB for each, `max` 10,000."""
    subscribers, events = options.subscribers or 60, options.megabytes * 1000 // 4
    print(f"  {subscribers} subscribers, {events} events of 4 kB, {options.read} bytes/s, {options.watch:.0f} s")
    with place(options, python, subscribers) as here:
        port = here.bus.sink(options.read)
        for client in range(subscribers):
            here.subscribe(9, client, **WAITING)
        here.publish("things", events, 200, "x" * 3900)
        idle = resident_mb(here.bus.process.pid)

        def load() -> None:
            for client in range(subscribers):
                here.subscribe(port, client, timeout=0, max=10_000)
            time.sleep(options.watch)

        figures = here.beside(load)
        print(f"  {seen(port)['bytes'] / 1e6:.0f} MB were read; the bus had {idle:.0f} MB before")
    return figures


def names(count: int) -> list[str]:
    """Topics with names of four letters."""
    return ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=4), count)]


def topics(options: argparse.Namespace, python: str) -> Figures:
    """A subscriber of thousands of topics, 100 events; then the cost of a delivery against one topic's."""
    listed = names(options.topics)
    print(f"  {len(listed)} topics; {DELIVERIES} deliveries, twice each, for the cost")
    with place(options, python, 2, "--max-body", "1000000") as here:
        bus, ports = here.bus, (here.bus.sink(), here.bus.sink())
        made = [bus.request(1, name) for name in listed]
        assert set(run("127.0.0.1", bus.port, made, connections=1, count=len(made)).statuses) == {204}
        here.subscribe(ports[0], 0, timeout=0, max=1)

        def load() -> None:
            started = time.monotonic()
            here.subscribe(ports[1], 1, topics=listed, timeout=0, max=1)
            print(f"  subscribed in {time.monotonic() - started:.1f} s", flush=True)
            for name in listed[:: max(1, len(listed) // 100)][:100]:
                here.publish(name, 1)
            here.arrived(ports[1], min(100, len(listed)))

        figures = here.beside(load)
        costs: dict[str, list[tuple[float, float]]] = {"things": [], listed[-1]: []}
        for _ in range(2):
            for topic, port in zip(costs, ports, strict=True):
                costs[topic].append(cost(here, topic, port))
    for index, name in enumerate(("bus", "Redis")):
        one, many = (1e6 * median(cost[index] for cost in each) for each in costs.values())
        print(f"  {name}: a delivery with 1 topic {one:.0f} µs, with {len(listed)} {many:.0f} µs")
        figures[f"{name} µs for a delivery, many topics"] = many
        figures[f"{name} many to one topic (goal 1.5)"] = many / one
    return figures


def idling(here: Place) -> tuple[float, float]:
    """Cores that bus and Redis use while nothing is published."""
    before, started = here.cpu(), time.monotonic()
    time.sleep(5)
    after, took = here.cpu(), time.monotonic() - started
    return (after[0] - before[0]) / took, (after[1] - before[1]) / took


def cost(here: Place, topic: str, port: int) -> tuple[float, float]:
    """Processor seconds of the bus and of Redis for one delivery of one event, its publication included."""
    before, counts = here.cpu(), seen(port)
    here.publish(topic, DELIVERIES)
    here.arrived(port, counts["events"] + DELIVERIES)
    after, delivered = here.cpu(), seen(port)["batches"] - counts["batches"]
    return (after[0] - before[0]) / delivered, (after[1] - before[1]) / delivered


def fanout(options: argparse.Namespace, python: str) -> Figures:
    """Subscribers of one topic, batches of `--max` at most: deliveries/s, and processor time for each event."""
    subscribers = options.subscribers or 100
    events, small = options.events // 10, {"timeout": 0, "max": options.max}
    print(f"  {subscribers} subscribers, {events} events, 100 in a request; then 10 events/s")
    with place(options, python, subscribers) as here:
        port, found = here.bus.sink(), Figures()
        for client in range(subscribers):
            here.subscribe(port, client, **small)
        idle = idling(here)

        def measure(name: str, deliver: Callable[[], None]) -> float:
            counts, before, started = seen(port), here.cpu(), time.monotonic()
            deliver()
            there, after, took = seen(port), here.cpu(), time.monotonic() - started
            delivered = there["events"] - counts["events"]
            for index, who in enumerate(("bus", "Redis")):
                used = after[index] - before[index] - idle[index] * took
                found[f"{name}: {who} µs for a delivered event"] = 1e6 * used / delivered
            return (there["batches"] - counts["batches"]) / took

        def drain() -> None:
            wanted = seen(port)["events"] + events * subscribers
            here.publish("things", events, 100)
            here.arrived(port, wanted)

        figures = here.beside(drain)
        found["deliveries/s"] = measure("drained", drain)  # what the probe costs is not in it
        with Probe(here.bus, 0, 10, "things", port):
            measure("10 events/s", lambda: time.sleep(options.seconds))
        return figures | found


SCENES = {scene.__name__: scene for scene in (burst, slow, topics, fanout)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds each: to see that it works")
    parser.add_argument("--cluster", action="store_true", help="on three nodes of a Redis Cluster")
    parser.add_argument("--against", metavar="PYTHON", help="that of another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="for which the probe is alone, and of a stream")
    parser.add_argument("--subscribers", type=int, help="100; slow: 60")
    parser.add_argument("--events", type=int, default=20_000, help="of a burst; fanout takes a tenth")
    parser.add_argument("--max", type=int, default=10, help="events in a batch of fanout")
    parser.add_argument("--topics", type=int, default=8000)
    parser.add_argument("--megabytes", type=int, default=24, help="of backlog for each slow subscriber")
    parser.add_argument("--read", type=int, default=1_000_000, help="bytes a second that a slow receiver reads")
    parser.add_argument("--watch", type=float, default=20.0, help="seconds beside slow receivers")
    parser.add_argument("--patience", type=float, default=40.0, help="seconds for a load to be taken or delivered")
    parser.add_argument("scenes", nargs="*", help=f"which of {', '.join(SCENES)}; all if none is named")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.watch, options.topics, options.megabytes = 2.0, 4.0, 800, 8
        options.events, options.subscribers = 10_000, options.subscribers or 10
    return options


def show(told: dict[str, list[Figures]]) -> None:
    """The medians, and the ratio if there are two."""
    for name in next(iter(told.values()))[0]:
        values = [median(figures[name] for figures in each) for each in told.values()]
        ratio = f"  ratio {values[0] / values[1]:.2f}" if len(values) == 2 and values[1] else ""
        print(f"  {name:45}" + "".join(f"{value:12,.1f}" for value in values) + ratio, flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    options = arguments()
    pythons = {"here": sys.executable} | ({options.against: options.against} if options.against else {})
    for name in options.scenes or SCENES:
        print(f"{name}: {SCENES[name].__doc__}", flush=True)
        told: dict[str, list[Figures]] = {label: [] for label in pythons}
        for number in range(options.rounds):
            for label in list(pythons) if number % 2 else reversed(pythons):
                print(f" {label}")
                told[label].append(SCENES[name](options, pythons[label]))
        print(f"{name}, medians of {options.rounds}: {', '.join(pythons)}")
        show(told)


if __name__ == "__main__":
    main()
