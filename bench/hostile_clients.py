"""What hostile clients cost the bus: its memory, and the time of healthy publishers beside them.

    PYTHONPATH=. python bench/hostile_clients.py [--connections 5000] [--seconds 10] [KIND ...]

For each kind so many hostile connections, in processes of their own and from many loopback addresses, beside
four publishers that send 100 events/s together. It prints the bus's resident memory above that of an idle one
(the most while the hostile clients act, and 10 s after they left), and the publishers' p50 and p99: alone, beside
processes that only take time -> beside the hostile clients, and the ratio of the last two.
`silent` is what open TLS connections cost alone.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import os
import resource
import selectors
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from attrs import define, frozen
from bus import URL, Bus, resident_mb, unverified

PROCESSES = 2   #: of hostile clients
CLIENTS = 500   #: tokens of hostile clients that have one
RAMP = 20.0     #: seconds in which they connect, at most
AFTER = 10.0    #: seconds until the memory must be given back
MIB = 1 << 20


@frozen
class Kind:
    """One way to be hostile; described by `text`."""

    text: str
    payload: Callable[[str], bytes] = lambda token: b""  #: what each connection sends, by the client's token
    tls: bool = True
    again: bool = False    #: the client leaves when it has sent everything, and comes again
    endless: bool = False  #: the client sends its payload again and again
    reads: bool = False    #: the client reads what it is answered
    away: bool = False     #: Redis is stopped meanwhile
    pulls: bool = False    #: each client has a pulled subscription
    backlog: bool = False  #: and 20,000 events wait for it
    quiet: bool = False    #: no event comes


def head(line: str, token: str, *headers: str) -> bytes:
    """A request's head; without credentials if there is no token."""
    lines = [line + " HTTP/1.1", "Host: localhost", *headers]
    if token:
        lines.append("Authorization: Basic " + base64.b64encode(f"{token}:".encode()).decode())
    return "\r\n".join([*lines, "", ""]).encode()


def body(token: str, size: int = MIB) -> bytes:
    """A publication of so many bytes but for the last one."""
    return head("POST /topics/hostile", token, f"Content-Length: {size}") + b" " * (size - 1)


def tiny_chunks(token: str) -> bytes:
    return head("POST /topics/hostile", token, "Transfer-Encoding: chunked") + b"1\r\n \r\n" * 200_000


def long_head(_: str) -> bytes:
    return head("GET /health", "")[:-2] + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 990) for n in range(16))


