"""The stores on which a history runs: Redis, or the memory store.

A driver has two stores (two processes of the bus) on the same data, and makes a
`Snapshot`. Redis is called through the real `RedisProtocol` on a blocking socket:
so a history is a plain sequence of calls, and a connection can be interrupted or
paused at each command.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from routemaster.errors import StoreUnavailable
from routemaster.model import Cursor, EventID
from routemaster.redis.cluster_slots import slot_of
from routemaster.redis.connection import Script
from routemaster.redis.protocol import RedisProtocol
from routemaster.store.keys import Keys
from routemaster.store.memory_store import MemoryStore
from routemaster.store.redis_store import RedisStore
from routemaster.testing.redis_server import PrivateRedis
from tests.store.history_model import KINDS, SUBSCRIBERS, TOPICS, Parked, outcome, require
from tests.store.history_snapshot import Snapshot, SubscriberSnapshot, TopicSnapshot

TTL = 1000.0  #: seconds: no lease ends unless a history says so
HOUR = 3600
NAMESPACE = "rm"
TOPIC_FIELDS = {"publisher", "tail", "base", "history", "history_events", "max_data", "cuts", "awaits"}


class OneNode:
    """The part of a connection that describes the nodes: one; with `apart` keys have slots as on a cluster."""

    apart: bool

    @property
    def nodes(self) -> dict[str, Any]:
        return {"": self}

    def slot(self, key: bytes) -> int:
        return slot_of(key) if self.apart else 0

    def node_of(self, key: bytes) -> str:
        return ""


class BlockingConnection(OneNode):
    """`Connection` on a blocking socket: commands are sent when a reply is waited for."""

    disconnecting = False
    ahead = 0  #: seconds by which the clock that the scripts see is ahead

    def __init__(self, path: str, modern: bool, apart: bool) -> None:
        self.apart = apart
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._modern = modern
        self._out: list[bytes] = []
        self._shifted: dict[tuple[str, int], Script] = {}
        self._protocol = RedisProtocol("Redis", 30, Clock())
        self._protocol.makeConnection(self)

    # the transport of the wire

    def write(self, data: bytes) -> None:
        self._out.append(data)

    def abortConnection(self) -> None:
        self._socket.close()

    # what RedisStore calls

    def command(self, *args: bytes) -> Deferred[Any]:
        return self._protocol.execute_command(*args)

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Any]:
        if self.ahead:
            script = self._at_another_time(script)
        number = b"%d" % len(keys)
        return self._protocol.execute_command(
            b"EVALSHA", script.shas[self._modern], number, *keys, *args, script=script.texts[self._modern]
        )

    def _at_another_time(self, script: Script) -> Script:
        if (script.name, self.ahead) not in self._shifted:
            body = script.body.replace(b"now[1] * 1000000", b"(now[1] + %d) * 1000000" % self.ahead)
            self._shifted[script.name, self.ahead] = evolve(script, body=body)
        return self._shifted[script.name, self.ahead]

    # what a history calls

    def pump(self) -> None:
        """Send the commands, and handle the replies that have arrived."""
        out, self._out = b"".join(self._out), []
        if out:
            self._socket.sendall(out)
        data = self._socket.recv(1 << 20)
        require(bool(data), "the connection lasts")
        self._protocol.dataReceived(data)

    def ask(self, *commands: tuple[bytes, ...]) -> list[Any]:
        """The replies to several commands."""
        answers = [self.command(*command) for command in commands]
        while not answers[-1].called:
            self.pump()
        return [result_of(answer) for answer in answers]


class InterruptedConnection(OneNode):
    """A connection that breaks after so many commands; with `lost` the next is executed, but not answered."""

    def __init__(self, line: BlockingConnection, steps: int, lost: bool) -> None:
        self._line, self._left, self._lost, self._broken = line, steps, lost, False
        self.apart = line.apart

    def command(self, *args: bytes) -> Deferred[Any]:
        return self._guard(lambda: self._line.command(*args))

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Any]:
        return self._guard(lambda: self._line.script(script, keys, args))

    def _guard(self, issue: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        if self._left <= 0:
            unknown, self._broken = not self._broken, True
            if unknown and self._lost:
                issue().addErrback(lambda _unheard: None)
            return fail(StoreUnavailable("cut", outcome_unknown=unknown))
        self._left -= 1
        return issue()


class SteppedConnection(OneNode):
    """A connection whose commands are sent one by one by the history."""

    def __init__(self, line: BlockingConnection) -> None:
        self._line, self.apart = line, line.apart
        self._waiting: deque[tuple[Callable[[], Deferred[Any]], Deferred[Any]]] = deque()

    def command(self, *args: bytes) -> Deferred[Any]:
        return self._queue(lambda: self._line.command(*args))

    def script(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Deferred[Any]:
        return self._queue(lambda: self._line.script(script, keys, args))

    def _queue(self, issue: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self._waiting.append((issue, answer))
        return answer

    def step(self) -> bool:
        """Send one command and handle its reply; whether there was one."""
        if not self._waiting:
            return False
        issue, answer = self._waiting.popleft()
        issued = issue()
        issued.chainDeferred(answer)
        while not issued.called:
            self._line.pump()
        return True


def result_of(ended: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired; raises its error."""
    results: list[Any] = []
    ended.addBoth(results.append)
    require(bool(results), "a call without further commands ends")
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


