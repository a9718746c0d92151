"""`GET /openapi.json`: the API as OpenAPI 3.1, made from the one table of routes, `Api._table`.

To describe a new route, add an `Operation` to `openapi_operations.OPERATIONS`, by method and
path as in the table: one sentence, the name of the body's schema, the answers besides errors,
and a sentence for each error of its own. A body that no schema fits yet gets one in
`openapi_schemas.schemas`, with limits that come from `validation.PATTERNS`, `limits.RANGES`
or from the options, never with numbers of its own; a parameter of a new kind gets a line in
`openapi_schemas.parameters`. Everything else (credentials, 401, 503, the errors of every
request, headers) is added here. `tests/web/test_openapi.py` fails for a route without a
description, for a description without a route, and for bodies that schema and rules judge
differently; `tests/system/test_openapi.py` tries the whole against a real bus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from routemaster import __version__
from routemaster.web.access import Who
from routemaster.web.auth import Role
from routemaster.web.openapi_operations import OPERATIONS, Answer, Operation
from routemaster.web.openapi_schemas import delivery, parameters, reference, schemas

Route = tuple[str, str, Who]  #: path, method, who may call it

#: what the HTTP server can answer to any request before a handler sees it
EVERYWHERE: Final = {
    400: "The request is malformed.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding.",
    429: "Too many authentications from the address have failed, or too many of its requests are under way.",
    431: "The head of the request is too large.",
}
#: what else requests with credentials can be answered
WITH_CREDENTIALS: Final = {
    401: "The credentials are missing, unknown or of the wrong kind.",
    503: "Redis is unavailable or full, or too much is under way; nothing was stored unless `outcome` is unknown.",
}
#: and those with a parameter in their path
WITH_PARAMETERS: Final = {404: "The path has a control character or a further slash."}
_SHARED: Final = EVERYWHERE | WITH_CREDENTIALS | WITH_PARAMETERS

#: groups of operations, by the first part of the path; the rest is monitoring
_TAGS: Final = {
    "topic": "topics", "topics": "topics", "api_tokens": "tokens",
    **dict.fromkeys(("subscriber", "subscribers", "subscription", "subscriptions"), "subscriptions"),
}  # fmt: skip
_HEADERS: Final = {
    "Routemaster-Event": ("string", "ID of the event in its topic; of an array first and last, `ID..ID`."),
    "Retry-After": ("integer", "Seconds after which to try again."),
    "WWW-Authenticate": ("string", "The scheme, HTTP Basic."),
}
_ERROR_HEADERS: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_ROLES: Final = {
    Role.CLIENT: "A client: its token as user name; the password is ignored.",
    Role.ROOT: "Root: the root key as user name; the password is ignored.",
    Role.MONITOR: "A monitor: a monitor key as user name; the password is ignored.",
}


def document(routes: Iterable[Route], **limits: Any) -> dict[str, Any]:
    """The description of these routes; `limits`: the arguments of `schemas`."""
    paths: dict[str, dict[str, Any]] = {}
    headers = {
        name: {"description": text, "required": True, "schema": {"type": kind}}
        for name, (kind, text) in _HEADERS.items()
    }
    credentials = {
        role.value: {"type": "http", "scheme": "basic", "description": text} for role, text in _ROLES.items()
    }
    for path, method, who in routes:
        item = paths.setdefault(re.sub("<(.+?)>", r"{\1}", path), {})
        item[method.lower()] = _operation(path, method, who)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Routemaster",
            "version": __version__,
            "description": "An event bus over HTTP: clients publish events to topics, and subscribers receive "
            "them in batches. Errors are one sentence in `error`; a refused request has changed nothing.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "webhooks": {"delivery": {"post": delivery()}},
        "components": {
            "schemas": schemas(**limits),
            "responses": {str(status): _error(status, text) for status, text in _SHARED.items()},
            "headers": headers,
            "securitySchemes": credentials,
        },
    }


def _operation(path: str, method: str, who: Who) -> dict[str, Any]:
    described = OPERATIONS.get(f"{method} {path}", Operation("Not described."))
    names = parameters(path)
    answers = {str(status): _answer(answer) for status, answer in described.answers.items()}
    shared = EVERYWHERE | (WITH_CREDENTIALS if who else {}) | (WITH_PARAMETERS if names else {})
    answers |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in shared}
    answers |= {str(status): _error(status, text) for status, text in described.errors.items()}
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "tags": [_TAGS.get(path.split("/")[1], "monitoring")],
        "summary": described.summary,
        "security": [{role.value: []} for role in Role if role in who],
        "responses": dict(sorted(answers.items())),
    }
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in described.query.items()]
    if names or query:
        made["parameters"] = [*names, *query]
    if described.body:
        content = {"application/json": {"schema": reference(described.body)}}
        made["requestBody"] = {"required": described.body_required, "content": content}
    return made


def _answer(answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        made["headers"] = {name: _header(name) for name in answer.headers}
    if answer.schema:
        made["content"] = {answer.media_type: {"schema": reference(answer.schema)}}
    return made


def _error(status: int, text: str) -> dict[str, Any]:
    return _answer(Answer(text, "Error", headers=_ERROR_HEADERS.get(status, ())))


def _header(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/headers/{name}"}
