"""The JSON Schemas of bodies, answers, parameters and deliveries, for `openapi`.

Limits come from the rules in `validation` and from the options. What a schema cannot
express, its description says: the size of `data`, the depth of a value, and for callbacks
the format `callback`, which is what `validation.check_callback` accepts after an optional user name.
"""

from __future__ import annotations

import re
from typing import Any, Final

from routemaster.callback_url import MAX_URL
from routemaster.delivery.decision import State
from routemaster.json_compaction import MAX_DEPTH
from routemaster.limits import MAX_BULK, MAX_PLACE, MAX_TIMESTAMP, RANGES
from routemaster.model import CUT_KINDS, DEFAULT_MAX, DEFAULT_TIMEOUT
from routemaster.validation import EVENT_TYPES, MISSING_TOPICS, PATTERNS, PUSHED_ONLY

Schema = dict[str, Any]

EVENT_ID: Final[Schema] = {"type": "string", "pattern": f"^{PATTERNS['event id'].pattern}$"}

_SECONDS: Final = {"type": ["number", "null"], "description": "Seconds since the epoch; null if there is none."}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string"}
_CLIENT: Final = {
    "type": "string",
    "description": "The client's token for itself and for root; for others the part before `--`.",
}


def reference(name: str) -> Schema:
    """A reference to a schema of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(rule: str, **more: Any) -> Schema:
    """A text that a pattern of the rules matches in full."""
    return {"type": "string", "pattern": f"^(?:{PATTERNS[rule].pattern})$", **more}


def whole(field: str, default: int | None, description: str) -> Schema:
    """An integer in the range of the rules; null is the default."""
    allowed = RANGES[field]
    return {
        "type": ["integer", "null"],
        "minimum": allowed.least,
        "maximum": allowed.most,
        "default": default,
        "description": f"{description} In {allowed.unit}.",
    }


def number(field: str, description: str) -> Schema:
    """A parameter of a query: an integer in the range of the rules."""
    schema = whole(field, None, description) | {"type": "integer"}
    del schema["default"]
    return schema


def place(*words: str, **more: Any) -> Schema:
    """A place in the logs: a word, or milliseconds since the epoch; null is the default."""
    kinds = [{"enum": [*words, None]}, {"type": "integer", "minimum": 0, "maximum": MAX_PLACE}]
    return {"anyOf": kinds, **more}


def record(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object in a request: no other members are allowed."""
    return answer(required, **optional) | {"additionalProperties": False}


