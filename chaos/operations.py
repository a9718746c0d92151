"""Subscribers who decide for themselves: clients that call, at random, what a subscriber may decide.

Each has its own kind of decisions, and a subscription that goes with them; one
makes all of them. They record what they asked, when, and what was answered, for
`books` to judge. Meanwhile a monitor reads all their books.

A request is sent once; if its outcome is unknown, that is recorded. Only what
begins or ends a subscription, or a pause at the end of the run, is repeated
until it is confirmed.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater

from chaos.accepted import Begin
from chaos.books import CLOCKS, Life, Operation, Reading
from chaos.publishers import AFTER_ERROR, PATIENCE
from chaos.records import Outcome
from routemaster.testing.daemon import Answer, Client

ROOT = "root--key"
PAUSE = 0.25        #: seconds between two decisions of one subscriber, about
BY_ROOT = 0.25      #: the share of decisions that root makes for the subscriber
ALL, SOME, NONE = "all", "some", "none"  #: how much of a topic can come again
HISTORY: Mapping[str, dict[str, int]] = {
    ALL: {"history": 3_600_000}, SOME: {"history": 3_600_000, "history_events": 100}, NONE: {},
}  # fmt: skip


@frozen
class Habit:
    """What one subscriber decides."""

    decisions: tuple[str, ...]
    options: Mapping[str, Any] = field(factory=dict)  #: of its subscription, beside the usual
    behaviours: Mapping[str, float] = field(factory=lambda: {"take": 85.0, "slow": 8.0, "fail": 5.0, "cut": 2.0})
    pulls: tuple[str, ...] = ()  #: in which ways; none: it has a callback


CHOOSY = {"choosy": 92.0, "slow": 5.0, "cut": 3.0}
LARGE = {"max": 100}  #: of those who pull, and acknowledge now and then only
LIMITS = {"retention": 1000, "max_queued": 30}
HABITS = {
    "pausing": Habit(("pause", "resume", "retry"), {"max_bytes": 1024}),
    "rewinding": Habit(("rewind",)),
    "skipping": Habit(("pause", "resume", "skip")),
    "expiring": Habit(("pause", "resume"), LIMITS),
    "parking": Habit(("retry", "retry_parked", "drop_parked"), {"park_after": 2}, CHOOSY),
    "leaving": Habit(("leave", "pause", "resume")),
    "polling": Habit(("pause", "resume"), LARGE, pulls=("poll",)),
    "streaming": Habit(("pause", "resume"), LARGE, pulls=("stream",)),
    "browsing": Habit(("rewind", "skip", "pause", "resume"), LARGE, pulls=("poll", "stream")),
    "everything": Habit(
        ("pause", "resume", "retry", "rewind", "skip", "retry_parked", "drop_parked", "leave"),
        {"park_after": 2, "rate": 400, **LIMITS}, CHOOSY,
    ),
}  # fmt: skip


def outcome_of(answer: Answer) -> Outcome | None:
    """What an answer to a decision means; None if the API does not define it."""
    if answer.status in (200, 204):
        return Outcome.OK
    if answer.status == 503 and answer.headers.hasHeader("Retry-After"):
        return Outcome.UNKNOWN if answer.json.get("outcome") == "unknown" else Outcome.REFUSED
    return None


class Subscriber:
    """One of them. `histories` says of each topic how much of it can come again."""

    def __init__(
        self, reactor: Any, chance: random.Random, clients: tuple[Client, Client], choose: Callable[[], Any],
        name: str, callback: str | None, histories: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`clients`: its own, and root's."""
        self._reactor, self._chance, self._choose = reactor, chance, choose
        self._own, self._root = clients
        self.name, self.habit = name, HABITS[name]
        self._callback, self._histories = callback, histories
        self.lives: list[Life] = []
        self.operations: list[Operation] = []
        self.readings: list[Reading] = []
        self.problems: list[str] = []
        self._going = True
        self._running: Deferred[None] | None = None

    # -- requests

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[Outcome, Answer | None]:
        """Send one request about the subscription, as itself or as root; what it says of the outcome."""
        client, place = self._own, "/subscription"
        if path != "" and self._chance.random() < BY_ROOT:
            client, place = self._root, f"/subscriptions/{self.name}"
        client.daemon = self._choose()
        try:
            answer = await client.ask(method, f"{place}{path}", body, PATIENCE)
        except ConnectError:
            return Outcome.REFUSED, None
        except Exception:  # connection lost, or time-out
            return Outcome.UNKNOWN, None
        outcome = outcome_of(answer)
        if outcome is None:
            self.problems.append(f"{method} {place}{path} is answered {answer.status} {answer.body!r}")
        return outcome or Outcome.UNKNOWN, answer

    async def _decide(
        self, method: str, path: str, body: Any = None, named: int = 0, until: float = inf
    ) -> None:  # fmt: skip
        asked = time.monotonic()
        outcome, answer = await self.ask(method, f"/{path}", body)
        if outcome is Outcome.OK and answer is not None and path in ("rewind", "skip"):
            named = answer.json["events"]
        self.operations.append(Operation(self.name, path, asked, time.monotonic(), outcome, named, until))

    async def _insist(self, send: Callable[[], Awaitable[Answer]], *also: int) -> tuple[float, float]:
        """Repeat a request until it is confirmed, or is answered so after it was repeated; the moments."""
        asked, again = time.monotonic(), False
        while True:
            try:
                answer = await send()
            except Exception:  # outcome unknown: repeat
                answer = None
            if answer is not None and (answer.status == 204 or (again and answer.status in also)):
                return asked, time.monotonic()
            if answer is not None and answer.status != 503:
                raise RuntimeError(f"{self.name} is answered {answer.status} {answer.body!r}")
            again = True
            await deferLater(self._reactor, AFTER_ERROR)

    def _send(self, client: Client, method: str, path: str, body: Any = None) -> Callable[[], Awaitable[Answer]]:
        def send() -> Awaitable[Answer]:
            client.daemon = self._choose()
            return client.ask(method, path, body, PATIENCE)

        return send

    # -- its life

    async def subscribe(self) -> None:
        """Begin a subscription, to all topics, with the next event or in the past."""
        start = self._start() if self.lives else "next"
        body = {"topics": sorted(self._histories), "max": self._chance.choice((5, 20)), "start": start}
        if self._callback is not None:
            body |= {"callback": self._callback, "uuid": "u", "timeout": self._chance.choice((0, 50))}
        body |= self.habit.options
        asked, granted = await self._insist(self._send(self._own, "POST", "/subscription", body))
        begins = {topic: _begin(start, kept, asked, granted) for topic, kept in self._histories.items()}
        options = self.habit.options
        self.lives.append(
            Life(self.name, begins, asked, granted, expires="retention" in options, parks="park_after" in options)
        )

    def _start(self) -> str | int:
        return self._chance.choice(("next", "oldest", _ago(self._chance)))

    async def leave(self) -> None:
        """End the subscription, or let root do it, and begin another."""
        self.lives[-1] = evolve(self.lives[-1], leaving=time.monotonic())
        by_root = self._chance.random() < 0.5
        client, path = (self._root, f"/subscriptions/{self.name}") if by_root else (self._own, "/subscription")
        await self._insist(self._send(client, "DELETE", path), 404)
        await self.subscribe()

    def begin(self) -> None:
        """Make each decision once, and then at random, from now on."""
        self._running = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        habit = self.habit.decisions
        first = self._chance.sample(habit, len(habit))  # each once, however short the run is; then at random
        while self._going or first:
            await deferLater(self._reactor, PAUSE * self._chance.uniform(0.2, 1.8))
            name = first.pop() if first else self._chance.choice(habit)
            decision: Callable[[], Awaitable[None]] = getattr(self, name)
            await decision()

    async def finish(self) -> None:
        """Make no further decision, and let all events come."""
        self._going = False
        if self._running is not None:
            await self._running
        await self._insist(self._send(self._own, "POST", "/subscription/resume"))

    async def close_books(self) -> None:
        """Read them when everything has come."""
        while not (reading := await self.read(final=True)):
            await deferLater(self._reactor, AFTER_ERROR)
        self.readings.append(reading)

    async def read(self, final: bool = False) -> Reading | None:
        """Read its books, as root; None if that is not possible now."""
        asked = time.monotonic()
        try:
            answer = await self._send(self._root, "GET", f"/subscriptions/{self.name}")()
        except Exception:
            return None
        if answer.status not in (200, 404, 503):
            self.problems.append(f"{self.name}: its books are answered {answer.status} {answer.body!r}")
        if answer.status != 200:
            return None
        counts = {kind: count for kind, count in answer.json["events"].items() if kind != "oldest"}
        return Reading(self.name, asked, time.monotonic(), counts, final)

    # -- decisions

    async def pause(self) -> None:
        """Nothing comes until `resume`."""
        await self._decide("POST", "pause")

    async def resume(self) -> None:
        """Deliveries go on."""
        await self._decide("POST", "resume")

    async def retry(self) -> None:
        """The pause after failures ends."""
        await self._decide("POST", "retry")

    async def rewind(self) -> None:
        """Go back in one topic or all."""
        to = self._chance.choice(("oldest", _ago(self._chance)))
        await self._decide("POST", "rewind", {"to": to, **self._some()})

    async def skip(self) -> None:
        """Pass what waits, or what is older than a while."""
        to = self._chance.choice(("next", _ago(self._chance)))
        until = inf if to == "next" else _moment(int(to)) + CLOCKS
        await self._decide("POST", "skip", {"to": to, **self._some()}, until=until)

    def _some(self) -> dict[str, Sequence[str]]:
        if self._chance.random() < 0.5:
            return {}
        number = self._chance.randint(1, len(self._histories))
        return {"topics": self._chance.sample(sorted(self._histories), number)}

    async def retry_parked(self) -> None:
        """Let some of the parked events come again."""
        _, answer = await self.ask("GET", "/parked")
        listed = [each["id"] for each in answer.json["events"]] if answer and answer.status == 200 else []
        if listed:
            ids = self._chance.sample(listed, self._chance.randint(1, len(listed)))
            await self._decide("POST", "parked/retry", {"ids": ids}, named=len(ids))

    async def drop_parked(self) -> None:
        """Remove the parked events."""
        await self._decide("DELETE", "parked")


