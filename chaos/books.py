"""Judges subscribers who decide for themselves: their deliveries, and their books.

A *life* is one subscription of a client, from subscribing to unsubscribing. Its
*books* are the counts that `GET /subscription` shows. What they must be follows
from the records: a life is given the events that were accepted in its windows,
and those which a rewind or a retry of parked events answered. Of an operation
whose outcome is unknown both are possible, so each count has a least and a most
value, which later readings narrow. A life that lasts to the end is *determined* if both are the same then.

    lost        owed, and never taken; and neither skipped, expired nor parked, or more are missing than
                the books say
    stuck       the same, though some event still waits
    refused     came although the publisher was answered that it was not stored
    reordered   came after an event that follows it in the topic, and no rewind was between
    repeated    came again after it was acknowledged, though nothing brought it back, more often than allowed
    unbalanced  a count of the books is not what it must be, or has gone back
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from attrs import evolve, frozen

from chaos.accepted import Begin, Bounds, Topic, stored
from chaos.checker import Verdict, Whose, places
from chaos.records import Allowed, Arrival, Mark, Outcome, Sent, poisonous

#: those that never shrink; with `queued` they are `added`
COUNTS = ("sent", "expired", "skipped", "parked", "dropped")
CLOCKS = 0.05  #: seconds by which the times of day of processes and Redis may differ


@frozen
class Life:
    """One subscription; moments as in `records.Window`."""

    subscriber: str
    begins: Mapping[str, Begin]  #: by topic
    asked: float
    granted: float
    leaving: float = inf
    expires: bool = False  #: whether it has `retention` or `max_queued`
    parks: bool = False    #: whether it has `park_after`


@frozen
class Operation:
    """A request that moves or counts events, and its answer."""

    subscriber: str
    kind: str           #: the last part of its path: rewind, skip, parked/retry; others move no event
    asked: float
    answered: float
    outcome: Outcome
    events: int = 0     #: answered; of `parked/retry`: how many it named
    until: float = inf  #: of `skip`: the moment before which events are passed


@frozen
class Reading:
    """One look at the books; `counts` are `events` of the answer."""

    subscriber: str
    asked: float
    answered: float
    counts: Mapping[str, int]
    final: bool = False  #: after the last event was delivered


@frozen
class Decisions:
    """The records of all subscribers who decide, in the order in which they were made."""

    lives: Sequence[Life]
    operations: Sequence[Operation]
    readings: Sequence[Reading]
    arrivals: Sequence[Arrival]


def judge(
    decisions: Decisions, sent: Sequence[Sent], witness: Sequence[Arrival], allowed: Allowed
) -> tuple[Verdict, dict[str, int]]:
    """The violations, and figures: readings, operations by kind, lives, those that last, and determined ones.

    `witness`: deliveries to a subscriber that gets every event of all topics and decides nothing.
    """
    topics, place = stored(sent, witness), places({"": list(witness)})
    refused = {mark for each in sent if each.outcome is Outcome.REFUSED for mark in each.marks()}
    found, figures, repeats = Verdict(), Counter[str](), 0
    for name in sorted({life.subscriber for life in decisions.lives}):
        arrivals = [each for each in decisions.arrivals if each.subscriber == name]
        operations = [each for each in decisions.operations if each.subscriber == name]
        readings = [each for each in decisions.readings if each.subscriber == name]
        lives = [each for each in decisions.lives if each.subscriber == name]
        again = dict[float, Whose]()
        rewinds = [each for each in operations if each.kind == "rewind" and each.outcome is not Outcome.REFUSED]
        returns = sorted([*(each.asked for each in rewinds), *(life.asked for life in lives[1:])])
        for topic in topics:
            walk = _Walk(name, place, again, found.reordered, any(life.parks for life in lives))
            walk.topic(topic, arrivals, returns)
        repeats += len(again)
        found.repeated.extend([*again.values()][allowed.repeats :])
        came = {mark for each in arrivals for mark in each.marks}
        found.refused.extend((name, mark) for mark in came & refused)
        found.invented.extend(f"{name} got {what}" for each in arrivals for what in each.strange)
        for life in lives:
            books = _Books(life, topics, operations, readings)
            found.unbalanced.extend(books.faults(arrivals))
            waits = books.final is not None and books.final.counts["queued"]
            (found.stuck if waits else found.lost).extend((name, mark) for mark in books.lost(arrivals))
            figures["lasting"] += books.final is not None
            figures["determined"] += books.determined
        figures["lives"] += len(lives)
        figures["readings"] += len(readings)
        figures.update(each.kind for each in operations)
        figures["unknown"] += sum(each.outcome is Outcome.UNKNOWN for each in operations)
        for reading in readings:
            if reading.final:
                figures.update({kind: reading.counts[kind] for kind in COUNTS})
    return evolve(found, repeats=repeats), dict(figures)


class _Walk:
    """Follows one subscriber's deliveries of a topic; each rewind and each new life allows to go back once."""

    def __init__(
        self, name: str, place: Mapping[Mark, int], repeated: dict[float, Whose], reordered: list[Whose],
        parks: bool,
    ) -> None:  # fmt: skip
        """`repeated`: by delivery, which may repeat events of several topics."""
        self._name, self._place, self._parks = name, place, parks
        self._repeated, self._reordered = repeated, reordered
        self._begin()

    def _begin(self) -> None:
        self._furthest = self._recent = -1  #: of all, and the first of the last that were acknowledged
        self._seen: set[Mark] = set()
        self._acknowledged: dict[Mark, float] = {}

    def topic(self, topic: str, arrivals: Iterable[Arrival], returns: Sequence[float]) -> None:
        """Follow one topic; `returns`: since when the subscriber may have gone back."""
        used = 0
        for arrival in arrivals:
            marks = [mark for mark in arrival.marks if mark[0] == topic and self._has_place(mark)]
            if not marks:
                continue
            at = [self._place[mark] for mark in marks]
            if at != sorted(set(at)):
                self._reordered.append((self._name, marks[0]))
            again = any(self._acknowledged.get(mark, inf) <= arrival.began for mark in marks)
            passed = any(mark not in self._seen and self._place[mark] < self._furthest for mark in marks)
            if again or passed:
                may_return = used < len(returns) and returns[used] <= arrival.began
                if may_return and not passed and at[0] >= self._recent:
                    pass  # by a fault, or by going back so little: that it may go back further is kept
                elif may_return:
                    used += 1
                    self._begin()
                elif passed:
                    self._reordered.append((self._name, marks[0]))
                else:
                    self._repeated.setdefault(arrival.began, (self._name, marks[0]))
                    for mark in marks:  # until it is acknowledged anew, further attempts are no further repeats
                        self._acknowledged.pop(mark, None)
            self._furthest = max(self._furthest, *at)
            self._seen.update(marks)
            if arrival.acknowledged:
                self._recent = at[0]
                for mark in marks:
                    self._acknowledged.setdefault(mark, arrival.ended)

    def _has_place(self, mark: Mark) -> bool:
        """Whether it comes in its turn: what was parked may come again by itself."""
        return mark in self._place and not (self._parks and poisonous(mark))


