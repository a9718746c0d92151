"""What the fake bus knows of topics and subscriptions, and what becomes of an event for each subscriber."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from routemaster_client.model import Event
from routemaster_client.testing.fake_rules import Refusal, topic_settings


def received(event: Event) -> int:
    """When the bus received an event, in microseconds; no two of a fake bus have the same."""
    return int(event.id.partition("-")[0])


@dataclass
class FakeTopic:
    """A topic; `log` has every event since it exists."""

    name: str
    publisher: str
    settings: dict[str, Any] = field(default_factory=lambda: topic_settings({}))
    log: list[Event] = field(default_factory=list)

    def history(self, now: int) -> list[Event]:
        """The events that it keeps though every subscriber has them; `now` in microseconds."""
        since, most = now - self.settings["history"] * 1000, self.settings["history_events"]
        if not self.settings["history"]:
            return []
        kept = [event for event in self.log if received(event) >= since]
        return kept if most is None else kept[len(kept) - most if most < len(kept) else 0:]


@dataclass
class FakeSubscription:
    """A subscription; `queue` has what waits, in the order in which it was received."""

    options: dict[str, Any]
    queue: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    paused: bool = False
    rewinds: int = 0
    became: dict[str, str] = field(default_factory=dict)  #: topic/id -> acknowledged, skipped, expired

    @property
    def most(self) -> int:
        """The most events in a batch."""
        return int(self.options["max"])

    def add(self, events: list[Event], now: int) -> None:
        """Let events wait; those that are too many, or too old, expire."""
        self.queue = sorted({received(event): event for event in [*self.queue, *events]}.values(), key=received)
        self.expire(now)

    def expire(self, now: int) -> None:
        """Pass over what `retention` and `max_queued` say."""
        retention, most = self.options["retention"], self.options["max_queued"]
        old = [event for event in self.queue if retention is not None and received(event) < now - retention * 1000]
        left = len(self.queue) - len(old)
        if most is not None and left > most:
            old += self.queue[len(old): len(old) + left - most]
        self.take(old, "expired")

    def take(self, events: list[Event], became: str) -> int:
        """Remove events from the queue; how many."""
        gone = {id(event) for event in events}
        self.queue = [event for event in self.queue if id(event) not in gone]
        self.counts[became] += len(events)
        self.became |= dict.fromkeys((f"{event.topic}/{event.id}" for event in events), became)
        return len(events)

    def cursor(self, batch: list[Event]) -> str:
        """What acknowledges a batch."""
        return f"{self.rewinds}-{received(batch[-1]) if batch else 0}"

    def acknowledge(self, cursor: object, latest: int) -> None:
        """Acknowledge up to a cursor; one from before a rewind changes nothing. `latest`: of all events."""
        rewinds, _, at = str(cursor).partition("-")
        known = rewinds.isdecimal() and at.isdecimal() and int(rewinds) <= self.rewinds and int(at) <= latest
        if not known:
            raise Refusal(400, "cursor is invalid: expected one that this subscription was given with its events")
        if int(rewinds) == self.rewinds:
            self.take([event for event in self.queue if received(event) <= int(at)], "acknowledged")

    def skip(self, topics: list[str] | None, before: int | None) -> int:
        """Pass over what waits of these topics (None: all), received before a time (None: all); how many."""
        return self.take([
            event for event in self.queue
            if (topics is None or event.topic in topics) and (before is None or received(event) < before)
        ], "skipped")  # fmt: skip

    def rewind(self, topic: FakeTopic, since: int, now: int) -> int:
        """Let the events that a topic keeps, received since a time, come again; how many more then wait."""
        kept = [event for event in topic.history(now) if received(event) >= since]
        again = [event for event in kept if event not in self.queue]
        if again:
            self.rewinds += 1
            for event in again:
                self.became.pop(f"{event.topic}/{event.id}", None)
            self.add([event for event in topic.log if event.number >= again[0].number], now)
        return len(again)

    def where(self, event: Event) -> dict[str, Any] | None:
        """What became of an event; None if it never was for this subscriber."""
        mine = [each for each in self.queue if each.topic == event.topic]
        if event in mine:
            return {"state": "queued", "ahead": mine.index(event)}
        state = self.became.get(f"{event.topic}/{event.id}")
        return None if state is None else {"state": state}
