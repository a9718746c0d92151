"""A history of the store: random calls, each held against `history_model`.

The rules are what clients, workers and operators do, and what befalls them:
batches acknowledged late or twice, leases that end, calls that break off in
the middle and calls that race. After each rule all keys are compared with the
model; at the end everything must drain in order, and nothing may be left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import evolve, frozen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from routemaster.errors import NotSubscribed, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Ack, LeaseGrant, LeaseHeld
from routemaster.model import ApiToken, Cursor, EventID, Published, Subscription
from tests.store.history_model import (
    SUBSCRIBERS,
    TOPICS,
    Event,
    Model,
    Seen,
    Subscriber,
    difference,
    outcome,
    require,
)
from tests.store.history_players import TTL
from tests.store.reading import read

PUBLISHERS = ("pub_a", "pub_b")
WORKERS = ("w1", "w2")
ROOT = None
WATCHER = "watcher"
SCENES = ("as it is", "owed", "left", "deleted", "drained", "recreated", "forgotten", "named")
ROOM = 1 << 20

processes = st.integers(0, 1)
topics = st.sampled_from(TOPICS)
subscribers = st.sampled_from(SUBSCRIBERS)
publishers = st.sampled_from(PUBLISHERS)
subsets = st.integers(0, 2 ** len(TOPICS) - 1).map(
    lambda mask: tuple(topic for number, topic in enumerate(TOPICS) if mask >> number & 1)
)
counts = st.integers(1, 5)


@frozen
class Op:
    """A call of the store, and what it means."""

    call: Callable[[Any], Coroutine[Any, Any, Any]]
    apply: Callable[[Model, Any], object]  #: to the model, given the result; raises what the call must raise
    subject: str = ""           #: the subscriber whose topics it changes
    takes_memory: bool = False
    leaves: bool = False
    text: str = ""

    def __repr__(self) -> str:
        return self.text


@frozen
class Flight:
    """A batch that was delivered, and what its worker would say of it."""

    worker: str
    subscriber: str
    epoch: int
    acks: tuple[Ack, ...]
    events: tuple[tuple[Event, Event], ...]  #: the first and the last of each topic


def agree(_op: Op, expected: Any, result: Any) -> bool:
    """Whether a result is the one that the model expects: the same refusal, or none."""
    if isinstance(expected, Exception) or isinstance(result, Exception):
        return type(expected) is type(result)
    return True


def agree_in_race(op: Op, expected: Any, result: Any) -> bool:
    """As `agree`, with the two refusals that are one status to a client taken for one.

    And a client that leaves what another call of it has just ended may be told that it has left.
    """
    if op.leaves and isinstance(expected, NotSubscribed) and result is None:
        return True
    return agree(op, *(NotSubscribed() if isinstance(each, UnknownTopic) else each for each in (expected, result)))


class History(RuleBasedStateMachine):
    """One history; `player` is given by the test."""

    def __init__(self, player: Any) -> None:
        super().__init__()
        self.player = player
        self.player.fresh()
        self.model = Model()
        self.full = False
        self.made = 0
        self.epochs: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.cursors: dict[tuple[str, str], Cursor] = {}
        self.flights: list[Flight] = []
        self.cut_short = False  #: whether the last call to be interrupted was not over by then

    # -- calls

    def run_on(self, which: int, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return outcome(lambda: self.player.run(call(self.player.stores[which])))

    def do(self, op: Op, which: int = 0) -> Any:
        """Make a call, and hold its result and what it changes against the model."""
        result = self.run_on(which, op.call)
        if self.full and op.takes_memory:
            if isinstance(result, StoreUnavailable):
                require(not result.outcome_unknown, "what is refused for want of memory is known to be", op)
            else:
                expected = outcome(lambda: op.apply(self.model.copy(), result))
                refused = isinstance(result, Exception) and agree(op, expected, result)
                require(refused, "a full Redis takes nothing", op)
            return result
        expected = outcome(lambda: op.apply(self.model, result))
        require(agree(op, expected, result), "the call does as the model", op, expected, result)
        return result

    def publish_op(self, topic: str, publisher: str, count: int, size: int = 1) -> Op:
        fragments = []
        for _ in range(count):
            self.made += 1
            fragments.append(b"%d" % self.made + b"x" * (size - 1) * 40)

        def apply(model: Model, result: Any) -> None:
            if isinstance(result, Published):
                model.publish(topic, publisher, fragments, result)
            model.may_publish(topic, publisher)

        return Op(
            lambda store: store.publish(topic, publisher, fragments), apply, takes_memory=True,
            text=f"publish {count} to {topic} as {publisher}",
        )

    def subscribe_op(self, subscriber: str, wanted: Sequence[str], elsewhere: bool = False) -> Op:
        self.made += 1
        place = "elsewhere" if elsewhere else "here"
        subscription = Subscription(
            subscriber, tuple(wanted), f"https://{place}/", uuid="x" if elsewhere else None, timeout=self.made
        )
        return Op(
            lambda store: store.subscribe(subscription), lambda model, _: model.subscribe(subscription),
            subject=subscriber, takes_memory=True, text=f"subscribe {subscriber} to {wanted} {place}",
        )

    def leave_op(self, subscriber: str, topic: str) -> Op:
        return Op(
            lambda store: store.leave(subscriber, topic), lambda model, _: model.leave(subscriber, topic),
            subject=subscriber, leaves=True, text=f"{subscriber} leaves {topic}",
        )

    def unsubscribe_op(self, subscriber: str) -> Op:
        return Op(
            lambda store: store.unsubscribe(subscriber), lambda model, _: model.unsubscribe(subscriber),
            text=f"unsubscribe {subscriber}",
        )

    def delete_op(self, topic: str, publisher: str | None) -> Op:
        return Op(
            lambda store: store.delete_topic(topic, publisher),
            lambda model, _: model.delete_topic(topic, publisher), text=f"delete {topic} as {publisher}",
        )

    def upkeep_op(self, subscriber: str | None) -> Op:
        if subscriber is None:
            return Op(lambda store: store.clean_up(), lambda model, _: model.count_dropped(), text="clean up")
        return Op(
            lambda store: store.repair(subscriber), lambda model, _: model.count_dropped(subscriber),
            text=f"repair {subscriber}",
        )

    def op(self, kind: str, topic: str, subscriber: str, wanted: Sequence[str], who: int) -> Op:
        """An operation by its kind; arguments that it does not need are left aside."""
        if kind == "publish":
            return self.publish_op(topic, PUBLISHERS[who % 2], 1 + who)
        if kind == "subscribe":
            return self.subscribe_op(subscriber, wanted, elsewhere=who == 2)
        if kind == "leave":
            return self.leave_op(subscriber, topic)
        if kind == "unsubscribe":
            return self.unsubscribe_op(subscriber)
        if kind == "delete":
            return self.delete_op(topic, (self.model.topics[topic].publisher, ROOT, PUBLISHERS[1])[who])
        return self.upkeep_op(subscriber if kind == "repair" else None)

    # -- what clients do

    @initialize(made=subsets, wanted=st.tuples(subsets, subsets, subsets))
    def begin(self, made: Sequence[str], wanted: Sequence[Sequence[str]]) -> None:
        for topic in made:
            self.do(self.publish_op(topic, PUBLISHERS[0], 1))
        for subscriber, some in zip(SUBSCRIBERS, wanted, strict=True):
            if some:
                self.do(self.subscribe_op(subscriber, [topic for topic in some if topic in made]))

    @rule(which=processes, topic=topics, stranger=st.integers(0, 4), count=counts, size=counts)
    def publish(self, which: int, topic: str, stranger: int, count: int, size: int) -> None:
        owner = self.model.topics[topic].publisher or PUBLISHERS[count % 2]
        publisher = owner if stranger else PUBLISHERS[owner == PUBLISHERS[0]]
        self.do(self.publish_op(topic, publisher, count, size), which)

    @rule(which=processes, topic=topics)
    def publish_more(self, which: int, topic: str) -> None:
        """Events are what most of a history should be about."""
        self.do(self.publish_op(topic, self.model.topics[topic].publisher or PUBLISHERS[0], 2), which)

    @rule(
        which=processes, subscriber=subscribers, wanted=subsets, strict=st.integers(0, 3), elsewhere=st.booleans()
    )
    def subscribe(
        self, which: int, subscriber: str, wanted: Sequence[str], strict: int, elsewhere: bool
    ) -> None:
        if strict:
            wanted = [topic for topic in wanted if topic in self.model.existing()]
        self.do(self.subscribe_op(subscriber, wanted, elsewhere), which)

    @rule(which=processes, subscriber=subscribers, topic=topics)
    def leave(self, which: int, subscriber: str, topic: str) -> None:
        self.do(self.leave_op(subscriber, topic), which)

    @rule(which=processes, subscriber=subscribers)
    def unsubscribe(self, which: int, subscriber: str) -> None:
        self.do(self.unsubscribe_op(subscriber), which)

    @rule(which=processes, topic=topics, who=st.integers(0, 3))
    def delete_topic(self, which: int, topic: str, who: int) -> None:
        owner = self.model.topics[topic].publisher or PUBLISHERS[0]
        self.do(self.delete_op(topic, (owner, owner, ROOT, PUBLISHERS[owner == PUBLISHERS[0]])[who]), which)

    @rule(which=processes, topic=topics, subscriber=subscribers, count=counts)
    def upheaval(self, which: int, topic: str, subscriber: str, count: int) -> None:
        """A topic dies with its subscriptions and is made again: numbers begin anew, with a batch under way."""
        self.make_owed(which, topic, subscriber, count)
        self.time_passes(subscriber, True)
        grant = self.acquire(which, subscriber)
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 12, ROOM)
        self.flights.append(self.flight(grant, which, subscriber, entries))
        for name, sub in list(self.model.subscribers.items()):
            if name == subscriber or topic in sub.on or sub.owed[topic]:
                self.do(self.unsubscribe_op(name), which)
        owner = self.model.topics[topic].publisher
        self.do(self.delete_op(topic, ROOT), which)
        self.do(self.publish_op(topic, PUBLISHERS[owner == PUBLISHERS[0]], 1), 1 - which)
        self.do(self.subscribe_op(subscriber, [topic]), which)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher, 2), which)

    def make_owed(self, which: int, topic: str, subscriber: str, count: int) -> None:
        """See to it that the topic is, that the subscriber is subscribed to it, and that something waits."""
        self.make_room()
        sub = self.model.subscribers.get(subscriber)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher or PUBLISHERS[0], 1), which)
        if sub is None or topic not in sub.on:
            wanted = {topic} | (sub.on if sub else set())
            self.do(self.subscribe_op(subscriber, sorted(wanted)), which)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher, count), which)

    def make_room(self) -> None:
        if self.full:
            self.full = False
            self.player.set_full(False)

    @rule(which=processes, number=st.integers(0, 2), add=st.booleans())
    def token(self, which: int, number: int, add: bool) -> None:
        mark = self.run_on(which, lambda store: store.tokens()).mark
        token = ApiToken(f"name{self.made}", f"token--{number}")
        there = token.token in self.model.tokens
        result = self.run_on(
            which, lambda store: store.add_token(token) if add else store.remove_token(token.token)
        )
        if isinstance(result, Exception):
            require(add and self.full and not result.outcome_unknown, "only a full Redis refuses tokens", result)
        elif add:
            self.model.tokens[token.token] = token.name
        else:
            self.model.tokens.pop(token.token, None)
        found = self.check_tokens(1 - which)
        changed = not isinstance(result, Exception) and (add or there)
        require((found.mark != mark) is changed, "each change of tokens is logged", found.mark, mark)

    def check_tokens(self, which: int) -> Any:
        found = self.run_on(which, lambda store: store.tokens())
        expected = self.model.tokens
        require(found.names == expected, "tokens are those that were made", found.names, expected)
        return found

    # -- what workers do

    def acquire(self, which: int, subscriber: str) -> LeaseGrant | None:
        worker, sub = WORKERS[which], self.model.subscribers.get(subscriber)
        grant = self.run_on(which, lambda store: store.acquire(subscriber, worker))
        lease = self.model.leases.get(subscriber)
        if sub is None:
            require(grant is None, "nobody delivers for who is not subscribed", grant)
            return None
        if lease is not None and lease[0] != worker:
            refused = isinstance(grant, LeaseHeld) and 0 < grant.remaining <= TTL
            require(refused, "a lease has one holder", grant, lease)
            return None
        require(isinstance(grant, LeaseGrant), "a lease that is free is given", grant)
        if lease is not None:
            require(grant.epoch == lease[1], "who holds a lease keeps it", grant, lease)
        else:
            require(grant.epoch > self.epochs.get(subscriber, 0), "epochs grow", grant, self.epochs)
        self.epochs[subscriber], self.versions[subscriber] = grant.epoch, grant.version
        self.model.leases[subscriber] = (worker, grant.epoch)
        options = evolve(grant.subscription, topics=sub.options.topics)
        require(options == sub.options and grant.failures == sub.failures, "a grant tells all", grant, sub)
        wanted = {topic for topic, stay in grant.memberships.items() if stay.state == "on"}
        require(sub.on <= wanted, "a grant names the topics subscribed to", grant, sub.on)
        owed = {topic for topic, events in sub.owed.items() if events}
        require(owed <= grant.memberships.keys(), "a grant names the topics owed from", grant, owed)
        return grant

    def read(
        self, which: int, subscriber: str, after: dict[str, EventID | None], most: int, room: int
    ) -> list[tuple[str, EventID, bytes]]:
        expected = self.model.reading(subscriber, after, most, room)
        reading = self.run_on(which, lambda store: read(store, subscriber, after, most, room))
        entries = list(reading.entries)
        require(entries == expected, "a reading is the oldest events owed", entries, expected)
        owed = self.model.subscribers[subscriber].owed
        for topic, place in reading.positions.items():
            waiting = place.cursor.backlog(place.tail) if place.cursor else 0
            require(waiting == len(owed[topic]), "a place tells the backlog", place, owed[topic])
        return expected

    def flight(self, grant: LeaseGrant, which: int, subscriber: str, entries: Any) -> Flight:
        first = {topic: entry_id for topic, entry_id, _ in reversed(entries)}
        last = {topic: entry_id for topic, entry_id, _ in entries}
        owed = {(event.topic, event.id): event for event in self.model.subscribers[subscriber].waiting()}
        return Flight(
            WORKERS[which],
            subscriber,
            grant.epoch,
            tuple(Ack(topic, grant.memberships[topic].id, at, first[topic]) for topic, at in last.items()),
            tuple((owed[topic, first[topic]], owed[topic, at]) for topic, at in last.items()),
        )

    def acknowledge(self, flight: Flight, which: int) -> None:
        name = flight.subscriber
        places = self.run_on(
            which, lambda store: store.acknowledge(name, flight.worker, flight.epoch, flight.acks)
        )
        for first, last in flight.events:
            self.model.acknowledge(name, first, last)
        sub = self.model.subscribers.get(name)
        if sub is not None and self.model.leases.get(name) == (flight.worker, flight.epoch):
            sub.failures = 0
        for ack in flight.acks:
            place = places[ack.topic]
            if place.cursor is not None and place.cursor.membership == ack.membership and sub is not None:
                waiting, owed = place.cursor.backlog(place.tail), sub.owed[ack.topic]
                require(waiting == len(owed), "an acknowledgement tells the backlog", place, owed)

    def fail(self, which: int, worker: str, subscriber: str, epoch: int) -> None:
        self.made += 1
        error = f"error {self.made}"
        sub = self.model.subscribers.get(subscriber)
        failures = 1 if sub is None else sub.failures + 1
        result = self.run_on(which, lambda store: store.fail(subscriber, worker, epoch, 0.5, error, failures))
        if sub is None or self.model.leases.get(subscriber) != (worker, epoch):
            require(not result, "who has no lease records no failure", result)
            return
        sub.failures, sub.error = failures, error
        require(result, "a failure is recorded", result, sub)

    @rule(
        which=processes, subscriber=subscribers, most=st.integers(1, 12), room=st.sampled_from((1, 150, ROOM)),
        end=st.sampled_from(("acknowledged", "acknowledged", "later", "crash", "failed")), ahead=st.booleans(),
        mend=st.booleans(),
    )
    def deliver(
        self, which: int, subscriber: str, most: int, room: int, end: str, ahead: bool, mend: bool
    ) -> None:
        """A worker's step: lease, read, perhaps read ahead, POST, and say how it ended."""
        grant = self.acquire(which, subscriber)
        if grant is None:
            return
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), most, room)
        if not entries:
            return
        batch = self.flight(grant, which, subscriber, entries)
        if ahead:
            after = dict.fromkeys(grant.memberships) | {topic: entry_id for topic, entry_id, _ in entries}
            following = self.read(which, subscriber, after, most, room)
            ahead = bool(following)
            behind = self.flight(grant, which, subscriber, following)
        if end == "acknowledged":
            self.acknowledge(batch, which)
            if ahead:
                self.flights.append(behind)
            if mend:
                self.do(self.upkeep_op(subscriber), which)
        elif end == "later":
            self.flights.append(batch)
        elif end == "failed":
            self.fail(which, WORKERS[which], subscriber, grant.epoch)

    @precondition(lambda self: self.flights)
    @rule(which=processes, number=st.integers(0, 20), keep=st.booleans())
    def acknowledge_late(self, which: int, number: int, keep: bool) -> None:
        """The answer came, or was stored, after all sorts of other things; perhaps it is stored twice."""
        number %= len(self.flights)
        self.acknowledge(self.flights[number], which)
        if not keep:
            del self.flights[number]

    @rule(
        which=processes, subscriber=subscribers, taken=st.booleans(), own=st.booleans(),
        what=st.sampled_from(("acknowledge", "fail", "release")),
    )
    def stall(self, which: int, subscriber: str, taken: bool, own: bool, what: str) -> None:
        """A worker sleeps through the end of its lease; another, or itself, takes and fails; then it speaks."""
        grant = self.acquire(which, subscriber)
        if grant is None:
            return
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 3, ROOM)
        flight = self.flight(grant, which, subscriber, entries)
        self.time_passes(subscriber, True)
        if taken:
            successor = which if own else 1 - which
            again = self.acquire(successor, subscriber)
            self.fail(successor, WORKERS[successor], subscriber, again.epoch)
        self.renew_all(which, {subscriber: flight.epoch})
        if what == "acknowledge":
            self.acknowledge(flight, which)
        elif what == "fail":
            self.fail(which, flight.worker, subscriber, flight.epoch)
        else:
            self.release(which, flight.worker, subscriber, flight.epoch)

    def release(self, which: int, worker: str, subscriber: str, epoch: int) -> None:
        self.run_on(which, lambda store: store.release(subscriber, worker, epoch))
        if self.model.leases.get(subscriber) == (worker, epoch):
            del self.model.leases[subscriber]

    @rule(which=processes, subscriber=subscribers)
    def give_back(self, which: int, subscriber: str) -> None:
        worker, epoch = self.model.leases.get(subscriber, ("nobody", 0))
        self.release(which, worker, subscriber, epoch)

    @rule(which=processes)
    def renew(self, which: int) -> None:
        """A worker renews all that it holds or once held."""
        worker = WORKERS[which]
        asked = {f.subscriber: f.epoch for f in self.flights if f.worker == worker}
        held = {name: epoch for name, (holder, epoch) in self.model.leases.items() if holder == worker}
        self.renew_all(which, asked | held)

    def renew_all(self, which: int, asked: dict[str, int]) -> None:
        worker = WORKERS[which]
        _, versions = self.run_on(which, lambda store: store.renew(worker, asked))
        require(versions.keys() == asked.keys(), "each lease is answered for", versions, asked)
        for name, version in versions.items():
            holds = self.model.leases.get(name) == (worker, asked[name])
            require(holds == (version is not None), "a renewal tells which leases are lost", versions, asked)
            if holds:
                held = self.run_on(which, lambda store, name=name: store.acquire(name, "nobody"))
                renewed = isinstance(held, LeaseHeld) and held.remaining > TTL - 60
                require(renewed, "what is renewed lives on", held)

    @rule(subscriber=subscribers, wholly=st.booleans())
    def time_passes(self, subscriber: str, wholly: bool) -> None:
        if wholly:
            for name in self.player.expire(subscriber):
                self.model.leases.pop(name, None)
        else:
            self.player.age(subscriber)

    # -- what happens to the store

    @rule(which=processes, subscriber=st.sampled_from((None, *SUBSCRIBERS)))
    def upkeep(self, which: int, subscriber: str | None) -> None:
        self.do(self.upkeep_op(subscriber), which)

    @rule(which=processes, most=st.integers(1, 6))
    def drop_oldest(self, which: int, most: int) -> None:
        logs = {topic: seen.log for topic, seen in self.player.seen().topics.items() if seen.log}
        moment = min((log[:most][-1][0].us for log in logs.values()), default=0)
        gone = [
            (topic, entry_id) for topic, log in logs.items() for entry_id, _ in log[:most] if entry_id.us <= moment
        ]
        result = self.run_on(which, lambda store: store.drop_oldest(most))
        require(not isinstance(result, Exception), "dropping works, on a full Redis too", result)
        require(result == len(gone), "as many events are dropped as the store says", result, gone)
        self.model.gone |= set(gone)

    @rule(which=processes)
    def look(self, which: int) -> None:
        """All that the store tells of itself is so."""
        model = self.model
        told = [(t.name, t.publisher, t.events) for t in self.run_on(which, lambda store: store.topics())]
        known = [(n, t.publisher, t.events) for n, t in sorted(model.topics.items()) if t.publisher]
        require(told == known, "topics are listed with their figures", told, known)
        require(
            self.run_on(which, lambda store: store.subscribers()) >= model.subscribers.keys(),
            "who may be owed something is listed",
        )
        tails = self.run_on(which, lambda store: store.tails(TOPICS))
        for topic in model.existing():
            require(tails.get(topic) == model.topics[topic].tail, "tails tell where logs end", tails, model.topics)
        facts = {f.subscription.subscriber: f for f in self.run_on(which, lambda store: store.subscriptions())}
        require(facts.keys() == model.subscribers.keys(), "all subscriptions are listed", facts)
        for name, sub in model.subscribers.items():
            waiting, fact = sub.waiting(), facts[name]
            stored = model.stored(waiting)
            expected = (
                evolve(sub.options, topics=tuple(sorted(sub.on))), sub.sent, sub.dropped, len(waiting),
                min(e.id.us for e in stored) / 1e6 if stored else None, sub.failures, sub.error,
            )
            figures = (
                fact.subscription, fact.sent, fact.dropped, fact.queued, fact.oldest,
                fact.health.failures, fact.health.last_error,
            )
            require(figures == expected, "figures are what a recount gives", figures, expected)
            self.read(which, name, dict.fromkeys(TOPICS), 1000, ROOM)
        self.check_tokens(which)

    @precondition(lambda self: self.player.lasting)
    @rule(which=processes, what=st.sampled_from(("restart", "flush scripts", "full", "full")))
    def trouble(self, which: int, what: str) -> None:
        if what == "restart":
            self.player.restart(which)
        elif what == "flush scripts":
            self.player.flush_scripts()
        else:
            self.full = not self.full
            self.player.set_full(self.full)

    kinds = st.sampled_from(
        ("subscribe", "subscribe", "leave", "unsubscribe", "delete", "publish", "tidy", "repair")
    )
    specs = st.tuples(kinds, topics, subscribers, subsets, st.integers(0, 2))

    @precondition(lambda self: self.player.lasting and not self.full)
    @rule(
        spec=specs, which=processes, steps=st.integers(0, 12), lost=st.booleans(),
        scene=st.sampled_from(SCENES),
        meanwhile=st.lists(st.tuples(topics, publishers), max_size=2),
        then=st.lists(st.sampled_from(("tidy", "repair", "retry", "restart", "full")), max_size=3),
    )
    def interrupted(
        self, spec: Any, which: int, steps: int, lost: bool, meanwhile: Sequence[tuple[str, str]],
        then: Sequence[str], scene: str,
    ) -> None:
        """A call breaks off; it has happened or not, and upkeep, or trying again, mends what came of it."""
        self.set_scene(which, spec[1], spec[2], scene)
        op, before = self.op(*spec), self.model.copy()
        result = outcome(lambda: self.player.run(op.call(self.player.cut(steps, lost, which))))
        self.cut_short = isinstance(result, StoreUnavailable)
        if not self.cut_short:
            expected = outcome(lambda: op.apply(self.model, result))
            require(agree(op, expected, result), "the call does as the model", op, expected, result)
            return
        require(result.outcome_unknown, "what was cut short may have happened", op)
        if spec[0] == "publish":
            self.settle_publication(op, spec[1], 1 + spec[4], which)
            return
        done = [self.try_out(self.publish_op(topic, publisher, 2), which) for topic, publisher in meanwhile]
        full = False
        for what in then:
            if what == "restart":
                self.player.restart(which)
            elif what == "full":
                full = True
                self.player.set_full(full)
            elif what != "retry":
                self.try_out(self.upkeep_op(None if what == "tidy" else spec[2]), which)
            elif not (full and op.takes_memory):
                done.append(self.try_out(op, which))
        self.quiesce(which)
        self.player.set_full(False)
        self.settle(before, op, done)

    def settle(self, before: Model, op: Op, done: Sequence[tuple[Op, Any]]) -> None:
        """Take over the first of the outcomes that are allowed which is what is so."""
        seen, doubts = self.player.seen(), []
        watched = before.copy()
        watched.subscribers[WATCHER] = Subscriber(Subscription(WATCHER, (), ""), set(TOPICS))
        for place in (None, *range(len(done) + 1)):
            made = list(done)
            if place is not None:
                made.insert(place, (op, None))
            candidate = self.replay(watched, made, agree, unheard=place)
            if isinstance(candidate, Model):
                self.settle_late(candidate, before, op, seen)
                candidate.leases = {n: lease for n, lease in before.leases.items() if n in candidate.subscribers}
                doubt = difference(candidate, seen)
                if not doubt:
                    self.model = candidate
                    return
                candidate = doubt
            doubts.append((place, candidate))
        require(False, "a call that was cut short has happened or not", op, done, doubts)

    def try_out(self, op: Op, which: int) -> tuple[Op, Any]:
        return op, self.run_on(which, op.call)

    def quiesce(self, which: int) -> None:
        """What the sweep and the couriers do sooner or later."""
        self.run_on(which, lambda store: store.clean_up())
        for name in self.run_on(which, lambda store: store.subscribers()):
            self.run_on(which, lambda store, name=name: store.repair(name))
        self.run_on(which, lambda store: store.clean_up())

    def replay(
        self, before: Model, made: Sequence[tuple[Op, Any]], fits: Callable[[Op, Any, Any], bool],
        unheard: int | None = None,
    ) -> Model | str:
        """The model after these calls, or why they cannot have gone like that; one's result may be unheard."""
        model = before.copy()
        for place, (op, result) in enumerate(made):
            try:
                expected = outcome(lambda op=op, result=result: op.apply(model, result))
            except AssertionError as error:
                return str(error)
            if place != unheard and not fits(op, expected, result):
                return f"{op} would give {expected!r}, not {result!r}"
        return model

    def settle_publication(self, op: Op, topic: str, count: int, which: int) -> None:
        """One script appends, so the log tells at once. The index may lag until the process publishes again."""
        seen, known = self.player.seen().topics[topic], self.model.topics[topic]
        if seen.publisher and (seen.publisher, seen.tail) != (known.publisher, known.tail):
            last = seen.tail
            op.apply(self.model, Published(EventID(last.us, last.n - count + 1), last))
            self.do(self.publish_op(topic, seen.publisher, 1), which)

    def settle_late(self, model: Model, before: Model, op: Op, seen: Seen) -> None:
        """A subscription of unknown outcome may begin and end in each topic at a time of its own."""
        meanwhile = model.subscribers.pop(WATCHER)
        name, applied = op.subject, before.copy()
        outcome(lambda: op.apply(applied, None))
        if not (name in model.subscribers and name in applied.subscribers and name in seen.subscribers):
            return
        old, now = before.subscribers.get(name), applied.subscribers[name].on
        for topic in now ^ (old.on if old else set()):
            owed, events = old.owed[topic] if old else [], meanwhile.owed[topic]
            found = [entry_id for entry_id, _ in seen.owed(name, topic)]
            for place in range(len(events) + 1):
                guess = owed + (events[place:] if topic in now else events[:place])
                if [event.id for event in guess] == found:
                    model.subscribers[name].owed[topic] = guess

    @precondition(lambda self: self.player.lasting and not self.full)
    @rule(
        kinds=st.tuples(kinds, kinds), topic=topics, subscriber=subscribers, wanted=st.tuples(subsets, subsets),
        who=st.integers(0, 2), which=processes, scene=st.sampled_from(SCENES),
        turns=st.lists(st.sampled_from((*range(10), 99)), min_size=1, max_size=4),
    )
    def race(
        self, kinds: tuple[str, str], topic: str, subscriber: str, wanted: tuple[Sequence[str], Sequence[str]],
        who: int, turns: Sequence[int], which: int, scene: str,
    ) -> None:
        """Two calls at the same time end as if one had come after the other.

        `turns` are the numbers of commands that go out for the one, then for
        the other, and so on, until they take turns with each command.
        """
        self.set_scene(which, topic, subscriber, scene)
        ops = [self.op(kind, topic, subscriber, some, who) for kind, some in zip(kinds, wanted, strict=True)]
        results = self.player.race(turns, [op.call for op in ops])
        self.settle_race(ops, results, which)

    def set_scene(self, which: int, topic: str, subscriber: str, scene: str) -> None:
        """Bring a topic and a subscriber into one of the relations in which a step too late could do harm."""
        for name in list(self.model.subscribers):
            self.do(self.upkeep_op(name), which)  # no dropped event is left to count
        if scene == "as it is":
            return
        self.make_owed(which, topic, subscriber, 2)
        if scene == "left":
            self.do(self.leave_op(subscriber, topic), which)
        elif scene in ("forgotten", "named"):
            self.do(self.unsubscribe_op(subscriber), which)
        if scene in ("deleted", "drained", "recreated", "forgotten", "named"):
            owner = self.model.topics[topic].publisher
            self.do(self.delete_op(topic, ROOT), which)
            if scene == "drained":
                self.deliver_all(which, subscriber)
            if scene in ("drained", "recreated"):
                self.do(self.publish_op(topic, PUBLISHERS[owner == PUBLISHERS[0]], 1), which)
        if scene == "named":
            for op in (self.publish_op(topic, PUBLISHERS[0], 1), self.subscribe_op(subscriber, ())):
                self.player.restart(which)
                cut = outcome(lambda op=op: self.player.run(op.call(self.player.cut(1, False, which))))
                require(isinstance(cut, StoreUnavailable), "a call that is cut says so", op, cut)

    def settle_race(self, ops: Sequence[Op], results: Sequence[Any], which: int) -> None:
        made, doubts = list(zip(ops, results, strict=True)), []
        for order in (made, made[::-1]):
            candidate = self.replay(self.model, order, agree_in_race)
            if isinstance(candidate, Model):
                seen = self.player.seen()
                candidate.leases = {n: s.lease for n, s in seen.subscribers.items() if s.lease}
                candidate_doubt = difference(candidate, seen)
                if not candidate_doubt:
                    self.model = candidate
                    self.quiesce(which)
                    require(not difference(candidate, self.player.seen()), "upkeep changes nothing", ops,
                            difference(candidate, self.player.seen()))
                    return
                candidate = candidate_doubt
            doubts.append(candidate)
        require(False, "two calls end as if one had come first", made, doubts)

    # -- what must always be so

    @invariant()
    def keys_are_as_they_must_be(self) -> None:
        seen = self.player.seen()
        trouble = difference(self.model, seen)
        require(not trouble, trouble)
        for name, sub in self.model.subscribers.items():
            for topic in sub.owed:
                self.check_cursor(name, topic, seen)
            if name in self.versions:
                version = seen.subscribers[name].version
                require(version >= self.versions[name], "versions grow", name, version, self.versions)
        for topic in seen.topics.values():
            numbers = [entry_id.n for entry_id, _ in topic.log]
            require(numbers == sorted(set(numbers)), "a log is in order", numbers)

    def check_cursor(self, name: str, topic: str, seen: Seen) -> None:
        cursor = seen.cursor(name, topic, seen.subscribers[name].stays)
        before = self.cursors.get((name, topic))
        if cursor is None or not cursor.spans:
            return
        tail = seen.topics[topic].tail
        require(cursor.spans[-1].after.n <= tail.n, "a cursor is never ahead of the log", cursor, tail)
        if before is not None and before.membership == cursor.membership:
            require(cursor.spans[0].after >= before.spans[0].after, "a cursor moves forward", before, cursor)
        self.cursors[name, topic] = cursor

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.drain()
            self.clear()

    def drain(self) -> None:
        """Everybody answers 200: all that is owed arrives, in order, and is counted."""
        for name, sub in self.model.subscribers.items():
            self.deliver_all(0, name)
            require(not sub.waiting(), "everything pending drains", sub)
            self.do(self.upkeep_op(name))
        self.look(1)
        seen = self.player.seen()
        for name, sub in self.model.subscribers.items():
            stays = seen.subscribers[name].stays
            require(stays.keys() == sub.on, "a stay that is over leaves nothing", stays, sub.on)

    def deliver_all(self, which: int, subscriber: str) -> None:
        """A worker takes over, if need be after the lease of another, and delivers until nothing is owed."""
        self.time_passes(subscriber, True)
        self.do(self.upkeep_op(subscriber), which)
        while self.model.subscribers[subscriber].waiting():
            grant = self.acquire(which, subscriber)
            entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 7, 300)
            require(bool(entries), "what is owed can be read", subscriber)
            self.acknowledge(self.flight(grant, which, subscriber, entries), which)

    def clear(self) -> None:
        """Everything is deleted: no key is left without an owner."""
        for name in list(self.model.subscribers):
            self.do(self.unsubscribe_op(name), 1)
        for topic in self.model.existing():
            self.do(self.delete_op(topic, ROOT), 1)
        if self.player.lasting:
            self.player.set_full(False)
        for token in list(self.model.tokens):
            self.run_on(0, lambda store, token=token: store.remove_token(token))
        self.run_on(0, lambda store: store.clean_up())
        left = self.player.leftovers()
        require(not left, "nothing is left behind", left)
