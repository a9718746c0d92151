"""The rules of a history that clients follow: topics, subscriptions, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from routemaster.model import ApiToken
from tests.store.history_calls import MAX_BYTES, PUBLISHERS, ROOT, counts, processes, subscribers, subsets, topics
from tests.store.history_model import SUBSCRIBERS, require
from tests.store.history_workers import Workers


class Clients(Workers):
    """Calls of publishers, subscribers and root."""

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
        """A second rule, so that most calls of a history publish events."""
        self.do(self.publish_op(topic, self.model.topics[topic].publisher or PUBLISHERS[0], 2), which)

    @rule(
        which=processes, subscriber=subscribers, wanted=subsets, strict=st.integers(0, 3),
        other_callback=st.booleans(),
    )
    def subscribe(
        self, which: int, subscriber: str, wanted: Sequence[str], strict: int, other_callback: bool
    ) -> None:
        if strict:
            wanted = [topic for topic in wanted if topic in self.model.existing()]
        self.do(self.subscribe_op(subscriber, wanted, other_callback), which)

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
    def recreate_topic_in_flight(self, which: int, topic: str, subscriber: str, count: int) -> None:
        """A topic is deleted and created again while a batch is in flight: numbers start again."""
        self.make_backlog(which, topic, subscriber, count)
        self.time_passes(subscriber, True)
        grant = self.acquire(which, subscriber)
        entries = self.read(which, subscriber, dict.fromkeys(grant.memberships), 12, MAX_BYTES)
        self.flights.append(self.flight(grant, which, subscriber, entries))
        for name, sub in list(self.model.subscribers.items()):
            if name == subscriber or topic in sub.on or sub.backlog[topic]:
                self.do(self.unsubscribe_op(name), which)
        owner = self.model.topics[topic].publisher
        self.do(self.delete_op(topic, ROOT), which)
        self.do(self.publish_op(topic, PUBLISHERS[owner == PUBLISHERS[0]], 1), 1 - which)
        self.do(self.subscribe_op(subscriber, [topic]), which)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher, 2), which)

    def make_backlog(self, which: int, topic: str, subscriber: str, count: int) -> None:
        """Create the topic if necessary, subscribe to it, and publish events."""
        self.end_full_memory()
        sub = self.model.subscribers.get(subscriber)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher or PUBLISHERS[0], 1), which)
        if sub is None or topic not in sub.on:
            wanted = {topic} | (sub.on if sub else set())
            self.do(self.subscribe_op(subscriber, sorted(wanted)), which)
        self.do(self.publish_op(topic, self.model.topics[topic].publisher, count), which)

    def end_full_memory(self) -> None:
        if self.full:
            self.full = False
            self.driver.set_full(False)

    @rule(which=processes, number=st.integers(0, 2), add=st.booleans())
    def token(self, which: int, number: int, add: bool) -> None:
        mark = self.run_on(which, lambda store: store.tokens()).mark
        token = ApiToken(f"name{self.made}", f"token--{number}")
        exists = token.token in self.model.tokens
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
        changed = not isinstance(result, Exception) and (add or exists)
        require((found.mark != mark) is changed, "each change of tokens is logged", found.mark, mark)

    def check_tokens(self, which: int) -> Any:
        found = self.run_on(which, lambda store: store.tokens())
        expected = self.model.tokens
        require(found.names == expected, "all tokens are listed", found.names, expected)
        return found
