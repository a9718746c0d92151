"""The answers of a bus as values of the model: pure, and bounded by the size of the answers.

An answer may come from another version of the bus, or from something that is no bus at
all: whatever is missing or of another type is one `BadAnswer`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve

from routemaster.console.model import FAILING, LATE, PAUSED, Subscriber, Topic

LATEST = 2.0**36  #: seconds since the epoch; no bus measures a later time
MOST = 2**53  #: of anything that is counted; all JSON parsers read whole numbers up to this
LONGEST = 10_000  #: characters of a name, a URL or a reason
_LONE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  #: where a half of a surrogate pair may be


class BadAnswer(Exception):
    """The bus answered something else than its API promises; the message is one sentence."""


def parse(body: bytes) -> Any:
    """The JSON value; raises BadAnswer. Halves of surrogate pairs, which no page can show, become `?`."""
    try:
        value = json.loads(body)
        if _LONE.search(body):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except (ValueError, RecursionError):
        raise BadAnswer("the answer is not JSON: is this the URL of a bus?") from None


def read_topics(body: bytes) -> tuple[Topic, ...]:
    """The topics of `GET /topics`, by name."""
    return tuple(sorted(_each(body, _topic), key=lambda each: each.name))


def read_subscribers(body: bytes) -> tuple[Subscriber, ...]:
    """The subscribers of `GET /subscriptions`, by name."""
    found = sorted(_each(body, _subscriber), key=lambda each: each.name)
    counts = Counter(each.name for each in found)
    return tuple(evolve(each, shared=True) if counts[each.name] > 1 else each for each in found)


def _each(body: bytes, read: Callable[[Any], Any]) -> list[Any]:
    try:
        return [read(item) for item in parse(body)]
    except WRONG as error:
        raise lacking(error) from None


#: what code that reads an answer raises if that is not as promised
WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)


def lacking(error: Exception) -> BadAnswer:
    """The exception that callers get for one of `WRONG`."""
    text = " ".join(f"{type(error).__name__} {error}".split())
    return BadAnswer(f"the answer lacks what the API promises: {text[:200]}")


def _topic(item: Any) -> Topic:
    return Topic(_name(item["name"]), _name(item["publisher"]), _count(item["events"]))


def _subscriber(item: Any) -> Subscriber:
    events, health = item["events"], item["health"]
    return Subscriber(
        name=_name(item["subscriber"]),
        callback=_text(item["callback"]),
        max_events=_count(item["max_events"]),
        timeout=_count(item["timeout"]),
        topics=tuple(sorted(map(str, item["topics"]))),
        awaited=tuple(sorted(map(str, item.get("awaited", ())))),
        sent=_count(events["sent"]),
        queued=_count(events["queued"]),
        oldest=_time(events["oldest"]),
        state=str(health["state"]),
        failures=_count(health["failures"]),
        last_attempt=_time(health["last_attempt"]),
        last_success=_time(health["last_success"]),
        last_error=_text(health["last_error"]),
        next_attempt=_time(health["next_attempt"]),
    )


def _count(value: Any) -> int:
    if not isinstance(value, int) or abs(value) > MOST:
        raise ValueError(f"{value!s:.40} is no whole number of at most {MOST}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{value!s:.40} is no text of at most {LONGEST} characters")
    return value


def _text(value: Any) -> str | None:
    return None if value is None else _name(value)


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if not 0 <= value < LATEST:
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def with_rates(
    now: tuple[Subscriber, ...], before: Mapping[str, Subscriber], elapsed: float | None
) -> tuple[Subscriber, ...]:
    """The subscribers with what went in and out since the reading before, `elapsed` seconds ago."""
    if not elapsed:
        return now
    return tuple(_with_rate(each, before.get(each.name), elapsed) for each in now)


def _with_rate(each: Subscriber, old: Subscriber | None, elapsed: float) -> Subscriber:
    if old is None or each.shared or each.sent < old.sent:  # it subscribed anew
        return each
    sent = each.sent - old.sent
    received = max(0, each.queued - old.queued + sent)
    return evolve(each, rate_in=received / elapsed, rate_out=sent / elapsed)


def topic_rates(now: tuple[Topic, ...], before: Mapping[str, Topic], elapsed: float | None) -> tuple[Topic, ...]:
    """The topics with the events since the reading before, `elapsed` seconds ago; one that is new began at 0."""
    if not elapsed:
        return now
    begun = {name: each.events for name, each in before.items()}
    return tuple(
        evolve(each, rate=grown / elapsed) if (grown := each.events - begun.get(each.name, 0)) >= 0 else each
        for each in now
    )


def with_trouble(subscribers: tuple[Subscriber, ...], now: float, late_after: float) -> tuple[Subscriber, ...]:
    """The subscribers, each with its trouble at a time of day."""
    return tuple(
        evolve(each, trouble=trouble) if (trouble := trouble_of(each, now, late_after)) else each
        for each in subscribers
    )


def trouble_of(each: Subscriber, now: float, late_after: float) -> str:
    """What is wrong with a subscriber: its receiver fails, its events wait too long, or it is paused."""
    if each.state == "paused":
        return PAUSED
    if each.failures:
        return FAILING
    waits = 0.0 if each.oldest is None else now - each.oldest
    return LATE if waits > late_after + each.timeout / 1000 else ""
