"""The rules of a history for what subscribers and root decide: positions, pauses, parked events, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from routemaster.model import OLDEST, EventID, ParkedEvent, TopicSettings
from tests.store.history_calls import (
    MAX_BYTES,
    PUBLISHERS,
    ROOT,
    WORKERS,
    Op,
    processes,
    subscribers,
    subsets,
    topics,
)
from tests.store.history_faults import Faults
from tests.store.history_model import Event, require

HALF_HOUR_MS = 1_800_000  #: no event is near the limit of a whole number of hours and a half

picks = st.integers(0, 30)


class Decisions(Faults):
    """Calls of `administration.Administration`."""

    def same(self, op: Op, which: int) -> None:
        """Make a call whose result the model knows exactly."""
        expected: list[Any] = []
        result = self.do(Op(
            op.call, lambda model, result: expected.append(op.apply(model, result)), op.subject, op.takes_memory,
            text=op.text,
        ), which)  # fmt: skip
        exact = isinstance(result, Exception) or result == expected[-1]
        require(exact, "the result is exact", op, result, expected)

    def time_of(self, pick: int) -> int:
        """A time around one at which an event was accepted."""
        times = sorted({event.id.us for topic in self.model.topics.values() for event in topic.accepted})
        return times[pick // 3 % len(times)] + pick % 3 - 1 if times else OLDEST

    def some_of(self, subscriber: str, wanted: Sequence[str]) -> list[str] | None:
        sub = self.model.subscribers.get(subscriber)
        some = sorted(sub.on & set(wanted)) if sub else []
        return some or None

    def prepare(self, which: int, topic: str, subscriber: str, delivered: int, most: int | None) -> None:
        """Make a topic with history, and a backlog in it, of which some is delivered."""
        self.end_full_memory()
        if not self.model.topics[topic].settings.history:
            owner = self.model.topics[topic].publisher
            self.set_history(which, topic, owner or PUBLISHERS[0], TopicSettings(41 * HALF_HOUR_MS, most))
        self.make_backlog(which, topic, subscriber, 4)
        grant = self.acquire(which, subscriber) if delivered else None
        if grant is not None:
            entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), delivered, MAX_BYTES)
            self.acknowledge(self.flight(grant, which, subscriber, entries), which)

    @rule(
        which=processes, topic=topics, subscriber=subscribers, pick=picks, wanted=subsets,
        hours=st.integers(0, 1), then=st.sampled_from(("rewind", "rewind", "skip", "expire", "park", "leave")),
    )
    def decide_prepared(
        self, which: int, topic: str, subscriber: str, pick: int, wanted: Sequence[str], hours: int, then: str
    ) -> None:
        """A subscriber with a backlog and a history decides something, twice."""
        self.prepare(which, topic, subscriber, pick % 4, (None, 3)[pick % 2])
        if hours:
            self.hours_pass(hours)
            self.prepare(which, topic, subscriber, pick % 3, None)
        if then == "rewind":
            grant, flights = self.acquire(which, subscriber), []
            if grant is not None:
                entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 2, MAX_BYTES)
                flights.append(self.flight(grant, which, subscriber, entries))
            self.rewind(which, subscriber, pick, pick < 10, wanted)
            for flight in flights:
                self.acknowledge(flight, which, pick % 2 > 0)
            self.where(which, pick)
        elif then == "skip":
            self.skip_events(which, subscriber, pick, pick < 10, wanted)
            self.where(which, pick)
        elif then == "expire":
            on = sorted(self.model.subscribers[subscriber].on)
            limits = (None, 0)[pick % 2], (None, 3)[pick // 2 % 2]
            self.subscribe_with_limits(which, subscriber, on, "next", pick, *limits)
            self.expire(which, subscriber)
        elif then == "park":
            for meanwhile in ("", ("", "rewind", "drop")[pick % 3], ""):
                self.park(which, subscriber, pick, meanwhile)
            self.retry_or_drop(which, subscriber, pick, pick < 10, False)
            self.list_parked(which, subscriber)
            for refused in (pick % 2 > 0, pick % 3 > 0):
                self.settle(which, refused, pick % 5 == 0, pick % 7 == 0)
        else:
            if pick % 2:
                self.skip_events(which, subscriber, pick, True, ())
            self.do(self.leave_op(subscriber, topic), which)
            self.subscribe_with_limits(which, subscriber, [topic, *wanted], "time", pick, None, None)

    @rule(which=processes, subscriber=subscribers, pick=picks, oldest=st.booleans(), wanted=subsets)
    def rewind(self, which: int, subscriber: str, pick: int, oldest: bool, wanted: Sequence[str]) -> None:
        to, some = OLDEST if oldest else self.time_of(pick), self.some_of(subscriber, wanted)
        heads = self.driver.snapshot().heads()
        self.same(Op(
            lambda store: store.rewind(subscriber, to, some),
            lambda model, _: model.rewind(subscriber, to, some, heads, self.driver.now()),
            text=f"rewind {subscriber} to {to} in {some}",
        ), which)  # fmt: skip

    @rule(which=processes, subscriber=subscribers, pick=picks, to_the_end=st.booleans(), wanted=subsets)
    def skip_events(self, which: int, subscriber: str, pick: int, to_the_end: bool, wanted: Sequence[str]) -> None:
        to, some = None if to_the_end else self.time_of(pick), self.some_of(subscriber, wanted)
        self.same(Op(
            lambda store: store.skip(subscriber, to, some), lambda model, _: model.skip(subscriber, to, some),
            text=f"skip {subscriber} to {to} in {some}",
        ), which)  # fmt: skip

    @rule(
        which=processes, subscriber=subscribers, wanted=subsets, start=st.sampled_from(("next", "oldest", "time")),
        pick=picks, hours=st.sampled_from((None, 0, 1, 3)), most=st.sampled_from((None, 1, 4)),
    )
    def subscribe_with_limits(
        self, which: int, subscriber: str, wanted: Sequence[str], start: str, pick: int, hours: int | None,
        most: int | None,
    ) -> None:  # fmt: skip
        """A subscription that begins in the history, or whose events expire."""
        self.do(self.upkeep_op(subscriber), which)  # memberships that are over end
        begin = {"next": None, "oldest": OLDEST, "time": self.time_of(pick)}[start]
        retention = None if hours is None else (2 * hours + 1) * HALF_HOUR_MS
        some = [topic for topic in wanted if topic in self.model.existing()]
        self.do(
            self.subscribe_op(subscriber, some, start=begin, retention=retention, max_queued=most), which
        )  # fmt: skip

    @rule(which=processes, subscriber=subscribers)
    def expire(self, which: int, subscriber: str) -> None:
        self.same(Op(
            lambda store: store.expire(subscriber), lambda model, _: model.expire(subscriber, self.driver.now()),
            text=f"expire {subscriber}",
        ), which)  # fmt: skip

    @rule(hours=st.integers(1, 2))
    def hours_pass(self, hours: int) -> None:
        for name in self.driver.advance(hours):
            self.model.leases.pop(name, None)

    @rule(
        which=processes, topic=topics, who=st.integers(0, 4), hours=st.sampled_from((None, 0, 2, 2, 20, 20)),
        most=st.sampled_from((None, None, 0, 3)),
    )
    def configure(self, which: int, topic: str, who: int, hours: int | None, most: int | None) -> None:
        """A publisher, another client or root sets what a topic keeps."""
        owner = self.model.topics[topic].publisher
        publisher = (owner or PUBLISHERS[0], owner or PUBLISHERS[1], *PUBLISHERS, ROOT)[who]
        settings = TopicSettings(0 if hours is None else (2 * hours + 1) * HALF_HOUR_MS, most)
        self.set_history(which, topic, publisher, settings)

    def set_history(self, which: int, topic: str, publisher: str | None, settings: TopicSettings) -> None:
        def apply(model: Any, _result: Any) -> None:
            model.configure(topic, publisher, settings, self.driver.snapshot().topics[topic].tail)

        self.do(Op(
            lambda store: store.configure_topic(topic, publisher, settings), apply,
            takes_memory=self.model.topics[topic].publisher is None,
            text=f"{topic} keeps {settings} as {publisher}",
        ), which)  # fmt: skip
        found = self.run_on(which, lambda store: store.topic_settings(topic))
        known = self.model.topics[topic]
        require(found == (known.settings if known.publisher else None), "settings are kept", found, known)

    @rule(which=processes, subscriber=subscribers, what=st.sampled_from(("pause", "resume", "retry")))
    def control(self, which: int, subscriber: str, what: str) -> None:
        def apply(model: Any, _result: Any) -> None:
            sub = model._subscribed(subscriber)
            sub.paused = what == "pause" or (what == "retry" and sub.paused)
            sub.in_backoff = what == "pause" and sub.in_backoff

        self.do(Op(lambda store: getattr(store, what)(subscriber), apply, text=f"{what} {subscriber}"), which)

    @rule(
        which=processes, subscriber=subscribers, pick=picks,
        meanwhile=st.sampled_from(("", "", "rewind", "skip", "drop", "lost")),
    )
    def park(self, which: int, subscriber: str, pick: int, meanwhile: str) -> None:
        """The oldest event is refused for good, and parked, perhaps after something else happened."""
        self.end_full_memory()
        grant = self.acquire(which, subscriber)
        if grant is None:
            return
        oldest = self.read(which, subscriber, dict.fromkeys(grant.memberships), 1, MAX_BYTES)
        for topic, entry_id, fragment in oldest:
            if meanwhile == "rewind":
                self.rewind(which, subscriber, pick, pick < 15, [topic])
            elif meanwhile == "skip":
                self.skip_events(which, subscriber, pick, False, [topic])
            elif meanwhile == "drop":
                self.drop_oldest(which, 1)
            elif meanwhile == "lost":
                self.release(which, WORKERS[which], subscriber, grant.epoch)
            (refused,) = [event for event in self.model.topics[topic].accepted if event.id == entry_id]
            parked = ParkedEvent(topic, entry_id, fragment, "refused", 1.0)
            self.same(Op(
                lambda store: store.park(
                    subscriber, WORKERS[which], grant.epoch, grant.memberships[topic].id, parked  # noqa: B023
                ),
                lambda model, _: self.parked(model, subscriber, refused, meanwhile != "lost"),  # noqa: B023
                text=f"park {refused} of {subscriber}",
            ), which)  # fmt: skip

    def parked(self, model: Any, subscriber: str, event: Event, holds: bool) -> bool:
        if holds:
            model.park(subscriber, event)
        return holds

    @rule(which=processes, subscriber=subscribers, pick=picks, every=st.booleans(), drop=st.booleans())
    def retry_or_drop(self, which: int, subscriber: str, pick: int, every: bool, drop: bool) -> None:
        """Parked events are asked for again, all or some, or are removed."""
        if drop and every:
            self.same(Op(
                lambda store: store.drop_parked(subscriber), lambda model, _: model.drop_parked(subscriber),
                text=f"drop what is parked of {subscriber}",
            ), which)  # fmt: skip
            return
        sub = self.model.subscribers.get(subscriber)
        ids = None if every else [EventID(us, n) for us, _, n in sorted(sub.parked if sub else ())][pick % 3 :: 2]
        self.same(Op(
            lambda store: store.retry_parked(subscriber, ids),
            lambda model, _: model.retry_parked(subscriber, ids),
            text=f"retry {ids} of {subscriber}",
        ), which)  # fmt: skip

    @precondition(lambda self: any(sub.retried for sub in self.model.subscribers.values()))
    @rule(which=processes, refused=st.booleans(), lost=st.booleans(), repeat=st.booleans())
    def settle(self, which: int, refused: bool, lost: bool, repeat: bool) -> None:
        """The oldest event that is to be retried is tried, and delivered or refused, perhaps without the lease."""
        for name in [name for name, sub in self.model.subscribers.items() if sub.retried]:
            event = self.run_on(which, lambda store, name=name: store.next_retried(name))
            us, topic, n = oldest = min(self.model.subscribers[name].retried)
            require((event.id, event.topic) == ((us, n), topic), "the oldest comes first", event, oldest)
            grant = self.acquire(which, name)
            if grant is None:
                continue
            if lost:
                self.release(which, WORKERS[which], name, grant.epoch)
            outcome = name, WORKERS[which], grant.epoch, event, "refused again" if refused else ""
            for _ in range(1 + repeat):
                self.run_on(which, lambda store, outcome=outcome: store.settle_retried(*outcome))
            if not lost:
                self.model.settle(name, oldest, refused)

    @rule(which=processes, pick=picks)
    def where(self, which: int, pick: int) -> None:
        """Where events are is known for each subscriber, or said to be unknown."""
        for topic in sorted(self.model.existing()):
            accepted = self.model.topics[topic].accepted
            for event in accepted[pick % 5 :: 5]:
                found = self.run_on(which, lambda store, event=event: store.whereabouts(event.topic, event.id))
                named = {place.subscriber for place in found}
                subs = self.model.subscribers.items()
                owed = {name for name, sub in subs if topic in sub.on or sub.backlog[topic]}
                require(owed <= named, "each subscriber is answered for", found, owed)
                for place in found:
                    expected = self.model.places(place.subscriber, event)
                    right = (place.state, place.ahead) in expected
                    require(right, "an event is where it is", event, place, expected)

    @rule(which=processes, subscriber=subscribers)
    def list_parked(self, which: int, subscriber: str) -> None:
        """What is parked is listed in order, in parts."""
        sub = self.model.subscribers.get(subscriber)
        if sub is None:
            return
        found: list[tuple[int, str, int]] = []
        some, mark = self.run_on(which, lambda store: store.parked(subscriber, "", 2))
        while some:
            found += [(event.id.us, event.topic, event.id.n) for event in some]
            some, mark = self.run_on(which, lambda store, mark=mark: store.parked(subscriber, mark, 2))
        require(found == sorted(sub.parked.keys() - sub.retried), "what is parked is listed", found, sub)