class RedisDriver:
    """Two stores on one private Redis."""

    durable = True  #: data outlives the stores, which may be cut, raced and made anew

    def __init__(self, redis: PrivateRedis, apart: bool = False) -> None:
        self._line = BlockingConnection(redis.socket_path, redis.binary.modern, apart)
        self._keys = Keys(NAMESPACE)
        self.stores: list[Any] = []

    def fresh(self) -> None:
        """Begin a history."""
        self._line.ahead = 0
        self._line.ask((b"CONFIG", b"SET", b"maxmemory", b"0"), (b"FLUSHALL",))
        self.stores = [self.store(self._line), self.store(self._line)]

    def store(self, line: Any) -> RedisStore:
        return RedisStore(line, NAMESPACE, TTL)

    def restart(self, which: int) -> None:
        """A process ends, and another starts."""
        self.stores[which] = self.store(self._line)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        ended = Deferred.fromCoroutine(call)
        while not ended.called:
            self._line.pump()
        return result_of(ended)

    def on(self, line: Any, which: int) -> RedisStore:
        """The store of the same process on another connection."""
        store = RedisStore(line, NAMESPACE, TTL)
        store._indexed = self.stores[which]._indexed
        return store

    def interrupted_store(self, steps: int, lost: bool, which: int) -> RedisStore:
        """The store of a process whose connection breaks after so many commands."""
        return self.on(InterruptedConnection(self._line, steps, lost), which)

    def race(self, turns: Sequence[int], calls: Sequence[Callable[[Any], Coroutine[Any, Any, Any]]]) -> list[Any]:
        """Run two calls, with so many commands of each in turn, then one of each; results and errors."""
        lines = [SteppedConnection(self._line) for _ in calls]
        stores = [self.on(line, which) for which, line in enumerate(lines)]
        ended = [Deferred.fromCoroutine(call(store)) for call, store in zip(calls, stores, strict=True)]
        self.steps_of_first = 0
        for position, commands in enumerate(turns):
            for _ in range(commands):
                went = lines[position % 2].step()
                self.steps_of_first += went and position == 0
        while sum(line.step() for line in lines):
            pass
        return [outcome(lambda deferred=deferred: result_of(deferred)) for deferred in ended]

    def flush_scripts(self) -> None:
        self._line.ask((b"SCRIPT", b"FLUSH"))

    def set_full(self, full: bool) -> None:
        self._line.ask((b"CONFIG", b"SET", b"maxmemory", b"1" if full else b"0"))

    def now(self) -> int:
        """The store's time, in microseconds, to the second."""
        return round((time.time() + self._line.ahead) * 1e6)

    def advance(self, hours: int) -> set[str]:
        """Let hours pass; the subscribers whose leases ended: all."""
        self._line.ahead += hours * HOUR
        self._line.ask(*((b"DEL", self._keys.lease(name)) for name in SUBSCRIBERS))
        return set(SUBSCRIBERS)

    def expire(self, subscriber: str) -> set[str]:
        """Let time pass until this lease ends; the subscribers whose leases ended."""
        self._line.ask((b"DEL", self._keys.lease(subscriber)))
        return {subscriber}

    def age(self, subscriber: str) -> None:
        """Time passes until this lease has 5 s left."""
        self._line.ask((b"PEXPIRE", self._keys.lease(subscriber), b"5000"))

    def leftovers(self) -> list[object]:
        keys = self._line.ask((b"KEYS", b"*"))[0]
        return [key for key in keys if key not in (self._keys.tokens_version, self._keys.token_log)]

    def snapshot(self) -> Snapshot:
        keys, commands = self._keys, []
        for topic in TOPICS:
            meta, log, cursors = keys.topic(topic)
            commands += [(b"HGETALL", meta), (b"XRANGE", log, b"-", b"+"), (b"HGETALL", cursors)]
        for subscriber in SUBSCRIBERS:
            meta, memberships = keys.subscriber(subscriber)
            parked, order, retried = keys.parked(subscriber)
            commands += [
                (b"HGETALL", meta), (b"HGETALL", memberships), (b"GET", keys.lease(subscriber)),
                (b"HGETALL", parked), (b"ZRANGE", order, b"0", b"-1"), (b"ZRANGE", retried, b"0", b"-1"),
            ]  # fmt: skip
        replies = iter(self._line.ask(
            *commands, (b"SMEMBERS", keys.topics), (b"SMEMBERS", keys.subscribers)
        ))  # fmt: skip
        of_topics = [[next(replies) for _ in range(3)] for _ in TOPICS]
        of_subscribers = [[next(replies) for _ in range(6)] for _ in SUBSCRIBERS]
        topics, subscribers = replies
        return Snapshot(
            {name: _topic_snapshot(*parts) for name, parts in zip(TOPICS, of_topics, strict=True)},
            {
                name: _subscriber_snapshot(*parts)
                for name, parts in zip(SUBSCRIBERS, of_subscribers, strict=True)
                if any(parts)
            },
            ({name.decode() for name in topics}, {name.decode() for name in subscribers}),
        )


