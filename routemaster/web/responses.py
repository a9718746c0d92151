"""Answers of the API, and the status of every error.

The body of an error is `{"error": "<message>"}`; one of Redis adds
`Retry-After`, and `"outcome": "unknown"` if the change may have been stored.
"""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.python.failure import Failure

from routemaster import strict_json
from routemaster.errors import (
    HasCallback,
    HasNoCallback,
    Invalid,
    NotSubscribed,
    NotYourTopic,
    RoutemasterError,
    StoreUnavailable,
    TokenTaken,
    TooLarge,
    TooManyTopics,
    UnknownToken,
    UnknownTopic,
    WrongType,
)
from routemaster.web.http_server.body_reader import RETRY_AFTER
from routemaster.web.http_server.body_writer import Body
from routemaster.web.http_server.refusal import Refused
from routemaster.web.listing import Listing

AnyBody = TypeVar("AnyBody", bytes, Body)


class Unauthorized(RoutemasterError):
    """The credential is missing, unknown or not sufficient (401)."""


class TooManyFailures(RoutemasterError):
    """Too many authentications from the client's address have failed (429); `seconds`: until it may try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many authentications from your address have failed: try again in {seconds} s")
        self.seconds = seconds


_STATUSES: dict[type[RoutemasterError], int] = {
    Unauthorized: 401,
    TooManyFailures: 429,
    TooLarge: 413,
    Invalid: 400,
    NotYourTopic: 403,
    TooManyTopics: 403,
    UnknownTopic: 404,
    UnknownToken: 404,
    TokenTaken: 409,
    NotSubscribed: 404,
    HasCallback: 409,
    HasNoCallback: 409,
    StoreUnavailable: 503,
    WrongType: 503,
}


def json_answer(request: Any, value: object, status: int = 200) -> bytes:
    """The body of a JSON answer; sets status and Content-Type."""
    _json_head(request, status)
    return strict_json.encode(value)


def ready_json(request: Any, body: AnyBody) -> AnyBody:
    """The body of an answer that is JSON already; sets status and Content-Type."""
    _json_head(request, 200)
    return body


def list_answer(request: Any, listing: Listing, owner: str | None) -> Body:
    """The body of an answer with a list, as `owner` sees it; None sees everything."""
    _json_head(request, 200)
    return listing.seen_by(owner)


def _json_head(request: Any, status: int) -> None:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")


def no_content(request: Any) -> bytes:
    """The empty body of a 204; sets the status."""
    request.setResponseCode(204)
    return b""


def refused(error: Exception) -> Refused | None:
    """`Refused` for an error that clients may see; None for other errors."""
    status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), None)
    if status is None:
        return None
    if isinstance(error, Unauthorized):
        return Refused(status, str(error), (b"WWW-Authenticate", b'Basic realm="routemaster"'))
    if isinstance(error, TooManyFailures):
        return Refused(status, str(error), (b"Retry-After", b"%d" % error.seconds))
    if isinstance(error, StoreUnavailable | WrongType):
        outcome = {"outcome": "unknown"} if error.outcome_unknown else {}
        return Refused(status, str(error), (b"Retry-After", b"%d" % RETRY_AFTER), **outcome)
    return Refused(status, str(error))


def refusal(request: Any, failure: Failure) -> Failure:
    """`Refused` for an error that clients may see; other failures unchanged."""
    error = refused(failure.value)  # type: ignore[arg-type]
    return failure if error is None else Failure(error)