def _ago(chance: random.Random) -> int:
    """A moment in the last seconds, as the API takes it."""
    return int(1000 * (time.time() - chance.uniform(0, 3)))


def _moment(at: int) -> float:
    """A time of day, in milliseconds, as a moment; asked for at once, as the time of day may be corrected."""
    return at / 1000 - time.time() + time.monotonic()


def _begin(start: str | int, kept: str, asked: float, granted: float) -> Begin:
    """Where a subscription begins in a topic of which so much is kept."""
    if start == "next" or kept == NONE:
        return Begin(asked, granted)
    moment = -inf if start == "oldest" else _moment(int(start))
    certain = granted if kept == SOME else moment + CLOCKS
    return Begin(moment - CLOCKS, min(certain, granted))


class Monitor:
    """Reads the books of all, one after another, all the time."""

    def __init__(self, reactor: Any, subscribers: Sequence[Subscriber], every: float = 0.03) -> None:
        """`every`: seconds between two."""
        self._reactor, self._subscribers, self._every = reactor, subscribers, every
        self._going = True
        self._running = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        while self._going:
            for subscriber in self._subscribers:
                if reading := await subscriber.read():
                    subscriber.readings.append(reading)
                await deferLater(self._reactor, self._every)

    async def stop(self) -> None:
        """Read no more."""
        self._going = False
        await self._running
