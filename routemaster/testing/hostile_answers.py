"""Servers that complete TLS, and then answer wrongly, without end, or not at all; for `zoo.ScriptedServer`."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable

from routemaster.testing.odd_answers import ANSWERS, CHUNKED, CLOSING
from routemaster.testing.zoo import Behaviour, Wire

#: The behaviours by name; those of `odd_answers` are among them.
ZOO: dict[str, Behaviour] = {}
TURNS = 10  #: of the reactor in which what was written is read


def answering(answer: bytes, end: Callable[[Wire], None] = lambda _: None) -> Behaviour:
    """Answers each request with these bytes, and ends the connection then, if so said."""

    async def answer_each(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.write(answer)
            end(wire)

    return answer_each


ZOO |= {name: answering(answer, *[Wire.close] * (name in CLOSING)) for name, answer in ANSWERS.items()}


def in_zoo(behaviour: Behaviour) -> Behaviour:
    """Enter a behaviour in the table under its name."""
    ZOO[behaviour.__name__] = behaviour
    return behaviour


@in_zoo
async def silent(wire: Wire) -> None:
    """Takes the request and says nothing."""
    await wire.request()
    await wire.hang()


def begins(name: str, beginning: bytes) -> None:
    """Enter a behaviour which sends the beginning of an answer, and no more."""

    async def begin(wire: Wire) -> None:
        await wire.request()
        wire.write(beginning)
        await wire.hang()

    ZOO[name] = begin


begins("half_head", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")
begins("half_body", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
begins("half_chunk", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"9\r\nhalf")
begins("no_last_chunk", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"4\r\nhalf\r\n")
begins("no_end", b"HTTP/1.0 200 OK\r\n\r\nhalf")


@in_zoo
async def dripped_interim(wire: Wire) -> None:
    """1xx, slowly, for ever."""
    await wire.request()
    while True:
        wire.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await wire.sleep(0.005)


@in_zoo
async def dripped_head(wire: Wire) -> None:
    """A head, a byte at a time."""
    await wire.request()
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1_000_000:
        wire.write(bytes([byte]))
        await wire.sleep(0.005)


@in_zoo
async def endless_head(wire: Wire) -> None:
    """A head without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        wire.write(b"X-More: more and more\r\n" * 500)
        await wire.sleep(0)


@in_zoo
async def long_line(wire: Wire) -> None:
    """One header line without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        wire.write(b"x" * 10_000)
        await wire.sleep(0)


@in_zoo
async def endless_interim(wire: Wire) -> None:
    """1xx for ever."""
    await wire.request()
    while True:
        wire.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        await wire.sleep(0)


@in_zoo
async def interim_then_done(wire: Wire) -> None:
    """A harmless one: 100, 103, then the answer."""
    await wire.request()
    wire.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 N")
    await wire.sleep(0)
    wire.write(b"o Content\r\n\r\n")
    await wire.hang()


@in_zoo
async def dripped_body(wire: Wire) -> None:
    """200, and a body, a byte at a time."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
    while True:
        wire.write(b".")
        await wire.sleep(0.005)


@in_zoo
async def endless_body(wire: Wire) -> None:
    """200, chunks without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        await wire.sleep(0)


def pours(name: str, head: bytes) -> None:
    """Enter a behaviour which sends this head, and then bytes without end."""

    async def pour(wire: Wire) -> None:
        await wire.request()
        wire.write(head)
        while True:
            wire.write(b"x" * 10_000)
            await wire.sleep(0)

    ZOO[name] = pour


pours("large_body", b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
pours("unannounced_without_end", b"HTTP/1.1 200 OK\r\n\r\n")
pours("large_body_of_500", b"HTTP/1.1 500 No\r\nContent-Length: 64000000\r\n\r\n")


@in_zoo
async def gzip_bomb(wire: Wire) -> None:
    """200, and 64 MB in a compressed body of 64 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(bytes(1_000_000)) for _ in range(64)) + packer.flush()
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    await answering(head + body)(wire)


