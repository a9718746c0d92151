"""Every request of the API as a `Call`: these functions are the methods of all clients.

A client's method has the parameters of its function here, and returns the type of the function's `Call` (an
asyncio client a coroutine of it, a Twisted client a Deferred). Methods with `subscriber` concern the client's own
subscription; root names another by its public name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from json import loads
from typing import Any, Literal
from urllib.parse import urlencode

from routemaster_client import model
from routemaster_client.model import Event, EventIDs, NewEvent, Pulled, Time
from routemaster_client.protocol import Call, Response
from routemaster_client.rules import bulk_json, encode, event_json, milliseconds, segment, topic_name


def publish(topic: str, event: NewEvent) -> Call[str]:
    """Publish one event; its ID. The first client to publish to a topic owns it."""
    return Call("POST", _topic(topic), _event_id, event_json(event))


def created(topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> Call[str]:
    """Publish that the resource at `url` was created; the event's ID. See `NewEvent`."""
    return publish(topic, NewEvent("create", url, timestamp, data))


def updated(topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> Call[str]:
    """Publish that the resource at `url` was changed; the event's ID."""
    return publish(topic, NewEvent("update", url, timestamp, data))


def deleted(topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> Call[str]:
    """Publish that the resource at `url` was deleted; the event's ID."""
    return publish(topic, NewEvent("delete", url, timestamp, data))


def noop(topic: str, url: str, *, timestamp: Time | None = None, data: Any = None) -> Call[str]:
    """Publish that the resource at `url` exists, unchanged; the event's ID."""
    return publish(topic, NewEvent("noop", url, timestamp, data))


def bulk(topic: str, events: Sequence[NewEvent]) -> Call[EventIDs]:
    """Publish 1 to 1,000 events in one step, all or none."""
    return bulk_of(topic, bulk_json(events))


def bulk_of(topic: str, body: bytes) -> Call[EventIDs]:
    """`bulk` for events that are encoded already: a JSON array."""
    return Call("POST", _topic(topic), _event_ids, body)


def topics() -> Call[list[model.Topic]]:
    """All topics."""
    return _get("/topics")


def topic(name: str) -> Call[model.TopicDetails]:
    """One topic: its publisher, settings and IDs; for its publisher and root also its subscribers."""
    return _get(_topic(name))


def configure_topic(
    name: str, *, history: int = 0, history_events: int | None = None, max_data: int | None = None
) -> Call[None]:
    """Set what a topic keeps, and claim its name if it is free.

    Args:
        history: milliseconds for which events are kept though every subscriber has them.
        history_events: the most events that are kept so.
        max_data: the most bytes of `data` in one event.
    """
    settings = {"history": history, "history_events": history_events, "max_data": max_data}
    return _write("PUT", _topic(name), settings)


def delete_topic(name: str) -> Call[None]:
    """Delete a topic: its subscribers leave it; what is queued is still delivered."""
    return _write("DELETE", _topic(name))


def topic_events(
    name: str, *, after: str | None = None, max: int | None = None, url: str | None = None
) -> Call[model.EventsPage]:
    """The events that a topic keeps, oldest first: those behind the ID `after`; of one resource with `url`."""
    return _get(f"{_topic(name)}/events", after=after, max=max, url=url)


def where(topic: str, id: str) -> Call[model.Whereabouts]:
    """What became of one event, by the ID that publishing returned, for each subscriber."""
    return _get(f"{_topic(topic)}/events/{segment(id, 'id')}")


def subscribe(
    topics: Iterable[str], callback: str | None = None, *, uuid: str | None = None, timeout: int | None = None,
    max: int | None = None, max_bytes: int | None = None, retention: int | None = None,
    max_queued: int | None = None, rate: int | None = None, start: Literal["next", "oldest"] | Time | None = None,
    missing_topics: Literal["refuse", "await"] | None = None, park_after: int | None = None,
    secret: str | Literal[True] | None = None,
) -> Call[str | None]:  # fmt: skip
    """Create or replace this client's subscription; returns the new secret if `secret` is True, else None.

    A topic that is not listed is left, an option that is not given gets its default.

    Args:
        topics: names.
        callback: https:// URL to which batches are posted; None: the events are pulled.
        uuid: the credential that the bus presents to the callback.
        timeout: milliseconds that an event may wait for its batch to fill.
        max: most events in one batch. max_bytes: most bytes.
        retention: milliseconds after which an event is not delivered any more.
        max_queued: most events that wait.
        rate: most events a second.
        start: where newly subscribed topics begin.
        missing_topics: "await": topics that do not exist are joined when they come into being.
        park_after: refusals of a single event after which it is put aside.
        secret: `whsec_…` by which deliveries are signed; True: the bus makes one.
    """
    if isinstance(topics, str):
        topics = [topics]
    if start is not None and not isinstance(start, str):
        start = milliseconds(start, "start")
    options: dict[str, Any] = {
        "callback": callback, "uuid": uuid, "timeout": timeout, "max": max, "max_bytes": max_bytes,
        "retention": retention, "max_queued": max_queued, "rate": rate, "start": start,
        "missing_topics": missing_topics, "park_after": park_after, "secret": secret,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    body = {"topics": [topic_name(each) for each in topics], **given}
    return Call("POST", "/subscription", _secret, encode(body, "subscription"))


def unsubscribe() -> Call[None]:
    """Remove this client's subscription and its queue."""
    return _write("DELETE", "/subscription")


def unsubscribe_topic(topic: str) -> Call[None]:
    """Leave one topic; what is queued is still delivered."""
    return _write("DELETE", f"/subscriber/topics/{topic_name(topic)}")


def remove_subscriber(subscriber: str) -> Call[None]:
    """Root: unsubscribe another client, by its public name."""
    return _write("DELETE", f"/subscriptions/{segment(subscriber, 'subscriber')}")


def subscriptions() -> Call[list[model.Subscription]]:
    """All subscriptions, with queues and health."""
    return _get("/subscriptions")


def subscription(subscriber: str | None = None) -> Call[model.Subscription]:
    """One subscription, with all its fields."""
    return _get(_own("", subscriber))


def pull(
    *, max: int | None = None, wait: float = 0.0, ack: str | None = None, subscriber: str | None = None
) -> Call[Pulled]:
    """The oldest events that wait, at most `max`; acknowledges up to the cursor `ack` before.

    `wait`: seconds, up to 60, to wait for an event if there is none. Without `ack` the same events come again.
    """
    path = _own("/events", subscriber)
    query = {"max": max, "wait": int(wait * 1000) or None, "ack": ack}
    return Call("GET", path + _query(query), _pulled, wait=wait)


def acknowledge(cursor: str, subscriber: str | None = None) -> Call[None]:
    """Acknowledge pulled events up to a cursor; an older cursor changes nothing."""
    return _write("POST", _own("/ack", subscriber), {"cursor": cursor})


def stream(*, ack: str | None = None, sent: bool = False, subscriber: str | None = None) -> Call[None]:
    """The events that wait, and then those that are published, as they come, over one connection; see `Stream`.

    At most `max` of the subscription are on their way without acknowledgement, so call `acknowledge` meanwhile.

    Args:
        ack: acknowledges up to this cursor before.
        sent: each event counts as acknowledged when this machine has received it, handled or not.
    """
    headers = {"Accept": "text/event-stream", **({} if ack is None else {"Last-Event-ID": ack})}
    query = {"ack": "sent" if sent else None}
    return Call("GET", _own("/stream", subscriber) + _query(query), _nothing, statuses=(200,), headers=headers)


def pause(subscriber: str | None = None) -> Call[None]:
    """Stop deliveries; events gather until `resume`."""
    return _write("POST", _own("/pause", subscriber))


def resume(subscriber: str | None = None) -> Call[None]:
    """End a pause, that after failures too."""
    return _write("POST", _own("/resume", subscriber))


def retry(subscriber: str | None = None) -> Call[None]:
    """End the pause after failures: the next attempt is made at once."""
    return _write("POST", _own("/retry", subscriber))


def rewind(
    to: Literal["oldest"] | Time, topics: Iterable[str] | None = None, subscriber: str | None = None
) -> Call[int]:
    """Have events delivered again, as far as the topics' history reaches; returns how many."""
    return _reach("/rewind", to, topics, subscriber)


def skip(
    to: Literal["next"] | Time, topics: Iterable[str] | None = None, subscriber: str | None = None
) -> Call[int]:
    """Pass over what was accepted before a time, or everything ("next"); returns how many events."""
    return _reach("/skip", to, topics, subscriber)


def attempts(subscriber: str | None = None) -> Call[model.Attempts]:
    """The last 50 failed attempts to deliver, and the last that succeeded."""
    return _get(_own("/attempts", subscriber))


def send_test(subscriber: str | None = None) -> Call[model.Trial]:
    """Post one event to the callback at once, beside the queue, and return what came of it."""
    return Call("POST", _own("/test", subscriber), _json, wait=20.0)


def parked(
    *, after: str | None = None, max: int | None = None, subscriber: str | None = None
) -> Call[model.EventsPage]:
    """The parked events, each with the reason."""
    return _get(_own("/parked", subscriber), after=after, max=max)


def retry_parked(ids: Iterable[str] | None = None, subscriber: str | None = None) -> Call[None]:
    """Deliver parked events next, each alone; None: all."""
    return _write("POST", _own("/parked/retry", subscriber), None if ids is None else {"ids": list(ids)})


def drop_parked(subscriber: str | None = None) -> Call[None]:
    """Remove the parked events."""
    return _write("DELETE", _own("/parked", subscriber))


def tokens() -> Call[list[model.Token]]:
    """Root: the tokens of all clients."""
    return Call("GET", "/api_tokens", lambda response: _json(response) if response.body else [])


def add_token(name: str, token: str | None = None, *, replaces: str | None = None) -> Call[str]:
    """Root: make a client's token, which is returned.

    `replaces`: a token whose client the new one speaks for too, until the old one is deleted.
    """
    given = {"name": name, "token": token, "replaces": replaces}
    body = encode({key: value for key, value in given.items() if value is not None}, "token")
    return Call("POST", "/api_tokens", lambda response: str(_json(response)["token"]), body)


def delete_token(token: str) -> Call[None]:
    """Root: delete a token; its client stays subscribed."""
    return Call("DELETE", f"/api_tokens/{segment(token, 'token')}", _nothing, shown="/api_tokens/…")


def pulse() -> Call[None]:
    """Check that bus and token work; raises Unavailable when the bus has no Redis."""
    return Call("GET", "/pulse", _nothing)


def _topic(name: str) -> str:
    return f"/topics/{topic_name(name)}"


def _own(path: str, subscriber: str | None) -> str:
    """A path of the client's own subscription, or of the one that root names."""
    name = "" if subscriber is None else segment(subscriber, "subscriber")
    return f"/subscriptions/{name}{path}" if name else f"/subscription{path}"


def _query(values: Mapping[str, object]) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _get(path: str, **query: object) -> Call[Any]:
    return Call("GET", path + _query(query), _json)


def _write(method: str, path: str, body: object = None) -> Call[None]:
    return Call(method, path, _nothing, None if body is None else encode(body, "body"))


def _reach(path: str, to: str | Time, topics: Iterable[str] | None, subscriber: str | None) -> Call[int]:
    body: dict[str, Any] = {"to": to if isinstance(to, str) else milliseconds(to, "to")}
    if topics is not None:
        body["topics"] = [topic_name(each) for each in ([topics] if isinstance(topics, str) else topics)]
    read: Callable[[Response], int] = lambda response: int(_json(response)["events"])  # noqa: E731
    return Call("POST", _own(path, subscriber), read, encode(body, "body"))


def _json(response: Response) -> Any:
    return loads(response.body)


def _nothing(response: Response) -> None:
    return None


def _event_id(response: Response) -> str:
    return response.headers.get("routemaster-event", "")


def _event_ids(response: Response) -> EventIDs:
    first, _, last = _event_id(response).partition("..")
    return EventIDs(first, last or first)


def _pulled(response: Response) -> Pulled:
    answer = _json(response)
    return Pulled(tuple(map(Event.parse, answer["events"])), answer["cursor"], answer["queued"])


def _secret(response: Response) -> str | None:
    return str(_json(response)["secret"]) if response.status == 200 else None
