"""The receivers' process: HTTPS servers that write down what comes, and misbehave by script.

    python -m chaos.sinks '{"pem": FILE, "seed": 1, "habits": {NAME: {HABIT: WEIGHT}}}'

It prints one line of JSON for each fact: `{"urls": {NAME: URL}}` first, then
`["+", NUMBER, NAME, TIME, MARKS, STRANGE]` for a request that came whole and
`["-", NUMBER, TIME, STATUS or null]` for its end. A line `calm` on its input
makes everybody behave from then on; when the input ends, so does the process.
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

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from chaos.account import mark_of
from routemaster.testing.zoo import LOOPBACK, Answer, Beast, Wire

CLOSED = 0.3  #: seconds for which the one who refuses connections does so
SLOW = 0.2    #: seconds for which the slow one takes at most


class Receiver(Beast):
    """One subscriber's server; each request is met by one of its habits, by chance."""

    def __init__(
        self, reactor: Any, options: CertificateOptions, name: str, habits: Mapping[str, float], seed: str,
        tell: Callable[[list[Any]], None],
    ) -> None:  # fmt: skip
        self.name, self.chance = name, random.Random(f"{seed} {name}")  # must be repeatable
        self._options, self._habits, self._tell = options, dict(habits) or {"take": 1.0}, tell
        self._requests = 0
        super().__init__(reactor, options, self._serve)

    def calm(self) -> None:
        """Behave from now on; who hangs is let go."""
        self._habits = {"take": 1.0}
        for wire in tuple(self.wires):
            if getattr(wire, "hangs", False):
                wire.reset()

    async def _serve(self, wire: Wire) -> None:
        while True:
            request = await wire.request()
            self.received.clear()
            self._requests += 1
            number, said = f"{self.name}/{self._requests}", None
            self._tell(["+", number, self.name, time.monotonic(), *_read(request.line, request.body)])
            (habit,) = self.chance.choices(list(self._habits), list(self._habits.values()))
            try:
                said = await HABITS[habit](self, wire)
            finally:
                self._tell(["-", number, time.monotonic(), said])

    async def close_for(self, seconds: float) -> None:
        """Refuse connections for a while, on the same port."""
        port = self.port
        await self._port.stopListening()
        self.reactor.callLater(seconds, self._open, port)

    def _open(self, port: int) -> None:
        self._port = self.reactor.listenSSL(port, self, self._options, interface=LOOPBACK)


def _read(line: bytes, body: bytes) -> tuple[list[Any], list[str]]:
    """The marks in a request, and what is strange about it."""
    strange = [] if line == b"POST /callback HTTP/1.1" else [repr(line)]
    marks = []
    for event in json.loads(body):
        mark = mark_of(event)
        if mark is None:
            strange.append(json.dumps(event)[:200])
        else:
            marks.append(mark)
    return marks, strange


Habit = Callable[[Receiver, Wire], Coroutine[Deferred[Any], Any, int | None]]
HABITS: dict[str, Habit] = {}


def habit(function: Habit) -> Habit:
    """Enter it in the table; it answers with the status that it said in full, or None."""
    HABITS[function.__name__] = function
    return function


def _say(wire: Wire, answer: Answer) -> int:
    wire.write(answer.encode())
    return answer.status


@habit
async def take(receiver: Receiver, wire: Wire) -> int:
    """Takes it."""
    return _say(wire, Answer(204))


@habit
async def slow(receiver: Receiver, wire: Wire) -> int:
    """Takes it, after a while, and says so at length."""
    await wire.sleep(receiver.chance.uniform(0.02, SLOW))
    return _say(wire, Answer(200, b"thank you " * 100))


@habit
async def fail(receiver: Receiver, wire: Wire) -> int:
    """Breaks down."""
    return _say(wire, Answer(receiver.chance.choice((500, 502, 404, 400)), b"no"))


@habit
async def wait(receiver: Receiver, wire: Wire) -> int:
    """Asks for a pause."""
    pause = str(receiver.chance.choice((0, 1)))
    return _say(wire, Answer(receiver.chance.choice((429, 503)), b"later", (("Retry-After", pause),)))


@habit
async def redirect(receiver: Receiver, wire: Wire) -> int:
    """Sends the bus somewhere else; who follows is found out by the request line."""
    place = (("Location", f"https://{LOOPBACK}:{receiver.port}/elsewhere"),)
    return _say(wire, Answer(receiver.chance.choice((301, 302, 303, 307, 308)), b"there", place))


@habit
async def cut(receiver: Receiver, wire: Wire) -> None:
    """Reads everything, and is gone."""
    wire.reset()


@habit
async def half(receiver: Receiver, wire: Wire) -> None:
    """Is gone in the middle of a 200."""
    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    wire.cut()


@habit
async def refuse(receiver: Receiver, wire: Wire) -> None:
    """Is gone, and takes no connection for a while."""
    await receiver.close_for(CLOSED)
    wire.reset()


@habit
async def hang(receiver: Receiver, wire: Wire) -> None:
    """Says nothing until the bus has had enough."""
    wire.hangs = True  # type: ignore[attr-defined]
    await wire.hang()


class _Control(LineOnlyReceiver):
    """The parent's words, and its end."""

    delimiter = b"\n"

    def __init__(self) -> None:
        self.receivers: list[Receiver] = []
        self.over: Deferred[None] = Deferred()

    def tell(self, fact: Any) -> None:
        if self.transport is not None:
            self.sendLine(json.dumps(fact, separators=(",", ":")).encode())

    def lineReceived(self, line: bytes) -> None:
        if line == b"calm":
            for receiver in self.receivers:
                receiver.calm()

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
        Receiver(reactor, options, name, habits, str(wanted["seed"]), control.tell)
        for name, habits in wanted["habits"].items()
    ]
    StandardIO(control)
    control.tell({"urls": {receiver.name: receiver.url for receiver in control.receivers}})
    await control.over


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1])))
