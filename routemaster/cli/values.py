"""What the command line means by names, durations and places in time. Pure; the time is an argument."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from datetime import datetime

from attrs import frozen

from routemaster.errors import RoutemasterError
from routemaster.model import public_name
from routemaster.validation import PATTERNS, shown

EARLIEST = 10**11  #: milliseconds since the epoch, of 1973: a smaller number is seconds, or a date without dashes
MOST_CANDIDATES = 10  #: names that an error lists
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS = (86_400_000, 3_600_000, 60_000, 1000)


class UnknownName(RoutemasterError):
    """Nothing has the name, or begins with it, or several do."""


def chosen(name: str, known: Collection[str], what: str, whole: bool = False) -> str:
    """The one of the known tokens or topics that has the name, or whose name alone begins with it.

    Args:
        what: what is looked for, for the error.
        whole: a beginning does not suffice. A script that unsubscribes `bob` twice must not end `bobby`.

    Raises UnknownName, with the candidates by their public names.
    """
    if name in known:
        return name
    given = shown(name.partition("--")[0])  # without the secret part of a token
    found = [each for each in known if public_name(each) == name]
    if len(found) > 1:
        raise UnknownName(f"{what} {name} is ambiguous: {len(found)} have that name, use the token instead")
    if name and not found and not whole:
        found = [each for each in known if each.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not found:
        end = " (with --yes the name must be complete)" if whole else ", or begins so"
        raise UnknownName(f"no {what} is called {given}{end}")
    names = sorted({public_name(each) for each in found})
    more = f" and {len(names) - MOST_CANDIDATES} more" if len(names) > MOST_CANDIDATES else ""
    raise UnknownName(
        f"{what} {given} is ambiguous: {', '.join(names[:MOST_CANDIDATES])}{more}"
    )


def duration(text: str) -> int:
    """Milliseconds of `90s`, `15m`, `24h`, `7d`, `1d12h`, or `0`."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        if text == "0":
            return 0
        raise ArgumentTypeError(f"expected a duration such as 90s, 15m, 24h or 7d, got {shown(text)}")
    return sum(int(count) * unit for count, unit in zip(match.groups("0"), _UNITS, strict=True))


@frozen
class Place:
    """A place in all logs: a word of the API, or a time."""

    word: str = ""
    ms: int = 0        #: since the epoch, or before now
    ago: bool = False  #: before now

    def at(self, now: float) -> str | int:
        """As the API takes it: the word, or milliseconds since the epoch; `now` in seconds."""
        return self.word or (max(0, round(now * 1000) - self.ms) if self.ago else self.ms)


def place(*words: str) -> Callable[[str], Place]:
    """Parses one of the words, how long ago, a local time, or milliseconds since the epoch."""

    def parse(text: str) -> Place:
        if text in words:
            return Place(word=text)
        try:
            if _DURATION.fullmatch(text) and text:
                return Place(ms=duration(text), ago=True)
            if text.isascii() and text.isdecimal():
                if EARLIEST <= int(text) < 10**15:
                    return Place(ms=int(text))
            else:
                return Place(ms=round(datetime.fromisoformat(text).timestamp() * 1000))
        except (ValueError, OverflowError, OSError):  # no date, or none that the system knows
            pass
        expected = "".join(f"{word}, " for word in words)
        raise ArgumentTypeError(
            f"expected {expected}how long ago such as 1h, a local time such as 2026-11-27T08:00, "
            f"or milliseconds since the epoch, got {shown(text)}"
        )

    return parse


def event_id(text: str) -> str:
    """The ID of an event."""
    if PATTERNS["event id"].fullmatch(text):
        return text
    raise ArgumentTypeError(f"expected the ID of an event such as 1700000000000000-1, got {shown(text)}")


def event_or_place(text: str) -> str | Place:
    """The ID of an event, or a place as `place` parses it."""
    return text if PATTERNS["event id"].fullmatch(text) else place()(text)


def number_or_none(text: str) -> int | None:
    """A number, or `none`, which removes a limit; the API knows its range."""
    if text == "none":
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 15:
        return int(text)
    raise ArgumentTypeError(f"expected a number or none, got {shown(text)}")


def positive(text: str) -> int:
    """A number from 1."""
    number = number_or_none(text)
    if not number:
        raise ArgumentTypeError(f"expected a number from 1, got {shown(text)}")
    return number


def running_number(event: str) -> int:
    """Of an event's ID: IDs of a topic are numbered without gaps."""
    return int(event.rpartition("-")[2])


def id_at(ms: int) -> str:
    """An ID before those of all events that are accepted from a time on: milliseconds since the epoch."""
    return f"{ms * 1000}-0"
