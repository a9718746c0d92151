"""All subscribers who decide for themselves, in one run: from their topics' settings to the verdict."""

# mypy: allow-untyped-calls

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from chaos import books
from chaos.checker import Verdict
from chaos.operations import ALL, HABITS, HISTORY, NONE, ROOT, SOME, Monitor, Subscriber
from chaos.pulling import Puller
from chaos.records import Allowed, Arrival, Sent
from routemaster.testing.daemon import Client


class Deciders:
    """Those of `operations.HABITS`, subscribed to all topics."""

    def __init__(self, reactor: Any, chance: random.Random, topics: Sequence[str]) -> None:
        """The topics keep all their history, some, and none, in turn."""
        self._reactor, self._chance = reactor, chance
        self._histories = {topic: (ALL, SOME, NONE)[at % 3] for at, topic in enumerate(topics)}
        self._subscribers: list[Subscriber] = []
        self._pullers: list[Puller] = []
        self._monitor: Monitor | None = None
        self.behaviours = {name: dict(habit.behaviours) for name, habit in HABITS.items() if not habit.pulls}

    async def configure(self, publisher: Client) -> None:
        """Claim the topics with their settings, before their first event."""
        for topic, kept in self._histories.items():
            answer = await publisher.ask("PUT", f"/topics/{topic}", HISTORY[kept])
            if answer.status != 204:
                raise RuntimeError(f"PUT /topics/{topic} is answered {answer.status} {answer.body!r}")

    async def start(
        self, client: Callable[[str], Client], choose: Callable[[], Any], urls: Mapping[str, str]
    ) -> None:
        """Subscribe all; then they decide, and pull, and their books are read."""
        for name, habit in HABITS.items():
            chance = random.Random(self._chance.random())  # must be repeatable
            clients = client(name), client(ROOT)
            subscriber = Subscriber(
                self._reactor, chance, clients, choose, name, urls.get(name), self._histories
            )
            self._subscribers.append(subscriber)
            await subscriber.subscribe()
            subscriber.begin()
            if habit.pulls:
                own = random.Random(chance.random())
                self._pullers.append(Puller(self._reactor, own, client(name), choose, name, habit.pulls))
        self._monitor = Monitor(self._reactor, self._subscribers)

    async def finish(self) -> None:
        """Decide nothing more, so that all events come."""
        await gatherResults([Deferred.fromCoroutine(each.finish()) for each in self._subscribers])

    async def close_books(self) -> None:
        """Look at all books for the last time."""
        for puller in self._pullers:
            await puller.stop()
        if self._monitor is not None:
            await self._monitor.stop()
        for subscriber in self._subscribers:
            await subscriber.close_books()

    @property
    def progress(self) -> int:
        """Grows as long as those who pull get events."""
        return sum(each.progress for each in self._pullers)

    @property
    def problems(self) -> list[str]:
        """Answers that the API does not define."""
        said = [*(each.problems for each in self._subscribers), *(each.problems for each in self._pullers)]
        return [problem for problems in said for problem in problems]

    def records(self) -> str:
        """All their records, a line for each."""
        lists = [records for each in self._subscribers for records in (each.lives, each.operations, each.readings)]
        pulled = [each.arrivals for each in self._pullers]
        return "\n".join(str(record) for records in (*lists, *pulled) for record in records)

    def judged(
        self, sent: Sequence[Sent], arrivals: Sequence[Arrival], witness: Sequence[Arrival], allowed: Allowed
    ) -> tuple[Verdict, dict[str, int]]:
        """See `books.judge`; `arrivals` are those of the receivers."""
        decisions = books.Decisions(
            [life for each in self._subscribers for life in each.lives],
            [operation for each in self._subscribers for operation in each.operations],
            [reading for each in self._subscribers for reading in each.readings],
            [*arrivals, *(arrival for each in self._pullers for arrival in each.arrivals)],
        )
        return books.judge(decisions, sent, witness, allowed)
