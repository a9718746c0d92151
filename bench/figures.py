"""The figures of the bus, each against a bare server or against itself in the same run.

    python bench/figures.py [--quick] ingest fanout history bulk latency drain memory idle

Every figure starts a bus of its own, as an operator would: `twistd routemaster`
with its embedded Redis (append-only file on), TLS, publishers and subscribers
in other processes. Compare the ratios; rates depend on the machine.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from statistics import median

from bus import URL, Bus, cpu_seconds, play, resident_mb, seen, unverified
from http_layer import measure as measure_bare
from load import run

from routemaster.cli.redis import Redis
from routemaster.redis.address import RedisAddress
from routemaster.testing.redis_server import servers
from routemaster.testing.sentinels import SentinelGroup


def ingest(quick: bool) -> None:
    """Single events, one live subscriber, against a bare Klein handler that answers 204 over TLS."""
    ratios = []
    for _ in range(2 if quick else 5):
        bare = measure_bare("bare", 1.0 if quick else 4.0)[0]
        with Bus() as bus:
            assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
            port = bus.sink()
            bus.subscribe(port)
            bus.load([bus.request()], 0.5)
            result = bus.load([bus.request()], 1.0 if quick else 4.0)
        ratios.append(result.rate / bare.rate)
        print(f"  bare Klein {bare.rate:.0f}/s, bus {result.rate:.0f}/s (p99 {result.percentile(99):.1f} ms)")
    print(f"ingest ratio {median(ratios):.2f} (goal 0.7)")


def fanout(quick: bool) -> None:
    """Single events, 100 subscribers of the topic against one; they wait, so that only ingest is measured."""
    ratios = []
    for _ in range(2 if quick else 5):
        rates = {}
        for subscribers in (1, 100):
            with Bus(clients=100) as bus:
                assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
                for client in range(subscribers):
                    bus.subscribe(9, client, timeout=3_600_000, max=10_000)
                bus.load([bus.request()], 0.2)
                # fewer events than fill a batch: nothing is delivered meanwhile
                result = run("127.0.0.1", bus.port, [bus.request()], count=3000 if quick else 6000)
                rates[subscribers] = result.rate
        ratios.append(rates[100] / rates[1])
        print(f"  1 subscriber {rates[1]:.0f}/s, 100 subscribers {rates[100]:.0f}/s")
    print(f"fanout ratio {median(ratios):.2f} (goal 0.9)")


def history(quick: bool) -> None:
    """Single events to a topic that keeps an hour, against one that keeps nothing; one live subscriber of both.

    On one bus, in short turns: so what disturbs one turn disturbs the next as well.
    """
    with Bus() as bus:
        port, used = bus.sink(), {}
        for topic in ("things", "kept"):
            assert bus.call("POST", f"/topics/{topic}", {"type": "noop", "url": URL % 1}) == 204
        assert bus.call("PUT", "/topics/kept", {"history": 3_600_000}) == 204
        bus.subscribe(port, topics=("things", "kept"), timeout=0)
        pids, turns = bus.pids(), 4 if quick else 20
        for topic in ("things", "kept") * turns:
            before = sum(map(cpu_seconds, pids))
            result = bus.load([bus.request(topic=topic)], 0.5 if quick else 2.0)
            time.sleep(0.2)  # the rest is delivered
            cost = 1e6 * (sum(map(cpu_seconds, pids)) - before) / sum(result.statuses.values())
            used.setdefault(topic, []).append((result.rate, cost))
    without, kept = (tuple(map(median, zip(*used[topic], strict=True))) for topic in ("things", "kept"))
    print(
        f"history: {kept[0]:.0f}/s against {without[0]:.0f}/s, ratio {kept[0] / without[0]:.2f} (goal 0.95); "
        f"processor time {kept[1]:.0f} against {without[1]:.0f} µs for an event"
    )


def bulk(quick: bool) -> None:
    """Bulk publication of 100 events a request against single publication, one live subscriber."""
    ratios = []
    for _ in range(2 if quick else 5):
        rates = {}
        for events in (1, 100):
            with Bus() as bus:
                assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
                bus.subscribe(9, timeout=3_600_000, max=10_000)
                result = bus.load([bus.request(events)], 1.0 if quick else 3.0)
                rates[events] = result.rate * events
        ratios.append(rates[100] / rates[1])
        print(f"  single {rates[1]:.0f} events/s, by the hundred {rates[100]:.0f} events/s")
    print(f"bulk ratio {median(ratios):.1f} (goal 15)")


def latency(quick: bool) -> None:
    """From the start of the POST to arrival at the subscriber: 50 events/s, timeout 0."""
    with Bus() as bus:
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        port = bus.sink()
        bus.subscribe(port, timeout=0)
        connection = http.client.HTTPSConnection("127.0.0.1", bus.port, context=unverified())
        credential = base64.b64encode(f"{bus.tokens[0]}:".encode()).decode()
        start, count = time.monotonic(), 100 if quick else 1000
        for number in range(count):
            time.sleep(max(0.0, start + number / 50 - time.monotonic()))
            body = {"type": "update", "url": URL % number, "data": {"sent": time.monotonic_ns()}}
            headers = {"Authorization": f"Basic {credential}"}
            connection.request("POST", "/topics/things", json.dumps(body), headers)
            assert connection.getresponse().read() == b""
        time.sleep(0.2)
        sink = seen(port)
    times = sorted(sink["latencies"])
    assert len(times) == count, (len(times), count)
    print(
        f"latency p50 {times[count // 2]:.1f} ms (goal 5), p99 {times[int(count * 0.99)]:.1f} ms (goal 20), "
        f"longest {times[-1]:.1f} ms; {sink['batches']} batches on {sink['connections']} connections"
    )


def drain(quick: bool) -> None:
    """A backlog to one subscriber, 100 events in a batch."""
    backlog = 20_000 if quick else 100_000
    with Bus() as bus:
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        bus.subscribe(9, timeout=3_600_000, max=10_000)
        requests = [bus.request(1000)]
        result = run("127.0.0.1", bus.port, requests, connections=2, count=backlog // 1000 - 2)
        assert set(result.statuses) == {204}
        waiting = bus.queued()
        port = bus.sink()
        started = time.monotonic()
        bus.subscribe(port, max=100)
        while (events := seen(port)["events"]) < waiting and time.monotonic() < started + 60:
            time.sleep(0.02)
        elapsed = time.monotonic() - started
        sink = seen(port)
    print(
        f"drain {events / elapsed:.0f} events/s (goal 30000): {events} of {waiting} events in {sink['batches']} "
        f"batches on {sink['connections']} connections, {elapsed:.2f} s"
    )


def memory(quick: bool) -> None:
    """Redis's memory for a backlog, against the bytes of its fragments."""
    for subscribers in (1, 100):
        with Bus(clients=100) as bus:
            assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
            for client in range(subscribers):
                bus.subscribe(9, client)
            before = used_memory(bus)
            count = 20 if quick else 100
            run("127.0.0.1", bus.port, [bus.request(1000)], connections=2, count=count)
            events = bus.queued() // subscribers
            taken = used_memory(bus) - before
            one = len(b'{"topic":"things","type":"update","url":"","t":1234567890123}') + len(URL % 42)
        print(
            f"memory ratio {taken / (events * one):.2f} (goal 1.5 at most) with {subscribers} subscribers: "
            f"{taken / events:.0f} bytes for an event of {one}"
        )


