"""The receivers' process: HTTPS servers that record deliveries, and fail at random.

    python -m chaos.receiver_process '{"pem": FILE, "seed": 1, "behaviours": {NAME: {HABIT: WEIGHT}}}'

It prints one line of JSON for each message: `{"urls": {NAME: URL}}` first, then
`["+", NUMBER, NAME, TIME, MARKS, STRANGE]` for a request that was received in full and
`["-", NUMBER, TIME, STATUS or null]` for its end. A line `calm` on its input
makes all receivers acknowledge everything, `close` makes each answer end its
connection, until `keep`; `sync` is answered `"synced"`, after all that came
before. The process ends with its input.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from chaos.records import Mark, mark_of, poisonous
from routemaster.testing.zoo import LOOPBACK, Answer, ScriptedServer, Wire

CLOSED = 0.3  #: seconds for which `refuse` accepts no connection
SLOW = 0.2    #: seconds that `slow` takes at most


class Receiver(ScriptedServer):
    """One subscriber's server; each request gets one of its behaviours at random."""

    def __init__(
        self, reactor: Any, options: CertificateOptions, name: str, behaviours: Mapping[str, float], seed: str,
        report: Callable[[list[Any]], None],
    ) -> None:  # fmt: skip
        self.name, self.chance = name, random.Random(f"{seed} {name}")  # must be repeatable
        self._options, self._behaviours, self._report = options, dict(behaviours) or {"take": 1.0}, report
        self._requests = 0
        self.closing = False  #: whether each answer ends its connection
        self.marks: list[Mark] = []  #: what the last request brought
        super().__init__(reactor, options, self._serve)

    def calm(self) -> None:
        """Acknowledge everything from now on; connections that hang are reset."""
        self._behaviours = {"take": 1.0}
        for wire in tuple(self.wires):
            if getattr(wire, "hangs", False):
                wire.reset()

    async def _serve(self, wire: Wire) -> None:
        while True:
            request = await wire.request()
            self.received.clear()
            self._requests += 1
            number, status = f"{self.name}/{self._requests}", None
            self.marks, strange = _read(request.line, request.body)
            self._report(["+", number, self.name, time.monotonic(), self.marks, strange])
            (behaviour,) = self.chance.choices(list(self._behaviours), list(self._behaviours.values()))
            try:
                status = await BEHAVIOURS[behaviour](self, wire)
            finally:
                self._report(["-", number, time.monotonic(), status])

    async def close_for(self, seconds: float) -> None:
        """Refuse connections for a while, on the same port."""
        port = self.port
        await self._port.stopListening()
        self.reactor.callLater(seconds, self._open, port)

    def _open(self, port: int) -> None:
        self._port = self.reactor.listenSSL(port, self, self._options, interface=LOOPBACK)


def _read(line: bytes, body: bytes) -> tuple[list[Mark], list[str]]:
    """The marks in a request, and what does not match any publication."""
    strange = [] if line == b"POST /callback HTTP/1.1" else [repr(line)]
    marks = []
    for event in json.loads(body):
        mark = mark_of(event)
        if mark is None:
            strange.append(json.dumps(event)[:200])
        else:
            marks.append(mark)
    return marks, strange


Behaviour = Callable[[Receiver, Wire], Coroutine[Deferred[Any], Any, int | None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Register it; it returns the status that it sent in full, or None."""
    BEHAVIOURS[function.__name__] = function
    return function


def _say(receiver: Receiver, wire: Wire, answer: Answer) -> int:
    if receiver.closing:
        answer = evolve(answer, headers=(*answer.headers, ("Connection", "close")))
    wire.write(answer.encode())
    if receiver.closing:
        wire.close()
    return answer.status


@behaviour
async def take(receiver: Receiver, wire: Wire) -> int:
    """Acknowledges."""
    return _say(receiver, wire, Answer(204))


@behaviour
async def choosy(receiver: Receiver, wire: Wire) -> int:
    """Refuses what holds a poisonous event, and acknowledges all else."""
    poison = any(map(poisonous, receiver.marks))
    return _say(receiver, wire, Answer(422, b"poison") if poison else Answer(204))


@behaviour
async def slow(receiver: Receiver, wire: Wire) -> int:
    """Acknowledges after a delay, with a long body."""
    await wire.sleep(receiver.chance.uniform(0.02, SLOW))
    return _say(receiver, wire, Answer(200, b"thank you " * 100))


@behaviour
async def fail(receiver: Receiver, wire: Wire) -> int:
    """Answers with an error."""
    return _say(receiver, wire, Answer(receiver.chance.choice((500, 502, 404, 400)), b"no"))


@behaviour
async def wait(receiver: Receiver, wire: Wire) -> int:
    """Answers 429 or 503 with Retry-After."""
    pause = str(receiver.chance.choice((0, 1)))
    return _say(receiver, wire, Answer(receiver.chance.choice((429, 503)), b"later", (("Retry-After", pause),)))


@behaviour
async def redirect(receiver: Receiver, wire: Wire) -> int:
    """Redirects; a client that follows is detected by its request line."""
    place = (("Location", f"https://{LOOPBACK}:{receiver.port}/elsewhere"),)
    return _say(receiver, wire, Answer(receiver.chance.choice((301, 302, 303, 307, 308)), b"there", place))


@behaviour
async def cut(receiver: Receiver, wire: Wire) -> None:
    """Reads the request, and resets the connection."""
    wire.reset()


@behaviour
async def half(receiver: Receiver, wire: Wire) -> None:
    """Closes the connection in the middle of a 200."""
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    wire.cut()


@behaviour
async def refuse(receiver: Receiver, wire: Wire) -> None:
    """Resets the connection, and refuses others for a while."""
    await receiver.close_for(CLOSED)
    wire.reset()


@behaviour
async def hang(receiver: Receiver, wire: Wire) -> None:
    """Sends nothing until the bus closes the connection."""
    wire.hangs = True  # type: ignore[attr-defined]
    await wire.hang()


class _Control(LineOnlyReceiver):
    """Reads commands from the parent, and writes records to it."""

    delimiter = b"\n"

    def __init__(self) -> None:
        self.receivers: list[Receiver] = []
        self.over: Deferred[None] = Deferred()

    def report(self, message: Any) -> None:
        if self.transport is not None:
            self.sendLine(json.dumps(message, separators=(",", ":")).encode())

    def lineReceived(self, line: bytes) -> None:
        if line == b"calm":
            for receiver in self.receivers:
                receiver.calm()
        elif line in (b"close", b"keep"):
            for receiver in self.receivers:
                receiver.closing = line == b"close"
        elif line == b"sync":
            self.report("synced")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(None)


def _own_certificate(path: str) -> CertificateOptions:
    options: CertificateOptions = PrivateCertificate.loadPEM(Path(path).read_bytes()).options()
    return options


async def main(reactor: Any, arguments: str) -> None:
    """Serve until the input ends."""
    wanted = json.loads(arguments)
    options = _own_certificate(wanted["pem"])
    control = _Control()
    control.receivers = [
        Receiver(reactor, options, name, behaviours, str(wanted["seed"]), control.report)
        for name, behaviours in wanted["behaviours"].items()
    ]
    StandardIO(control)
    control.report({"urls": {receiver.name: receiver.url for receiver in control.receivers}})
    await control.over


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1])))
