"""Subscribers that hold a stream of server-sent events open, for `peers.py`; counts as `sink.py` does.

    python bench/listener.py CERTIFICATE KEY PORT PATH COUNT

opens so many streams on PORT, prints the port at which `GET /` returns the counts.
"""

from __future__ import annotations

import socket
import ssl
import sys

from bus import unverified
from sink import Connection, Counts, Sink

END = b"\n\n"  #: of one event in the stream


class Stream(Connection):
    """A stream that the other side writes: events as they were published."""

    mark = b'{"type": '

    def __init__(self, stream: ssl.SSLSocket, counts: Counts) -> None:
        super().__init__(stream, counts)
        self.greeted = True
        self._missing = sys.maxsize  # there is no end

    def _take(self, data: bytes) -> None:
        self._body(data)

    def _whole(self, text: bytes) -> int:
        return text.rfind(END) + len(END) if END in text else 0


def main(certificate: str, key: str, port: str, path: str, many: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    sink = Sink(listener, context, 0)
    for _ in range(int(many)):
        plain = socket.create_connection(("127.0.0.1", int(port)))
        stream = unverified().wrap_socket(plain, server_hostname="localhost")
        stream.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n" % path.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(1)
        assert b" 200 " in head.partition(b"\r\n")[0], head
        stream.setblocking(False)
        sink.watch(Stream(stream, sink.counts))
    print(listener.getsockname()[1], flush=True)
    sink.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
