"""A receiver as WSGI application, for gunicorn, uWSGI, mod_wsgi and the like.

    app = wsgi(receiver)

In Django or Flask, mount it beside the application by its path, or call `respond` in a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http.client import responses
from typing import Any

from routemaster_client.receiver import ACCEPTED, Answer, Receiver, Refused, failed

Environ = dict[str, Any]


def wsgi(receiver: Receiver) -> Callable[[Environ, Callable[..., Any]], Iterable[bytes]]:
    """The application. It answers every path."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = _serve(receiver, environ)
        start_response(f"{answer.status} {responses.get(answer.status, '')}", answer.all_headers())
        return [answer.body]

    return app


def respond(receiver: Receiver, method: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """The answer to a request that is in memory, for the view of a framework; headers with names in any case."""
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        receiver.check_head(method, lower)
        receiver.handle(receiver.events(lower, body))
    except Exception as error:
        return failed(error)
    return ACCEPTED


def _serve(receiver: Receiver, environ: Environ) -> Answer:
    headers = {
        name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")
    }
    if environ.get("CONTENT_LENGTH"):
        headers["content-length"] = environ["CONTENT_LENGTH"]
    try:
        receiver.check_head(environ["REQUEST_METHOD"], headers)
        if "content-length" in headers:
            body = environ["wsgi.input"].read(int(headers["content-length"]))
        elif environ.get("wsgi.input_terminated"):
            body = environ["wsgi.input"].read(receiver.max_body + 1)
        else:
            raise Refused(411, "expected Content-Length")
        receiver.handle(receiver.events(headers, body))
    except Exception as error:
        return failed(error)
    return ACCEPTED
