"""The Python client's rates against a real bus over TLS, each as a ratio to a bare load generator in the same run.

    python bench/client.py [--quick] [background|single ...]

The bare generator (`load.py`) sends the same requests, built beforehand, over as many connections: bulks of 1,000
for `background`, single events for `single`. So the ratio is what the client costs, on any machine. Needs the
client (`clients/python`) installed beside the bus.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bus import URL, Bus, play
from routemaster_client import Client
from routemaster_client.background import BackgroundPublisher

GOALS = {"background": 15_000, "single": 2_000}  #: events a second from one process


def client(bus: Bus) -> Client:
    return Client(f"https://localhost:{bus.port}", bus.tokens[0], ca_file=str(bus.state / "localhost.crt"))


def report(name: str, rate: float, bare: float) -> None:
    print(f"  {rate:,.0f} events/s; goal {GOALS[name]:,}; bare {bare:,.0f}/s; ratio {rate / bare:.2f}")


def background(quick: bool) -> None:
    """Events through the background publisher of one process."""
    seconds = 2.0 if quick else 10.0
    with Bus() as bus:
        bare = 1000 * bus.load([bus.request(1000)], seconds, connections=1).rate
        with client(bus) as shop:
            publisher = BackgroundPublisher(shop, capacity=20_000)
            begin, count, url = time.perf_counter(), 0, URL % 42
            while time.perf_counter() - begin < seconds:
                while publisher.pending > 15_000:
                    time.sleep(0.005)  # a producer that waits when the queue is long
                for _ in range(500):
                    publisher.updated("things", url, timestamp=1234567890123)
                count += 500
            done = publisher.close(60)
            elapsed = time.perf_counter() - begin
            assert done, publisher
            assert not publisher.dropped, publisher
        report("background", count / elapsed, bare)


def single(quick: bool) -> None:
    """Single publications by the blocking client: one thread, and four."""
    seconds = 2.0 if quick else 10.0
    for threads in (1, 4):
        with Bus() as bus, client(bus) as shop, ThreadPoolExecutor(threads) as pool:
            bare = bus.load([bus.request()], seconds, connections=threads).rate
            end = time.perf_counter() + seconds

            def publish(_: int, shop: Client = shop, end: float = end) -> int:
                count, url = 0, URL % 42
                while time.perf_counter() < end:
                    shop.updated("things", url, timestamp=1234567890123)
                    count += 1
                return count

            count = sum(pool.map(publish, range(threads)))
        print(f"  {threads} threads:", end="")
        report("single", count / seconds, bare)


if __name__ == "__main__":
    sys.exit(play(__doc__, [background, single]))
