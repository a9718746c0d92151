"""Topics of the fake bus, and the requests about them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from routemaster_client.model import Event
from routemaster_client.protocol import Response
from routemaster_client.rules import is_topic_name
from routemaster_client.testing import fake_rules as rules
from routemaster_client.testing.fake_rules import Refusal
from routemaster_client.testing.fake_state import FakeSubscription, FakeTopic, received

DONE = Response(204, {}, b"")


@dataclass
class Request:
    """One request: who sends it, as whom, and what the path and the query hold."""

    client: str        #: the token of the client for whom it speaks; of root its key
    root: bool
    subscriber: str    #: whose subscription it is about
    names: list[str]   #: in the path
    query: dict[str, str]
    body: bytes | None
    last: str | None = None  #: the header Last-Event-ID

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return rules.decoded(self.body)


class FakeTopics:
    """All that the bus knows, and the handlers of requests about topics."""

    def reset(self) -> None:
        """Forget everything."""
        self._clients: dict[str, str] = {}   # token -> name
        self._speaks_for: dict[str, str] = {}  # token -> the token that it replaces
        self._topics: dict[str, FakeTopic] = {}
        self._subscriptions: dict[str, FakeSubscription] = {}
        self._latest = 0  # when the last event was received, in microseconds
        self.published: list[Event] = []  #: every event accepted, in order

    def get_pulse(self, request: Request) -> Response:
        return DONE

    def get_topics(self, request: Request) -> Response:
        return answered([self._listed(topic, request) for topic in self._topics.values()])

    def publish(self, request: Request) -> Response:
        [name] = request.names
        rules.topic(name)
        known = self._topics.get(name)
        most = (known and known.settings["max_data"]) or rules.MAX_DATA
        events = rules.events(request.json, most)
        topic = self._claim(request, name)
        accepted = [self._receive(topic, each) for each in events]
        self.published += accepted
        for subscription in self._subscriptions.values():
            if name in subscription.options["topics"]:
                subscription.add(accepted, self._now())
        ids = dict.fromkeys((accepted[0].id, accepted[-1].id))
        return Response(204, {"routemaster-event": "..".join(ids)}, b"")

    def configure(self, request: Request) -> Response:
        [name] = request.names
        rules.topic(name)
        settings = rules.topic_settings(request.json)
        known = self._topics.get(name)
        allowed = max(rules.MAX_DATA, (known and known.settings["max_data"]) or 0)
        if not request.root and (settings["max_data"] or 0) > allowed:
            text = f"max_data is invalid: got {settings['max_data']}, expected at most {rules.MAX_DATA} bytes"
            raise Refusal(403, f"{text} (max_event_data); only root may allow more")
        self._claim(request, name).settings = settings
        return DONE

    def show_topic(self, request: Request) -> Response:
        topic = self._topic(request.names[0])
        kept = self._kept(topic)
        described = {
            **self._listed(topic, request), **topic.settings, "first": kept[0].id if kept else None,
            "last": topic.log[-1].id if topic.log else None,
        }  # fmt: skip
        if self._owns(request, topic):
            queues = {
                token: [event for event in each.queue if event.topic == topic.name]
                for token, each in sorted(self._subscriptions.items()) if topic.name in each.options["topics"]
            }  # fmt: skip
            described["subscribers"] = [
                {"subscriber": rules.public_name(token), "queued": len(queue), "oldest": seconds(queue)}
                for token, queue in queues.items()
            ]
        return answered(described)

    def delete_topic(self, request: Request) -> Response:
        topic = self._topic(request.names[0])
        self._claim(request, topic.name)
        del self._topics[topic.name]
        for subscription in self._subscriptions.values():
            awaited = subscription.options["missing_topics"] == "await"
            names = subscription.options["topics"]
            subscription.options["topics"] = [each for each in names if awaited or each != topic.name]
        return DONE

    def topic_events(self, request: Request) -> Response:
        topic, query = self._owned(request), request.query
        after = rules.event_number(query["after"], "after") if "after" in query else 0
        found = [event for event in self._kept(topic)
                 if event.number > after and query.get("url", event.url) == event.url]  # fmt: skip
        most = min(rules.whole(query, "max") or 100, 1000)
        following = found[most - 1].id if len(found) >= most else None
        return answered({"events": [shown(event) for event in found[:most]], "next": following})

    def where(self, request: Request) -> Response:
        topic, wanted = self._owned(request), request.names[1]
        number = rules.event_number(wanted, "id")
        event = next((each for each in topic.log if each.id == wanted), None)
        if event is None or number < 1:
            raise Refusal(404, f"event {rules.shown(wanted)} does not exist in topic {topic.name}")
        found = [
            {"subscriber": rules.public_name(token), **became}
            for token, each in sorted(self._subscriptions.items()) if (became := each.where(event)) is not None
        ]  # fmt: skip
        kept = event in self._kept(topic)
        return answered({"id": event.id, "topic": topic.name, "event": shown(event) if kept else None,
                      "subscribers": found})  # fmt: skip

    def _topic(self, name: str) -> FakeTopic:
        if name not in self._topics:
            raise Refusal(404, f"topic {name if is_topic_name(name) else rules.shown(name)} does not exist")
        return self._topics[name]

    def _owns(self, request: Request, topic: FakeTopic) -> bool:
        return request.root or topic.publisher == request.client

    def _owned(self, request: Request) -> FakeTopic:
        topic = self._topic(request.names[0])
        if not self._owns(request, topic):
            raise Refusal(403, f"topic {topic.name} is owned by another client")
        return topic

    def _claim(self, request: Request, name: str) -> FakeTopic:
        if request.root:
            return self._topic(name)
        topic = self._topics.setdefault(name, FakeTopic(name, request.client))
        return self._owned(Request(request.client, False, "", [topic.name], {}, None))

    def _kept(self, topic: FakeTopic) -> list[Event]:
        """What a topic keeps: from the first event that waits for a subscriber, or belongs to the history."""
        waiting = [event.number for each in self._subscriptions.values() for event in each.queue
                   if event.topic == topic.name]  # fmt: skip
        history = [event.number for event in topic.history(self._now())]
        first = min([*waiting, *history], default=len(topic.log) + 1)
        return [event for event in topic.log if event.number >= first]

    def _receive(self, topic: FakeTopic, event: dict[str, Any]) -> Event:
        now = self._latest = max(self._latest + 1, self._now())
        t, number = event.get("timestamp"), len(topic.log) + 1
        at = now // 1000 if t is None else t
        made = Event(topic.name, event["type"], event["url"], at, event.get("data"), f"{now}-{number}")
        topic.log.append(made)
        return made

    def _listed(self, topic: FakeTopic, request: Request) -> dict[str, Any]:
        owner = topic.publisher if self._owns(request, topic) else rules.public_name(topic.publisher)
        return {"name": topic.name, "publisher": owner, "events": len(topic.log)}

    @staticmethod
    def _now() -> int:
        return time.time_ns() // 1000

    def subscription(self, token: str, pulled: bool = False) -> FakeSubscription:
        """A subscription; with `pulled` it must have no callback."""
        if token not in self._subscriptions:
            raise Refusal(404, "this client has no subscription")
        found = self._subscriptions[token]
        if pulled and found.options["callback"] is not None:
            raise Refusal(409, "this subscription has a callback: its events are delivered there")
        found.expire(self._now())
        return found


def answered(value: object, status: int = 200) -> Response:
    return Response(status, {}, json.dumps(value).encode())


def shown(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    return {name: value for name, value in vars(event).items() if value is not None}


def seconds(queue: list[Event]) -> float | None:
    """When the oldest event of a queue was received, in seconds since the epoch."""
    return received(queue[0]) / 1e6 if queue else None
