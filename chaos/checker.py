"""Compares the accepted events with the deliveries, and classifies every violation.

    lost        accepted for a subscriber, never acknowledged, and no longer in its backlog
    stuck       accepted for a subscriber, and still in its backlog when patience ended
    invented    delivered, but never published in this form
    refused     delivered although the publisher was answered that it was not stored
    unsubscribed   delivered although the subscriber was not subscribed when it was accepted
    doubled     stored, but neither accepted nor delivered: usually a second copy
    reordered   delivered to a subscriber after an event that follows it in the topic
    repeated    delivered again after it was acknowledged, more often than the faults allow
    overlapped  delivered while the previous delivery was under way, more often than the faults allow
    unbalanced  found by `books` only

Order: a lane's accepted events are in the order of their numbers, for each was
published after the answer to the last. That says nothing about events whose
outcome is unknown, nor about those of different lanes; but a topic has one
order, so all its subscribers must have seen the same. A delivery for a subscription that was
removed with its backlog, by a process that stood still meanwhile, has no place in that order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf

from attrs import evolve, field, fields, frozen

from chaos.records import Allowed, Arrival, Evidence, Mark, Outcome, Rollback, Sent, Window

Whose = tuple[str, Mark]  #: subscriber, event


@frozen
class Verdict:
    """The violations by kind; empty if the bus kept its guarantees."""

    lost: list[Whose] = field(factory=list)
    stuck: list[Whose] = field(factory=list)
    invented: list[str] = field(factory=list)
    refused: list[Whose] = field(factory=list)
    unsubscribed: list[Whose] = field(factory=list)
    doubled: list[str] = field(factory=list)
    reordered: list[Whose] = field(factory=list)
    repeated: list[Whose] = field(factory=list)
    overlapped: list[Whose] = field(factory=list)
    unbalanced: list[str] = field(factory=list)
    repeats: int = 0   #: repeated deliveries, excused or not
    overlaps: int = 0  #: overlapping ones, likewise

    def wrong(self) -> dict[str, int]:
        """The number of violations of each kind that occurred."""
        return {kind: len(found) for kind in KINDS if (found := getattr(self, kind))}

    def examples(self) -> str:
        """The first of each kind."""
        return "; ".join(f"{kind}: {getattr(self, kind)[:3]}" for kind in self.wrong())

    def joined(self, other: Verdict) -> Verdict:
        """Both together."""
        names = [each.name for each in fields(Verdict)]
        return Verdict(**{name: getattr(self, name) + getattr(other, name) for name in names})


KINDS = tuple(each.name for each in fields(Verdict) if each.name not in ("repeats", "overlaps"))


def judge(evidence: Evidence, allowed: Allowed) -> Verdict:
    """Compare the records, one subscriber after another: a run may hold millions of deliveries."""
    published = {mark: sent for sent in evidence.sent for mark in sent.marks()}
    arrivals = _by_subscriber(evidence.arrivals)
    in_time = {
        name: _without_late(evidence.windows, _Seen(name, mine), published) for name, mine in arrivals.items()
    }
    place = places(in_time)
    arrived: set[Mark] = set()
    found = Verdict()
    repeats = overlaps = 0
    for name in sorted(arrivals.keys() | {window.subscriber for window in evidence.windows}):
        seen = _Seen(name, arrivals.get(name, []))
        arrived.update(seen.first)
        _find_missing(evidence, seen, found)
        found.invented.extend(f"{name} got {what}" for what in _invented(seen, published))
        found.refused.extend((name, mark) for mark in seen.known(published, Outcome.REFUSED))
        found.unsubscribed.extend(_unsubscribed(evidence.windows, seen, published))
        ordered = _Seen(name, in_time.get(name, []))
        found.reordered.extend([*_out_of_lane(ordered, published), *_out_of_line(ordered, place)])
        again, over = seen.repeats(evidence.rollbacks), seen.overlaps()
        found.repeated.extend(again[allowed.repeats :])
        found.overlapped.extend(over[allowed.overlaps :])
        repeats, overlaps = repeats + len(again), overlaps + len(over)
    found.doubled.extend(_doubled(evidence, arrived))
    return evolve(found, repeats=repeats, overlaps=overlaps)


class _Seen:
    """The deliveries to one subscriber."""

    def __init__(self, name: str, arrivals: list[Arrival]) -> None:
        self.name, self.arrivals = name, arrivals
        #: each event that came, in the order in which they came first
        self.first = _first(arrivals)

    def known(self, published: Mapping[Mark, Sent], outcome: Outcome) -> Iterator[Mark]:
        """The events that came, and were published with this outcome."""
        return (mark for mark in self.first if mark in published and published[mark].outcome is outcome)

    def repeats(self, rollbacks: Sequence[Rollback] = ()) -> list[Whose]:
        """The first event of each delivery, with all its attempts, that holds what was acknowledged before.

        What a rollback has lost counts as not acknowledged, and so does the last delivery before
        it, whose acknowledgement may not have been stored.
        """
        acknowledged: dict[Mark, float] = {}
        found = []
        coming = list(rollbacks)
        last: tuple[Mark, ...] = ()
        for each in self.arrivals:
            while coming and coming[0].moment < each.began:
                self._forget(coming.pop(0), last, acknowledged)
            again = [mark for mark in each.marks if acknowledged.get(mark, inf) <= each.began]
            if again:
                found.append((self.name, again[0]))
                for mark in again:  # until it is acknowledged anew, further attempts are no further repeats
                    del acknowledged[mark]
            if each.acknowledged:
                acknowledged |= {mark: min(each.ended, acknowledged.get(mark, inf)) for mark in each.marks}
                last = each.marks
        return found

    def _forget(self, rollback: Rollback, last: Iterable[Mark], acknowledged: dict[Mark, float]) -> None:
        for mark in last:
            acknowledged.pop(mark, None)
        left = {topic: count for (name, topic), count in rollback.acknowledged.items() if name == self.name}
        for mark in list(reversed(acknowledged)):
            if left.get(mark[0], 0) > 0:
                left[mark[0]] -= 1
                del acknowledged[mark]

    def overlaps(self) -> list[Whose]:
        """The first event of each delivery that was still under way when the next came."""
        return [
            (self.name, earlier.marks[0])
            for earlier, later in pairwise(self.arrivals)
            if later.began < earlier.ended and earlier.marks
        ]


def _first(arrivals: Iterable[Arrival]) -> dict[Mark, None]:
    return dict.fromkeys(mark for each in arrivals for mark in each.marks)


def _by_subscriber(arrivals: Iterable[Arrival]) -> dict[str, list[Arrival]]:
    found: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        found[arrival.subscriber].append(arrival)
    return found


def owed(sent: Sent, window: Window) -> bool:
    """Whether the events must come to the subscriber: accepted for certain while it was subscribed for certain."""
    return (
        sent.outcome is Outcome.OK and sent.topic == window.topic and not window.dissolved
        and window.granted <= sent.began and sent.ended <= window.leaving
    )  # fmt: skip


def _find_missing(evidence: Evidence, seen: _Seen, found: Verdict) -> None:
    """What is owed and was not taken: lost if a later event of its lane was, or if nothing waits any more."""
    name = seen.name
    taken = {mark for each in seen.arrivals if each.acknowledged for mark in each.marks}
    dropped = {mark for each in evidence.rollbacks for mark in each.dropped}
    newest = _newest(taken)
    for window in evidence.windows:
        if window.subscriber != name:
            continue
        for sent in evidence.sent:
            if owed(sent, window):
                for mark in sent.marks():
                    if mark not in taken and mark not in dropped:
                        passed = mark[2] < newest.get(mark[:2], 0) or evidence.queued.get(name) == 0
                        (found.lost if passed else found.stuck).append((name, mark))


def _newest(marks: Iterable[Mark]) -> dict[tuple[str, int], int]:
    newest: dict[tuple[str, int], int] = {}
    for topic, lane, number in marks:
        newest[topic, lane] = max(number, newest.get((topic, lane), 0))
    return newest


def _invented(seen: _Seen, published: Mapping[Mark, Sent]) -> Iterator[object]:
    for arrival in seen.arrivals:
        yield from arrival.strange
    yield from (mark for mark in seen.first if mark not in published)


def _without_late(
    windows: Iterable[Window], seen: _Seen, published: Mapping[Mark, Sent]
) -> list[Arrival]:
    """The deliveries but those of nothing but subscriptions that were removed before."""
    mine = [window for window in windows if window.subscriber == seen.name]

    def is_late(mark: Mark, moment: float) -> bool:
        sent = published.get(mark)
        if sent is None or sent.outcome is Outcome.UNKNOWN:
            return False
        windows = [
            each for each in mine
            if each.topic == mark[0] and each.asked <= sent.ended and sent.began <= each.left
        ]  # fmt: skip
        return bool(windows) and all(each.dissolved and each.left < moment for each in windows)

    return [each for each in seen.arrivals if not all(is_late(mark, each.began) for mark in each.marks)]


def _unsubscribed(windows: Iterable[Window], seen: _Seen, published: Mapping[Mark, Sent]) -> list[Whose]:
    """An event may come only if it may have been accepted in one of the windows."""
    open_to: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        if window.subscriber == seen.name:
            open_to[window.topic].append(window)

    def may_come(mark: Mark) -> bool:
        sent = published[mark]
        # a publication with unknown outcome may be stored late
        ended = inf if sent.outcome is Outcome.UNKNOWN else sent.ended
        return any(window.asked <= ended and sent.began <= window.left for window in open_to[mark[0]])

    return [(seen.name, mark) for mark in seen.first if mark in published and not may_come(mark)]


def _doubled(evidence: Evidence, arrived: set[Mark]) -> list[str]:
    """A topic holds its accepted events, and those of unknown outcome that came; each once.

    What it holds beyond that was stored twice, or is delivered to no subscriber.
    """
    certain: dict[str, set[Mark]] = defaultdict(set)
    for sent in evidence.sent:
        if sent.outcome is Outcome.OK:
            certain[sent.topic].update(sent.marks())
    for mark in arrived:
        certain[mark[0]].add(mark)
    return [
        f"{topic} holds {number} events, of {len(certain[topic])} that were accepted or came"
        for topic, number in evidence.stored.items()
        if number > len(certain[topic])
    ]


def _out_of_lane(seen: _Seen, published: Mapping[Mark, Sent]) -> list[Whose]:
    """Accepted events that came first after a later one of their lane."""
    found = []
    newest: dict[tuple[str, int], int] = {}
    for mark in seen.known(published, Outcome.OK):
        if mark[2] < newest.get(mark[:2], 0):
            found.append((seen.name, mark))
        newest[mark[:2]] = max(mark[2], newest.get(mark[:2], 0))
    return found


def places(arrivals: Mapping[str, list[Arrival]]) -> dict[Mark, int]:
    """The place of each event in its topic, as the subscriber that got most events of the topic saw them."""
    longest: dict[str, list[Mark]] = {}
    for each in arrivals.values():
        parts: dict[str, list[Mark]] = defaultdict(list)
        for mark in _first(each):
            parts[mark[0]].append(mark)
        for topic, part in parts.items():
            longest[topic] = max(longest.get(topic, []), part, key=len)
    return {mark: n for part in longest.values() for n, mark in enumerate(part)}


def _out_of_line(seen: _Seen, place: Mapping[Mark, int]) -> list[Whose]:
    """Events delivered in another order than to the subscriber with most events of the topic; batches too."""
    found = _falling(seen.name, seen.first, place)
    for arrival in seen.arrivals:
        found += _falling(seen.name, arrival.marks, place)
    return list(dict.fromkeys(found))


def _falling(name: str, marks: Iterable[Mark], place: Mapping[Mark, int]) -> list[Whose]:
    """Those of the marks that stand before an earlier one of their topic."""
    found, furthest = [], dict[str, int]()
    for mark in marks:
        here = place.get(mark)
        if here is not None:
            if here <= furthest.get(mark[0], -1):
                found.append((name, mark))
            furthest[mark[0]] = max(here, furthest.get(mark[0], -1))
    return found
