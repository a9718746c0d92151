"""A subscriber for benchmarks: takes batches over TLS, answers 204, counts; as fast as Python allows.

    python bench/sink.py CERTIFICATE KEY

prints its port. `GET /` on it returns its counts as JSON: events,
batches, connections, and in `latencies` the milliseconds since the time that
an event's data carries as `{"sent": <nanoseconds by the monotonic clock>}`.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
import time
from contextlib import suppress

LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
SENT = re.compile(rb'"sent":([0-9]+)')
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class Sink:
    """What all connections share."""

    def __init__(self) -> None:
        self.events = self.batches = self.connections = 0
        self.latencies: list[float] = []

    def serve(self, connection: ssl.SSLSocket) -> None:
        self.connections += 1
        buffer = b""
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end >= 0:
                match = LENGTH.search(buffer, 0, end)
                size = end + 4 + (int(match[1]) if match else 0)
                while len(buffer) < size:
                    buffer += connection.recv(1 << 20)
                self.answer(connection, buffer[:size])
                buffer = buffer[size:]
                continue
            data = connection.recv(1 << 20)
            if not data:
                return
            buffer += data

    def answer(self, connection: ssl.SSLSocket, request: bytes) -> None:
        if request.startswith(b"GET"):
            body = json.dumps(vars(self)).encode()
            self.connections -= 1
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        now = time.monotonic_ns()
        self.batches += 1
        self.events += request.count(b'{"topic":')
        self.latencies += [(now - int(sent)) / 1e6 for sent in SENT.findall(request)]
        connection.sendall(ANSWER)


def main(certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    sink = Sink()

    def accept(plain: socket.socket) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            sink.serve(context.wrap_socket(plain, server_side=True))

    while True:
        threading.Thread(target=accept, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