@in_zoo
async def endless_small_chunks(wire: Wire) -> None:
    """200, chunks of one byte without end."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"1\r\nx\r\n" * 2000)
        await wire.sleep(0)


@in_zoo
async def endless_small_records(wire: Wire) -> None:
    """200, chunks of one byte without end, each in a TLS record of its own."""
    await wire.request()
    wire.transport._write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        for _ in range(500):
            wire.transport._write(b"1\r\nx\r\n")
        await wire.sleep(0)


@in_zoo
async def endless_refusal(wire: Wire) -> None:
    """500, a body without end and a byte at a time."""
    await wire.request()
    wire.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.write(b"1\r\nx\r\n")
        await wire.sleep(0.005)


@in_zoo
async def cut_in_length(wire: Wire) -> None:
    """200, FIN in the middle of the body."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    wire.close()


@in_zoo
async def reset_in_length(wire: Wire) -> None:
    """200, RST in the middle of the body."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await wire.sleep(0.02)
    wire.reset()


@in_zoo
async def cut_in_chunks(wire: Wire) -> None:
    """200, closed before the last chunk."""
    await wire.request()
    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    wire.close()


@in_zoo
async def closed_at_end(wire: Wire) -> None:
    """No length, ended with close_notify."""
    await wire.request()
    wire.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
    wire.close()


@in_zoo
async def closed_without_notify(wire: Wire) -> None:
    """No length, ended by FIN alone."""
    await wire.request()
    wire.write(b"HTTP/1.0 200 OK\r\n\r\nall of it?")
    wire.cut()


@in_zoo
async def late_body_behind_204(wire: Wire) -> None:
    """204, and a body that nobody announced in a TLS record of its own."""
    while True:
        await wire.request()
        wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        wire.transport._flushSendBIO()
        wire.write(b"ok")


@in_zoo
async def stray_bytes(wire: Wire) -> None:
    """204, and an unasked acknowledgement right behind it."""
    await wire.request()
    wire.write(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    await wire.hang()


def ends_later(name: str, end: Callable[[Wire], None], wait: Callable[[Wire], Awaitable[object]]) -> None:
    """Enter a behaviour which answers a connection's first request, waits, and ends the connection."""

    async def end_later(wire: Wire) -> None:
        await wire.request()
        wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await wait(wire)
        end(wire)

    ZOO[name] = end_later


async def read_by_peer(wire: Wire) -> None:
    """Wait until a client on this reactor has read what was written: a reset would take it away.

    Turns, not time: on a busy machine a time may pass within one turn.
    """
    for _ in range(TURNS):
        await wire.sleep(0)


for end in (Wire.close, Wire.cut, Wire.reset):
    ends_later(f"{end.__name__}s_when_idle", end, read_by_peer)
    ends_later(f"{end.__name__}s_on_reuse", end, Wire.more)        # has read a part of the second request
    ends_later(f"{end.__name__}s_when_sent", end, Wire.request)    # or all of it
ends_later("only_notifies_when_idle", lambda wire: wire.notify(), read_by_peer)
ends_later("only_notifies_on_reuse", lambda wire: wire.notify(), Wire.more)


@in_zoo
async def closes_before_answer(wire: Wire) -> None:
    """Closes instead of answering."""
    await wire.request()
    wire.close()


@in_zoo
async def closes_while_reading(wire: Wire) -> None:
    """Reads the beginning of a request, then closes without an answer, as servers with a limit do."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.cut()


@in_zoo
async def refuses_while_reading(wire: Wire) -> None:
    """Reads the beginning of a request, answers 413 and closes."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhuge")
    wire.cut()


@in_zoo
async def refuses_and_reads_no_more(wire: Wire) -> None:
    """Reads the beginning of a request, answers 413, and keeps the connection."""
    await wire.more()
    wire.transport.pauseProducing()
    wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nhuge")
    await wire.hang()


@in_zoo
async def never_reads(wire: Wire) -> None:
    """Reads the beginning of a request, then not another byte."""
    await wire.more()
    wire.transport.pauseProducing()
    await wire.hang()
