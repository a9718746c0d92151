"""Events that subscribers pull: latency, draining, and what waiting polls take.

    PYTHONPATH=. python bench/pull.py [--quick] latency poll stream waiting

Each figure has something bare beside it, measured in the same run on the same machine.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread

from bus import URL, Bus, cpu_seconds, play, resident_mb, unverified
from load import run

from routemaster.cli.redis import Redis
from routemaster.redis.address import RedisAddress

BATCH = 10_000  #: events in one answer, or on their way in a stream


class Connection:
    """A kept-alive TLS connection of one client that reads with as little work as possible."""

    def __init__(self, bus: Bus) -> None:
        self._tokens = bus.tokens
        plain = socket.create_connection(("127.0.0.1", bus.port), timeout=120)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket: ssl.SSLSocket = CONTEXT.wrap_socket(plain, server_hostname="localhost")
        self.read = self._socket.recv

    def send(self, method: str, path: str, body: object = None, client: int = 0) -> None:
        """Send a request."""
        credential = base64.b64encode(f"{self._tokens[client]}:".encode()).decode()
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {credential}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def receive(self) -> bytes:
        """The body of an answer."""
        text = b""
        while b"\r\n\r\n" not in text:
            text += self._more()
        head, _, body = text.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 2"), head
        length = re.search(rb"Content-Length: (\d+)", head)
        parts, missing = [body], (int(length[1]) if length else 0) - len(body)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        return b"".join(parts)

    def ask(self, method: str, path: str, body: object = None, client: int = 0) -> bytes:
        """A request and its answer."""
        self.send(method, path, body, client)
        return self.receive()

    def _more(self) -> bytes:
        data = self.read(1 << 20)
        assert data, "the bus closed the connection"
        return data


CONTEXT = unverified()


def subscribed(bus: Bus, events: int = 0, client: int = 0, **options: object) -> Connection:
    """A connection, with a pulled subscription and a backlog."""
    connection = Connection(bus)
    connection.ask("POST", "/topics/things", {"type": "noop", "url": URL % 1})
    connection.ask("POST", "/subscription", {"topics": ["things"], **options}, client)
    if events:
        result = run("127.0.0.1", bus.port, [bus.request(1000)], connections=2, count=events // 1000 - 2)
        assert set(result.statuses) == {204}, result.statuses
    return connection


def percentiles(times: list[float]) -> str:
    times.sort()
    return f"p50 {1000 * times[len(times) // 2]:.2f} ms, p99 {1000 * times[int(len(times) * 0.99)]:.2f} ms"


def latency(quick: bool) -> None:
    """From the start of the POST to the answer of a poll that waits: 50 events/s."""
    count = 100 if quick else 1000
    with Bus() as bus:
        waiting, publishing = subscribed(bus), Connection(bus)
        received: SimpleQueue[float] = SimpleQueue()

        def poll() -> None:
            cursor = ""
            for _ in range(count):
                query = f"&ack={cursor}" if cursor else ""
                answer = json.loads(waiting.ask("GET", f"/subscription/events?wait=60000{query}"))
                received.put(time.monotonic())
                cursor = answer["cursor"]

        poller = Thread(target=poll)
        poller.start()
        times, posts, bare = [], [], []
        for number in range(count):
            time.sleep(0.02)
            began = time.monotonic()
            publishing.ask("GET", "/health")
            bare.append(time.monotonic() - began)
            began = time.monotonic()
            publishing.ask("POST", "/topics/things", {"type": "update", "url": URL % number})
            posts.append(time.monotonic() - began)
            times.append(received.get() - began)
        poller.join()
    print(f"latency {percentiles(times)} (goal p50 5); publishing alone {percentiles(posts)}; "
          f"a request that does nothing {percentiles(bare)}")  # fmt: skip


def poll(quick: bool) -> None:
    """A backlog through polls, each of which acknowledges the one before; beside it the bytes alone."""
    backlog = 40_000 if quick else 200_000
    with Bus() as bus:
        connection = subscribed(bus, backlog, max=BATCH)
        count = size = 0
        cursor, began, used = "", time.monotonic(), cpu(bus)
        while True:
            query = f"&ack={cursor}" if cursor else ""
            body = connection.ask("GET", f"/subscription/events?max={BATCH}{query}")
            found = body.count(b'"topic":"things"')
            if not found:
                break
            count, size = count + found, size + len(body)
            cursor = body.rpartition(b'"cursor":"')[2].partition(b'"')[0].decode()
        elapsed, used = time.monotonic() - began, cpu(bus) - used
    report("poll", count, size, elapsed, used)


def stream(quick: bool) -> None:
    """A backlog through a stream, acknowledged by cursor or by what TCP took; beside it the bytes alone."""
    backlog = 40_000 if quick else 200_000
    for sent in (False, True):
        with Bus() as bus:
            connection = subscribed(bus, backlog, max=BATCH)
            waiting = bus.queued()
            acknowledging = Connection(bus)
            connection.send("GET", "/subscription/stream" + ("?ack=sent" if sent else ""))
            count = size = acknowledged = 0
            rest, began, used = b"", time.monotonic(), cpu(bus)
            while count < waiting:
                data = rest + connection.read(1 << 20)
                size += len(data) - len(rest)
                whole, mark, rest = data.rpartition(b"\n\n")
                count += whole.count(b"\ndata: ")
                if not sent and mark and count - acknowledged >= BATCH // 4:
                    cursor = re.findall(rb"\nid: ([\w-]+)\ndata: ", whole)[-1].decode()
                    acknowledging.ask("POST", "/subscription/ack", {"cursor": cursor})
                    acknowledged = count
            elapsed, used = time.monotonic() - began, cpu(bus) - used
            while sent and bus.queued() and time.monotonic() < began + 60:
                time.sleep(0.05)
        report("stream, ack=sent" if sent else "stream", count, size, elapsed, used)


def cpu(bus: Bus) -> float:
    """CPU seconds of the bus and its Redis so far."""
    return sum(map(cpu_seconds, bus.pids()))


def report(what: str, events: int, size: int, elapsed: float, used: float) -> None:
    alone = bare(size)
    print(
        f"{what} {events / elapsed:.0f} events/s (goal 50000): {events} events, {size / 1e6:.1f} MB in "
        f"{elapsed:.2f} s, {1e6 * used / events:.1f} µs of CPU for an event, "
        f"{elapsed / alone:.1f} times as long as the bytes alone"
    )


def bare(size: int) -> float:
    """Seconds in which so many bytes come over TLS from a process that only writes them."""
    with Bus() as bus:
        pair = str(bus.state / "localhost.crt"), str(bus.state / "localhost.key")
        listening = socket.create_server(("127.0.0.1", 0))
        writer = multiprocessing.Process(target=write, args=(listening, pair, size))
        writer.start()
        connected = CONTEXT.wrap_socket(socket.create_connection(listening.getsockname()))
        began = time.monotonic()
        while size > 0:
            size -= len(connected.recv(1 << 20))
        elapsed = time.monotonic() - began
        writer.join()
    return elapsed


def write(listening: socket.socket, pair: tuple[str, str], size: int) -> None:
    """Send so many bytes over TLS, in parts as the bus writes them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with suppress(OSError), context.wrap_socket(listening.accept()[0], server_side=True) as connected:
        for _ in range(size // 32768 + 1):
            connected.sendall(bytes(32768))


def waiting(quick: bool) -> None:
    """Memory of waiting polls, each of another client, and the calls to Redis while they wait."""
    count, seconds = (500, 10) if quick else (10_000, 20)
    with Bus("--max-connections", "20000", clients=count) as bus:
        setting_up = subscribed(bus)
        for client in range(1, count):
            setting_up.ask("POST", "/subscription", {"topics": ["things"]}, client)
        time.sleep(1)
        resident = [resident_mb(bus.process.pid)]
        connections = list(opened(bus, count))
        resident.append(resident_mb(bus.process.pid))
        calls = [per_second(bus, seconds)]
        began = time.monotonic()
        for client, connection in enumerate(connections):
            connection.send("GET", "/subscription/events?wait=60000", client=client)
            if client % 4 == 0:  # so that they do not come all at once
                setting_up.ask("GET", "/health")
        time.sleep(2)
        resident.append(resident_mb(bus.process.pid))
        calls.append(per_second(bus, seconds))
        setting_up.ask("POST", "/topics/things", {"type": "noop", "url": URL % 2})
        posted = time.monotonic()
        answered = sum(b'"topic":"things"' in connection.receive() for connection in connections)
        elapsed = time.monotonic() - posted
    connection, poll = (1024 * (after - before) / count for before, after in pairwise(resident))
    print(
        f"waiting {connection + poll:.1f} kB for each of {count} polls (goal below 40): {connection:.1f} kB for a "
        f"TLS connection alone, {poll:.1f} kB for the poll; Redis calls/s {calls[1]:.1f}, without polls "
        f"{calls[0]:.1f}; {answered} answered within {elapsed:.2f} s of one event, after {posted - began:.0f} s"
    )


def opened(bus: Bus, count: int) -> Iterator[Connection]:
    """Connections on which a request was answered."""
    for _ in range(count):
        connection = Connection(bus)
        connection.ask("GET", "/health")
        yield connection


def per_second(bus: Bus, seconds: float) -> float:
    """Calls that Redis gets: scripts and pings, which is all that the bus sends while nothing happens."""

    def total() -> int:
        with Redis(RedisAddress(path=str(bus.state / "redis" / "redis.sock"))) as redis:
            text = redis.ask(b"INFO", b"commandstats").decode()
        return sum(map(int, re.findall(r"cmdstat_(?:evalsha|eval|ping):calls=(\d+)", text)))

    before = total()
    time.sleep(seconds)
    return (total() - before) / seconds


if __name__ == "__main__":
    play(__doc__, [latency, poll, stream, waiting])