@frozen
class _Doubtful:
    """What moved, or gave, some number of events, at some moment between these."""

    asked: float
    done: float
    most: int


class _Books:
    """What the books of one life must be."""

    def __init__(
        self, life: Life, topics: Mapping[str, Topic], operations: Iterable[Operation],
        readings: Iterable[Reading],
    ) -> None:  # fmt: skip
        self._life, self._topics = life, {name: topics[name] for name in life.begins if name in topics}
        self._operations = [each for each in operations if life.granted <= each.asked < life.leaving]
        self._readings = [
            each for each in readings if life.granted <= each.asked and each.answered <= life.leaving
        ]

    @property
    def final(self) -> Reading | None:
        """The look at the books after everything had come, if the life lasted so long."""
        return next((each for each in self._readings if each.final), None)

    @property
    def determined(self) -> bool:
        """Whether at the last look at the books only one number of added events was possible."""
        possible = self._possible("added")[-1] if self.final else Bounds(0, 1)
        return possible.least == possible.most

    def _possible(self, count: str) -> list[Bounds]:
        """What `added` or `skipped` may be at each reading.

        What an operation of unknown outcome did is some number, always the same once it is done: the
        readings after that tell which. So is what a life was given of the events at its very beginning.
        """
        sure, pending = self._operations_on(count)
        if count == "added":
            pending.append(self._given())
        learned, found = Bounds(), list[Bounds]()
        for reading in self._readings:
            learned += Bounds(0, sum(each.most for each in pending if each.done <= reading.asked))
            pending = [each for each in pending if each.done > reading.asked]
            begun = [each.most for each in pending if each.asked <= reading.answered]
            known = self._known(count, sure, reading)
            found.append(known + learned + Bounds(0, sum(begun)))
            if not begun and found[-1].holds(now := reading.counts[count]):
                learned = Bounds(max(learned.least, now - known.most), min(learned.most, now - known.least))
        return found

    def _given(self) -> _Doubtful:
        """The events at the very beginning, which it may have been given."""
        accepted = [
            moment for name, topic in self._topics.items() for moment in topic.doubtful(self._life.begins[name])
        ]
        return _Doubtful(-inf, max(accepted, default=-inf), len(accepted))

    def _known(self, count: str, sure: Iterable[Operation], reading: Reading) -> Bounds:
        """What the count is without all that is unknown."""
        known = Bounds(
            sum(each.events for each in sure if each.answered <= reading.asked),
            sum(each.events for each in sure if each.asked <= reading.answered),
        )
        if count == "added":
            for name, topic in self._topics.items():
                known += topic.since(self._life.begins[name], reading.asked, reading.answered)
        return known

    def _operations_on(self, count: str) -> tuple[list[Operation], list[_Doubtful]]:
        """Those which have moved a known number of events, and the others."""
        kinds = ("skip",) if count == "skipped" else ("rewind", "parked/retry")
        chosen = [each for each in self._operations if each.kind in kinds and each.outcome is not Outcome.REFUSED]
        sure, doubtful, retried = list[Operation](), list[_Doubtful](), False
        for each in chosen:
            if each.outcome is Outcome.OK and not (retried and each.kind == "parked/retry"):
                sure.append(each)
            elif each.kind == "parked/retry":  # a later one names perhaps what an earlier one has moved
                doubtful.append(_Doubtful(each.asked, self._done(each), each.events))
                retried = True
            else:
                most = sum(topic.all() for topic in self._topics.values())
                doubtful.append(_Doubtful(each.asked, self._done(each), most))
        return sure, doubtful

    def _done(self, operation: Operation) -> float:
        """When it is done for certain, if it will be: when the store has served a later one of its kind."""
        return min(
            (each.answered for each in self._operations if each.outcome is Outcome.OK
             and each.kind == operation.kind and each.asked >= operation.asked), default=inf,
        )  # fmt: skip

    def faults(self, arrivals: Iterable[Arrival]) -> Iterator[str]:
        """What is wrong in the books."""
        name, before = self._life.subscriber, dict.fromkeys((*COUNTS, "added"), 0)
        possible = zip(self._possible("added"), self._possible("skipped"), strict=True)
        for reading, (added, skipped) in zip(self._readings, possible, strict=True):
            counts = reading.counts
            if counts["added"] != counts["queued"] + sum(counts[kind] for kind in COUNTS):
                yield f"{name}: {counts} do not add up"
            for kind in before:
                if counts[kind] < before[kind]:
                    yield f"{name}: {kind} has gone back from {before[kind]} to {counts[kind]}"
                before[kind] = counts[kind]
            for kind, bounds in (
                ("added", added), ("skipped", skipped),
                ("expired", Bounds(0, counts["added"] * self._life.expires)),
                ("parked", Bounds(0, counts["added"] * self._life.parks)), ("dropped", Bounds()),
            ):  # fmt: skip
                if not bounds.holds(counts[kind]):
                    yield f"{name}: {kind} is {counts[kind]} at {reading.answered:.3f}, not {bounds}"
        if (final := self.final) is not None:
            taken = sum(len(each.marks) for each in self._taken(arrivals))
            if final.counts["sent"] > taken:
                yield f"{name}: sent is {final.counts['sent']}, but {taken} were taken"

    def _taken(self, arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
        return (each for each in arrivals if each.acknowledged and each.began >= self._life.asked)

    def lost(self, arrivals: Iterable[Arrival]) -> list[Mark]:
        """What was owed and never taken, though nothing explains it; for a life that lasts to the end."""
        final = self.final
        if final is None:
            return []
        taken = {mark for each in self._taken(arrivals) for mark in each.marks}
        missing = [
            (mark, began)
            for name, topic in self._topics.items()
            for mark, began, _ in topic.marks
            if began >= self._life.begins[name].certain and mark not in taken
        ]
        unexplained = [mark for mark, began in missing if not self._explained(mark, began)]
        passed = sum(final.counts[kind] for kind in ("expired", "skipped", "parked"))
        return unexplained or [mark for mark, _ in missing[passed:]]

    def _explained(self, mark: Mark, began: float) -> bool:
        """Whether a decision of the subscriber may be why an event did not come."""
        return self._life.expires or (self._life.parks and poisonous(mark)) or any(
            each.kind == "skip" and each.outcome is not Outcome.REFUSED
            and began <= min(each.until, inf if each.outcome is Outcome.UNKNOWN else each.answered)
            for each in self._operations
        )  # fmt: skip
