"""The console's routes on Klein: who may, which handler, and the form of every answer.

Each page needs a session, else the browser is sent to the login and comes back after it. Every
answer has the headers of `SECURITY`: no script, style or picture from anywhere else, nothing inline.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, quote

from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from routemaster.console.bus_client import BusError
from routemaster.console.live import Live, Stream
from routemaster.console.login import Forbidden, Login, NotLoggedIn, TooManyFailures, set_cookie
from routemaster.console.pages import NotFound, Pages, Visit
from routemaster.console.reading import BadAnswer
from routemaster.console.rendering import Fragments, Rendering
from routemaster.console.sessions import Session
from routemaster.console.state import State
from routemaster.web.completion import complete
from routemaster.web.klein_resource import BusApp

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY: Final = {
    "Content-Security-Policy": CSP,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
MAX_BODY: Final = 16 * 1024  #: bytes of a form
MAX_FIELDS: Final = 1000
HTML: Final = "text/html; charset=utf-8"
NOBODY: Final = Session("", "", 0.0, 0.0)
_TITLES: Final = {
    400: "That was not understood", 403: "Not allowed", 404: "Not found", 405: "Not allowed",
    429: "Too many attempts", 500: "Internal error", 502: "The bus did not answer", 503: "Not now",
}  # fmt: skip

Handler = Callable[..., Awaitable[Any]]


class Console:
    """The handlers around those of `Pages`."""

    _log = Logger()

    def __init__(
        self, pages: Pages, login: Login, live: Live, state: State, rendering: Rendering,
        wall: Callable[[], float],
    ) -> None:  # fmt: skip
        """`wall`: the time of day."""
        self._pages, self._login, self._live, self._state = pages, login, live, state
        self._rendering, self._wall = rendering, wall
        self._fragments = Fragments()
        self.app = BusApp()
        self._add_routes()

    def _add_routes(self) -> None:
        pages, subscriber = self._pages, "/buses/<name>/subscribers/<subscriber>"
        shared: dict[str, Handler] = {
            "/": pages.overview,
            "/buses/<name>/topics": pages.topics,
            "/buses/<name>/topics/<topic>": pages.topic,
            "/buses/<name>/topics/<topic>/events/<event>": pages.event,
            "/buses/<name>/subscribers": pages.subscribers,
            subscriber: pages.subscriber,
            f"{subscriber}/parked": pages.parked,
            "/changes": pages.changes,
        }
        for path, page in shared.items():
            self._route(path, "GET", self._shared(page))
        charts: dict[str, Handler] = {
            "/data/<name>": pages.chart,
            "/data/<name>/topics/<topic>": pages.topic_chart,
            "/data/<name>/subscribers/<subscriber>": pages.subscriber_chart,
        }
        for path, data in charts.items():
            self._route(path, "GET", self._data(data))
        self._route("/buses/<name>/topics/<topic>/event", "GET", self._find_event)
        self._route(f"{subscriber}/control/<action>", "GET", self._question)
        self._route(f"{subscriber}/control/<action>", "POST", self._act)
        self._route("/live", "GET", self._stream)
        self._route("/logout", "POST", self._log_out)
        for path, method, handler in (
            ("/login", "GET", self._login_page), ("/login", "POST", self._log_in),
            ("/static/<path:file>", "GET", self._static), ("/health", "GET", self._health),
            ("/health/ready", "GET", self._health), ("/favicon.ico", "GET", self._icon),
        ):  # fmt: skip
            self._add(path, method, self._guarded(handler))
        self._add("/<path:rest>", "GET", self._guarded(self._unknown))

    def _add(self, path: str, method: str, handler: Handler) -> None:
        endpoint = f"{method} {path}"
        self.app.route(path, methods=[method], endpoint=endpoint)(handler)

    def _route(self, path: str, method: str, handler: Handler) -> None:
        """A route for users who are logged in; `handler` is called with the request and a `Visit`."""

        async def visited(request: Any, **parts: str) -> Any:
            return await handler(request, self._visit(request), **parts)

        self._add(path, method, self._guarded(visited))

    # -- around every handler

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Any, **parts: str) -> Any:
            for name, value in SECURITY.items():
                request.setHeader(name, value)
            request.setHeader("Cache-Control", "no-store")
            request.setHeader("Content-Type", HTML)
            try:
                return await handler(request, **parts)
            except NotLoggedIn:
                return self._to_login(request)
            except NotFound as error:
                if _is_fragment(request):  # what the page shows is there no more: have the whole page say so
                    return _no_part(request, reload=True)
                return self._error(request, 404, str(error))
            except Forbidden as error:
                return self._error(request, 403, str(error))
            except TooManyFailures as error:
                request.setHeader("Retry-After", str(error.seconds))
                return self._error(request, 429, str(error))
            except (BusError, BadAnswer) as error:
                if isinstance(error, BusError) and error.status == 404:
                    return self._error(request, 404, f"the bus {error}")
                return self._error(request, 502, f"the bus could not be asked: {error}")
            except CancelledError:  # the browser has gone away
                raise
            except Exception:
                self._log.failure("internal error at {path}", path=request.path.decode("latin-1"))
                return self._error(request, 500, "the console has made an error, which is in its log")

        return guarded

    def _error(self, request: Any, status: int, text: str) -> bytes:
        request.setResponseCode(status)
        text = f"{text[:1].upper()}{text[1:]}."
        context = {"status": status, "title": _TITLES[status], "text": text}
        try:
            return self._pages.render(self._visit(request), "error.html", **context).encode()
        except Exception:  # nobody is logged in, or the page of a user is what fails
            return self._rendering.page("error.html", **context).encode()

    def _to_login(self, request: Any) -> bytes:
        """Send the browser to the login; a script gets 401."""
        if request.path.startswith((b"/data/", b"/live")) or request.getHeader(b"HX-Request"):
            request.setResponseCode(401)
            request.setHeader("HX-Redirect", "/login")
            return b""
        target = request.uri.decode("latin-1") if request.method == b"GET" else "/"
        return _redirect(request, "/login" if target == "/" else f"/login?next={quote(target, safe='')}")

    def _visit(self, request: Any) -> Visit:
        session = self._login.session(request)
        lists = {_text(name): [_text(each) for each in values] for name, values in request.args.items()}
        return Visit(
            session, request.uri.decode("latin-1"), {name: values[-1] for name, values in lists.items()}, lists,
            _is_fragment(request), self._login.may_control(session.user), self._wall(),
        )  # fmt: skip

    def _shared(self, page: Handler) -> Handler:
        """A page whose live part is the same for all users with the same rights."""

        async def shared(request: Any, visit: Visit, **parts: str) -> bytes:
            request.setHeader("Vary", "HX-Request")
            if visit.fragment:
                visit = evolve(visit, session=NOBODY)  # what is shared has nothing of one user
                key = visit.path, visit.may_control
                version = self._state.snapshot.version
                text = await self._fragments.get(version, key, lambda: page(visit, **parts))  # type: ignore[arg-type,return-value]
            else:
                text = await page(visit, **parts)
            return str(text).encode()

        return shared

    def _data(self, data: Handler) -> Handler:
        async def answered(request: Any, visit: Visit, **parts: str) -> bytes:
            columns = await data(visit, **parts)
            request.setHeader("Content-Type", "application/json")
            return json.dumps(columns, separators=(",", ":")).encode()

        return answered

    # -- handlers of users who are logged in

    async def _find_event(self, request: Any, visit: Visit, name: str, topic: str) -> bytes:
        event = visit.query.get("id", "").strip()
        if not event:
            return _redirect(request, f"/buses/{quote(name)}/topics/{quote(topic)}")
        return _redirect(request, f"/buses/{quote(name)}/topics/{quote(topic)}/events/{quote(event, safe='')}")

    async def _question(self, request: Any, visit: Visit, **parts: str) -> bytes:
        self._check_may_control(visit)
        try:
            return (await self._pages.question(visit, **parts)).encode()
        except (BusError, NotFound):
            if visit.fragment:  # the answer may be under way to whoever has just confirmed
                return _no_part(request, reload=False)
            raise

    async def _act(self, request: Any, visit: Visit, name: str, subscriber: str, action: str) -> bytes:
        form = _form(request)
        self._login.check_form(request, visit.session, _first(form, "csrf"))
        self._check_may_control(visit)
        again = await complete(self._change(visit, name, subscriber, action, form))
        if again is not None:
            request.setResponseCode(200 if form.get("count") else 409)
            return again.encode()
        target = f"/buses/{quote(name)}/subscribers"
        target += "" if action == "unsubscribe" else f"/{quote(subscriber, safe='')}"
        if request.getHeader(b"HX-Request"):
            request.setResponseCode(204)
            request.setHeader("HX-Redirect", target)
            return b""
        return _redirect(request, target)

    async def _change(
        self, visit: Visit, name: str, subscriber: str, action: str, form: Mapping[str, list[str]]
    ) -> str | None:
        """See `Pages.act`; who did it is logged, and in the history, though the browser may have gone away."""
        again = await self._pages.act(visit, name, subscriber, action, form)
        if again is None:
            self._log.info(
                "{user}: {action} of {subscriber} on bus {bus}", user=visit.session.user, action=action,
                subscriber=subscriber, bus=name,
            )  # fmt: skip
        return again

    def _check_may_control(self, visit: Visit) -> None:
        if not visit.may_control:
            raise Forbidden("the console only watches, or you may not change subscriptions")

    async def _stream(self, request: Any, visit: Visit) -> Stream | bytes:
        if self._live.full:
            request.setHeader("Retry-After", "10")
            return self._error(request, 503, "too many pages are open")
        request.setHeader("Content-Type", "text/event-stream")
        request.setHeader("X-Accel-Buffering", "no")
        session, sessions = visit.session, self._login.sessions
        return self._live.stream(lambda: sessions.is_valid(session))

    async def _log_out(self, request: Any, visit: Visit) -> bytes:
        self._login.check_form(request, visit.session, _first(_form(request), "csrf"))
        self._login.log_out(request)
        set_cookie(request, "")
        return _redirect(request, "/login")

    # -- handlers without a session

    async def _login_page(self, request: Any) -> bytes:
        target = _target(_text(request.args.get(b"next", [b"/"])[-1]))
        try:
            self._login.session(request)
        except NotLoggedIn:
            return self._rendering.page("login.html", next=target, error="").encode()
        return _redirect(request, target)

    async def _log_in(self, request: Any) -> bytes:
        form = _form(request)
        target = _target(_first(form, "next"))
        secret = self._login.log_in(request, _first(form, "token").strip())
        if secret is None:
            request.setResponseCode(403)
            error = "This token is not known."
            return self._rendering.page("login.html", next=target, error=error).encode()
        set_cookie(request, secret)
        return _redirect(request, target)

    async def _static(self, request: Any, file: str) -> bytes:
        found = self._rendering.static.get(file)
        if found is None:
            raise NotFound(f"there is no file {file}")
        fixed = request.args.get(b"v") == [found.version.encode()]
        request.setHeader("Cache-Control", "public, max-age=31536000, immutable" if fixed else "no-cache")
        request.setHeader("Content-Type", found.type)
        return found.content

    async def _icon(self, request: Any) -> bytes:
        request.setResponseCode(204)
        return b""

    async def _health(self, request: Any) -> bytes:
        request.setHeader("Content-Type", "application/json")
        return b"{}"

    async def _unknown(self, request: Any, rest: str) -> bytes:
        self._login.session(request)  # strangers learn nothing, not even which pages there are
        raise NotFound("there is no such page")


def _is_fragment(request: Any) -> bool:
    """Whether only the live part of a page is wanted."""
    return bool(request.getHeader(b"HX-Request") == b"true" and request.getHeader(b"HX-Boosted") != b"true")


def _no_part(request: Any, reload: bool) -> bytes:
    """There is no live part: the page stays as it is, or is loaded again."""
    request.setResponseCode(204)
    if reload:
        request.setHeader("HX-Refresh", "true")
    return b""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _form(request: Any) -> Mapping[str, list[str]]:
    """The fields of a form; raises Forbidden if it is none."""
    try:
        text = request.content.getvalue().decode("ascii")
        return parse_qs(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise Forbidden("the form is malformed") from None


def _first(form: Mapping[str, list[str]], name: str) -> str:
    return (form.get(name) or [""])[0]


def _target(text: str) -> str:
    """Where to go after the login: a path of this console, never another host."""
    safe = text.startswith("/") and text.isascii() and text.isprintable() and "\\" not in text
    return text if safe and not text.startswith(("//", "/login", "/logout", "/data/", "/live")) else "/"


def _redirect(request: Any, target: str) -> bytes:
    request.setResponseCode(303)
    request.setHeader("Location", target)
    return b""
