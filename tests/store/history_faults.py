"""The rules of a history for the store: upkeep, server faults, interrupted calls, races of two calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from routemaster.errors import StoreUnavailable
from routemaster.model import EventID, Published, Subscription
from tests.store.history_calls import (
    MAX_BYTES,
    OBSERVER,
    PUBLISHERS,
    ROOT,
    STATES,
    Op,
    agree,
    agree_in_race,
    processes,
    publishers,
    subscribers,
    subsets,
    topics,
)  # fmt: skip
from tests.store.history_clients import Clients
from tests.store.history_model import KINDS, SUBSCRIBERS, TOPICS, Model, Subscriber, outcome, require
from tests.store.history_snapshot import Snapshot, difference


class Faults(Clients):
    """Upkeep, faults, interruptions, races."""

    @rule(which=processes, subscriber=st.sampled_from((None, *SUBSCRIBERS)))
    def upkeep(self, which: int, subscriber: str | None) -> None:
        self.do(self.upkeep_op(subscriber), which)

    @rule(which=processes, most=st.integers(1, 6))
    def drop_oldest(self, which: int, most: int) -> None:
        topics = self.driver.snapshot().topics
        logs = {name: [entry_id for entry_id, _ in topic.log][:most] for name, topic in topics.items()}
        kept = {name: [] for name in topics} | {
            name: [entry_id for entry_id in logs[name] if entry_id.n <= topics[name].lowest()]
            for name, topic in self.model.topics.items()
            if topic.settings.history
        }
        # what only a history keeps goes first
        chosen = kept if any(kept.values()) else logs
        moment = min((ids[-1].us for ids in chosen.values() if ids), default=0)
        gone = [(name, entry_id) for name, ids in chosen.items() for entry_id in ids if entry_id.us <= moment]
        result = self.run_on(which, lambda store: store.drop_oldest(most))
        require(not isinstance(result, Exception), "dropping works, on a full Redis too", result)
        require(result == len(gone), "the number of dropped events is right", result, gone)
        self.model.gone |= set(gone)

    @rule(which=processes)
    def compare_lists(self, which: int) -> None:
        """All lists and figures are exact."""
        model = self.model
        listed = [(t.name, t.publisher, t.events) for t in self.run_on(which, lambda store: store.topics())]
        known = [(n, t.publisher, t.events) for n, t in sorted(model.topics.items()) if t.publisher]
        require(listed == known, "topics are listed with their figures", listed, known)
        require(
            self.run_on(which, lambda store: store.subscribers()) >= model.subscribers.keys(),
            "all subscribers are listed",
        )
        tails = self.run_on(which, lambda store: store.tails(TOPICS))
        for topic in model.existing():
            require(tails.get(topic) == model.topics[topic].tail, "tails are log ends", tails, model.topics)
        facts = {f.subscription.subscriber: f for f in self.run_on(which, lambda store: store.subscriptions())}
        require(facts.keys() == model.subscribers.keys(), "all subscriptions are listed", facts)
        for name, sub in model.subscribers.items():
            waiting, fact = sub.waiting(), facts[name]
            # `Parked` begins with the time of acceptance
            ages = [each.id.us for each in model.stored(waiting)] + [us for us, *_ in sub.retried]
            expected = (
                evolve(sub.options, topics=tuple(sorted(sub.on))), sub.counts, len(waiting) + len(sub.retried),
                min(ages) / 1e6 if ages else None, sub.failures, sub.error,
            )
            figures = (
                fact.subscription, {kind: getattr(fact, kind) for kind in KINDS}, fact.queued, fact.oldest,
                fact.health.failures, fact.health.last_error,
            )
            require(figures == expected, "figures are exact", figures, expected)
            require(fact.added == sub.added, "the books balance", fact, sub)
            require(fact.paused == sub.paused, "a pause is listed", fact, sub)
            require((fact.health.retry_at is not None) == sub.in_backoff, "so is one after failures", fact, sub)
            single = self.run_on(which, lambda store, name=name: store.subscription(name))
            require(single == fact, "one is as in the list", single, fact)
            self.read(which, name, dict.fromkeys(TOPICS), 1000, MAX_BYTES)
        self.check_tokens(which)

    @precondition(lambda self: self.driver.durable)
    @rule(which=processes, what=st.sampled_from(("restart", "flush scripts", "full", "full")))
    def server_fault(self, which: int, what: str) -> None:
        if what == "restart":
            self.driver.restart(which)
        elif what == "flush scripts":
            self.driver.flush_scripts()
        else:
            self.full = not self.full
            self.driver.set_full(self.full)

    kinds = st.sampled_from(
        ("subscribe", "subscribe", "leave", "unsubscribe", "delete", "publish", "clean up", "repair")
    )
    specs = st.tuples(kinds, topics, subscribers, subsets, st.integers(0, 2))

    @precondition(lambda self: self.driver.durable and not self.full)
    @rule(
        spec=specs, which=processes, steps=st.integers(0, 12), lost=st.booleans(),
        state=st.sampled_from(STATES),
        meanwhile=st.lists(st.tuples(topics, publishers), max_size=2),
        then=st.lists(st.sampled_from(("clean up", "repair", "retry", "restart", "full")), max_size=3),
    )
    def interrupted(
        self, spec: Any, which: int, steps: int, lost: bool, meanwhile: Sequence[tuple[str, str]],
        then: Sequence[str], state: str,
    ) -> None:
        """A call is interrupted: it has happened or not, after upkeep or a repetition."""
        self.set_state(which, spec[1], spec[2], state)
        op, before = self.op(*spec), self.model.copy()
        result = outcome(lambda: self.driver.run(op.call(self.driver.interrupted_store(steps, lost, which))))
        self.was_interrupted = isinstance(result, StoreUnavailable)
        if not self.was_interrupted:
            expected = outcome(lambda: op.apply(self.model, result))
            require(agree(op, expected, result), "the result matches the model", op, expected, result)
            return
        # upkeep goes on after some failures, and the last may be known
        is_known = not result.outcome_unknown and spec[0] not in ("clean up", "repair")
        require(not is_known, "an interrupted call has an unknown outcome", op)
        if spec[0] == "publish":
            self.accept_publication(op, spec[1], 1 + spec[4], which)
            return
        done = [self.call_unchecked(self.publish_op(topic, publisher, 2), which) for topic, publisher in meanwhile]
        full = False
        for what in then:
            if what == "restart":
                self.driver.restart(which)
            elif what == "full":
                full = True
                self.driver.set_full(full)
            elif what != "retry":
                self.call_unchecked(self.upkeep_op(None if what == "clean up" else spec[2]), which)
            elif not (full and op.takes_memory):
                done.append(self.call_unchecked(op, which))
        self.run_upkeep(which)
        self.driver.set_full(False)
        self.accept_outcome(before, op, done)

    def accept_outcome(self, before: Model, op: Op, done: Sequence[tuple[Op, Any]]) -> None:
        """Continue with the first allowed outcome that matches the keys."""
        snapshot, differences = self.driver.snapshot(), []
        observed = before.copy()
        observed.subscribers[OBSERVER] = Subscriber(Subscription(OBSERVER, (), ""), set(TOPICS))
        for position in (None, *range(len(done) + 1)):
            made = list(done)
            if position is not None:
                made.insert(position, (op, None))
            candidate = self.replay(observed, made, agree, unknown=position)
            if isinstance(candidate, Model):
                self.accept_partial_subscription(candidate, before, op, snapshot)
                candidate.leases = {n: lease for n, lease in before.leases.items() if n in candidate.subscribers}
                difference_found = difference(candidate, snapshot)
                if not difference_found:
                    self.model = candidate
                    return
                candidate = difference_found
            differences.append((position, candidate))
        require(False, "an interrupted call has happened or not", op, done, differences)

    def call_unchecked(self, op: Op, which: int) -> tuple[Op, Any]:
        return op, self.run_on(which, op.call)

    def run_upkeep(self, which: int) -> None:
        """The upkeep of clean-up and couriers."""
        self.run_on(which, lambda store: store.clean_up())
        for name in self.run_on(which, lambda store: store.subscribers()):
            self.run_on(which, lambda store, name=name: store.repair(name))
        self.run_on(which, lambda store: store.clean_up())

    def replay(
        self, before: Model, made: Sequence[tuple[Op, Any]], fits: Callable[[Op, Any, Any], bool],
        unknown: int | None = None,
    ) -> Model | str:
        """The model after these calls, or why they are impossible; the result of one may be unknown."""
        model = before.copy()
        for position, (op, result) in enumerate(made):
            try:
                expected = outcome(lambda op=op, result=result: op.apply(model, result))
            except AssertionError as error:
                return str(error)
            if position != unknown and not fits(op, expected, result):
                return f"{op} would give {expected!r}, not {result!r}"
        return model

    def accept_publication(self, op: Op, topic: str, count: int, which: int) -> None:
        """The log shows whether the script ran. The index may lag until the process publishes again."""
        snapshot, known = self.driver.snapshot().topics[topic], self.model.topics[topic]
        if snapshot.publisher and (snapshot.publisher, snapshot.tail) != (known.publisher, known.tail):
            last = snapshot.tail
            op.apply(self.model, Published(EventID(last.us, last.n - count + 1), last))
            self.do(self.publish_op(topic, snapshot.publisher, 1), which)

    def accept_partial_subscription(self, model: Model, before: Model, op: Op, snapshot: Snapshot) -> None:
        """A subscription of unknown outcome may begin and end in each topic at a different time."""
        meanwhile = model.subscribers.pop(OBSERVER)
        name, applied = op.subject, before.copy()
        outcome(lambda: op.apply(applied, None))
        if not (name in model.subscribers and name in applied.subscribers and name in snapshot.subscribers):
            return
        old, wanted_now = before.subscribers.get(name), applied.subscribers[name].on
        for topic in wanted_now ^ (old.on if old else set()):
            backlog, events = old.backlog[topic] if old else [], meanwhile.backlog[topic]
            found = [entry_id for entry_id, _ in snapshot.backlog(name, topic)]
            for position in range(len(events) + 1):
                guess = backlog + (events[position:] if topic in wanted_now else events[:position])
                if [event.id for event in guess] == found:
                    guessed = model.subscribers[name]
                    guessed.added += len(guess) - len(guessed.backlog[topic])
                    guessed.backlog[topic] = guess

    @precondition(lambda self: self.driver.durable and not self.full)
    @rule(
        kinds=st.tuples(kinds, kinds), topic=topics, subscriber=subscribers, wanted=st.tuples(subsets, subsets),
        who=st.integers(0, 2), which=processes, state=st.sampled_from(STATES),
        turns=st.lists(st.sampled_from((*range(10), 99)), min_size=1, max_size=4),
    )
    def race(
        self, kinds: tuple[str, str], topic: str, subscriber: str, wanted: tuple[Sequence[str], Sequence[str]],
        who: int, turns: Sequence[int], which: int, state: str,
    ) -> None:
        """Two calls at the same time have the effect of one after the other.

        `turns` are the numbers of commands sent for the one, then for the
        other, and so on; after that they alternate with each command.
        """
        self.set_state(which, topic, subscriber, state)
        ops = [self.op(kind, topic, subscriber, some, who) for kind, some in zip(kinds, wanted, strict=True)]
        results = self.driver.race(turns, [op.call for op in ops])
        self.check_race(ops, results, which)

    def set_state(self, which: int, topic: str, subscriber: str, state: str) -> None:
        """Bring a topic and a subscriber into a state in which a late step could do damage."""
        for name, sub in list(self.model.subscribers.items()):
            if sub.options.retention or sub.options.max_queued:
                self.do(self.subscribe_op(name, sorted(sub.on)), which)  # no event expires in the upkeep
        for name in list(self.model.subscribers):
            self.do(self.upkeep_op(name), which)  # no dropped event is uncounted
        if state == "unchanged":
            return
        self.make_backlog(which, topic, subscriber, 2)
        if state == "left":
            self.do(self.leave_op(subscriber, topic), which)
        elif state in ("unsubscribed", "stale index"):
            self.do(self.unsubscribe_op(subscriber), which)
        if state in ("deleted", "drained", "recreated", "unsubscribed", "stale index"):
            owner = self.model.topics[topic].publisher
            self.do(self.delete_op(topic, ROOT), which)
            if state == "drained":
                self.deliver_all(which, subscriber)
            if state in ("drained", "recreated"):
                self.do(self.publish_op(topic, PUBLISHERS[owner == PUBLISHERS[0]], 1), which)
        if state == "stale index":
            for op in (self.publish_op(topic, PUBLISHERS[0], 1), self.subscribe_op(subscriber, ())):
                self.driver.restart(which)
                store = self.driver.interrupted_store(1, False, which)
                result = outcome(lambda op=op, store=store: self.driver.run(op.call(store)))
                require(isinstance(result, StoreUnavailable), "an interrupted call raises an error", op, result)

    def check_race(self, ops: Sequence[Op], results: Sequence[Any], which: int) -> None:
        made, differences = list(zip(ops, results, strict=True)), []
        for order in (made, made[::-1]):
            candidate = self.replay(self.model, order, agree_in_race)
            if isinstance(candidate, Model):
                snapshot = self.driver.snapshot()
                candidate.leases = {n: s.lease for n, s in snapshot.subscribers.items() if s.lease}
                difference_found = difference(candidate, snapshot)
                if not difference_found:
                    self.model = candidate
                    self.run_upkeep(which)
                    require(not difference(candidate, self.driver.snapshot()), "upkeep changes nothing", ops,
                            difference(candidate, self.driver.snapshot()))
                    return
                candidate = difference_found
            differences.append(candidate)
        require(False, "two calls have the effect of one after the other", made, differences)
