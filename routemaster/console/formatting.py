"""Values of the model as an operator reads them: the filters of the templates. Pure; the time is an argument.

None is "not known" and is shown as a dash everywhere. Times are seconds since the epoch, shown in UTC; the
browser's script rewrites them in the reader's zone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from attrs import frozen

from routemaster.console.changes import counted, duration

UNKNOWN: Final = "–"  # noqa: RUF001
_SIZES: Final = ("bytes", "kB", "MB", "GB", "TB")
_LONGEST_DATA: Final = 400  #: characters of an event's data in a list


@frozen
class Badge:
    """A state in a word, with a sign and a tone, so that it is not told by its colour alone."""

    word: str
    sign: str
    tone: str  #: ok, calm, watch or bad: a class of the style sheet


@frozen
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    share: float  #: of the highest bar, 0 to 1
    percent: str  #: of all


def number(value: float | None) -> str:
    """A count, with commas."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Events a second, to as many digits as matter."""
    if value is None:
        return UNKNOWN
    if value == 0 or value >= 100:
        return f"{value:,.0f}/s"
    return f"{value:.1f}/s" if value >= 0.95 else f"{value:.2f}/s"


def span(seconds: float | None) -> str:
    """A duration in its two largest units; below a second in milliseconds."""
    if seconds is None:
        return UNKNOWN
    if 0 < seconds < 0.9995:
        return f"{max(1, round(seconds * 1000))} ms"
    return duration(int(max(0.0, seconds)))


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds."""
    if value == 0:
        return "0 ms"
    return span(None if value is None else value / 1000)


def ago(at: float | None, now: float) -> str:
    """How long ago something was, in words."""
    if at is None:
        return "never"
    return "just now" if now - at < 1 else f"{span(now - at)} ago"


def age(at: float | None, now: float) -> str:
    """How old something is."""
    return UNKNOWN if at is None else span(max(0.0, now - at) // 1)


def until(at: float | None, now: float) -> str:
    """How soon something is due."""
    if at is None:
        return UNKNOWN
    return "now" if at < now + 1 else f"in {span(at - now)}"


def moment(at: float | None) -> str:
    """A time in UTC, to the second."""
    return UNKNOWN if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float) -> str:
    """A time as the attribute `datetime` takes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: float | None) -> str:
    """A number of bytes, to one decimal."""
    if count is None:
        return UNKNOWN
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_SIZES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_SIZES[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_SIZES[unit]}"


def sentence(text: str) -> str:
    """A message of an error as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'}"


def received(event_id: str) -> float:
    """When the bus accepted an event, from its ID: microseconds since the epoch before the dash."""
    return int(event_id.partition("-")[0]) / 1e6


def data(value: Any) -> str:
    """An event's data as JSON, cut to a length that a list can show."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_DATA else text[: _LONGEST_DATA - 1] + "…"


def pretty(value: Any) -> str:
    """An event's data as JSON over several lines."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def state(subscriber: Any) -> Badge:
    """How a subscriber is: what is wrong first, then what it does now."""
    if subscriber.state == "paused":
        return Badge("paused", "❙❙", "watch")
    if subscriber.failures:
        return Badge(f"failing x{subscriber.failures:,}", "✕", "bad")
    if subscriber.trouble == "late":
        return Badge("late", "◷", "watch")
    word, sign, tone = {
        "idle": ("idle", "○", "calm"),
        "waiting": ("waiting", "◔", "ok"),
        "delivering": ("delivering", "▸", "ok"),
        "backoff": ("backoff", "✕", "bad"),
    }.get(subscriber.state, (subscriber.state, "○", "calm"))
    return Badge(word, sign, tone)


def explained(subscriber: Any, now: float) -> str:
    """What a subscriber's state means now, in one or two sentences."""
    queued = counted(subscriber.queued, "event")
    if subscriber.state == "paused":
        return f"Paused on request: nothing is delivered, and {queued} wait until it is resumed."
    if subscriber.failures:
        last = "No delivery has ever succeeded" if subscriber.last_success is None else (
            f"The last success was {ago(subscriber.last_success, now)}"
        )  # fmt: skip
        times = "attempt" if subscriber.failures == 1 else f"{subscriber.failures:,} attempts in a row"
        return f"The last {times} failed. {last}. The next attempt is due {until(subscriber.next_attempt, now)}."
    if subscriber.trouble == "late":
        return f"Nothing fails, but the oldest of {queued} has waited {age(subscriber.oldest, now)}."
    if subscriber.queued == 0:
        return "Every event has been acknowledged."
    if subscriber.state == "waiting" and subscriber.callback is None:
        return f"{queued.capitalize()} wait to be fetched."
    if subscriber.state == "waiting":
        return f"{queued.capitalize()} wait for the batch to fill."
    return f"Deliveries succeed; {queued} wait."


def place(kind: str) -> Badge:
    """Where an event is for a subscriber, by the bus's word."""
    tone = {"acknowledged": "ok", "delivering": "ok", "dropped": "bad", "parked": "watch", "expired": "watch"}
    sign = {"acknowledged": "✓", "delivering": "▸", "dropped": "✕", "parked": "P", "expired": "◷"}
    return Badge(kind, sign.get(kind, "○"), tone.get(kind, "calm"))


