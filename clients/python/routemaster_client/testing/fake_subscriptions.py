"""Subscriptions and tokens of the fake bus, and the requests about them."""

from __future__ import annotations

import itertools
import time
from typing import Any

from routemaster_client.protocol import Response
from routemaster_client.testing import fake_rules as rules
from routemaster_client.testing.fake_rules import Refusal
from routemaster_client.testing.fake_state import FakeSubscription
from routemaster_client.testing.fake_topics import DONE, FakeTopics, Request, answered, seconds, shown

_made = itertools.count(1)


class FakeSubscriptions(FakeTopics):
    """The handlers of requests about subscriptions and tokens."""

    def subscribe(self, request: Request) -> Response:
        options = rules.subscription(request.json)
        if options["missing_topics"] != "await":
            for name in options["topics"]:
                if name not in self._topics:
                    raise Refusal(404, f"topic {name} does not exist")
        answer = DONE
        if options["secret"] is True:
            options["secret"] = rules.new_secret()
            answer = answered({"secret": options["secret"]})
        there = self._subscriptions.get(request.subscriber)
        before = [] if there is None else there.options["topics"]
        if there is None:
            there = self._subscriptions[request.subscriber] = FakeSubscription(options)
        there.options = options
        for name in options["topics"]:
            if name not in before and name in self._topics and options["start"] != "next":
                there.rewind(self._topics[name], rules.moment(options["start"]), self._now())
        there.expire(self._now())
        return answer

    def unsubscribe(self, request: Request) -> Response:
        self.subscription(request.subscriber)
        del self._subscriptions[request.subscriber]
        return DONE

    def leave(self, request: Request) -> Response:
        [name] = request.names
        topics = self.subscription(request.subscriber).options["topics"]
        if name not in topics:
            self._not_subscribed(name)
        topics.remove(name)
        return DONE

    def show(self, request: Request) -> Response:
        return answered(self._described(request.subscriber, reveals=True, whole=True))

    def list(self, request: Request) -> Response:
        return answered([
            self._described(each, request.root or each == request.client) for each in self._subscriptions
        ])  # fmt: skip

    # -- pulling

    def pull(self, request: Request) -> Response:
        subscription, query = self.subscription(request.subscriber, pulled=True), request.query
        most, wait = rules.whole(query, "max"), rules.whole(query, "wait")
        if "ack" in query:
            subscription.acknowledge(query["ack"], self._latest)
        limit = subscription.most if most is None else min(most, subscription.most)
        batch = [] if subscription.paused else subscription.queue[:limit]
        if not batch and wait:
            time.sleep(0.01)  # a consumer asks again and again
        cursor, queued = subscription.cursor(batch), len(subscription.queue)
        return answered({"events": [shown(event) for event in batch], "cursor": cursor, "queued": queued})

    def stream(self, request: Request) -> Response:
        """The answer's beginning, for `FakeBus.open`."""
        how = {name: value for name, value in request.query.items() if name == "ack"}
        if how.get("ack", "sent") != "sent":
            raise Refusal(400, f"ack is invalid: got {rules.shown(how['ack'])}, expected sent")
        subscription = self.subscription(request.subscriber, pulled=True)
        if request.last is not None:
            subscription.acknowledge(request.last, self._latest)
        return Response(200, {"subscriber": request.subscriber, **how}, b"")

    def acknowledge(self, request: Request) -> Response:
        cursor = rules.cursor(request.json)
        self.subscription(request.subscriber, pulled=True).acknowledge(cursor, self._latest)
        return DONE

    # -- deciding what is delivered

    def pause(self, request: Request) -> Response:
        self.subscription(request.subscriber).paused = True
        return DONE

    def resume(self, request: Request) -> Response:
        self.subscription(request.subscriber).paused = False
        return DONE

    def retry(self, request: Request) -> Response:
        self.subscription(request.subscriber)
        return DONE

    def rewind(self, request: Request) -> Response:
        to, topics = rules.reach(request.json, "oldest")
        subscription = self.subscription(request.subscriber)
        chosen = self._chosen(subscription, topics)
        names = subscription.options["topics"] if chosen is None else chosen
        known = [name for name in names if name in self._topics]
        events = sum(subscription.rewind(self._topics[name], rules.moment(to), self._now()) for name in known)
        return answered({"events": events})

    def skip(self, request: Request) -> Response:
        to, topics = rules.reach(request.json, "next")
        subscription = self.subscription(request.subscriber)
        before = None if to == "next" else rules.moment(to)
        return answered({"events": subscription.skip(self._chosen(subscription, topics), before)})

    def attempts(self, request: Request) -> Response:
        self.subscription(request.subscriber)
        return answered({"failed": [], "success": None})

    def parked(self, request: Request) -> Response:
        self.subscription(request.subscriber)
        return answered({"events": [], "next": None})

    def retry_parked(self, request: Request) -> Response:
        if self.subscription(request.subscriber).options["callback"] is None:
            raise Refusal(409, "this subscription has no callback: its events are pulled")
        return DONE

    def drop_parked(self, request: Request) -> Response:
        self.subscription(request.subscriber)
        return DONE

    def _chosen(self, subscription: FakeSubscription, topics: Any) -> Any:
        """These topics, if the subscription has all of them; None: all."""
        for name in topics or ():
            if name not in subscription.options["topics"] or name not in self._topics:
                self._not_subscribed(name)
        return topics

    def _not_subscribed(self, name: str) -> None:
        raise Refusal(404, f"this client is not subscribed to {name}")

    def _described(self, token: str, reveals: bool, whole: bool = False) -> dict[str, Any]:
        """As `GET /subscription` (`whole`) or `GET /subscriptions` shows it; `reveals`: with token and uuid."""
        subscription = self.subscription(token)
        options, counts, queue = subscription.options, subscription.counts, subscription.queue
        known = [name for name in options["topics"] if name in self._topics]
        described = {
            "subscriber": token if reveals else rules.public_name(token), "callback": options["callback"],
            "uuid": options["uuid"] if reveals else None, "max_events": options["max"],
            "timeout": options["timeout"], "topics": known,
            "awaited": [name for name in options["topics"] if name not in known],
            "events": {"sent": counts["acknowledged"], "queued": len(queue), "oldest": seconds(queue)},
            "health": {"state": "paused" if subscription.paused else "idle", "failures": 0, "last_attempt": None,
                       "last_success": None, "last_error": None, "next_attempt": None},
        }  # fmt: skip
        if whole:
            described |= {name: options[name] for name in ("max_bytes", "retention", "max_queued", "rate", "start",
                                                           "missing_topics", "park_after")}  # fmt: skip
            described["signed"] = options["secret"] is not None
            described["events"] |= {"added": counts.total() + len(queue), "expired": counts["expired"],
                                    "skipped": counts["skipped"], "parked": 0, "dropped": 0}  # fmt: skip
        return described

    # -- tokens

    def tokens(self, request: Request) -> Response:
        listed = [{"name": name, "token": token} for token, name in self._clients.items()]
        return answered(sorted(listed, key=lambda each: (each["name"], each["token"]))) if listed else DONE

    def add_token(self, request: Request) -> Response:
        name, token, replaces = rules.api_token(request.json)
        token = token or f"{name}--{next(_made):032x}"
        if replaces is not None:
            if replaces not in self._clients:
                raise Refusal(404, "replaces is invalid: there is no such token")
            client = self._speaks_for.get(replaces, replaces)
            if token in self._clients and self._speaks_for.get(token, token) != client:
                text = "token is invalid: it exists, and is another client's than the one that it is to replace"
                raise Refusal(409, text)
            self._speaks_for[token] = client
        self._clients[token] = name
        return answered({"name": name, "token": token}, 201)

    def delete_token(self, request: Request) -> Response:
        self._clients.pop(request.names[0], None)
        return DONE
