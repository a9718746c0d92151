"""A resource that runs a Klein application in less time than Klein's own.

Routes, handlers and error handlers are Klein's. Klein binds the URL map of
Werkzeug for each request, matches it, and wraps each handler in several
Deferreds. This resource caches routes, needs no Deferred for a handler that
returns at once, and writes the answer in one call
(`bench/http_layer.py` measures the difference).

A handler returns bytes, str, a `Body` or None, or a Deferred or coroutine of these.
Klein's other renderables (resources, templates) are not supported.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from routemaster.errors import RoutemasterError
from routemaster.web.http_server.body_writer import Body
from routemaster.web.http_server.refusal import Refused
from routemaster.web.http_server.request import BusRequest
from routemaster.web.http_server.request_head import Head

CACHED_ROUTES = 1024   #: paths
CACHED_LENGTH = 128    #: bytes; longer paths are not cached
Handler = Callable[..., Any]


class BusApp(Klein):
    """A Klein application that never redirects and answers errors in JSON.

    An exception that its error handlers do not handle is answered in JSON:
    `Refused` as it is, a Werkzeug HTTPException (404, 405 with `Allow`) with
    its status, any other exception with 500, logged once.
    """

    def __init__(
        self,
        admit: Callable[[str, Headers, Any], Hashable] = lambda endpoint, headers, channel: None,
        observe: Callable[[str, int, float], None] = lambda endpoint, status, seconds: None,
        begin: Sequence[Callable[[Any], None]] = (),
    ) -> None:
        """
        Args:
            admit: refuses a request by the endpoint's name, the headers and the channel: it raises Refused.
                It returns whose request it is, None if that is not known.
            observe: is called with the endpoint's name, which may be empty, status and seconds of each answer.
            begin: are called with each complete request before its handler; they raise Refused.
        """
        super().__init__()
        self.admit, self.observe, self.begin = admit, observe, begin
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False

    @classmethod
    def of(
        cls,
        handlers: Mapping[str, Handler],
        refuse: Callable[[Any, Failure], Failure],
        admit: Callable[[str, Headers, Any], Hashable],
        observe: Callable[[str, int, float], None],
        begin: Sequence[Callable[[Any], None]],
    ) -> BusApp:
        """An application of these handlers, by endpoint: method and path, such as "GET /topics".

        Args:
            refuse: is called with the request and the failure of a RoutemasterError.
        """
        app = cast(BusApp, _with_paths(tuple(handlers)).__get__(_Bound(handlers, refuse), _Bound))
        app.admit, app.observe, app.begin = admit, observe, begin
        return app

    def resource(self) -> FastKleinResource:
        """The resource for `BusSite`."""
        return FastKleinResource(self)


class _Bound:
    """What an application of `_with_paths` is bound to."""

    def __init__(self, handlers: Mapping[str, Handler], refuse: Callable[[Any, Failure], Failure]) -> None:
        self.handlers, self.refuse = handlers, refuse


@cache
def _with_paths(endpoints: tuple[str, ...]) -> BusApp:
    """The application that all with these endpoints share, as Klein's are shared by the instances of a class.

    To compile its paths takes Werkzeug nearly all of the time in which an API is made; tests make thousands.
    """

    def handled_by(endpoint: str) -> Handler:
        def handle(bound: _Bound, request: Any, **arguments: Any) -> Any:
            return bound.handlers[endpoint](request, **arguments)

        return handle

    def refused(bound: _Bound, request: Any, failure: Failure) -> Failure:
        return bound.refuse(request, failure)

    app = BusApp()
    for endpoint in endpoints:
        method, _, path = endpoint.partition(" ")
        app.route(path, methods=[method], endpoint=endpoint)(handled_by(endpoint))
    app.handle_errors(RoutemasterError)(refused)  # type: ignore[arg-type]  # Klein knows only methods
    return app


class FastKleinResource(KleinResource):
    """The resource of a BusApp; renders only BusRequests."""

    def __init__(self, app: BusApp) -> None:
        super().__init__(app)
        self.observe, self._admit, self._begin = app.observe, app.admit, app.begin
        self._routes: dict[tuple[bytes, bytes], tuple[str, dict[str, Any]]] = {}

    @property
    def cached_routes(self) -> int:
        """The number of paths in the cache."""
        return len(self._routes)

    def admit(self, head: Head, channel: Any) -> tuple[str, Hashable]:
        """Refuse a request whose body would be read in vain: raises Refused.

        Returns the endpoint's name, and whose request it is, None if that is not known.
        """
        try:
            endpoint, _ = self._route(head.method, head.target.partition(b"?")[0])
        except HTTPException as error:
            raise _refused(error) from None
        try:
            return endpoint, self._admit(endpoint, head.headers, channel)
        except Refused as refused:
            refused.endpoint = endpoint
            raise

    def render(self, request: Any) -> Any:
        """Run the handler, which answers now or later."""
        result: object
        try:
            request.endpoint, arguments = self._route(request.method, request.path)
            for begin in self._begin:
                begin(request)
            result = self._app.execute_endpoint(request.endpoint, request, **arguments)
        except Exception:
            result = fail(Failure())
        if not isinstance(result, Deferred):
            self._answer(result, request)
            return NOT_DONE_YET
        if not result.called or result.paused:  # paused: its callback has returned another Deferred
            request.notifyFinish().addErrback(_cancel, result)
        result.addErrback(self._failed, request, self._app._error_handlers)
        result.addBoth(self._end, request)
        return NOT_DONE_YET

    def _route(self, method: bytes, path: bytes) -> tuple[str, dict[str, Any]]:
        """Endpoint and arguments for a path, which is percent-encoded UTF-8.

        Raises:
            werkzeug.exceptions.HTTPException: NotFound or MethodNotAllowed.
        """
        cached = self._routes.get((method, path))
        if cached is not None:
            return cached
        text = unquote_to_bytes(path).decode()
        try:
            endpoint, arguments = self._match(text, method.decode())
        except MethodNotAllowed as error:
            allowed = [each for each in error.valid_methods or () if self._is_there(text, each)]
            raise (MethodNotAllowed(allowed) if allowed else NotFound()) from None
        if len(path) <= CACHED_LENGTH:
            if len(self._routes) >= CACHED_ROUTES:
                self._routes.clear()
            self._routes[method, path] = endpoint, arguments
        return endpoint, arguments

    def _match(self, path: str, method: str) -> tuple[str, dict[str, Any]]:
        adapter = self._app.url_map.bind("routemaster")
        try:
            rule, arguments = adapter.match(path, method, return_rule=True)
        except RequestRedirect:
            raise NotFound from None
        # Werkzeug ignores additional slashes at the start and the end.
        if path.startswith("//") or path.endswith("/") != rule.rule.endswith("/"):
            raise NotFound
        return cast(str, rule.endpoint), dict(arguments)

    def _is_there(self, path: str, method: str) -> bool:
        try:
            self._match(path, method)
        except HTTPException:
            return False
        return True

    def _end(self, result: object, request: BusRequest) -> None:
        """Answer with what a handler has returned; a failure that no error handler has handled is answered 500."""
        if not isinstance(result, Failure):
            try:
                return self._answer(result, request)
            except Exception:
                result = Failure()
        request.processingFailed(result)
        return None

    def _answer(self, body: object, request: BusRequest) -> None:
        if request.over:
            return
        if body is None:
            body = b""
        elif isinstance(body, str):
            body = body.encode()
        if not isinstance(body, bytes) and not hasattr(body, "source"):
            raise TypeError(f"a handler returned {type(body).__name__}, not bytes, str, a Body or None")
        request.send(cast("bytes | Body", body))

    def _failed(self, failure: Failure, request: BusRequest, handlers: Sequence[Any]) -> object:
        """Answer with the first error handler that handles the failure, or with `Refused`."""
        if request.over and failure.check(CancelledError):
            _forget(failure)
            return None
        for position, (kinds, handler) in enumerate(handlers):
            if failure.check(*kinds):
                answer = maybeDeferred(cast(Any, self._app.execute_error_handler), handler, request, failure)
                _forget(failure)
                return answer.addErrback(self._failed, request, handlers[position + 1 :])
        error = failure.value
        if isinstance(error, HTTPException):
            error = _refused(error)
        if not isinstance(error, Refused):
            return failure
        request.refuse(error)
        _forget(failure)
        return None


def _refused(error: HTTPException) -> Refused:
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        return Refused(405, "method is not allowed", (b"Allow", allowed.encode()))
    return Refused(error.code or 500, "not found" if isinstance(error, NotFound) else error.name.lower())


def _forget(failure: Failure) -> None:
    """Drop a traceback: its frames refer to the exception, and so keep the request and its body in a cycle."""
    failure.cleanFailure()


def _cancel(_: Failure, result: Deferred[Any]) -> None:
    """The client has disconnected."""
    result.cancel()