_KINDS: Final = {
    "redis_down": "Redis unavailable",
    "redis_up": "Redis available",
    "caught_up": "caught up",
    "topic_created": "topic created",
    "topic_deleted": "topic deleted",
}
_SEVERITIES: Final = {"info": ("○", "calm"), "warning": ("!", "watch"), "error": ("✕", "bad"), "good": ("✓", "ok")}


def kind(word: str) -> str:
    """The kind of a change in words."""
    return _KINDS.get(word, word.replace("_", " "))


def change(each: Any) -> Badge:
    """The kind of a change, with the tone of its severity."""
    sign, tone = _SEVERITIES.get(each.severity, _SEVERITIES["info"])
    return Badge(kind(each.kind), sign, tone)


def settings(details: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings of a subscription in plain words: what each is about, and what it does."""
    most, timeout = counted(details["max_events"], "event"), details["timeout"]
    pushed = details["callback"] is not None
    fill = "as soon as one is there" if timeout == 0 else (
        f"when {most} are there, or the oldest has waited {milliseconds(timeout)}"
    )  # fmt: skip
    sent = "Delivered" if pushed else "Given out"
    bytes_ = "" if details.get("max_bytes") is None else f", and at most {size(details['max_bytes'])}"
    found = [("Batches", f"{sent} {fill}; at most {most} in one batch{bytes_}.")]
    if (each := details.get("rate")) is not None:
        found.append(("Rate", f"At most {counted(each, 'event')} a second; more wait."))
    found.append(("Old events", _expiry(details)))
    if pushed:
        found += [("Refused events", _parking(details)), ("Signatures", _signing(details))]
    start, missing = details.get("start"), details.get("missing_topics")
    if start is not None:
        found.append(("New topics", f"A topic that it subscribes to later begins {_start(start)}."))
    if missing == "await":
        found.append(("Missing topics", "A topic that does not exist yet is joined when it comes into being."))
    return found


def _expiry(details: dict[str, Any]) -> str:
    retention, most = details.get("retention"), details.get("max_queued")
    limits = [] if retention is None else [f"after {milliseconds(retention)}"]
    if most is not None:
        limits.append(f"when more than {counted(most, 'event')} wait, the oldest first")
    if not limits:
        return "Wait without limit until they are acknowledged."
    return f"Are not delivered any more {', or '.join(limits)}."


def _parking(details: dict[str, Any]) -> str:
    if (after := details.get("park_after")) is None:
        return "An event that the receiver refuses blocks those behind it until it is accepted."
    return f"An event refused {counted(after, 'time')} with 400, 413 or 422 is parked; those behind it go on."


def _signing(details: dict[str, Any]) -> str:
    return "Deliveries are signed (Standard Webhooks)." if details.get("signed") else "Deliveries are not signed."


def _start(start: Any) -> str:
    words = {"next": "with the next event", "oldest": "with the oldest event that the topic keeps"}
    return words.get(start) or f"with events from {moment(start / 1000)} UTC on"


def kept(details: dict[str, Any]) -> str:
    """What a topic keeps, in plain words."""
    history, most, limit = details.get("history"), details.get("history_events"), details.get("max_data")
    what = "Events are kept until every subscriber has them."
    if history:
        at_most = "" if most is None else f", at most {counted(most, 'event')}"
        what = f"Events are kept for {milliseconds(history)}{at_most}, though every subscriber has them."
    return what + ("" if limit is None else f" The data of one event may have {size(limit)}.")


def histogram(buckets: Sequence[Any]) -> list[Bar]:
    """Bars of a histogram of durations: counts of each bucket, from the shortest used to the longest used."""
    used = [place for place, bucket in enumerate(buckets) if bucket.count]
    if not used:
        return []
    bars, whole = [], sum(bucket.count for bucket in buckets)
    highest = max(bucket.count for bucket in buckets)
    for index in range(used[0], used[-1] + 1):
        bucket = buckets[index]
        limit = bucket.limit if bucket.limit != float("inf") else buckets[index - 1].limit
        label = f"{'to' if limit == bucket.limit else 'over'} {_limit(limit)}"
        bars.append(Bar(label, bucket.count, bucket.count / highest, f"{bucket.count / whole:.0%}"))
    return bars


def _limit(seconds: float) -> str:
    """The limit of a bucket, which is a round number in some unit."""
    return f"{seconds:g} s" if 1 <= seconds < 60 else span(seconds)


def memory(node: Any) -> str:
    """How near a Redis is to the mark at which events are dropped: ok, watch or bad."""
    return "bad" if node.nearness >= 1 else "watch" if node.nearness > 0.5 else "ok"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    each.__name__: each
    for each in (
        number, rate, span, milliseconds, ago, age, until, moment, iso, size, counted, sentence, received, data,
        pretty, state, explained, place, kind, change, settings, kept, histogram, memory,
    )
}  # fmt: skip
