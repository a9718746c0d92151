"""The rules of a history that workers follow: leases, deliveries, acknowledgements, failures."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from routemaster.interfaces import Ack, LeaseGrant, LeaseHeld
from routemaster.model import EventID
from tests.store.history_calls import MAX_BYTES, WORKERS, Calls, Flight, processes, subscribers
from tests.store.history_model import TOPICS, require
from tests.store.history_stores import TTL
from tests.store.reading import read


class Workers(Calls):
    """Calls of workers, in time or late."""

    def acquire(self, which: int, subscriber: str) -> LeaseGrant | None:
        worker, sub = WORKERS[which], self.model.subscribers.get(subscriber)
        grant = self.run_on(which, lambda store: store.acquire(subscriber, worker))
        lease = self.model.leases.get(subscriber)
        if sub is None:
            require(grant is None, "no lease without a subscription", grant)
            return None
        if lease is not None and lease[0] != worker:
            refused = isinstance(grant, LeaseHeld) and 0 < grant.remaining <= TTL
            require(refused, "a lease has one holder", grant, lease)
            return None
        require(isinstance(grant, LeaseGrant), "a free lease is granted", grant)
        if lease is not None:
            require(grant.epoch == lease[1], "the holder keeps its lease", grant, lease)
        else:
            require(grant.epoch > self.epochs.get(subscriber, 0), "epochs grow", grant, self.epochs)
        self.epochs[subscriber], self.versions[subscriber] = grant.epoch, grant.version
        self.model.leases[subscriber] = (worker, grant.epoch)
        options = evolve(grant.subscription, topics=sub.options.topics)
        require(options == sub.options and grant.failures == sub.failures, "a grant is complete", grant, sub)
        wanted = {topic for topic, membership in grant.memberships.items() if membership.state == "on"}
        flags = grant.paused, grant.retry_at > 0, grant.retried
        require(flags == (sub.paused, sub.in_backoff, len(sub.retried)), "a grant has the pauses", flags, sub)
        require(sub.on <= wanted, "a grant names the topics subscribed to", grant, sub.on)
        backlog = {topic for topic, events in sub.backlog.items() if events}
        require(backlog <= grant.memberships.keys(), "a grant names the topics with a backlog", grant, backlog)
        return grant

    def read(
        self, which: int, subscriber: str, after: dict[str, EventID | None], most: int, max_bytes: int
    ) -> list[tuple[str, EventID, bytes]]:
        expected = self.model.reading(subscriber, after, most, max_bytes)
        reading = self.run_on(which, lambda store: read(store, subscriber, after, most, max_bytes))
        entries = list(reading.entries)
        require(entries == expected, "a read returns the oldest events", entries, expected)
        backlog = self.model.subscribers[subscriber].backlog
        for topic, position in reading.positions.items():
            waiting = position.cursor.backlog(position.tail) if position.cursor else 0
            require(waiting == len(backlog[topic]), "a position has the backlog", position, backlog[topic])
        return expected

    def flight(self, grant: LeaseGrant, which: int, subscriber: str, entries: Any) -> Flight:
        positions = self.run_on(which, lambda store: store.positions(subscriber, TOPICS)).by_topic
        rewinds = {topic: place.cursor.rewinds for topic, place in positions.items() if place.cursor}
        first = {topic: entry_id for topic, entry_id, _ in reversed(entries)}
        last = {topic: entry_id for topic, entry_id, _ in entries}
        backlog = {(event.topic, event.id): event for event in self.model.subscribers[subscriber].waiting()}
        return Flight(
            WORKERS[which],
            subscriber,
            grant.epoch,
            tuple(
                Ack(topic, grant.memberships[topic].id, at, first[topic], rewinds[topic])
                for topic, at in last.items()
            ),
            tuple((backlog[topic, first[topic]], backlog[topic, at]) for topic, at in last.items()),
            tuple(self.model.subscribers[subscriber].moved[topic] for topic in last),
        )

    def acknowledge(self, flight: Flight, which: int, pulled: bool = False) -> None:
        """Acknowledge a batch as a worker does, or as who has pulled it."""
        name = flight.subscriber
        sub = self.model.subscribers.get(name)
        if pulled:
            result = self.run_on(which, lambda store: store.acknowledge_pulled(name, flight.acks))
            require(isinstance(result, Exception) == (sub is None), "who is not subscribed is told", result, sub)
            positions = self.run_on(which, lambda store: store.positions(name, TOPICS)).by_topic
        else:
            positions = self.run_on(
                which, lambda store: store.acknowledge(name, flight.worker, flight.epoch, flight.acks)
            )
        for (first, last), moved in zip(flight.events, flight.moved, strict=True):
            if sub is not None and sub.moved[first.topic] == moved:
                self.model.acknowledge(name, first, last)
        lease = self.model.leases.get(name)
        if sub is not None and not pulled and lease == (flight.worker, flight.epoch):
            sub.failures, sub.in_backoff = 0, False
        for ack in flight.acks:
            position = positions[ack.topic]
            if position.cursor is not None and position.cursor.membership == ack.membership and sub is not None:
                waiting, backlog = position.cursor.backlog(position.tail), sub.backlog[ack.topic]
                require(waiting == len(backlog), "an acknowledgement returns the backlog", position, backlog)

    def fail(self, which: int, worker: str, subscriber: str, epoch: int) -> None:
        self.made += 1
        error = f"error {self.made}"
        sub = self.model.subscribers.get(subscriber)
        failures = 1 if sub is None else sub.failures + 1
        result = self.run_on(which, lambda store: store.fail(subscriber, worker, epoch, 0.5, error, failures))
        if sub is None or self.model.leases.get(subscriber) != (worker, epoch):
            require(not result, "without the lease no failure is recorded", result)
            return
        sub.failures, sub.error, sub.in_backoff = failures, error, True
        require(result, "a failure is recorded", result, sub)

    @rule(
        which=processes, subscriber=subscribers, most=st.integers(1, 12),
        max_bytes=st.sampled_from((1, 150, MAX_BYTES)),
        end=st.sampled_from(("acknowledged", "acknowledged", "pulled", "later", "crash", "failed")),
        ahead=st.booleans(), repair_after=st.booleans(),
    )
    def deliver(
        self, which: int, subscriber: str, most: int, max_bytes: int, end: str, ahead: bool, repair_after: bool
    ) -> None:
        """One delivery of a worker: lease, read, perhaps read ahead, outcome."""
        grant = self.acquire(which, subscriber)
        if grant is None:
            return
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), most, max_bytes)
        if not entries:
            return
        batch = self.flight(grant, which, subscriber, entries)
        if ahead:
            after = dict.fromkeys(grant.memberships) | {topic: entry_id for topic, entry_id, _ in entries}
            following = self.read(which, subscriber, after, most, max_bytes)
            ahead = bool(following)
            behind = self.flight(grant, which, subscriber, following)
        if end in ("acknowledged", "pulled"):
            self.acknowledge(batch, which, end == "pulled")
            if ahead:
                self.flights.append(behind)
            if repair_after:
                self.do(self.upkeep_op(subscriber), which)
        elif end == "later":
            self.flights.append(batch)
        elif end == "failed":
            self.fail(which, WORKERS[which], subscriber, grant.epoch)

    @precondition(lambda self: self.flights)
    @rule(which=processes, number=st.integers(0, 20), keep=st.booleans(), pulled=st.booleans())
    def acknowledge_late(self, which: int, number: int, keep: bool, pulled: bool) -> None:
        """An acknowledgement arrives after other calls, perhaps twice."""
        number %= len(self.flights)
        self.acknowledge(self.flights[number], which, pulled)
        if not keep:
            del self.flights[number]

    @rule(
        which=processes, subscriber=subscribers, taken=st.booleans(), own=st.booleans(),
        what=st.sampled_from(("acknowledge", "fail", "release")),
    )
    def expire_lease_in_flight(self, which: int, subscriber: str, taken: bool, own: bool, what: str) -> None:
        """A lease ends in flight; a worker acquires it and fails; then the first outcome is recorded."""
        grant = self.acquire(which, subscriber)
        if grant is None:
            return
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 3, MAX_BYTES)
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
    def release_any(self, which: int, subscriber: str) -> None:
        worker, epoch = self.model.leases.get(subscriber, ("nobody", 0))
        self.release(which, worker, subscriber, epoch)

    @rule(which=processes)
    def renew(self, which: int) -> None:
        """A worker renews all leases that it has or had."""
        worker = WORKERS[which]
        asked = {f.subscriber: f.epoch for f in self.flights if f.worker == worker}
        held = {name: epoch for name, (holder, epoch) in self.model.leases.items() if holder == worker}
        self.renew_all(which, asked | held)

    def renew_all(self, which: int, asked: dict[str, int]) -> None:
        worker = WORKERS[which]
        _, versions = self.run_on(which, lambda store: store.renew(worker, asked))
        require(versions.keys() == asked.keys(), "a renewal answers for each lease", versions, asked)
        for name, version in versions.items():
            holds = self.model.leases.get(name) == (worker, asked[name])
            require(holds == (version is not None), "a renewal reports lost leases", versions, asked)
            if holds:
                held = self.run_on(which, lambda store, name=name: store.acquire(name, "nobody"))
                renewed = isinstance(held, LeaseHeld) and held.remaining > TTL - 60
                require(renewed, "a renewed lease lasts", held)

    @rule(subscriber=subscribers, to_the_end=st.booleans())
    def time_passes(self, subscriber: str, to_the_end: bool) -> None:
        if to_the_end:
            for name in self.driver.expire(subscriber):
                self.model.leases.pop(name, None)
        else:
            self.driver.age(subscriber)

    def deliver_all(self, which: int, subscriber: str) -> None:
        """A worker acquires the lease, after another's has ended, and delivers the whole backlog."""
        self.time_passes(subscriber, True)
        self.do(self.upkeep_op(subscriber), which)
        while self.model.subscribers[subscriber].waiting():
            grant = self.acquire(which, subscriber)
            entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 7, 300)
            require(bool(entries), "a backlog can be read", subscriber)
            self.acknowledge(self.flight(grant, which, subscriber, entries), which)
