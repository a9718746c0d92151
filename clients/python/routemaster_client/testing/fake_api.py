"""The API of the fake bus: requests and answers like the real one's, as far as that goes without deliveries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from routemaster_client.protocol import Call, Response
from routemaster_client.testing import fake_rules as rules
from routemaster_client.testing.fake_rules import Refusal
from routemaster_client.testing.fake_subscriptions import FakeSubscriptions
from routemaster_client.testing.fake_topics import Request

UNAUTHORIZED = "authentication required: send your token as the HTTP Basic user name"
CLIENT, ROOT, BOTH = "client", "root", "client and root"
Handler = Callable[[Any, Request], Response]
#: who may call it, beside root for another subscriber; `*` stands for a name
_ROUTES: dict[str, tuple[Handler, str]] = {
    "GET /pulse": (FakeSubscriptions.get_pulse, BOTH),
    "GET /topics": (FakeSubscriptions.get_topics, BOTH),
    "POST /topics/*": (FakeSubscriptions.publish, CLIENT),
    "PUT /topics/*": (FakeSubscriptions.configure, BOTH),
    "GET /topics/*": (FakeSubscriptions.show_topic, BOTH),
    "DELETE /topics/*": (FakeSubscriptions.delete_topic, BOTH),
    "GET /topics/*/events": (FakeSubscriptions.topic_events, BOTH),
    "GET /topics/*/events/*": (FakeSubscriptions.where, BOTH),
    "GET /subscriptions": (FakeSubscriptions.list, BOTH),
    "POST /subscription": (FakeSubscriptions.subscribe, CLIENT),
    "GET /subscription": (FakeSubscriptions.show, CLIENT),
    "DELETE /subscription": (FakeSubscriptions.unsubscribe, CLIENT),
    "DELETE /subscriber/topics/*": (FakeSubscriptions.leave, CLIENT),
    "GET /subscription/events": (FakeSubscriptions.pull, CLIENT),
    "GET /subscription/stream": (FakeSubscriptions.stream, CLIENT),
    "POST /subscription/ack": (FakeSubscriptions.acknowledge, CLIENT),
    "POST /subscription/pause": (FakeSubscriptions.pause, CLIENT),
    "POST /subscription/resume": (FakeSubscriptions.resume, CLIENT),
    "POST /subscription/retry": (FakeSubscriptions.retry, CLIENT),
    "POST /subscription/rewind": (FakeSubscriptions.rewind, CLIENT),
    "POST /subscription/skip": (FakeSubscriptions.skip, CLIENT),
    "GET /subscription/attempts": (FakeSubscriptions.attempts, CLIENT),
    "GET /subscription/parked": (FakeSubscriptions.parked, CLIENT),
    "POST /subscription/parked/retry": (FakeSubscriptions.retry_parked, CLIENT),
    "DELETE /subscription/parked": (FakeSubscriptions.drop_parked, CLIENT),
    "GET /api_tokens": (FakeSubscriptions.tokens, ROOT),
    "POST /api_tokens": (FakeSubscriptions.add_token, ROOT),
    "DELETE /api_tokens/*": (FakeSubscriptions.delete_token, ROOT),
}


class FakeApi(FakeSubscriptions):
    """All requests. `root_key` is accepted as token too."""

    root_key = "root-key-of-tests"

    def route(self, token: str, call: Call[Any]) -> Response:
        """Answer a request; raises Refusal."""
        parts = urlsplit(call.path)
        path = [unquote(each) for each in parts.path.strip("/").split("/")]
        root, subscriber = token == self.root_key, self._speaks_for.get(token, token)
        if token not in self._clients and not root:
            raise Refusal(401, UNAUTHORIZED)
        client, of_another = subscriber, path[0] == "subscriptions" and len(path) > 1
        if of_another:
            name = path.pop(1)
            subscriber = self._named(name) if root else ""
            path[0] = "subscription"
        names = _names(path)
        pattern = f"{call.method} /" + "/".join("*" if at in names else each for at, each in enumerate(path))
        handler, who = _ROUTES.get(pattern, (None, ""))
        if handler is None:
            raise NotImplementedError(f"the fake bus does not know {call.method} {parts.path}: use RealBus")
        if root and not of_another and who == CLIENT:
            raise Refusal(401, "a client's token is required: root and monitors neither publish nor subscribe")
        if not root and (of_another or who == ROOT):
            monitor = " or a monitor key" if call.method == "GET" else ""
            raise Refusal(401, f"the root key{monitor} is required")
        found = [path[at] for at in names]
        query = dict(parse_qsl(parts.query))
        last = call.headers.get("Last-Event-ID")
        return handler(self, Request(client, root, subscriber, found, query, call.body, last))

    def _named(self, name: str) -> str:
        """The token of the subscriber with this public name, or this token."""
        if (token := self._speaks_for.get(name, name)) in self._subscriptions:
            return token
        found = [token for token in self._subscriptions if rules.public_name(token) == name]
        if len(found) > 1:
            raise Refusal(409, f"name is ambiguous: {len(found)} subscribers have it; use the token instead")
        if not found:
            raise Refusal(404, f"subscriber {rules.shown(rules.public_name(name))} does not exist")
        return found[0]


def _names(path: list[str]) -> list[int]:
    """The places of names in a path."""
    if path[0] == "topics":
        return [at for at in (1, 3) if at < len(path)]
    if path[:2] == ["subscriber", "topics"]:
        return [2] if len(path) == 3 else []
    return [1] if path[0] == "api_tokens" and len(path) == 2 else []
