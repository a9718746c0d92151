"""A bus with something of everything that it keeps: for tests that continue with its data elsewhere.

    bus = Furnished(case)
    await bus.fill(daemon)         # a daemon with `OPTIONS`
    before = await bus.answers(daemon)
    ...                            # the data go to another version, or to another Redis
    await bus.goes_on(another)

`case` is a `SystemCase`, which checks each step.
"""

from __future__ import annotations

from typing import Any

from routemaster.testing.daemon import Client, Daemon
from routemaster.testing.zoo import Answer, Received
from tests.system.test_system import Sink, SystemCase, until

ROOT = "root--key"
CLIENTS = ("maker", "reader", "paused", "puller", "parker", "failing", "leaver", "waiter")
OPTIONS = ("--root-key", ROOT, "--clients", ",".join(CLIENTS), "--timeout", "5", "--retry-delay", "20",
           "--max-backoff-ms", "500", "--lease-ttl", "2")  # fmt: skip
SECRETS = "whsec_" + "A" * 32, "whsec_" + "B" * 32
POISON = "poison"
HOUR = 3_600_000  #: milliseconds
OLD, NEW, SHOP = "shop--" + "1" * 32, "shop--" + "2" * 32, "shop"
#: what changes as time passes, though nothing happens
PASSING = {"next_attempt"}
CATS = [*range(30), POISON, 30, 31]  #: the data of all events of these topics, in the end
DOGS = [n for n in range(32) for _ in range(2)]


class Choosy(Sink):
    """A receiver that refuses batches with a poisonous event, until it is told otherwise."""

    refuses = True

    @property
    def default(self) -> Answer:
        last: Received | None = self.received[-1] if self.received else None
        poisoned = self.refuses and last is not None and POISON.encode() in last.body
        return Answer(422) if poisoned else Answer(204)

    @default.setter
    def default(self, answer: Answer) -> None:
        """The answer follows from the request."""