def _pairs(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _topic_snapshot(meta: list[bytes], log: list[Any], cursors: list[bytes]) -> TopicSnapshot:
    known = _pairs(meta)
    fields = {name.partition(":")[0] for name in known}
    require(fields <= TOPIC_FIELDS, "a topic's fields are documented", known)
    return TopicSnapshot(
        publisher=known["publisher"].decode() if "publisher" in known else None,
        tail=EventID.parse(known["tail"]) if "tail" in known else None,
        base=int(known.get("base", 0)),
        log=[(EventID.parse(entry_id), fields[1]) for entry_id, fields in log],
        cursors={name: Cursor.parse(text) for name, text in _pairs(cursors).items()},
    )


def _parked(member: bytes) -> Parked:
    topic, event = member.decode().split(" ")
    us, n = event.split("-")
    return int(us), topic, int(n)


def _subscriber_snapshot(
    meta: list[bytes], memberships: list[bytes], lease: bytes | None, parked: list[bytes], order: list[bytes],
    retried: list[bytes],
) -> SubscriberSnapshot:  # fmt: skip
    known, contents = _pairs(meta), dict(zip(parked[::2], parked[1::2], strict=True))
    size = sum(map(len, contents.values()))
    require(int(known.get("parked_bytes", 0)) == size, "the bytes of parked events are counted", known, size)
    require(int(known.get("retried", 0)) == len(retried), "the events to be retried are counted", known, retried)
    once = sorted([*order, *retried]) == sorted(contents)
    require(once, "a parked event has one place", order, retried, contents)
    for each in (order, retried):
        require([*map(_parked, each)] == sorted(map(_parked, each)), "parked events are in order", each)
    holder, _, epoch = (lease or b"").decode().partition(" ")
    options = None
    if "callback" in known:
        callback, uuid, timeout, most = (known[name].decode() for name in ("callback", "uuid", "timeout", "max"))
        options = (callback, uuid or None, int(timeout), int(most))
    return SubscriberSnapshot(
        version=int(known.get("version", -1)),
        options=options,
        counts={kind: int(known.get(kind, 0)) for kind in KINDS},
        paused="paused" in known,
        parked={_parked(member): content.split(b"\n", 2)[2] for member, content in contents.items()},
        retried=set(map(_parked, retried)),
        failures=int(known.get("failures", 0)),
        error=known["last_error"].decode() if "last_error" in known else None,
        memberships={topic: int(text.split()[0]) for topic, text in _pairs(memberships).items()},
        lease=(holder, int(epoch)) if lease else None,
    )


class MemoryDriver:
    """The memory store, as two processes."""

    durable = False

    def __init__(self) -> None:
        self.stores: list[Any] = []

    def fresh(self) -> None:
        self._clock = Clock()
        self._clock.advance(1_700_000_000)
        self._store = MemoryStore(self._clock, TTL)
        self.stores = [self._store, self._store]

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return result_of(Deferred.fromCoroutine(call))

    def now(self) -> int:
        return round(self._clock.seconds() * 1e6)

    def advance(self, hours: int) -> set[str]:
        self._clock.advance(hours * HOUR)
        return set(SUBSCRIBERS)

    def expire(self, subscriber: str) -> set[str]:
        self._clock.advance(TTL + 1)
        return set(SUBSCRIBERS)

    def age(self, subscriber: str) -> None:
        """Nothing: the clock would age all leases."""

    def leftovers(self) -> list[object]:
        store = self._store
        return [*store._topics, *store._subscribers, *store._leases, *store._tokens]

    def snapshot(self) -> Snapshot:
        store = self._store
        nothing = TopicSnapshot(None, None, 0, [], {})
        topics = {
            name: TopicSnapshot(topic.publisher, topic.tail, topic.base, list(topic.log), dict(topic.cursors))
            for name, topic in store._topics.items()
        }
        return Snapshot(
            {name: topics.get(name, nothing) for name in TOPICS},
            {name: self._subscriber_snapshot(name, known) for name, known in store._subscribers.items()},
            (set(store._topics), set(store._subscribers)),
        )

    def _subscriber_snapshot(self, name: str, known: Any) -> SubscriberSnapshot:
        options, lease = known.subscription, self._store._lease(name)
        return SubscriberSnapshot(
            version=known.version,
            options=(options.callback, options.uuid, options.timeout, options.max),
            counts={kind: known.counts[kind] for kind in KINDS},
            paused=known.paused,
            parked={key: event.fragment for key, event in known.parked.items()},
            retried=set(known.retried),
            failures=known.health.failures,
            error=known.health.last_error,
            memberships={topic: membership.id for topic, membership in known.topics.items()},
            lease=lease[:2] if lease else None,
        )
