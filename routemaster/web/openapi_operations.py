"""What each operation of the API does, for `openapi`, which says how to add one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, field, frozen

from routemaster.callback_url import MAX_URL
from routemaster.validation import PATTERNS
from routemaster.web.openapi_schemas import EVENT_ID, number, text


@frozen
class Answer:
    """An answer that is no error; `schema`: the name of its body's, empty if there is no body."""

    description: str
    schema: str = ""
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()


DONE: Final = {204: Answer("Done.")}


@frozen
class Operation:
    """What the table of routes does not say; errors that every request can have need no entry."""

    summary: str
    body: str = ""  #: the name of its schema
    answers: Mapping[int, Answer] = field(factory=DONE.copy)
    errors: Mapping[int, str] = field(factory=dict)  #: status -> when
    query: Mapping[str, Any] = field(factory=dict)   #: parameter -> schema
    body_required: bool = True


_NO_TOPIC: Final = "There is no such topic."
_NOT_YOURS: Final = "Another client publishes this topic."
_NOT_SUBSCRIBED: Final = "The client has no subscription."
_PUSHED: Final = "The subscription has a callback: its events are not pulled."
_PULLED: Final = "The subscription has no callback."
_BAD_QUERY: Final = "A parameter is unknown, invalid or given more than once."
_CONFIGURED: Final = "The token is configured in the option `clients`."
_LISTED: Final = number("max", "The most events, by default 100; an answer may have fewer.")
_PARKED_MARK: Final = {
    "type": "string", "pattern": f"^{PATTERNS['topic'].pattern}/{PATTERNS['event id'].pattern}$",
    "description": "`next` of the answer before.",
}  # fmt: skip

#: what else a request can be answered that names a subscriber
NAMED_ERRORS: Final = {404: "No subscriber has this name.",
                       409: "Several subscribers have this name; use the token."}  # fmt: skip


def _own_and_named(method: str, path: str, operation: Operation) -> dict[str, Operation]:
    """A request about the client's own subscription, and the same of root about another's."""
    errors = dict(operation.errors)
    for status, why in NAMED_ERRORS.items():
        errors[status] = f"{why} {errors[status]}" if status in errors else why
    named = evolve(operation, errors=errors)
    return {f"{method} /subscription{path}": operation, f"{method} /subscriptions/<name>{path}": named}


