"""The status and the sentence for every refusal, in one place.

An error answer is `{"error": "<one sentence>"}`; `StoreUnavailable` adds
`Retry-After`, and `"outcome": "unknown"` when the write may have happened.
"""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from routemaster import strict_json
from routemaster.errors import (
    Invalid,
    NotSubscribed,
    NotYourTopic,
    RoutemasterError,
    StoreUnavailable,
    TooLarge,
    UnknownTopic,
)

RETRY_AFTER = 1  #: seconds that a client is asked to wait for the store


class Unauthorized(RoutemasterError):
    """No credential, or one that does not allow this (401)."""


_STATUSES: dict[type[RoutemasterError], int] = {
    Unauthorized: 401,
    TooLarge: 413,
    Invalid: 400,
    NotYourTopic: 403,
    UnknownTopic: 404,
    NotSubscribed: 404,
    StoreUnavailable: 503,
}


def json_answer(request: Any, value: object, status: int = 200) -> bytes:
    """Answer with a value as JSON."""
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    return strict_json.encode(value)


def no_content(request: Any) -> bytes:
    """Answer 204."""
    request.setResponseCode(204)
    return b""


def refusal(request: Any, failure: Failure) -> bytes | Failure:
    """Answer with what a RoutemasterError says; others are not for clients and are handed on."""
    error = failure.value
    status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), None)
    if status is None:
        return failure
    body = {"error": str(error)}
    if isinstance(error, Unauthorized):
        request.setHeader(b"WWW-Authenticate", b'Basic realm="routemaster"')
    if isinstance(error, StoreUnavailable):
        request.setHeader(b"Retry-After", b"%d" % RETRY_AFTER)
        if error.outcome_unknown:
            body["outcome"] = "unknown"
    return json_answer(request, body, status)
