"""Sorted, filtered and divided lists of topics and subscribers: pure.

The query of a request may hold anything: what makes no sense is its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlencode

from attrs import frozen

from routemaster.console.model import Subscriber, Topic

ROWS: Final = 50
MAX_FILTER: Final = 100  #: characters

_T = TypeVar("_T")

#: by the name of a column: its key, and whether the largest comes first unless another order is asked for
TOPIC_KEYS: Final[Mapping[str, tuple[Callable[[Topic], Any], bool]]] = {
    "name": (lambda each: each.name, False),
    "publisher": (lambda each: each.publisher, False),
    "events": (lambda each: each.events, True),
    "rate": (lambda each: each.rate or 0.0, True),
}
SUBSCRIBER_KEYS: Final[Mapping[str, tuple[Callable[[Subscriber], Any], bool]]] = {
    "name": (lambda each: each.name, False),
    "state": (lambda each: each.state, False),
    "queued": (lambda each: each.queued, True),
    # the oldest event first: None, of an empty queue, is the youngest
    "oldest": (lambda each: -(each.oldest if each.oldest is not None else float("inf")), True),
    "failures": (lambda each: each.failures, True),
    "rate_out": (lambda each: each.rate_out or 0.0, True),
    "sent": (lambda each: each.sent, True),
    "last_success": (lambda each: each.last_success or 0.0, True),
}


@frozen
class Page(Generic[_T]):
    """One page of a list."""

    items: tuple[_T, ...]
    number: int  #: from 1
    pages: int
    total: int  #: entries that fit the filter
    all: int  #: entries without a filter
    sort: str
    order: str  #: asc or desc
    filter: str
    query: Mapping[str, str]  #: what else the request asked for

    def link(self, **changed: object) -> str:
        """A query as this page's, but for what is changed; another order or filter begins on page 1."""
        values: dict[str, object] = {
            **self.query, "filter": self.filter, "sort": self.sort, "order": self.order, "page": self.number
        }  # fmt: skip
        if changed.keys() - {"page"}:
            values["page"] = 1
        values |= changed
        if values["page"] == 1:
            del values["page"]
        return "?" + urlencode({name: value for name, value in values.items() if value not in ("", None)})

    def sort_link(self, key: str) -> str:
        """The query that sorts by a column, the other way round if the list is sorted by it."""
        if key == self.sort:
            return self.link(order="asc" if self.order == "desc" else "desc")
        return self.link(sort=key, order="")


def topics(every: Sequence[Topic], query: Mapping[str, str]) -> Page[Topic]:
    """A page of topics; the filter is a part of the name or of the publisher's."""
    return _page(every, query, TOPIC_KEYS, "name", lambda each, text: text in each.name or text in each.publisher)


def subscribers(every: Sequence[Subscriber], query: Mapping[str, str]) -> Page[Subscriber]:
    """A page of subscribers; the filter is a part of the name, the callback or a topic.

    `state` and `trouble` select; `any` trouble is any at all.
    """
    state, trouble = query.get("state", ""), query.get("trouble", "")

    def fits(each: Subscriber, text: str) -> bool:
        return (
            (not state or each.state == state)
            and (not trouble or each.trouble == trouble or (trouble == "any" and bool(each.trouble)))
            and (
                text in each.name or text in (each.callback or "").lower() or any(text in it for it in each.topics)
            )
        )

    kept = {name: value for name, value in (("state", state), ("trouble", trouble)) if value}
    return _page(every, query, SUBSCRIBER_KEYS, "name", fits, kept)


def _page(
    every: Sequence[_T], query: Mapping[str, str], keys: Mapping[str, tuple[Callable[[_T], Any], bool]],
    default: str, fits: Callable[[_T, str], bool], kept: Mapping[str, str] | None = None,
) -> Page[_T]:  # fmt: skip
    text = query.get("filter", "").strip()[:MAX_FILTER]
    sort = query.get("sort", default)
    if sort not in keys:
        sort = default
    key, largest_first = keys[sort]
    order = query.get("order", "")
    if order not in ("asc", "desc"):
        order = "desc" if largest_first else "asc"
    found = [each for each in every if fits(each, text.lower())]
    found.sort(key=key, reverse=order == "desc")  # stable: equal ones stay in the order of their names
    pages = max(1, -(-len(found) // ROWS))
    number = int(asked) if (asked := query.get("page", "1")).isdecimal() and len(asked) < 9 else 1
    number = min(max(1, number), pages)
    start = (number - 1) * ROWS
    items = tuple(found[start : start + ROWS])
    return Page(items, number, pages, len(found), len(every), sort, order, text, dict(kept or {}))