class Furnished:
    """The receivers, which stay, and what they must have got in the end."""

    def __init__(self, case: SystemCase) -> None:
        self.case = case
        self.reader, self.paused, self.failing, self.leaver = (case.sink() for _ in range(4))
        self.parker = Choosy()
        case.addCleanup(self.parker.stop)
        self.failing.default = Answer(500)
        self.cursor = ""  #: that the client which pulls has got, and not acknowledged
        self.event = ""  #: the ID of an event

    def _as(self, daemon: Daemon, token: str) -> Client:
        return self.case.client(daemon, token)

    async def fill(self, daemon: Daemon) -> None:
        """Make topics, tokens and subscriptions, and use them."""
        ok = self.case.ok
        root, maker = self._as(daemon, ROOT), self._as(daemon, "maker")
        for body, status in (
            ({"name": SHOP, "token": OLD}, 201), ({"name": SHOP, "token": NEW, "replaces": OLD}, 201),
            ({"name": "gone", "token": "gone--1"}, 201),
        ):  # fmt: skip
            await ok(root.ask("POST", "/api_tokens", body), status)
        await ok(root.ask("DELETE", "/api_tokens/gone--1"))
        await ok(maker.ask("PUT", "/topics/cats", {"history": HOUR, "history_events": 500}))
        for topic in ("cats", "dogs", "large", "shut"):
            await ok(maker.publish(topic, -1))
        await ok(root.ask("PUT", "/topics/large", {"max_data": 100_000}))
        await ok(self._as(daemon, OLD).publish("orders", -1))
        await self._subscribe(daemon)
        for n in range(30):
            answer = await ok(maker.publish("cats", n))
            await ok(maker.publish("dogs", n, n))
        self.event = answer.headers.getRawHeaders("Routemaster-Event")[0]
        await ok(maker.publish("cats", POISON))
        await ok(maker.publish("shut", 0, 1, 2))
        await ok(self._as(daemon, "leaver").ask("DELETE", "/subscriber/topics/shut"))
        await ok(maker.ask("DELETE", "/topics/shut"))
        await self._come_to_rest(daemon)

    async def _subscribe(self, daemon: Daemon) -> None:
        async def subscribe(name: str, sink: Sink | None, *topics: str, **options: Any) -> None:
            callback = {"callback": sink.url} if sink else {}
            body = {"topics": topics, **callback, **options}
            await self.case.ok(self._as(daemon, name).ask("POST", "/subscription", body))

        limits = {"rate": 5000, "retention": HOUR, "max_queued": 10_000, "max_bytes": 50_000, "max": 7}
        for secret in SECRETS:
            await subscribe(
                "reader", self.reader, "cats", "dogs", "orders", uuid="s3cret", secret=secret, **limits
            )
        await subscribe("paused", self.paused, "cats", timeout=0)
        await self.case.ok(self._as(daemon, "paused").ask("POST", "/subscription/pause"))
        await subscribe("puller", None, "dogs")
        await subscribe("parker", self.parker, "cats", park_after=2, timeout=0)
        await subscribe("failing", self.failing, "dogs", timeout=0)
        await subscribe("leaver", self.leaver, "cats", "shut", timeout=HOUR)
        await subscribe("waiter", self.reader, "not_yet", missing_topics="await", uuid="waiter")

    async def _come_to_rest(self, daemon: Daemon) -> None:
        """Return when what can be delivered is, and the rest waits as it is meant to."""
        puller = self._as(daemon, "puller")
        for _ in range(2):
            path = f"/subscription/events?max=10{self.cursor and '&ack='}{self.cursor}"
            self.cursor = (await self.case.ok(puller.ask("GET", path), 200)).json["cursor"]
        await until(lambda: len(self.reader.numbers) == 91, "the reader has everything")
        await until(lambda: self.failing.received, "a delivery failed")
        parked: list[Any] = []
        while not parked:
            answer = await self.case.ok(self._as(daemon, "parker").ask("GET", "/subscription/parked"), 200)
            parked = answer.json["events"]
        await until(lambda: len(set(map(str, self.parker.numbers))) == 31, "the choosy one has everything")

    async def answers(self, daemon: Daemon) -> dict[str, Any]:
        """What root reads, by path; of a process without a worker, because a delivery would change it."""
        paths = ["/topics", "/subscriptions", "/api_tokens", "/topics/cats/events"]
        paths += [f"/topics/cats/events/{self.event}"]
        paths += [f"/topics/{topic}" for topic in ("cats", "dogs", "large", "orders")]
        for name in CLIENTS[1:]:
            paths += [f"/subscriptions/{name}{rest}" for rest in ("", "/attempts", "/parked")]
        root = self._as(daemon, ROOT)
        return {path: (await self.case.ok(root.ask("GET", path), 200)).json for path in paths}

    async def goes_on(self, daemon: Daemon) -> None:
        """Check that each subscription continues where it was, and tokens and topics belong to whom they did."""
        await self._check_tokens(daemon)
        ok, maker = self.case.ok, self._as(daemon, "maker")
        for n in (30, 31):
            await ok(maker.publish("cats", n))
            await ok(maker.publish("dogs", n, n))
            await ok(maker.publish("not_yet", n))
        await until(lambda: len(self.reader.numbers) >= 101, "new events")
        for topic, data in (("cats", CATS), ("dogs", DOGS), ("not_yet", [30, 31]), ("orders", [0, 1])):
            self.case.assertEqual(got(self.reader, topic), data)
        await self._check_waiting(daemon)
        await self._check_pulling(daemon)
        await ok(self._as(daemon, "leaver").ask("POST", "/subscription", {
            "topics": ["cats"], "callback": self.leaver.url, "timeout": 0}))  # fmt: skip
        await until(lambda: len(self.leaver.numbers) == 36, "what a topic held that was left and deleted")
        self.case.assertEqual(got(self.leaver, "shut"), [0, 1, 2])

    async def _check_tokens(self, daemon: Daemon) -> None:
        ok = self.case.ok
        await ok(self._as(daemon, NEW).publish("orders", 0))
        await ok(self._as(daemon, OLD).publish("orders", 1))
        await ok(self._as(daemon, "gone--1").publish("orders", 2), 401)
        await ok(self._as(daemon, NEW).publish("cats", 2), 403)
        await until(lambda: 1 in self.reader.numbers, "orders")

    async def _check_waiting(self, daemon: Daemon) -> None:
        """What was paused, failed or parked comes, in order, and once."""
        ok = self.case.ok
        self.case.assertEqual(self.paused.received, [])
        await ok(self._as(daemon, "paused").ask("POST", "/subscription/resume"))
        await until(lambda: self.paused.numbers == CATS, "what waited in the pause")
        self.failing.default = Answer(204)
        failed = len(self.failing.received)
        await ok(self._as(daemon, "failing").ask("POST", "/subscription/retry"))
        await until(lambda: got(self.failing, since=failed)[-len(DOGS) :] == DOGS, "what failed")
        self.parker.refuses = False
        count = len(self.parker.received)
        await ok(self._as(daemon, "parker").ask("POST", "/subscription/parked/retry"))
        await until(lambda: POISON in got(self.parker, since=count), "what was parked")

    async def _check_pulling(self, daemon: Daemon) -> None:
        """A cursor from before is acknowledged; what follows it comes."""
        path = f"/subscription/events?ack={self.cursor}&max=100"
        answer = await self.case.ok(self._as(daemon, "puller").ask("GET", path), 200)
        self.case.assertEqual([event["data"] for event in answer.json["events"]], DOGS[20:])


def got(sink: Sink, topic: str | None = None, since: int = 0) -> list[Any]:
    """The data of the events that came, of one topic or all, in the batches from `since` on."""
    return [e["data"] for batch in sink.batches[since:] for e in batch if topic in (None, e["topic"])]


def lacking(old: Any, new: Any, where: str = "") -> list[str]:
    """What an answer had and another has not, or has otherwise; what is new may be there."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{where}.{name} is missing" for name in old.keys() - new.keys()]
        both = [name for name in old.keys() & new.keys() if name not in PASSING]
        return found + [text for name in both for text in lacking(old[name], new[name], f"{where}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [text for n, pair in pairs for text in lacking(*pair, f"{where}[{n}]")]
    return [] if old == new else [f"{where} was {old!r}, is {new!r}"]
