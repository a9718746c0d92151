"""A history of the store: random calls, whose results and effects are compared with `history_model`.

The rules (`history_clients`, `history_workers`, `history_faults`, `history_decisions`)
make the calls of clients, workers and operators, and faults: batches acknowledged late or
twice, leases that end, interrupted calls, races. After each rule all keys are
compared with the model; at the end every backlog must be delivered in order,
and no key may be left.
"""

from __future__ import annotations

import sys

from hypothesis.stateful import invariant

from tests.store.history_calls import PUBLISHERS, ROOT
from tests.store.history_decisions import Decisions
from tests.store.history_model import require
from tests.store.history_snapshot import Snapshot, difference


class History(Decisions):
    """One history of the store."""

    @invariant()
    def keys_match_the_model(self) -> None:
        snapshot = self.driver.snapshot()
        server_fault = difference(self.model, snapshot)
        require(not server_fault, server_fault)
        for name, sub in self.model.subscribers.items():
            for topic in sub.backlog:
                self.check_cursor(name, topic, snapshot)
            if name in self.versions:
                version = snapshot.subscribers[name].version
                require(version >= self.versions[name], "versions grow", name, version, self.versions)
        for topic in snapshot.topics.values():
            ids = [entry_id for entry_id, _ in topic.log]
            numbers = [entry_id.n for entry_id in ids]
            require(numbers == [*range(numbers[0], numbers[-1] + 1)] if ids else True, "a log is dense", numbers)
            require(ids == sorted(ids), "a log is in order of time", ids)
            require(not ids or ids[-1] == topic.tail, "a log ends with the last event", ids, topic.tail)
        self.model.forget_history(self.driver.now())
        for name, known in self.model.topics.items():
            kept, log = {(event.id, event.fragment) for event in known.kept}, snapshot.topics[name].log
            require(kept <= set(log), "the history is kept", name, kept, log)

    def check_cursor(self, name: str, topic: str, snapshot: Snapshot) -> None:
        cursor = snapshot.cursor(name, topic, snapshot.subscribers[name].memberships)
        before = self.cursors.get((name, topic))
        if cursor is None or not cursor.spans:
            return
        tail = snapshot.topics[topic].tail
        require(cursor.spans[-1].after.n <= tail.n, "a cursor is never ahead of the log", cursor, tail)
        if before is not None and (before.membership, before.rewinds) == (cursor.membership, cursor.rewinds):
            require(cursor.spans[0].after >= before.spans[0].after, "a cursor moves forward", before, cursor)
        self.cursors[name, topic] = cursor

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.deliver_everything()
            self.delete_everything()

    def deliver_everything(self) -> None:
        """Every backlog is delivered in order and counted."""
        for name, sub in self.model.subscribers.items():
            self.deliver_all(0, name)
            require(not sub.waiting(), "every backlog is delivered", sub)
            self.do(self.upkeep_op(name))
        self.compare_lists(1)
        snapshot = self.driver.snapshot()
        for name, sub in self.model.subscribers.items():
            memberships = snapshot.subscribers[name].memberships
            require(memberships.keys() == sub.on, "an ended membership leaves nothing", memberships, sub.on)

    def delete_everything(self) -> None:
        """After everything is deleted, no key is left."""
        for name in list(self.model.subscribers):
            self.do(self.unsubscribe_op(name), 1)
        for topic in self.model.existing():
            self.do(self.delete_op(topic, ROOT), 1)
        if self.driver.durable:
            self.driver.set_full(False)
        for publisher in PUBLISHERS:
            # the clean-up corrects the count of a client that has a topic, after an interrupted publication
            self.run_on(0, lambda store, publisher=publisher: store.publish(publisher, publisher, [b"x"]))
            self.run_on(0, lambda store: store.clean_up())
            self.run_on(0, lambda store, publisher=publisher: store.delete_topic(publisher, ROOT))
        for token in list(self.model.tokens):
            self.run_on(0, lambda store, token=token: store.remove_token(token))
        self.run_on(0, lambda store: store.clean_up())
        left = self.driver.leftovers()
        require(not left, "no key is left", left)
