"""The calls of a history, each with its effect on the model."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from routemaster.errors import NotSubscribed, StoreUnavailable, UnknownTopic
from routemaster.interfaces import Ack
from routemaster.model import Cursor, Published, Subscription
from tests.store.history_model import SUBSCRIBERS, TOPICS, Event, Model, outcome, require

PUBLISHERS = ("pub_a", "pub_b")
WORKERS = ("w1", "w2")
ROOT = None
OBSERVER = "watcher"
STATES = ("unchanged", "backlog", "left", "deleted", "drained", "recreated", "unsubscribed", "stale index")
MAX_BYTES = 1 << 20

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
    """A call of the store, and its effect on the model."""

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
    """A batch in flight, and its acknowledgements."""

    worker: str
    subscriber: str
    epoch: int
    acks: tuple[Ack, ...]
    events: tuple[tuple[Event, Event], ...]  #: the first and the last of each topic
    moved: tuple[int, ...]  #: of each topic `Subscriber.moved` when it was read


def agree(_op: Op, expected: Any, result: Any) -> bool:
    """Whether a result is the expected one: the same error, or none."""
    if isinstance(expected, Exception) or isinstance(result, Exception):
        return type(expected) is type(result)
    return True


def agree_in_race(op: Op, expected: Any, result: Any) -> bool:
    """As `agree`, but NotSubscribed and UnknownTopic count as the same.

    A client that leaves a topic which another of its calls has just left may get either result.
    """
    if op.leaves and isinstance(expected, NotSubscribed) and result is None:
        return True
    return agree(op, *(NotSubscribed() if isinstance(each, UnknownTopic) else each for each in (expected, result)))


class Calls(RuleBasedStateMachine):
    """Makes calls, and compares their results with the model; `driver` is given by the test."""

    def __init__(self, driver: Any) -> None:
        super().__init__()
        self.driver = driver
        self.driver.fresh()
        self.model = Model()
        self.full = False
        self.made = 0
        self.epochs: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.cursors: dict[tuple[str, str], Cursor] = {}
        self.flights: list[Flight] = []
        self.was_interrupted = False  #: whether the last call to be interrupted was not over by then

    def run_on(self, which: int, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return outcome(lambda: self.driver.run(call(self.driver.stores[which])))

    def do(self, op: Op, which: int = 0) -> Any:
        """Make a call, and compare its result and its effect with the model."""
        result = self.run_on(which, op.call)
        if self.full and op.takes_memory:
            if isinstance(result, StoreUnavailable):
                require(not result.outcome_unknown, "a call refused without memory has a known outcome", op)
            else:
                expected = outcome(lambda: op.apply(self.model.copy(), result))
                refused = isinstance(result, Exception) and agree(op, expected, result)
                require(refused, "a full Redis refuses calls that take memory", op)
            return result
        expected = outcome(lambda: op.apply(self.model, result))
        require(agree(op, expected, result), "the result matches the model", op, expected, result)
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

    def subscribe_op(
        self, subscriber: str, wanted: Sequence[str], other_callback: bool = False, **options: int | None
    ) -> Op:
        self.made += 1
        host = "elsewhere" if other_callback else "here"
        subscription = Subscription(
            subscriber, tuple(wanted), f"https://{host}/", uuid="x" if other_callback else None, timeout=self.made,
            **options,  # type: ignore[arg-type]
        )
        heads = self.driver.snapshot().heads() if subscription.start is not None else {}
        return Op(
            lambda store: store.subscribe(subscription),
            lambda model, _: model.subscribe(subscription, heads, self.driver.now()),
            subject=subscriber, takes_memory=True, text=f"subscribe {subscriber} to {wanted} {host} {options}",
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
            return Op(lambda store: store.clean_up(), lambda model, _: self.cleaned_up(model), text="clean up")
        return Op(
            lambda store: store.repair(subscriber), lambda model, _: model.count_dropped(subscriber),
            text=f"repair {subscriber}",
        )

    def cleaned_up(self, model: Model) -> None:
        model.count_dropped()
        model.expire_idle(self.driver.now())

    def op(self, kind: str, topic: str, subscriber: str, wanted: Sequence[str], who: int) -> Op:
        """An operation by its kind, which may need only some of the arguments."""
        if kind == "publish":
            return self.publish_op(topic, PUBLISHERS[who % 2], 1 + who)
        if kind == "subscribe":
            return self.subscribe_op(subscriber, wanted, other_callback=who == 2)
        if kind == "leave":
            return self.leave_op(subscriber, topic)
        if kind == "unsubscribe":
            return self.unsubscribe_op(subscriber)
        if kind == "delete":
            return self.delete_op(topic, (self.model.topics[topic].publisher, ROOT, PUBLISHERS[1])[who])
        return self.upkeep_op(subscriber if kind == "repair" else None)