#: by method and path, as in the table of routes; several that are one are separated by commas
_OPERATIONS: Final = {
    "POST /topics/<name>": Operation(
        "Publish one event, or an array of events that are stored together. The first publisher owns the topic.",
        "Publication",
        {204: Answer("All are stored.", headers=("Routemaster-Event",))},
        {400: "The topic's name or an event is invalid.",
         403: "Another client publishes this topic, or the client has too many topics."},
    ),
    "DELETE /topics/<name>, DELETE /topic/<name>": Operation(
        "Delete a topic: the name is free, subscriptions to it end, and what is queued is still delivered.",
        errors={403: _NOT_YOURS, 404: _NO_TOPIC},
    ),
    "GET /topics": Operation("List all topics.", answers={200: Answer("All topics, by name.", "Topics")}),
    "POST /subscription, POST /subscriber": Operation(
        "Create or replace the client's one subscription. A topic that is not listed is unsubscribed.",
        "Subscription",
        {200: Answer("Done; the bus has made the secret.", "Secret"), **DONE},
        errors={400: "The subscription is invalid.", 404: "A topic does not exist; nothing has changed."},
    ),
    "DELETE /subscription, DELETE /subscriber": Operation(
        "Remove the client's subscription and its queue.", errors={404: _NOT_SUBSCRIBED}
    ),
    "DELETE /subscriber/topics/<name>": Operation(
        "Unsubscribe from one topic; what is queued is still delivered.",
        errors={404: "There is no such topic, or the client is not subscribed."},
    ),
    "GET /subscriptions, GET /subscribers": Operation(
        "List all subscriptions, with their queues and the state of their deliveries.",
        answers={200: Answer("All subscriptions, by subscriber.", "Subscriptions")},
    ),
    "GET /pulse": Operation(
        "Check that Redis answers.",
        answers={204: Answer("Redis answers.")},
        errors={500: "Redis does not answer."},
    ),
    "GET /pulse/scaling": Operation(
        "Show by the time of the answer whether more workers are needed: it is a second late if so many "
        "deliveries are due that the options call for more."
    ),
    "GET /health": Operation("Check that the process is alive.", answers={200: Answer("It is.", "Empty")}),
    "GET /health/ping, GET /health/ping.json": Operation(
        "Check that the process is alive, and read its clock.", answers={200: Answer("It is.", "Pong")}
    ),
    "GET /health/ready": Operation(
        "Check that the bus can serve, for load balancers.",
        answers={200: Answer("It can.", "Ready")},
        errors={503: "The bus starts or stops, or Redis is unavailable."},
    ),
    "GET /metrics": Operation(
        "Read the metrics, in Prometheus's text format.",
        answers={200: Answer("All metrics.", "Text", "text/plain")},
    ),
    "GET /openapi.json": Operation(
        "Read this description.", answers={200: Answer("The API as OpenAPI 3.1.", "Description")}
    ),
    "GET /api_tokens": Operation(
        "List all tokens, those of the option `clients` included.",
        answers={200: Answer("All tokens, by name.", "Tokens"), 204: Answer("There is no token.")},
    ),
    "POST /api_tokens": Operation(
        "Create a client's token.",
        "NewToken",
        {201: Answer("It is created.", "Token")},
        {400: "The name or a token is invalid.",
         404: "The token to replace does not exist.",
         409: "The token exists for another client, or is configured in the option `clients`."},
    ),
    "DELETE /api_tokens/<token>": Operation(
        "Delete a token, named by itself or its hash, if there is such a token; its client's subscription stays.",
        errors={409: _CONFIGURED},
    ),
    "PUT /topics/<name>": Operation(
        "Set what a topic keeps though every subscriber has it, and how much data its events may carry; "
        "a client that names a free topic claims it.",
        "TopicSettings",
        errors={400: "The topic's name or a setting is invalid.",
                403: "Another client publishes this topic, the client has too many topics, or only root may allow "
                     "so much data.",
                404: "Root cannot create a topic."},
    ),
    "GET /topics/<name>": Operation(
        "Show one topic; to its publisher and root its subscribers, too.",
        answers={200: Answer("The topic.", "TopicState")},
        errors={400: _BAD_QUERY, 404: _NO_TOPIC},
    ),
    "GET /topics/<name>/events": Operation(
        "List the events that a topic keeps, some at a time.",
        answers={200: Answer("Events, oldest first.", "EventPage")},
        errors={400: _BAD_QUERY, 403: _NOT_YOURS, 404: _NO_TOPIC},
        query={"after": EVENT_ID, "max": _LISTED, "url": {"type": "string", "maxLength": MAX_URL}},
    ),
    "GET /topics/<name>/events/<id>": Operation(
        "Show where one event is for each subscriber.",
        answers={200: Answer("The event, if it is still kept, and where it is.", "EventPlace")},
        errors={400: "The ID is none, or a query parameter is unknown.", 403: _NOT_YOURS,
                404: "There is no such topic, or no such event in it."},
    ),
    "DELETE /subscriptions/<name>": Operation("Unsubscribe a client.", errors=NAMED_ERRORS),
    **_own_and_named("GET", "", Operation(
        "Show the subscription.", answers={200: Answer("The subscription.", "SubscriptionDetails")},
        errors={400: _BAD_QUERY, 404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/pause", Operation(
        "Deliver nothing until it is resumed; events gather.", errors={404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/resume", Operation(
        "End a pause, and the one after failures.", errors={404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/retry", Operation("End the pause after failures.", errors={404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/test", Operation(
        "Post one event to the callback at once, beside all queues, and show what came of it.",
        answers={200: Answer("What came of it.", "Trial")}, errors={404: _NOT_SUBSCRIBED, 409: _PULLED})),
    **_own_and_named("POST", "/rewind", Operation(
        "Have events delivered again, as far as the topics' history reaches.", "Rewind",
        {200: Answer("How many events come again.", "Moved")},
        {400: "The body is invalid.", 404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/skip", Operation(
        "Pass waiting events over without delivering them.", "Skip",
        {200: Answer("How many events are passed over.", "Moved")},
        {400: "The body is invalid.", 404: _NOT_SUBSCRIBED})),
    **_own_and_named("GET", "/attempts", Operation(
        "Show the last failed attempts and the last success.",
        answers={200: Answer("The attempts, newest first.", "Attempts")},
        errors={400: _BAD_QUERY, 404: _NOT_SUBSCRIBED})),
    **_own_and_named("GET", "/parked", Operation(
        "List parked events, some at a time.",
        answers={200: Answer("Events in the order of acceptance.", "ParkedPage")},
        errors={400: _BAD_QUERY, 404: _NOT_SUBSCRIBED},
        query={"after": _PARKED_MARK, "max": _LISTED})),
    **_own_and_named("GET", "/events", Operation(
        "Pull the oldest events, after acknowledging up to a cursor; wait if there is none.",
        answers={200: Answer("The events, perhaps none.", "PulledEvents")},
        errors={400: _BAD_QUERY, 404: _NOT_SUBSCRIBED, 409: _PUSHED},
        query={
            "max": number("max", "The most events; by default, and at most, the subscription's `max`."),
            "wait": number("wait", "How long to wait for an event if there is none; by default not at all."),
            "ack": text("cursor", description="Acknowledge the events up to this cursor first."),
        },
    )),
    **_own_and_named("POST", "/ack", Operation(
        "Acknowledge events that were pulled. An older cursor changes nothing.",
        "Acknowledgement",
        errors={400: "The cursor is none of this subscription's.", 404: _NOT_SUBSCRIBED, 409: _PUSHED},
    )),
    **_own_and_named("GET", "/stream", Operation(
        "Receive events as server-sent events, each with the cursor that acknowledges it as `id`. The header "
        "Last-Event-ID acknowledges up to it. At most `max` events of the subscription are sent without being "
        "acknowledged.",
        answers={200: Answer("The stream, until either side ends it.", "Text", "text/event-stream")},
        errors={400: _BAD_QUERY, 404: _NOT_SUBSCRIBED, 409: _PUSHED},
        query={"ack": {"const": "sent", "description": "An event that the peer's TCP has taken is acknowledged."}},
    )),
    **_own_and_named("DELETE", "/parked", Operation("Remove all parked events.", errors={404: _NOT_SUBSCRIBED})),
    **_own_and_named("POST", "/parked/retry", Operation(
        "Have parked events delivered next, each alone.", "ParkedRetry",
        errors={400: "The body is invalid.", 404: _NOT_SUBSCRIBED, 409: _PULLED}, body_required=False)),
}  # fmt: skip

OPERATIONS: Final[Mapping[str, Operation]] = {
    name: operation for names, operation in _OPERATIONS.items() for name in names.split(", ")
}
