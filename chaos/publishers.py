"""The publishers and the churner, a client that subscribes and unsubscribes; both record all answers.

A *lane* is one of a topic's publishers: it has one request under way, numbers
its events, and never sends one twice. The *churner* is a subscriber that
changes its subscription; it repeats a request until it is answered.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater

from chaos.records import Outcome, Sent, Window, event
from routemaster.testing.daemon import Answer, Client

PATIENCE = 20.0    #: seconds for an answer
AFTER_ERROR = 0.02  #: seconds to wait after anything but a success
STAY = 50          #: requests over one connection, until a lane goes to another process perhaps


def outcome_of(answer: Answer) -> Outcome | None:
    """What an answer to a publication means; None if the API does not define it."""
    if answer.status == 204:
        return Outcome.OK
    if answer.status == 503 and answer.headers.hasHeader("Retry-After"):
        return Outcome.UNKNOWN if answer.json.get("outcome") == "unknown" else Outcome.REFUSED
    return None


def _reason(error: Exception) -> str:
    """An error and what it holds: connections end with a list of failures."""
    inner = [type(reason.value).__name__ for reason in getattr(error, "reasons", [])]
    return " ".join([type(error).__name__, *inner])


class Publishers:
    """All lanes, and their records.

    `choose` names the daemon to which a client is to go next; `rate` is how
    many events all lanes together publish in a second, as long as they are
    answered; a request has one event, or by chance up to `bulk`.
    """

    def __init__(
        self, reactor: Any, chance: random.Random, lanes: Sequence[tuple[str, int, Client]],
        choose: Callable[[], Any], rate: float, bulk: int,
    ) -> None:  # fmt: skip
        self._reactor, self._chance, self._choose = reactor, chance, choose
        self._pause = len(lanes) / rate  #: seconds for each event of a lane
        self._bulk = bulk
        self.sent: list[Sent] = []
        self.strange: list[str] = []  #: answers that the API does not define
        self.count = 0                #: events accepted
        self.reasons: Counter[str] = Counter()  #: why requests failed
        self._under_way: set[Deferred[Answer]] = set()
        self._going = True
        chances = [random.Random(chance.random()) for _ in lanes]  # must be repeatable
        self._lanes = [
            Deferred.fromCoroutine(self._run(topic, lane, client, own))
            for (topic, lane, client), own in zip(lanes, chances, strict=True)
        ]

    async def _run(self, topic: str, lane: int, client: Client, chance: random.Random) -> None:
        last, requests = 0, 0
        due = time.monotonic()
        while self._going:
            if requests % STAY == 0:
                client.daemon = self._choose()
            size = chance.randint(2, self._bulk) if chance.random() < 0.25 else 1
            outcome = await self._publish(client, topic, lane, last + 1, last + size)
            requests, last = requests + 1, last + size
            due = max(due + size * self._pause * chance.uniform(0.5, 1.5), time.monotonic() - 1)
            if outcome is not Outcome.OK:
                requests = 0
                due = max(due, time.monotonic() + AFTER_ERROR)
            await deferLater(self._reactor, max(0.0, due - time.monotonic()))

    async def _publish(self, client: Client, topic: str, lane: int, first: int, last: int) -> Outcome:
        marks = [(topic, lane, number) for number in range(first, last + 1)]
        events = [event(mark) for mark in marks]
        began = time.monotonic()
        asking = Deferred.fromCoroutine(
            client.ask("POST", f"/topics/{topic}", events if len(events) > 1 else events[0], PATIENCE)
        )
        self._under_way.add(asking)
        outcome: Outcome | None
        try:
            answer = await asking
        except ConnectError as error:
            outcome = Outcome.REFUSED  # nothing was sent
            self.reasons[type(error).__name__] += 1
        except Exception as error:  # connection lost or time-out: stored or not
            outcome = Outcome.UNKNOWN
            self.reasons[_reason(error)] += 1
        else:
            outcome = outcome_of(answer)
            if outcome is not Outcome.OK:
                self.reasons[f"{answer.status} {answer.body[:60]!r}"] += 1
            if outcome is None:
                self.strange.append(f"{answer.status} {answer.body[:200]!r}")
                outcome = Outcome.UNKNOWN
        finally:
            self._under_way.discard(asking)
        self.sent.append(Sent(topic, lane, first, last, outcome, began, time.monotonic()))
        if outcome is Outcome.OK:
            self.count += len(marks)
        return outcome

    def hang_up(self) -> None:
        """Abort some of the requests under way."""
        for asking in sorted(self._under_way, key=id):
            if self._chance.random() < 0.5:
                asking.cancel()

    async def stop(self) -> None:
        """Wait for the requests under way, and send no more."""
        self._going = False
        for lane in self._lanes:
            await lane


class Churner:
    """A subscriber that changes its subscription repeatedly."""

    def __init__(
        self, reactor: Any, chance: random.Random, client: Client, choose: Callable[[], Any],
        name: str, callback: str, topics: Sequence[str],
    ) -> None:  # fmt: skip
        self._reactor, self._chance, self._client, self._choose = reactor, chance, client, choose
        self._name, self._callback, self._topics = name, callback, topics
        self._open: dict[str, Window] = {}
        self._over: list[Window] = []
        self._lock = DeferredLock()
        self.problems: list[str] = []

    @property
    def windows(self) -> list[Window]:
        """All periods of subscription."""
        return [*self._over, *self._open.values()]

    async def turn(self) -> None:
        """Make a random change, and return when it is confirmed."""
        await self._lock.run(lambda: Deferred.fromCoroutine(self._turn()))

    def keep_turning(self) -> None:
        """Begin a turn in the background, unless one is under way."""
        if not self._lock.locked:
            turning = Deferred.fromCoroutine(self.turn())
            turning.addErrback(lambda failure: self.problems.append(str(failure.value)))

    async def finish(self) -> None:
        """Return when no turn is under way."""
        await self._lock.run(lambda: None)

    async def _turn(self) -> None:
        kind = self._chance.random()
        if self._open and kind < 0.3:
            await self.leave(self._chance.choice(sorted(self._open)))
        elif self._open and kind < 0.4:
            await self.dissolve()
        else:
            number = self._chance.randint(1, len(self._topics))
            await self.subscribe(self._chance.sample(list(self._topics), number))

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Subscribe to exactly these topics."""
        body = {"topics": topics, "callback": self._callback, "uuid": "u", "timeout": self._chance.choice((0, 50)),
                "max": self._chance.choice((5, 20))}  # fmt: skip
        asked, given = await self._insist("POST", "/subscription", body)
        for topic in set(self._open) - set(topics):
            self._close(topic, asked, given)
        for topic in topics:
            self._open.setdefault(topic, Window(self._name, topic, asked, given))

    async def leave(self, topic: str) -> None:
        """Unsubscribe from one topic."""
        self._close(topic, *await self._insist("DELETE", f"/subscriber/topics/{topic}"))

    async def dissolve(self) -> None:
        """Remove the subscriber with its backlog."""
        asked, given = await self._insist("DELETE", "/subscriber")
        for topic in list(self._open):
            self._close(topic, asked, given, dissolved=True)
        # the backlog of earlier memberships is dropped too
        self._over = [evolve(window, dissolved=True) for window in self._over]

    def _close(self, topic: str, leaving: float, left: float, dissolved: bool = False) -> None:
        window = self._open.pop(topic)
        self._over.append(evolve(window, leaving=leaving, left=left, dissolved=dissolved))

    async def _insist(self, method: str, path: str, body: Any = None) -> tuple[float, float]:
        """Repeat a request until it is confirmed; when it was first sent, and when it was confirmed."""
        asked, again = time.monotonic(), False
        while True:
            self._client.daemon = self._choose()
            try:
                answer = await self._client.ask(method, path, body, PATIENCE)
            except Exception:  # outcome unknown: repeat
                answer = None
            # an unanswered attempt may have succeeded
            if answer is not None and (answer.status == 204 or (again and answer.status == 404)):
                return asked, time.monotonic()
            if answer is not None and answer.status != 503:
                raise RuntimeError(f"{method} {path} is answered {answer.status} {answer.body!r}")
            again = True
            await deferLater(self._reactor, AFTER_ERROR)
