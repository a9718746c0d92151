"""Long lists of events, which the API gives in pages: printed as they come."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from routemaster import strict_json
from routemaster.cli import session
from routemaster.cli.api_client import Answer, Bus

Page = tuple[list[dict[str, Any]], str | None]  #: events, and where the next page begins


def pages(bus: Bus, who: str, path: str, size: int, most: int | None, query: dict[str, str]) -> Iterator[Page]:
    """The pages of a list until its end, or until there are `most` events."""
    left = most
    while left is None or left > 0:
        size = size if left is None else min(size, left)
        answer = bus.want("GET", f"{path}?{urlencode(query | {'max': str(size)})}", who)
        page = exact(answer)
        left = None if left is None else left - len(page["events"])
        yield page["events"], page["next"]
        if page["next"] is None:
            return
        query = query | {"after": page["next"]}


def exact(answer: Answer) -> Any:
    """The body of an answer; numbers in an event's data stay as its publisher wrote them."""
    return json.loads(answer.text, parse_float=strict_json.Number)


def print_pages(
    arguments: argparse.Namespace, found: Iterator[Page], lines: Callable[[Sequence[dict[str, Any]]], list[str]],
    empty: str,
) -> int:  # fmt: skip
    """Print pages as one answer of the API, or as text: `lines` makes a head and lines of a page's events."""
    if session.as_json(arguments):
        return _print_json(found)
    first = True
    for events, _ in found:
        if events:
            head, *rows = lines(events)
            sys.stdout.writelines(f"{line}\n" for line in ([head, *rows] if first else rows))
            sys.stdout.flush()
            first = False
    if first:
        sys.stdout.write(f"{empty}\n")
    return 0


def _print_json(found: Iterator[Page]) -> int:
    following, before = None, '{"events":['
    for events, following in found:  # noqa: B007  # the last one is printed
        for event in events:
            sys.stdout.write(before + strict_json.encode(event).decode())
            before = ",\n"
    before = before if before.startswith("{") else ""
    sys.stdout.write(f'{before}],"next":{json.dumps(following)}}}\n')
    return 0
