"""Klein without its detours: the same routes, handlers and error handlers, less work for a request.

Klein binds werkzeug's map anew for each request, walks it, and wraps every
handler in half a dozen Deferreds. Here a path that was routed before is
looked up in a table, a handler that answers at once needs no Deferred at all,
and the answer leaves in one write.

What a handler may return: bytes, str or None, or a Deferred or coroutine of
these. Klein's other renderables (resources, templates) have no use on the bus.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from routemaster.web.http_server.request import BusRequest

KEPT = 1024         #: routed paths remembered
KEPT_LENGTH = 128   #: bytes; longer paths are routed each time


class BusApp(Klein):
    """A Klein application that never redirects and fails in JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False

    def resource(self) -> FastKleinResource:
        return FastKleinResource(self)


def new_app() -> BusApp:
    """An application to hang routes and error handlers on, in any order.

    An exception that none of its error handlers takes is answered in JSON: a
    werkzeug HTTPException (404, 405 with `Allow`) with its status, any other
    with 500, logged once. These two come last whatever is registered when.
    """
    return BusApp()


class FastKleinResource(KleinResource):
    """The resource of a BusApp; renders only BusRequests."""

    def __init__(self, app: Klein) -> None:
        super().__init__(app)
        self._routes: dict[tuple[bytes, bytes], tuple[str, dict[str, Any]]] = {}

    def render(self, request: Any) -> Any:
        result: object
        try:
            endpoint, arguments = self._route(request.method, request.path)
            result = self._app.execute_endpoint(endpoint, request, **arguments)
        except Exception:
            result = fail(Failure())
        if not isinstance(result, Deferred):
            self._answer(result, request)
            return NOT_DONE_YET
        if not result.called:
            request.notifyFinish().addErrback(lambda gone: result.cancel())
        result.addErrback(self._failed, request, self._app._error_handlers)
        result.addCallback(self._answer, request)
        result.addErrback(request.processingFailed)
        result.addErrback(lambda told: None)
        return NOT_DONE_YET

    def _route(self, method: bytes, path: bytes) -> tuple[str, dict[str, Any]]:
        """Endpoint and arguments for a path, which the channel has checked to be UTF-8.

        Raises:
            werkzeug.exceptions.HTTPException: NotFound or MethodNotAllowed.
        """
        known = self._routes.get((method, path))
        if known is not None:
            return known
        text = unquote_to_bytes(path).decode()
        try:
            endpoint, arguments = self._match(text, method.decode())
        except MethodNotAllowed as refused:
            allowed = [each for each in refused.valid_methods or () if self._is_there(text, each)]
            raise (MethodNotAllowed(allowed) if allowed else NotFound()) from None
        if len(path) <= KEPT_LENGTH:
            if len(self._routes) >= KEPT:
                self._routes.clear()
            self._routes[method, path] = endpoint, arguments
        return endpoint, arguments

    def _match(self, path: str, method: str) -> tuple[str, dict[str, Any]]:
        adapter = self._app.url_map.bind("routemaster")
        try:
            rule, arguments = adapter.match(path, method, return_rule=True)
        except RequestRedirect:
            raise NotFound from None
        # werkzeug overlooks slashes before and after what a rule says; the bus does not.
        if path.startswith("//") or path.endswith("/") != rule.rule.endswith("/"):
            raise NotFound
        return cast(str, rule.endpoint), dict(arguments)

    def _is_there(self, path: str, method: str) -> bool:
        try:
            self._match(path, method)
        except HTTPException:
            return False
        return True

    def _answer(self, body: object, request: BusRequest) -> None:
        if request.over:
            return
        if body is None:
            body = b""
        elif isinstance(body, str):
            body = body.encode()
        if not isinstance(body, bytes):
            raise TypeError(f"a handler returned {type(body).__name__}, not bytes, str or None")
        request.send(body)

    def _failed(self, failure: Failure, request: BusRequest, handlers: Sequence[Any]) -> object:
        """The answer of the first error handler that takes the failure and does not fail itself."""
        if request.over and failure.check(CancelledError):
            return None
        for position, (kinds, handler) in enumerate(handlers):
            if failure.check(*kinds):
                answer = maybeDeferred(cast(Any, self._app.execute_error_handler), handler, request, failure)
                return answer.addErrback(self._failed, request, handlers[position + 1 :])
        if failure.check(HTTPException):
            _refuse(request, cast(HTTPException, failure.value))
            return None
        return failure


def _refuse(request: BusRequest, error: HTTPException) -> None:
    """Answer werkzeug's refusal in fixed words."""
    status = error.code or 500
    if isinstance(error, MethodNotAllowed):
        request.setHeader(b"Allow", ", ".join(sorted(error.valid_methods or ())))
        sentence = "this method is not allowed here"
    elif isinstance(error, NotFound):
        sentence = "there is nothing at this path"
    else:
        sentence = RESPONSES.get(status, b"refused").decode().lower()
    request.send_error(status, sentence)
