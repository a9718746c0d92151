"""Which events each topic has accepted, and between which moments: what a question must count, and may count."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable

from attrs import frozen

from chaos.records import Arrival, Mark, Outcome, Sent


@frozen
class Begin:
    """Where a life begins in one topic."""

    possible: float  #: what was accepted before this moment is not given
    certain: float   #: what is published after this moment is


@frozen
class Bounds:
    """The least and the most that a count can be."""

    least: int = 0
    most: int = 0

    def holds(self, count: int) -> bool:
        """Whether the count is possible."""
        return self.least <= count <= self.most

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.least + other.least, self.most + other.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


class Topic:
    """The events that a topic holds for certain, and when they were published."""

    def __init__(self) -> None:
        self.marks: list[tuple[Mark, float, float]] = []  #: with the moments between which they were accepted
        self.begins: list[float] = []
        self.ends: list[float] = []

    def sort(self) -> None:
        """Prepare for questions."""
        self.begins = sorted(began for _, began, _ in self.marks)
        self.ends = sorted(ended for *_, ended in self.marks)

    def since(self, begin: Begin, asked: float, answered: float) -> Bounds:
        """How many were accepted after the certain beginning, as a question between these moments counts them."""
        before = bisect_left(self.begins, begin.certain)
        least, most = (bisect_right(moments, at) for moments, at in ((self.ends, asked), (self.begins, answered)))
        return Bounds(least - before, most - before)

    def doubtful(self, begin: Begin) -> list[float]:
        """Of those published before it that may be given too, the moments when they were accepted for certain."""
        return [ended for _, began, ended in self.marks if began < begin.certain and ended >= begin.possible]

    def all(self) -> int:
        """How many it holds."""
        return len(self.marks)


def stored(sent: Iterable[Sent], witness: Iterable[Arrival]) -> dict[str, Topic]:
    """The events of each topic. Of unknown outcome are those that the witness got, who gets all."""
    seen: dict[Mark, float] = {}
    for arrival in witness:
        for mark in arrival.marks:
            seen.setdefault(mark, arrival.began)
    topics: dict[str, Topic] = defaultdict(Topic)
    for each in sent:
        for mark in each.marks():
            if each.outcome is Outcome.OK:
                topics[each.topic].marks.append((mark, each.began, each.ended))
            elif mark in seen:
                topics[each.topic].marks.append((mark, each.began, max(each.ended, seen[mark])))
    for topic in topics.values():
        topic.sort()
    return dict(topics)
