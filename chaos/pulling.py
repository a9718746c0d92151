"""Subscribers that pull: by long polls, and by a stream of server-sent events.

Each records what came as a delivery; it counts as acknowledged when the bus has
confirmed that. An acknowledgement of unknown outcome may have been stored: then
the events need not come again, and may.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import treq
from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from chaos.operations import outcome_of
from chaos.publishers import AFTER_ERROR, PATIENCE
from chaos.records import Arrival, Outcome, mark_of
from routemaster.testing.daemon import Client

WAIT = 300           #: milliseconds that a poll waits, at most
TURN = 1.5           #: seconds that a stream is read, at most
TAKEN = 204          #: the status that stands for an acknowledgement


class Puller:
    """One subscriber. `ways` are those in which it pulls, by turns at random: poll, stream."""

    def __init__(
        self, reactor: Any, chance: random.Random, client: Client, choose: Callable[[], Any], name: str,
        ways: Sequence[str],
    ) -> None:  # fmt: skip
        self._reactor, self._chance, self._client, self._choose, self._name = reactor, chance, client, choose, name
        self._ways = [{"poll": self.poll, "stream": self.stream}[way] for way in ways]
        self.arrivals: list[Arrival] = []
        self.problems: list[str] = []
        self.progress = 0  #: grows with each confirmed acknowledgement
        self._cursors: list[tuple[str, range]] = []  #: not acknowledged, with the deliveries that each covers
        self._going = True
        self._running = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        while self._going:
            self._client.daemon = self._choose()
            try:
                await self._chance.choice(self._ways)()
            except (AttributeError, LookupError, TypeError, ValueError) as error:  # what came makes no sense
                self.problems.append(f"{self._name}: {error!r}")
                return
            except Exception:  # a connection that broke
                await deferLater(self._reactor, AFTER_ERROR)

    async def stop(self) -> None:
        """Pull no more."""
        self._going = False
        await self._running

    def _came(self, events: list[Any], cursor: str, first: int | None = None) -> None:
        """Record a delivery; its cursor covers those from `first` on, or itself alone."""
        marks = [mark_of(event) for event in events]
        strange = tuple(json.dumps(event)[:200] for event, mark in zip(events, marks, strict=True) if mark is None)
        known = tuple(mark for mark in marks if mark is not None)
        self.arrivals.append(Arrival(self._name, known, time.monotonic(), strange=strange))
        last = len(self.arrivals)
        self._cursors.append((cursor, range(last - 1 if first is None else first, last)))

    def _some_cursor(self) -> tuple[str, range]:
        """The last cursor, or by chance an older one."""
        return self._cursors[-1] if self._chance.random() < 0.8 else self._chance.choice(self._cursors)

    def _acknowledged(self, covered: range, outcome: Outcome) -> None:
        """Note what came of an acknowledgement of these deliveries."""
        if outcome is Outcome.REFUSED:
            return
        moment = time.monotonic() if outcome is Outcome.OK else inf
        for at in covered:
            self.arrivals[at] = evolve(self.arrivals[at], status=TAKEN, ended=min(moment, self.arrivals[at].ended))
        if outcome is Outcome.OK:
            self.progress += len(covered)
            self._cursors = [each for each in self._cursors if each[1].stop > covered.stop]

    def _outcome(self, answer: Any) -> Outcome:
        outcome = outcome_of(answer)
        if outcome is None:
            self.problems.append(f"{self._name}: is answered {answer.status} {answer.body!r}")
        return outcome or Outcome.UNKNOWN

    async def _post_ack(self) -> None:
        cursor, covered = self._some_cursor()
        outcome = Outcome.UNKNOWN
        try:
            body = {"cursor": cursor}
            outcome = self._outcome(await self._client.ask("POST", "/subscription/ack", body, PATIENCE))
        finally:
            self._acknowledged(covered, outcome)

    async def poll(self) -> None:
        """Poll once: some polls repeat the last one, and some are given up before their answer has come."""
        if self._cursors and self._chance.random() < 0.2:
            await self._post_ack()
        path = f"/subscription/events?max={self._chance.randint(1, 100)}&wait={self._chance.randint(0, WAIT)}"
        covered = range(0)
        if self._cursors and self._chance.random() < 0.8:
            cursor, covered = self._some_cursor()
            path += f"&ack={cursor}"
        asking = Deferred.fromCoroutine(self._client.ask("GET", path, None, PATIENCE))
        if self._chance.random() < 0.1:
            self._reactor.callLater(self._chance.uniform(0, 0.05), asking.cancel)
        outcome = Outcome.UNKNOWN
        try:
            answer = await asking
            outcome = self._outcome(answer)
        except CancelledError:
            return
        finally:
            self._acknowledged(covered, outcome)
        if outcome is not Outcome.OK:
            await deferLater(self._reactor, AFTER_ERROR)
        elif answer.json["events"]:
            self._came(answer.json["events"], answer.json["cursor"])

    async def stream(self) -> None:
        """Read one stream for a while, acknowledge meanwhile, and break off."""
        last, covered = self._some_cursor() if self._cursors and self._chance.random() < 0.7 else ("", range(0))
        outcome = Outcome.UNKNOWN
        try:
            opening = self._client.open("/subscription/stream", {"Last-Event-ID": last} if last else {})
            response = await Deferred.fromCoroutine(opening).addTimeout(PATIENCE, self._reactor)
            outcome = Outcome.OK if response.code == 200 else outcome
        finally:
            self._acknowledged(covered, outcome)
        if response.code != 200:
            if response.code != 503:
                self.problems.append(f"{self._name}: its stream is answered {response.code}")
            await treq.content(response)
            await deferLater(self._reactor, AFTER_ERROR)
            return
        first = len(self.arrivals)
        events = _Events(lambda cursor, event: self._came([event], cursor, first))
        response.original.deliverBody(events)
        limit = time.monotonic() + self._chance.uniform(0.1, TURN)
        try:
            while time.monotonic() < limit and not events.over.called:
                await deferLater(self._reactor, self._chance.uniform(0.01, 0.1))
                if self._cursors:
                    await self._post_ack()
        finally:
            events.transport.loseConnection()
            await events.over


class _Events(Protocol):
    """Takes the events of a stream, as (cursor, event)."""

    transport: Any

    def __init__(self, take: Callable[[str, Any], None]) -> None:
        self._take, self._rest = take, b""
        self.over: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
            fields = dict(line.split(b": ", 1) for line in lines)
            if fields:
                self._take(fields[b"id"].decode(), json.loads(fields[b"data"]))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(None)
