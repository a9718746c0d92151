"""A load generator in plain sockets: closed loop, kept-alive connections, requests built beforehand.

Each connection sends a request, reads its whole answer, and sends the next; one
thread watches all of them. It parses just enough HTTP to find the end of an
answer (`Content-Length`, or a status without a body), and costs several times
less than the server that it measures. Run it in another process than that.

    from load import run
    result = run("127.0.0.1", 17890, [request_bytes], connections=16, seconds=5)
    print(result.rate, result.percentile(99))

or `python bench/load.py HOST PORT FILE [CONNECTIONS] [SECONDS]`, FILE being one raw request.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import cast

from attrs import field, frozen


@frozen
class Result:
    """What one run saw."""

    seconds: float
    statuses: Counter[int]                         #: answers by status
    latencies: list[float] = field(repr=False)     #: seconds, ascending

    @property
    def count(self) -> int:
        """Answers received."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers for each second."""
        return self.count / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds within which `percent` of the answers came."""
        return 1000 * self.latencies[min(self.count - 1, int(self.count * percent / 100))]


def run(
    host: str, port: int, requests: Sequence[bytes], *, connections: int = 16, seconds: float = 5.0,
    count: int | None = None, tls: bool = True, ca: str | None = None,
) -> Result:  # fmt: skip
    """Keep `connections` connections busy for a time, or for a number of answers.

    Args:
        host, port: where to.
        requests: whole requests, sent in turn.
        connections: how many at once.
        seconds: how long; ignored when `count` is given.
        count: how many answers to wait for.
        tls: speak TLS.
        ca: PEM file to verify the server by; None does not verify.

    Raises:
        ConnectionError: the server closed a connection.
    """
    context = _tls(ca) if tls else None
    sockets = [_connect(host, port, context) for _ in range(connections)]
    endless = cycle(requests)
    selector = selectors.DefaultSelector()
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    clock = time.perf_counter
    started = clock()
    until = started + (3600.0 if count is not None else seconds)
    wanted = count if count is not None else sys.maxsize
    for connection in sockets:
        pending = [bytearray(), clock()]  # bytes of the answer so far, when its request was sent
        selector.register(connection, selectors.EVENT_READ, pending)
        connection.sendall(next(endless))
    now = started
    while now < until and len(latencies) < wanted:
        for key, _ in selector.select(1.0):
            connection, pending = cast(socket.socket, key.fileobj), key.data
            try:
                data = connection.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                continue
            if not data:
                raise ConnectionError("the server closed a connection")
            buffer = pending[0]
            buffer += data
            end = _end_of_answer(buffer)
            if not end or len(buffer) < end:
                continue
            now = clock()
            latencies.append(now - pending[1])
            statuses[int(buffer[9:12])] += 1
            del buffer[:end]
            pending[1] = now
            connection.sendall(next(endless))
        now = clock()
    elapsed = clock() - started
    for connection in sockets:
        connection.close()
    selector.close()
    latencies.sort()
    return Result(elapsed, statuses, latencies)


def _end_of_answer(buffer: bytearray) -> int:
    """Where the first answer in the buffer ends, 0 when its head is not complete."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return 0
    mark = buffer.find(b"Content-Length: ", 0, head)
    return head + 4 + (int(buffer[mark + 16 : buffer.find(b"\r\n", mark)]) if mark >= 0 else 0)


def _tls(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _connect(host: str, port: int, context: ssl.SSLContext | None) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        connection = context.wrap_socket(connection, server_hostname=host)
    connection.setblocking(False)
    return connection


def main(arguments: list[str]) -> None:
    """Print one line about one run."""
    host, port, file, *rest = arguments
    with open(file, "rb") as opened:
        request = opened.read()
    connections, seconds = int(rest[0]) if rest else 16, float(rest[1]) if len(rest) > 1 else 5.0
    result = run(host, int(port), [request], connections=connections, seconds=seconds)
    print(f"rate {result.rate:.0f}/s p50 {result.percentile(50):.2f} ms p99 {result.percentile(99):.2f} ms "
          f"{dict(result.statuses)}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
