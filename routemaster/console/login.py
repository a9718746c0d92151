"""Who a request is from: a session's cookie, or the header of a proxy that has authenticated its user.

- *Token*: a form takes one of `login_tokens`; the user's name is what stands before its `--`.
  Tokens are looked up by their SHA-256. More than 20 failures in a minute from one address
  block logins from there until the minute is over (`web.failed_authentications`).
- *Proxy*: `user_header` is believed only if the connection's peer is in `trusted_proxies`.
  Each such user has one session, so that forms are protected as those of others are.

Every change is a POST with the session's token in a field, and no page of another site may
send one: `SameSite=Strict` keeps the cookie from it, and `Sec-Fetch-Site` or `Origin` must
say that it comes from here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.logger import Logger

from routemaster.console.sessions import COOKIE, Session, Sessions
from routemaster.model import public_name
from routemaster.token_hash import digest
from routemaster.web.failed_authentications import FailedAuthentications
from routemaster.web.http_server.addresses import TrustedProxies, shown

MAX_TOKEN: Final = 256  #: characters of a token that are looked at
MAX_PROXY_USERS: Final = 1000  #: whose sessions are kept


class NotLoggedIn(Exception):
    """The request has no session."""


class Forbidden(Exception):
    """The request may not do what it wants; the message is one sentence."""


class TooManyFailures(Exception):
    """Too many logins have failed; `seconds`: until the address may try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many logins from your address have failed: try again in {seconds} s")
        self.seconds = seconds


class Login:
    """Finds the session of a request, and logs users in."""

    _log = Logger()

    def __init__(
        self, sessions: Sessions, tokens: Iterable[str], proxies: TrustedProxies, user_header: str | None,
        failures: FailedAuthentications, may_control: Callable[[str], bool] = lambda user: False,
    ) -> None:  # fmt: skip
        """`tokens`: or their hashes; `user_header`: in which proxies name their users; None: in none."""
        self.sessions = sessions
        self._users = {digest(token): public_name(token) for token in tokens}
        self._proxies, self._user_header, self._failures = proxies, user_header, failures
        self._proxy_sessions: OrderedDict[str, str] = OrderedDict()  # user -> secret
        self.may_control = may_control

    def session(self, request: Any) -> Session:
        """The session of a request; raises NotLoggedIn."""
        user = self._proxy_user(request)
        if user is not None:
            return self._proxy_session(user)
        secret = cookie(request)
        session = self.sessions.find(secret) if secret else None
        if session is None:
            raise NotLoggedIn
        return session

    def check_form(self, request: Any, session: Session, csrf: str) -> None:
        """Raises Forbidden unless the form has come from a page of this session."""
        self.check_origin(request)
        if not session.accepts(csrf):
            raise Forbidden("this form is not from your session: load the page again")

    def check_origin(self, request: Any) -> None:
        """Raises Forbidden if the browser says that the request comes from another site."""
        if sites := headers(request, "Sec-Fetch-Site"):
            same = all(each in ("same-origin", "none") for each in sites)
        else:
            host = "".join(headers(request, "Host")).lower()
            same = all(_host(origin) == host for origin in headers(request, "Origin"))
        if not same:
            raise Forbidden("the request comes from another site")

    def log_in(self, request: Any, token: str) -> str | None:
        """The secret of a new session; None if the token is not known. Raises TooManyFailures, Forbidden."""
        self.check_origin(request)
        address = self.address(request)
        if wait := self._failures.wait(address):
            raise TooManyFailures(int(wait) + 1)
        user = self._users.get(digest(token)) if 0 < len(token) <= MAX_TOKEN and not _is_hash(token) else None
        if user is None:
            self._log.warn("login from {address} failed", address=shown(address))
            if wait := self._failures.failed(address):
                raise TooManyFailures(int(wait) + 1)
            return None
        self._log.info("{user} has logged in from {address}", user=user, address=shown(address))
        return self.sessions.begin(user)[0]

    def log_out(self, request: Any) -> None:
        """End the session of the request's cookie."""
        if secret := cookie(request):
            self.sessions.end(secret)

    def address(self, request: Any) -> bytes:
        """The group of the client's address."""
        forwarded = request.requestHeaders.getRawHeaders(b"X-Forwarded-For", ())
        return self._proxies.client(request.channel.transport.getPeer(), forwarded)

    def _proxy_user(self, request: Any) -> str | None:
        """The user whom a trusted proxy names."""
        if self._user_header is None or not self._proxies.trusts(request.channel.transport.getPeer()):
            return None
        values = request.requestHeaders.getRawHeaders(self._user_header.encode("ascii"), ())
        try:
            text = values[0].decode().strip() if len(values) == 1 else ""
        except UnicodeDecodeError:
            return None
        return text if 0 < len(text) <= 64 and text.isprintable() else None

    def _proxy_session(self, user: str) -> Session:
        secret = self._proxy_sessions.get(user, "")
        session = self.sessions.find(secret) if secret else None
        if session is None:
            secret, session = self.sessions.begin(user)
            self._proxy_sessions[user] = secret
            if len(self._proxy_sessions) > MAX_PROXY_USERS:
                self.sessions.end(self._proxy_sessions.popitem(last=False)[1])
        self._proxy_sessions.move_to_end(user)
        return session


def _is_hash(token: str) -> bool:
    """Whether a text is a hash, which is no token: whoever reads the configuration must not log in with it."""
    return "sha256:" in token


def cookie(request: Any) -> str:
    """The secret in the request's cookie, or nothing."""
    for header in headers(request, "Cookie"):
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE and value.isascii() and len(value) <= 128:
                return value
    return ""


def headers(request: Any, name: str) -> list[str]:
    """The values of a header, which may hold any bytes."""
    return [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name.encode("ascii"), ())]


def _host(origin: str) -> str | None:
    """The host and port of an origin, in small letters; None if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def set_cookie(request: Any, secret: str) -> None:
    """Have the browser keep the secret of a session until it is closed; empty: forget it."""
    age = "" if secret else "; Max-Age=0"
    value = f"{COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Strict{age}"
    request.responseHeaders.addRawHeader(b"Set-Cookie", value.encode("ascii"))