def client_hello(_: str) -> bytes:
    """A ClientHello of 128 KiB but for its last bytes, in records of 16 KiB."""
    hello = b"\x01\x01\xff\xff\x03\x03" + bytes(33) + b"\0\x02\x13\x01\x01\0\xff\xff" + bytes(131_000)
    parts = [hello[start : start + 16384] for start in range(0, len(hello), 16384)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def bulk(token: str) -> bytes:
    """A whole publication of about 60 kB."""
    one = b'{"type":"noop","url":"https://www.example.com/%b"}' % (b"x" * 900)
    text = b"[" + b",".join([one] * 60) + b"]"
    return head("POST /topics/hostile" + token[-1:].translate(str.maketrans("0123456789", "abcdefghij")), token,
                f"Content-Length: {len(text)}") + text  # fmt: skip


POLL = "GET /subscription/events?wait=60000"
KINDS = {
    "silent": Kind("a TLS handshake, and then nothing"),
    "hello": Kind("half a ClientHello", lambda _: client_hello("")[:200], tls=False, again=False),
    "long-hello": Kind("a ClientHello of 128 KiB but for its end", client_hello, tls=False),
    "record": Kind("a TLS record of 16 KiB but for its end", lambda _: b"\x17\x03\x03\x40\x00" + bytes(16000)),
    "head": Kind("a head of 16 KiB but for its end", long_head),
    "body": Kind("no credentials, 1 MiB but for the last byte; leaves and comes again", lambda _: body(""),
                 again=True),
    "own-body": Kind("a client's 1 MiB but for the last byte", body),
    "own-body-again": Kind("the same; leaves and comes again", body, again=True),
    "chunks": Kind("a client's body in chunks of a byte, again and again", tiny_chunks, endless=True, reads=True),
    "pipelined": Kind("GET /health without end, answers not read", lambda _: head("GET /health", "") * 2000,
                      endless=True),
    "refused": Kind("no credentials, answers read", lambda _: head("GET /topics", "") * 50,
                    endless=True, reads=True),
    "unread": Kind("GET /openapi.json, answers not read", lambda _: head("GET /openapi.json", "") * 500,
                   endless=True),
    "poll": Kind("a poll that waits, and 64 kB of pipelined requests behind it",
                 lambda token: head(POLL, token) + head(POLL, token) * 640, pulls=True),
    "waiting": Kind("a poll that waits", lambda token: head(POLL, token), pulls=True, quiet=True),
    "answered": Kind("a poll that is answered with 2,000 events", lambda token: head(POLL, token), pulls=True),
    "poll-again": Kind("a poll that waits; leaves and comes again", lambda token: head(POLL, token), again=True,
                       pulls=True),
    "stream": Kind("a stream that is not read", lambda token: head("GET /subscription/stream", token), pulls=True,
                   backlog=True),
    "backlog": Kind("polls for 10,000 events each, not read",
                    lambda token: head("GET /subscription/events?max=10000", token) * 20, pulls=True,
                    backlog=True),
    "away": Kind("60 kB of events each while Redis does not answer", bulk, endless=True, reads=True, away=True),
}  # fmt: skip


@define(eq=False)
class Hostile:
    """One hostile connection."""

    number: int
    kind: Kind
    port: int
    context: ssl.SSLContext
    payload: memoryview
    socket: Any = None
    sent: int = 0
    greeted: bool = False  #: whether the handshake is complete

    def connect(self) -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        number = self.number % 60_000
        plain.bind((f"127.{1 + self.number % 200}.{number // 250}.{1 + number % 250}", 0))
        plain.setblocking(False)
        plain.connect_ex(("127.0.0.1", self.port))
        self.socket, self.sent, self.greeted = plain, 0, not self.kind.tls
        if self.kind.tls:
            try:
                self.socket = self.context.wrap_socket(plain, do_handshake_on_connect=False)
            except OSError:  # the connection was complete, or was lost, while Python looked whether it is
                self.connect()

    def step(self) -> int:
        """Go on as far as possible; the events to wait for, 0 if the connection is over."""
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        try:
            if not self.greeted:
                self.socket.do_handshake()
                self.greeted = True
            if self.kind.reads or self.sent == len(self.payload):
                with suppress(BlockingIOError, ssl.SSLWantReadError):
                    if not self.socket.recv(65536):
                        return 0
            if self.kind.endless and self.sent == len(self.payload):
                self.sent = 0
            if self.sent < len(self.payload):
                self.sent += self.socket.send(self.payload[self.sent : self.sent + 65536])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError) as wants:
            return selectors.EVENT_READ if isinstance(wants, ssl.SSLWantReadError) else both
        except OSError:
            return 0
        if self.sent < len(self.payload) or self.kind.endless:
            return both
        if self.kind.again:
            return 0
        return selectors.EVENT_READ


