"""Lists of the bus as lines of text for a terminal. Pure; time and width are arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from math import log10
from typing import Any

STALE = 60.0   #: seconds beyond its timeout that an event may wait before its subscription is called stale
NARROWEST = 60
LONGEST_NAME = 24


def clean(text: str) -> str:
    """The text with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clip(text: str, width: int) -> str:
    """The text, cut to a width."""
    return text if len(text) <= width else text[: width - 1] + "…"


def span(seconds: float) -> str:
    """A duration in its two largest units; at least 0 s."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def moment(seconds: float) -> str:
    """A time, in seconds since the epoch, in the local zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def size(count: float) -> str:
    """A number of bytes, to one decimal."""
    if count < 1000:
        return f"{count:.0f} bytes"
    exponent = min(int(log10(count)) // 3, 4)
    return f"{count / 1000**exponent:.1f} {' kMGT'[exponent]}B"


def counted(count: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Columns as wide as their content, two spaces apart; those in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )  # fmt: skip
        return "  ".join(padded).rstrip()

    return [line(head), *map(line, rows)]


def tokens(listed: Sequence[dict[str, Any]]) -> list[str]:
    """The tokens created by root."""
    if not listed:
        return ["no tokens"]
    rows = [[clean(each["name"]), clean(each["token"] or each["hash"])] for each in listed]
    return table(["NAME", "TOKEN"], rows)


def topics(listed: Sequence[dict[str, Any]]) -> list[str]:
    """The topics with publisher and number of events."""
    if not listed:
        return ["no topics"]
    rows = [[clean(each["name"]), name(each["publisher"]), f"{each['events']:,}"] for each in listed]
    return table(["TOPIC", "PUBLISHER", "EVENTS"], rows, right={2})


def verdict(subscription: dict[str, Any], now: float) -> str:
    """The state of a subscription in a word; capitals demand action."""
    if subscription["health"]["state"] == "paused":
        return "paused"  # by intention, however many events gather
    failures, oldest = subscription["health"]["failures"], subscription["events"]["oldest"]
    if failures:
        return f"FAILING x{failures}"
    if oldest is not None and now - oldest > subscription["timeout"] / 1000 + STALE:
        return "STALE"
    return str(subscription["health"]["state"])


def subscriptions(listed: Sequence[dict[str, Any]], now: float, width: int) -> list[str]:
    """The subscriptions, failing and stale ones first, with the reason on a line of its own."""
    if not listed:
        return ["no subscriptions"]
    words = [verdict(each, now) for each in listed]
    ranked = sorted(zip(words, listed, strict=True), key=lambda pair: not pair[0][0].isupper())
    head = ["SUBSCRIBER", "QUEUED", "OLDEST", "HEALTH", "NEXT", "CALLBACK"]
    rows = [
        [
            name(each["subscriber"]),
            f"{each['events']['queued']:,}",
            _age(each["events"]["oldest"], now),
            word,
            coming(each["health"]["next_attempt"], now),
            clean(each["callback"].removeprefix("https://")) if each["callback"] else "(pulled)",
        ]
        for word, each in ranked
    ]
    width = max(width, NARROWEST)
    first, *others = (clip(line, width) for line in table(head, rows, right={1, 2}))
    lines = [first]
    for line, (_, each) in zip(others, ranked, strict=True):
        lines.append(line)
        if each["health"]["failures"]:
            lines.append(clip("  " + _reason(each["health"], now), width))
    return [*lines, _summary(listed, words)]


def _summary(listed: Sequence[dict[str, Any]], words: Sequence[str]) -> str:
    queued = sum(each["events"]["queued"] for each in listed)
    parts = [counted(len(listed), "subscription"), f"{counted(queued, 'event')} queued"]
    for trouble in ("FAILING", "STALE"):
        if number := sum(word.startswith(trouble) for word in words):
            parts.append(f"{number} {trouble}")
    return ", ".join(parts)


def _reason(health: dict[str, Any], now: float) -> str:
    success = health["last_success"]
    when = "never delivered" if success is None else f"last success {span(now - success)} ago"
    return f"{clean(health['last_error'] or 'no reason given')} ({when})"


def name(token: str) -> str:
    """A client's public name; `--json` has the whole token."""
    return clip(clean(token.partition("--")[0] or token), LONGEST_NAME)


def _age(at: float | None, now: float) -> str:
    return "-" if at is None else span(now - at)


def coming(at: float | None, now: float) -> str:
    """How soon something is due."""
    if at is None:
        return "-"
    return "now" if at < now + 1 else f"in {span(at - now)}"
