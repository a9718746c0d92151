"""Starts the receivers' process, and collects its records of deliveries."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from chaos.records import Arrival, Mark

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  #: seconds for the process to come up


class Receivers(ProcessProtocol):
    """Starts the process, and keeps its records.

    `behaviours` are by subscriber; none means that it acknowledges everything.
    """

    transport: Any = None

    def __init__(self, reactor: Any, pem: Path, seed: str, behaviours: Mapping[str, Mapping[str, float]]) -> None:
        self._reactor = reactor
        self._wanted = json.dumps({"pem": str(pem), "seed": seed, "behaviours": behaviours})
        self._up: Deferred[None] = Deferred()
        self._ended: Deferred[None] = Deferred()
        self._rest = b""
        self._places: dict[str, int] = {}  #: of requests that have not ended
        self.urls: dict[str, str] = {}
        self.arrivals: list[Arrival] = []
        self.progress = 0  #: grows with each acknowledged delivery of an event newer than those before in its lane
        self._newest: dict[tuple[str, str, int], int] = defaultdict(int)  #: of those
        self._marks: dict[Mark, Mark] = {}  #: one object for each event, however often it comes
        self._synced: list[Deferred[None]] = []
        self.log = ""

    async def start(self) -> None:
        """Return when all receivers listen."""
        command = [sys.executable, "-m", "chaos.receiver_process", self._wanted]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self._reactor.spawnProcess(self, sys.executable, command, environment, childFDs={0: "w", 1: "r", 2: "r"})
        await self._up.addTimeout(PATIENCE, self._reactor)

    def calm(self) -> None:
        """Make all receivers acknowledge everything from now on."""
        self.transport.write(b"calm\n")

    def close_connections(self, always: bool) -> None:
        """Make each answer end its connection, or not any more."""
        self.transport.write(b"close\n" if always else b"keep\n")

    async def synced(self) -> None:
        """Return when everything that has come until now is recorded."""
        waiting: Deferred[None] = Deferred()
        self._synced.append(waiting)
        self.transport.write(b"sync\n")
        await waiting.addTimeout(PATIENCE, self._reactor)

    async def stop(self) -> None:
        """End the process, if it was started."""
        if self.transport is not None and not self._ended.called:
            self.transport.closeStdin()
            await self._ended

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._record(json.loads(line))

    def errReceived(self, data: bytes) -> None:
        self.log += data.decode("utf-8", "replace")

    def processEnded(self, reason: Failure) -> None:
        if not self._up.called:
            self._up.errback(RuntimeError(f"the receivers did not start:\n{self.log}"))
        self._ended.callback(None)

    def _record(self, message: Any) -> None:
        if isinstance(message, dict):
            self.urls = message["urls"]
            self._up.callback(None)
        elif message == "synced":
            self._synced.pop(0).callback(None)
        elif message[0] == "+":
            _, number, name, moment, marks, strange = message
            own = ((sys.intern(topic), lane, place) for topic, lane, place in marks)
            marks = tuple(self._marks.setdefault(mark, mark) for mark in own)
            self._places[number] = len(self.arrivals)
            self.arrivals.append(Arrival(name, marks, moment, strange=tuple(strange)))
        else:
            _, number, moment, status = message
            index = self._places.pop(number)
            ended = self.arrivals[index] = evolve(self.arrivals[index], ended=moment, status=status)
            if ended.acknowledged:
                for topic, lane, place in ended.marks:
                    if place > self._newest[ended.subscriber, topic, lane]:
                        self._newest[ended.subscriber, topic, lane] = place
                        self.progress += 1