def yield_to_others() -> None:
    """Hostile clients are on other machines: here they run when nobody else wants to.

    Even so their processes delay others on the same cores, as do those that do not talk to the bus (`spin`).
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def spin() -> None:
    """A process that takes as much time as one of hostile clients, and does nothing."""
    yield_to_others()
    while True:
        time.monotonic()


def attack(name: str, port: int, tokens: list[str], numbers: range, opened: Any, stopped: Any) -> None:
    """A process of hostile clients; `opened` counts complete handshakes."""
    yield_to_others()
    kind, context, selector = KINDS[name], unverified(), selectors.DefaultSelector()
    payloads = [memoryview(kind.payload(token)) for token in tokens]
    waiting: list[tuple[float, Hostile]] = []
    fresh = [Hostile(n, kind, port, context, payloads[n % len(payloads)]) for n in numbers]
    while not stopped.is_set():
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            fresh.append(waiting.pop(0)[1])
        for _ in range(min(20, len(fresh))):
            each = fresh.pop()
            each.connect()
            selector.register(each.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, each)
        for key, _ in selector.select(0.001 if fresh else 0.05):
            each = key.data
            before, wanted = each.greeted, each.step()
            if each.greeted and not before:
                with opened.get_lock():
                    opened.value += 1
            if wanted and wanted != key.events:
                selector.modify(each.socket, wanted, each)
            elif not wanted:
                selector.unregister(each.socket)
                each.socket.close()
                waiting.append((now + 0.2, each))
    for key in list(selector.get_map().values()):
        key.data.socket.close()


def lost() -> bytes:
    raise ConnectionError("the bus closed a healthy publisher's connection")


def publish(port: int, request: bytes, pipe: Any) -> None:
    """A process of healthy publishers: for each number of seconds received, the latencies of that time."""
    sockets = []
    for _ in range(4):
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets.append(unverified().wrap_socket(plain, server_hostname="localhost"))
    for seconds in iter(pipe.recv, None):
        times, statuses, began = [], set(), time.monotonic()
        for number in count():
            due = began + number / 100
            if due > began + seconds or time.monotonic() > began + 4 * seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            connection, start = sockets[number % 4], time.monotonic()
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536) or lost()
            missing = int(answer.partition(b"Content-Length: ")[2].partition(b"\r")[0] or 0)
            while len(answer.partition(b"\r\n\r\n")[2]) < missing:
                answer += connection.recv(65536) or lost()
            times.append(1000 * (time.monotonic() - start))
            statuses.add(int(answer[9:12]))
        pipe.send((sorted(times), statuses))


def percentile(times: list[float], percent: float) -> float:
    return times[int((len(times) - 1) * percent / 100)]


def prepare(bus: Bus, kind: Kind) -> None:
    for topic in ("things", "quiet"):
        bus.call("POST", f"/topics/{topic}", {"type": "noop", "url": URL % 1})
    if kind.pulls:
        for client in range(1, len(bus.tokens)):
            topic = "quiet" if kind.quiet else "things"
            bus.call("POST", "/subscription", {"topics": [topic], "max": 10000}, client)
        if kind.backlog:
            for _ in range(20):
                bus.load([bus.request(1000)], 0.1, connections=1)


def measure(name: str, connections: int, seconds: float) -> None:
    """One kind: print its line."""
    kind = KINDS[name]
    with Bus("--max-connections", "20000", *LIMITS, clients=1 + CLIENTS) as bus:
        prepare(bus, kind)
        mine, theirs = multiprocessing.Pipe()
        healthy = multiprocessing.Process(target=publish, args=(bus.port, bus.request(), theirs), daemon=True)
        healthy.start()
        mine.send(seconds)
        alone, _ = mine.recv()
        spinning = [multiprocessing.Process(target=spin, daemon=True) for _ in range(PROCESSES)]
        for process in spinning:
            process.start()
        mine.send(seconds)
        before, _ = mine.recv()
        for process in spinning:
            process.kill()
            process.join()
        idle = resident_mb(bus.process.pid)
        opened, stopped = multiprocessing.Value("i", 0), multiprocessing.Event()
        shares = [range(start, connections, PROCESSES) for start in range(PROCESSES)]
        others = [
            multiprocessing.Process(target=attack, args=(name, bus.port, bus.tokens[1:], *rest), daemon=True)
            for rest in ((share, opened, stopped) for share in shares)
        ]
        for process in others:
            process.start()
        redis = bus.pids()[1]
        peak = idle
        until = time.monotonic() + RAMP
        while kind.tls and opened.value < connections and time.monotonic() < until:
            time.sleep(0.1)
            peak = max(peak, resident_mb(bus.process.pid))
        if kind.away:
            os.kill(redis, signal.SIGSTOP)
        mine.send(seconds)
        while not mine.poll(0.05):
            peak = max(peak, resident_mb(bus.process.pid))
        during, statuses = mine.recv()
        if kind.away:
            os.kill(redis, signal.SIGCONT)
        stopped.set()
        for process in others:
            process.join()
        left = time.monotonic()
        time.sleep(AFTER)
        after = resident_mb(bus.process.pid)
        mine.send(None)
        (a50, a99), (b50, b99), (p50, p99) = (
            [percentile(times, each) for each in (50, 99)] for times in (alone, before, during)
        )
        print(f"{name:15} {peak - idle:6.0f} MB, {time.monotonic() - left:.0f} s later {after - idle:.0f} MB; "
              f"p50 {a50:.1f}, {b50:.1f} -> {p50:.1f} ms, p99 {a99:.1f}, {b99:.1f} -> {p99:.1f} ms: "
              f"{p99 / b99:.1f} times; {opened.value} handshakes; {statuses}", flush=True)  # fmt: skip


LIMITS = ("--max-connections-per-address", "0")  #: hostile clients have some hundred addresses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000, help="hostile ones (default 5000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default 10)")
    parser.add_argument("kinds", nargs="*", help=f"which ones of {', '.join(KINDS)}; all if none is named")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in options.kinds or KINDS:
        measure(name, options.connections, options.seconds)


if __name__ == "__main__":
    main()
