"""A bus in the memory of the process, which checks what the real one checks.

    with FakeBus() as bus:
        client = bus.client("shop")
        client.created("orders", "https://shop.example.com/orders/1")
        bus.assert_published("orders", "create", "https://shop.example.com/orders/1")
        bus.deliver("mail", receiver)  # what waits for the subscriber "mail"

Clients, background publishers and consumers work on it as they are, of all three kinds, with the URL `bus.url`
and a token of `add_client`: while it is active their requests go to it, and no connection is made. It knows
topics, publishing, subscriptions and pulling; what it does not know raises NotImplementedError: use `RealBus`
there. Nothing is delivered unless the test says so.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from routemaster_client.blocking import Client
from routemaster_client.model import Event
from routemaster_client.protocol import Call, Response, Settings
from routemaster_client.receiver import Receiver
from routemaster_client.testing import fake_rules as rules
from routemaster_client.testing.fake_rules import Refusal

_active: dict[str, FakeBus] = {}
_numbers = itertools.count(1)


@dataclass
class _Topic:
    publisher: str
    events: list[Event] = field(default_factory=list)


@dataclass
class _Subscription:
    options: dict[str, Any]
    queue: list[Event] = field(default_factory=list)
    sent: int = 0
    paused: bool = False


class FakeBus:
    """See the module. `root_key` is accepted as token too."""

    root_key = "root-key-of-tests"

    def __init__(self) -> None:
        self.url = f"https://fake-bus-{next(_numbers)}.invalid"
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._clients: dict[str, str] = {}  # token -> name
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._count = itertools.count(1)
        self._failures: list[Response] = []
        self.published: list[Event] = []  #: every event accepted, in order

    def __enter__(self) -> FakeBus:
        _install()
        _active[self.url] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del _active[self.url]

    def add_client(self, name: str) -> str:
        """Make a client; its token."""
        self._clients[f"{name}--secret"] = name
        return f"{name}--secret"

    def client(self, name: str, **options: Any) -> Client:
        """A blocking client with a token of this name."""
        return Client(self.url, self.add_client(name), **options)

    def fail(self, times: int = 1, *, outcome_unknown: bool = False) -> None:
        """Have the next requests answered 503."""
        body: dict[str, str] = {"error": "Redis is unavailable"}
        if outcome_unknown:
            body["outcome"] = "unknown"
        self._failures += [Response(503, {"retry-after": "0"}, json.dumps(body).encode())] * times

    def events(self, topic: str | None = None, type: str | None = None, url: str | None = None) -> list[Event]:
        """The published events of this topic, type and URL."""
        wanted = {"topic": topic, "type": type, "url": url}
        given = {name: value for name, value in wanted.items() if value is not None}
        return [event for event in self.published if given.items() <= vars(event).items()]

    def assert_published(self, topic: str, type: str | None = None, url: str | None = None, **more: Any) -> Event:
        """The one event of this topic, type, URL, `data`, `t`; AssertionError unless there is exactly one."""
        found = [event for event in self.events(topic, type, url)
                 if all(getattr(event, name) == value for name, value in more.items())]  # fmt: skip
        if len(found) != 1:
            listed = "".join(f"\n  {event}" for event in self.published) or " nothing"
            raise AssertionError(f"{len(found)} events match, expected 1; published:{listed}")
        return found[0]

    def assert_nothing_published(self, topic: str | None = None) -> None:
        """AssertionError if there is an event (of this topic)."""
        if found := self.events(topic):
            raise AssertionError(f"{len(found)} events were published: {found}")

    def deliver(self, subscriber: str, receiver: Receiver) -> int:
        """Deliver what waits for a subscriber, batch by batch, as the bus does; returns how many events.

        Raises what a handler raises; its batch stays in the queue.
        """
        subscription, delivered = self._subscriptions[f"{subscriber}--secret"], 0
        while subscription.queue and not subscription.paused:
            batch = subscription.queue[: subscription.options["max"]]
            receiver.handle(batch)
            self._acknowledge(subscription, len(batch))
            delivered += len(batch)
        return delivered

    def answer(self, settings: Settings, call: Call[Any]) -> Response:
        """Answer a request, as the bus does."""
        with self._lock:
            if self._failures:
                return self._failures.pop(0)
            try:
                return self._route(settings.token, call)
            except Refusal as error:
                return Response(error.status, {}, json.dumps({"error": str(error)}).encode())

    def _route(self, token: str, call: Call[Any]) -> Response:
        parts = urlsplit(call.path)
        path, query = parts.path.strip("/").split("/"), dict(parse_qsl(parts.query))
        if token not in self._clients and token != self.root_key:
            raise Refusal(401, "authentication required: send your token as the HTTP Basic user name")
        one_topic = path[0] == "topics" and len(path) == 2
        name = "_".join([call.method.lower(), "topics_one" if one_topic else "_".join(path)])
        handler: Callable[..., Response] | None = getattr(self, f"_do_{name}", None)
        if handler is None:
            raise NotImplementedError(f"the fake bus does not know {call.method} {parts.path}: use RealBus")
        if token == self.root_key and call.method != "GET":
            raise Refusal(401, "authentication required: send your token as the HTTP Basic user name")
        return handler(token, path[1] if one_topic else query, call.body)

    def _do_get_pulse(self, token: str, query: Any, body: Any) -> Response:
        return Response(204, {}, b"")

    def _do_get_topics(self, token: str, query: Any, body: Any) -> Response:
        return _json([{"name": name, "publisher": self._shown(topic.publisher, token), "events": len(topic.events)}
                      for name, topic in self._topics.items()])  # fmt: skip

    def _do_post_topics_one(self, token: str, name: str, body: bytes | None) -> Response:
        rules.topic(name)
        accepted = [self._received(name, each) for each in rules.events(rules.decoded(body))]
        topic = self._claim(token, name)
        topic.events += accepted
        self.published += accepted
        for subscription in self._subscriptions.values():
            if name in subscription.options["topics"]:
                subscription.queue += accepted
        ids = dict.fromkeys((accepted[0].id, accepted[-1].id))
        return Response(204, {"routemaster-event": "..".join(ids)}, b"")

    def _do_put_topics_one(self, token: str, name: str, body: bytes | None) -> Response:
        self._claim(token, rules.topic(name))
        return Response(204, {}, b"")

    def _do_delete_topics_one(self, token: str, name: str, body: bytes | None) -> Response:
        if name not in self._topics:
            raise Refusal(404, f"topic {name} does not exist")
        self._claim(token, name)
        del self._topics[name]
        for subscription in self._subscriptions.values():
            subscription.options["topics"] = [each for each in subscription.options["topics"] if each != name]
        return Response(204, {}, b"")

    def _do_post_subscription(self, token: str, query: Any, body: bytes | None) -> Response:
        options = rules.subscription(rules.decoded(body))
        if options["missing_topics"] != "await":
            for name in options["topics"]:
                if name not in self._topics:
                    raise Refusal(404, f"topic {name} does not exist")
        there = self._subscriptions.get(token)
        if there is None:
            self._subscriptions[token] = _Subscription(options)
        else:
            there.options = options
        return Response(204, {}, b"")

    def _do_delete_subscription(self, token: str, query: Any, body: Any) -> Response:
        self._own(token)
        del self._subscriptions[token]
        return Response(204, {}, b"")

    def _do_get_subscription(self, token: str, query: Any, body: Any) -> Response:
        return _json(self._described(token, self._own(token)))

    def _do_get_subscriptions(self, token: str, query: Any, body: Any) -> Response:
        return _json([self._described(each, self._subscriptions[each]) for each in self._subscriptions])

    def _do_post_subscription_pause(self, token: str, query: Any, body: Any) -> Response:
        self._own(token).paused = True
        return Response(204, {}, b"")

    def _do_post_subscription_resume(self, token: str, query: Any, body: Any) -> Response:
        self._own(token).paused = False
        return Response(204, {}, b"")

    def _do_get_subscription_events(self, token: str, query: dict[str, str], body: Any) -> Response:
        subscription = self._pulled(token)
        if "ack" in query:
            self._ack(subscription, query["ack"])
        most = int(query.get("max", subscription.options["max"]))
        batch = [] if subscription.paused else subscription.queue[:most]
        if not batch and "wait" in query:
            time.sleep(0.01)  # a consumer asks again and again
        shown = [{name: value for name, value in vars(event).items() if value is not None} for event in batch]
        cursor = str(subscription.sent + len(batch))
        return _json({"events": shown, "cursor": cursor, "queued": len(subscription.queue)})

    def _do_post_subscription_ack(self, token: str, query: Any, body: bytes | None) -> Response:
        self._ack(self._pulled(token), rules.decoded(body)["cursor"])
        return Response(204, {}, b"")

    def _ack(self, subscription: _Subscription, cursor: str) -> None:
        if not cursor.isdecimal() or int(cursor) > subscription.sent + len(subscription.queue):
            raise Refusal(400, "cursor is invalid: expected one that this subscription was given with its events")
        self._acknowledge(subscription, max(0, int(cursor) - subscription.sent))

    def _acknowledge(self, subscription: _Subscription, count: int) -> None:
        del subscription.queue[:count]
        subscription.sent += count

    def _pulled(self, token: str) -> _Subscription:
        subscription = self._own(token)
        if subscription.options["callback"] is not None:
            raise Refusal(409, "this subscription has a callback: its events are delivered there")
        return subscription

    def _own(self, token: str) -> _Subscription:
        if token not in self._subscriptions:
            raise Refusal(404, "this client has no subscription")
        return self._subscriptions[token]

    def _claim(self, token: str, name: str) -> _Topic:
        topic = self._topics.setdefault(name, _Topic(token))
        if topic.publisher != token:
            raise Refusal(403, f"topic {name} is owned by another client")
        return topic

    def _received(self, topic: str, event: dict[str, Any]) -> Event:
        now, number = time.time(), next(self._count)
        t = event.get("timestamp")
        at = int(now * 1000) if t is None else t
        return Event(topic, event["type"], event["url"], at, event.get("data"), f"{int(now * 1e6)}-{number}")

    def _described(self, token: str, subscription: _Subscription) -> dict[str, Any]:
        options = subscription.options
        shown = {name: options[name] for name in rules.SUBSCRIPTION if name not in ("max", "secret", "topics")}
        known = [name for name in options["topics"] if name in self._topics]
        return {
            **shown, "subscriber": token, "max_events": options["max"], "topics": known,
            "awaited": [name for name in options["topics"] if name not in known],
            "events": {"sent": subscription.sent, "queued": len(subscription.queue), "oldest": None},
            "health": {"state": "paused" if subscription.paused else "idle", "failures": 0, "last_attempt": None,
                       "last_success": None, "last_error": None, "next_attempt": None},
        }  # fmt: skip

    def _shown(self, owner: str, token: str) -> str:
        return owner if owner == token or token == self.root_key else owner.partition("--")[0]


@cache
def _install() -> None:
    """Have the clients look for a fake bus before they make a connection."""
    _intercept(Client)
    with suppress(ImportError):
        from routemaster_client.aio import AsyncClient

        _intercept_async(AsyncClient)
    with suppress(ImportError):
        from routemaster_client.tx import TwistedClient

        _intercept_async(TwistedClient)


def _intercept(client: Any) -> None:
    exchange = client._exchange

    def intercepted(self: Any, call: Call[Any]) -> Response:
        bus = _active.get(self.settings.base)
        answer: Response = exchange(self, call) if bus is None else bus.answer(self.settings, call)
        return answer

    client._exchange = intercepted


def _intercept_async(client: Any) -> None:
    exchange = client._exchange

    async def intercepted(self: Any, call: Call[Any]) -> Response:
        bus = _active.get(self.settings.base)
        answer: Response = await exchange(self, call) if bus is None else bus.answer(self.settings, call)
        return answer

    client._exchange = intercepted


def _json(value: object) -> Response:
    return Response(200, {}, json.dumps(value).encode())
