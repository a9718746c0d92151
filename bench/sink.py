"""A subscriber for benchmarks: takes batches over TLS, answers 204, counts; one thread, no body is kept.

    python bench/sink.py CERTIFICATE KEY [BYTES]

prints its port. With BYTES each connection reads no more than so many bytes a
second. `GET /` on it returns its counts as JSON: events, batches, bytes,
connections, and in `latencies` the milliseconds since the time that an event's
data carries as `{"sent": <nanoseconds by the monotonic clock>}`.
"""

from __future__ import annotations

import heapq
import json
import re
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from itertools import count

LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
SENT = re.compile(rb'"sent": *([0-9]+)')
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
RECORD = 16_384  #: the most bytes that one read of TLS returns
SLOW_BUFFER = 65_536  #: of the kernel, for a connection that reads slowly


class Counts:
    """What `GET /` returns."""

    def __init__(self) -> None:
        self.events = self.batches = self.bytes = self.connections = 0
        self.latencies: list[float] = []


class Connection:
    """One connection: the rest of the request that is being read."""

    mark = b'{"topic":'  #: how an event begins

    def __init__(self, stream: ssl.SSLSocket, counts: Counts) -> None:
        self.stream, self._counts = stream, counts
        self._kept = b""  # a head that is not complete, or the last event of what was read of a body
        self._missing = 0  # bytes of the body
        self.greeted = False

    def read(self) -> Iterator[int]:
        """Read what has come, yielding the size of each piece; EOFError when the peer closes."""
        try:
            if not self.greeted:
                self.stream.do_handshake()
                self.greeted = True
            while data := self.stream.recv(RECORD):
                self._take(data)
                yield len(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        raise EOFError

    def _take(self, data: bytes) -> None:
        while data:
            if not self._missing:
                head, found, data = (self._kept + data).partition(b"\r\n\r\n")
                if not found:
                    self._kept = head
                    return
                self._kept = b""
                match = LENGTH.search(head)
                self._missing = int(match[1]) if match else 0
                if head.startswith(b"GET"):
                    self._tell()
                    continue
            piece, data = data[: self._missing], data[self._missing :]
            self._missing -= len(piece)
            self._body(piece)

    def _body(self, piece: bytes) -> None:
        counts = self._counts
        counts.bytes += len(piece)
        text = self._kept + piece
        end = self._whole(text) if self._missing else len(text)
        whole, self._kept = text[:end], text[end:]
        counts.events += whole.count(self.mark)
        if b'"sent":' in whole:
            now = time.monotonic_ns()
            counts.latencies += [(now - int(sent)) / 1e6 for sent in SENT.findall(whole)]
        if not self._missing:
            counts.batches += 1
            self.stream.send(ANSWER)

    def _whole(self, text: bytes) -> int:
        """Where the last event begins, which may not be complete."""
        return max(0, text.rfind(self.mark))

    def _tell(self) -> None:
        self._counts.connections -= 1
        body = json.dumps(vars(self._counts)).encode()
        self.stream.setblocking(True)
        self.stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        self.stream.setblocking(False)


class Sink:
    """All connections, watched by one thread."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext, limit: int) -> None:
        self._listener, self._context, self._limit = listener, context, limit
        self.counts = Counts()
        self._selector = selectors.DefaultSelector()
        self._resting: list[tuple[float, int, Connection]] = []  # until when
        self._number = count()

    def serve(self) -> None:
        """For ever."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            while self._resting and self._resting[0][0] <= now:
                connection = heapq.heappop(self._resting)[2]
                self._selector.register(connection.stream, selectors.EVENT_READ, connection)
                self._read(connection)
            wait = max(0.0, self._resting[0][0] - now) if self._resting else None
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        plain, _ = self._listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setblocking(False)
        stream = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        self.watch(Connection(stream, self.counts))

    def watch(self, connection: Connection) -> None:
        """Read from one more connection."""
        self._selector.register(connection.stream, selectors.EVENT_READ, connection)
        self.counts.connections += 1

    def _read(self, connection: Connection) -> None:
        """Read all that is there; with a limit one piece, and the next when it may."""
        try:
            for size in connection.read():
                if self._limit:
                    self._selector.unregister(connection.stream)
                    until = time.monotonic() + size / self._limit
                    heapq.heappush(self._resting, (until, next(self._number), connection))
                    return
        except (OSError, EOFError):
            self._selector.unregister(connection.stream)
            connection.stream.close()


def main(certificate: str, key: str, limit: str = "0") -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    if int(limit):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
    print(listener.getsockname()[1], flush=True)
    Sink(listener, context, int(limit)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