def answer(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object in an answer: later versions may add members."""
    return {"type": "object", "properties": required | optional, "required": list(required)}


def optional(schema: Schema) -> Schema:
    """The schema, or null."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return schema | {"type": [*kinds, "null"]}


def array(items: Schema, **more: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **more}


def schemas(max_event_data: int, max_body: int, missing_topics: str) -> dict[str, Schema]:
    """All schemas by name; the arguments are options."""
    return {
        **_published(max_event_data, max_body),
        "Subscription": _subscription(missing_topics),
        "NewToken": record(
            {"name": text("token name")},
            token=optional(text("token", description="Made from the name and 32 hex digits if it is not given.")),
            replaces=optional(text(
                "kept token", description="A token, or its hash, for whose client the new one speaks too.")),
        ),
        "Acknowledgement": record({"cursor": text("cursor", description="It came with the last of the events.")}),
        **_requests(),
        **_answers(),
        **_administration(),
        **_deliveries(),
    }


def _published(max_event_data: int, max_body: int) -> dict[str, Schema]:
    return {
        "Event": record(
            {"type": {"enum": sorted(EVENT_TYPES)},
             "url": text("event url", maxLength=MAX_URL, description="Of the thing that the event is about.")},
            timestamp={
                "type": ["integer", "null"], "minimum": 0, "maximum": MAX_TIMESTAMP,
                "description": "Milliseconds since the epoch; by default the time of reception."},
            data={"description": f"Any JSON value of at most {max_event_data} bytes as compact JSON and "
                                 f"{MAX_DEPTH} nested arrays and objects; null is none."},
        ),
        "Publication": {
            "description": f"An event of at most {max_body} bytes, or several.",
            "oneOf": [reference("Event"), array(reference("Event"), minItems=1, maxItems=MAX_BULK)],
        },
    }  # fmt: skip


def _subscription(missing_topics: str) -> Schema:
    pulled: Schema = {"properties": {field: {"type": "null"} for field in ("callback", *PUSHED_ONLY)}}
    pushed: Schema = {"properties": {"callback": {"type": "string"}}, "required": ["callback"]}
    return {"anyOf": [pushed, pulled]} | record(
        {"topics": array(text("topic"))},
        callback={
            "type": ["string", "null"], "format": "callback", "pattern": "^[Hh][Tt][Tt][Pp][Ss]://",
            "description": f"Where batches are posted: an absolute URL of at most {MAX_URL} characters with a "
            "host name in ASCII or an IP address, an optional port, and neither query nor fragment. A user name "
            "before the host stands for `uuid`, and is no part of the callback. The operator decides which "
            "addresses are allowed. Null: the events are pulled."},
        uuid=optional(text("uuid", description="The credential presented to the callback.")),
        timeout=whole("timeout", None, "How long an event may wait for the batch to fill; by default "
                      f"{DEFAULT_TIMEOUT}, without callback 0."),
        max=whole("max", DEFAULT_MAX, "The most events in one batch."),
        max_bytes=whole("max_bytes", None, "The most bytes in the body of a batch of several events."),
        retention=whole("retention", None, "An event older than this is not delivered any more."),
        max_queued=whole("max_queued", None, "The most events that wait; the oldest go first."),
        rate=whole("rate", None, "The most events that are delivered."),
        park_after=whole("park_after", None, "A single event refused so often is put aside."),
        secret={
            "anyOf": [text("secret"), {"enum": [True, None]}], "default": None, "writeOnly": True,
            "description": "Signs deliveries (Standard Webhooks). True: the bus makes it and answers it, once."},
        start=place("next", "oldest", description="Where newly subscribed topics begin, by default next."),
        missing_topics={
            "enum": [*MISSING_TOPICS, None], "default": missing_topics,
            "description": "`await`: topics that do not exist yet are joined when they come into being."},
    )  # fmt: skip


def _requests() -> dict[str, Schema]:
    topics = optional(array(text("topic"), description="Some of the subscribed topics; by default all."))
    return {
        "TopicSettings": record(
            {},
            history=whole("history", 0, "How long events are kept though every subscriber has them."),
            history_events=whole("history_events", None, "The most events kept so; null is no limit."),
            max_data=whole("max_data", None, "The most `data` of one event; null is the limit of the bus."),
        ),
        "Rewind": record({"to": _reach("oldest")}, topics=topics),
        "Skip": record({"to": _reach("next")}, topics=topics),
        "ParkedRetry": record({}, ids=optional(array(EVENT_ID, description="By default all."))),
    }


def _reach(word: str) -> Schema:
    """Where a rewind or a skip goes to."""
    kinds = [{"const": word}, {"type": "integer", "minimum": 0, "maximum": MAX_PLACE}]
    return {"anyOf": kinds, "description": f"`{word}`, or milliseconds since the epoch."}


def _administration() -> dict[str, Schema]:
    """Answers about one topic or one subscription."""
    number, mark = {"type": "number"}, {"type": ["string", "null"], "description": "For `after`; null at the end."}
    number_or_null = {"type": ["integer", "null"]}
    settings = dict.fromkeys(("history", "history_events", "max_data"), number_or_null)
    backlog = answer({"subscriber": _CLIENT, "queued": _COUNT, "oldest": _SECONDS})
    place_of = answer(
        {"subscriber": _CLIENT, "state": {"enum": [*CUT_KINDS.values(), "queued", "delivering"]}},
        ahead=_COUNT | {"description": "Events that wait before it."},
    )
    counts = dict.fromkeys(("sent", "queued", "added", "expired", "skipped", "parked", "dropped"), _COUNT)
    limits = dict.fromkeys(("max_bytes", "retention", "max_queued", "rate", "park_after"), number_or_null)
    attempt = answer({
        "at": number | {"description": "Seconds since the epoch."},
        "duration": number | {"description": "In seconds."},
        "events": _COUNT, "first": EVENT_ID, "last": EVENT_ID,
        "topics": array(text("topic"), description="Of the events; some, if there are many."),
        "status": number_or_null, "reason": optional(_TEXT),
        "answer": _TEXT | {"description": "The beginning of the answer's body."},
    })  # fmt: skip
    parked = answer({"reason": _TEXT, "parked_at": number})
    return {
        "Moved": answer({"events": _COUNT}),
        "TopicState": answer(
            {"name": text("topic"), "publisher": _CLIENT, "events": _COUNT, **settings,
             "first": optional(EVENT_ID), "last": optional(EVENT_ID)},
            subscribers=array(backlog),
        ),
        "EventPage": answer({"events": array(reference("DeliveredEvent")), "next": mark}),
        "EventPlace": answer({
            "id": EVENT_ID, "topic": text("topic"), "subscribers": array(place_of),
            "event": {"oneOf": [reference("DeliveredEvent"), {"type": "null"}]}}),
        "SubscriptionDetails": {"allOf": [reference("SubscriptionState"), answer({
            **limits, "start": {"type": ["string", "integer"]}, "missing_topics": {"enum": [*MISSING_TOPICS]},
            "signed": {"type": "boolean", "description": "Whether deliveries are."},
            "events": answer({**counts, "oldest": _SECONDS})})]},
        "Trial": answer({
            "acknowledged": {"type": "boolean"}, "status": {"type": ["integer", "null"]}, "duration": number,
            "answer": _TEXT, **dict.fromkeys(("address", "tls", "reason"), optional(_TEXT))}),
        "Attempts": answer({
            "failed": array(attempt), "success": {"oneOf": [attempt, {"type": "null"}]}}),
        "ParkedPage": answer({
            "events": array({"allOf": [reference("DeliveredEvent"), parked]}), "next": mark}),
    }  # fmt: skip


def _answers() -> dict[str, Schema]:
    return {
        "Error": answer(
            {"error": {"type": "string", "minLength": 1, "pattern": r"^[^\n]*$", "description": "One sentence."}},
            outcome={"const": "unknown", "description": "The change may have been stored."},
        ),
        "Empty": answer({}),
        "Pong": answer({"pong": {"type": "string", "format": "date-time"}}),
        "Ready": answer({"ready": {"const": True}}),
        "Text": _TEXT,
        "Description": answer({"openapi": {"const": "3.1.0"}, "paths": {"type": "object"}}),
        "Secret": answer({"secret": text("secret", description="It is answered this once.")}),
        "Token": answer({"name": text("token name"), "token": text("token")}),
        "Tokens": array(answer(
            {"name": _TEXT, "token": optional(
                text("token", description="Null for monitors, and if only its hash is kept."))},
            hash=text("token hash", description="In place of a token of which only this is kept, for root."),
        )),
        "Topics": array(answer({
            "name": text("topic"),
            "publisher": _CLIENT,
            "events": _COUNT | {"description": "Ever published."}})),
        "Subscriptions": array(reference("SubscriptionState")),
        "SubscriptionState": answer({
            "subscriber": _CLIENT,
            "callback": {"type": ["string", "null"], "description": "Null: the events are pulled."},
            "uuid": {"type": ["string", "null"], "description": "Null for others than its client and root."},
            "max_events": _COUNT,
            "timeout": _COUNT,
            "topics": array(text("topic")),
            "awaited": array(text("topic"), description="Topics that are joined when they come into being."),
            "events": answer({"sent": _COUNT, "queued": _COUNT, "oldest": _SECONDS}),
            "health": answer({
                "state": {"enum": [state.value for state in State]},
                "failures": _COUNT | {"description": "In a row."},
                "last_attempt": _SECONDS,
                "last_success": _SECONDS,
                "last_error": {"type": ["string", "null"]},
                "next_attempt": _SECONDS}),
        }),
    }  # fmt: skip


def _deliveries() -> dict[str, Schema]:
    return {
        "PulledEvents": answer({
            "events": array(reference("DeliveredEvent")),
            "cursor": text("cursor", description="Acknowledges these events."),
            "queued": _COUNT | {"description": "Events that wait, these included."}}),
        "Delivery": array(reference("DeliveredEvent"), minItems=1),
        "DeliveredEvent": answer(
            {"topic": text("topic"), "type": {"enum": sorted(EVENT_TYPES)}, "url": _TEXT,
             "t": _COUNT | {"description": "Milliseconds since the epoch."},
             "id": EVENT_ID | {"description": "Of the event in its topic, the same in every attempt."}},
            data={"description": "As it was published; absent if there was none."},
        ),
    }  # fmt: skip


_SIGNATURE: Final = (
    ("webhook-id", "string", "the same as long as the events are"),
    ("webhook-timestamp", "integer", "when the attempt was made, seconds since the epoch"),
    ("webhook-signature", "string", "a signature by each secret, separated by spaces"),
)


def delivery() -> Schema:
    """The operation by which the bus calls a subscriber."""
    return {
        "operationId": "delivery",
        "summary": "Receive the oldest events, in the order in which the bus accepted them.",
        "description": "With HTTP Basic, the subscription's `uuid` as user name and password, if it has one.",
        "parameters": [
            {"name": "Routemaster-Attempt", "in": "header", "required": True,
             "description": "1 for the first attempt at these events.",
             "schema": {"type": "integer", "minimum": 1}},
            *({"name": name, "in": "header", "description": f"With a `secret`: {what} (Standard Webhooks).",
               "schema": {"type": kind}} for name, kind, what in _SIGNATURE),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference("Delivery")}}},
        "responses": {
            "200": {"description": "Acknowledged."},
            "204": {"description": "Acknowledged."},
            "400": {"description": "Tried again with half as many events; so are 413 and 422."},
            "default": {"description": "Failed: the same events come again, first, at a later attempt."},
        },
    }  # fmt: skip


#: by the end of the path up to the parameter; another is any text, such as a token that there need not be
_PARAMETERS: Final = {
    "topics/<name>": text("topic"),
    "events/<id>": EVENT_ID,
    "topic/<name>": text("topic"),
}


def parameters(path: str) -> list[Schema]:
    """The parameters of a path."""
    found = []
    for match in re.finditer("<(.+?)>", path):
        end = "/".join(path[: match.end()].split("/")[-2:])
        schema = _PARAMETERS.get(end, _TEXT)
        found.append({"name": match[1], "in": "path", "required": True, "schema": schema})
    return found