def used_memory(bus: Bus) -> int:
    """Bytes that all keys of the bus take, names and overhead included."""
    with Redis(RedisAddress(path=str(bus.state / "redis" / "redis.sock"))) as redis:
        return sum(redis.ask(b"MEMORY", b"USAGE", key, b"SAMPLES", b"0") for key in redis.ask(b"KEYS", b"*"))


def idle(quick: bool) -> None:
    """Resident memory of an idle process, and what 1,000 idle subscribers cost."""
    seconds = 5.0 if quick else 30.0
    with Bus(clients=1000) as bus:
        time.sleep(1)
        print(f"idle {resident_mb(bus.process.pid):.0f} MB resident (goal below 90)")
        assert bus.call("POST", "/topics/things", {"type": "noop", "url": URL % 1}) == 204
        for client in range(1000):
            bus.subscribe(9, client)
        time.sleep(3)
        before = [cpu_seconds(pid) for pid in bus.pids()]
        time.sleep(seconds)
        used = [100 * (cpu_seconds(pid) - was) / seconds for pid, was in zip(bus.pids(), before, strict=True)]
        resident = resident_mb(bus.process.pid)
    print(
        f"idle with 1,000 subscribers: {used[0]:.1f} % of a core (goal below 5), Redis {used[1]:.1f} %, "
        f"{resident:.0f} MB resident"
    )


def replicated(quick: bool) -> None:
    """Ingest with min_replicas 1 against 0, single events, on a master with one replica."""
    group = SentinelGroup(servers()[0])
    try:
        group.start_servers()
        ratios = []
        for _ in range(1 if quick else 5):
            rates = []
            for least in ("0", "1"):
                with Bus("--redis-url", group.master.url, "--min-replicas", least) as bus:
                    rates.append(bus.load([bus.request()], 1.0 if quick else 4.0).rate)
            ratios.append(rates[1] / rates[0])
            print(f"  {rates[0]:.0f} events/s with 0, {rates[1]:.0f} with 1: {ratios[-1]:.2f}")
        print(f"  median {median(ratios):.2f}")
    finally:
        group.stop()


if __name__ == "__main__":
    play(__doc__, (ingest, fanout, history, bulk, latency, drain, memory, idle, replicated))
