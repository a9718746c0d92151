"""The core: a call as a request, and an answer as a value or an error. No I/O; every client goes through here.

A `Call` is made by a function of `calls`. A client sends `call.method`, `call.path` and `call.body` with the
headers of `Settings`, and gives what comes to `call.result`. If nothing comes it raises what `call.not_sent` or
`call.broken` returns. `Repetition` decides whether an error is followed by another attempt, and when.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from routemaster_client import errors
from routemaster_client.errors import BusError, OutcomeUnknown, TooManyRequests, Unavailable, UnexpectedAnswer
from routemaster_client.version import __version__

T = TypeVar("T")
LOCAL = ("localhost", "127.0.0.1", "::1")
CONNECTING = 0.9  #: the part of an attempt's time for connecting: a request that was not sent is known to be so
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

_BY_STATUS: Mapping[int, type[errors.Refused]] = {
    400: errors.Invalid, 413: errors.Invalid, 415: errors.Invalid, 401: errors.Unauthorized,
    403: errors.Forbidden, 404: errors.NotFound, 409: errors.Conflict,
}  # fmt: skip
_HINTS = {
    401: "check this client's token: the bus does not know it, or it is of another kind than the request needs",
}


@dataclass(frozen=True)
class Response:
    """An answer, complete. The names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str                       #: with the query, encoded
    read: Callable[[Response], T] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    shown: str = ""                 #: the path for messages, where it holds a secret
    statuses: tuple[int, ...] = (200, 201, 204)
    wait: float = 0.0               #: seconds that the bus may take on purpose
    headers: Mapping[str, str] = field(default_factory=dict)  #: besides those of every request

    @property
    def reads(self) -> bool:
        """Whether a repetition has no effect: then its outcome cannot be unknown."""
        return self.method == "GET"

    def result(self, response: Response) -> T:
        """What the call returns; raises a BusError."""
        if response.status in self.statuses:
            try:
                return self.read(response)
            except (ValueError, LookupError, TypeError, AttributeError):
                raise self.misunderstood(response) from None
        raise self._failure(response)

    def misunderstood(self, response: Response | None = None) -> BusError:
        """The error for an answer that makes no sense."""
        kind: type[BusError] = UnexpectedAnswer if self.reads else OutcomeUnknown
        return self._error(kind, "the answer is not what a Routemaster bus sends; check the URL", response)

    def not_sent(self, reason: str) -> Unavailable:
        """The error for a request that never left."""
        return self._error(Unavailable, f"the bus cannot be reached: {reason}")

    def untrusted(self, reason: str) -> UnexpectedAnswer:
        """The error for a server whose certificate does not stand up; nothing was sent."""
        return self._error(
            UnexpectedAnswer,
            f"the server's certificate is not trusted: {reason}; give its CA as ca_file, or correct the URL",
        )

    def broken(self, reason: str) -> BusError:
        """The error for a request that was sent, and has no answer."""
        if self.reads:
            return self._error(Unavailable, f"no answer: {reason}")
        return self._error(OutcomeUnknown, f"no answer: {reason}; it may have been executed")

    def _failure(self, response: Response) -> BusError:
        """The error that an answer stands for."""
        status, answer = response.status, _object(response.body)
        text = str(answer.get("error") or "")
        if status == 503 or (status == 500 and self.path == "/pulse"):
            if answer.get("outcome") == "unknown" and not self.reads:
                return self._error(OutcomeUnknown, f"{text}; it may have been executed", response)
            if text or self.reads:
                return self._error(Unavailable, text or "Redis is unavailable", response)
        if 300 <= status < 400:
            target = _origin(response.headers.get("location", "another URL"))
            return self._error(UnexpectedAnswer, f"redirected to {target}: make that the client's URL", response)
        if status == 429:
            return self._error(TooManyRequests, f"{text or 'too many requests'}; {_too_many(response)}", response)
        if status in _BY_STATUS and (text or status == 413):
            hint = f" ({_HINTS[status]})" if status in _HINTS else ""
            return self._error(_BY_STATUS[status], (text or "too large") + hint, response)
        if status >= 500:
            message = f"a server error: {text or 'not from the bus, perhaps from a proxy before it'}"
            return self._error(Unavailable if self.reads else OutcomeUnknown, message, response)
        return self._error(UnexpectedAnswer, "not an answer of a Routemaster bus; check the URL", response)

    def _error(self, kind: type[_Error], text: str, response: Response | None = None) -> _Error:
        status = response.status if response else None
        place = f"{self.method} {self.shown or self.path.partition('?')[0]}"
        after = None if response is None else _retry_after(response)
        answered = f"{status}: " if status else ""
        return kind(f"{place}: {answered}{text}", status=status, reason=text, retry_after=after)


_Error = TypeVar("_Error", bound=BusError)


@dataclass(frozen=True)
class Settings:
    """How to reach the bus.

    Attributes:
        url: of the bus: `https://bus.example.com`, with a path if a proxy wants one.
        token: of this client.
        ca_file: PEM file with certificates to trust; None: those of the system.
        timeout: seconds for one attempt, from connecting to the last byte of the answer.
        retries: how many attempts may follow a failed one.
        retry_unknown: also after an unknown outcome, which may store an event twice.
        connections: the most that are kept open. The asyncio client makes no more than these, and its calls wait
            for one; with the others a call beyond them has a connection for itself.
    """

    url: str
    token: str = field(repr=False)
    ca_file: str | None = None
    timeout: float = 10.0
    retries: int = 3
    retry_unknown: bool = False
    connections: int = 32

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None:
            raise errors.Invalid("url is invalid: it holds user info; give the token as token")
        secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL)
        if not secure or not parts.hostname or parts.query or parts.fragment:
            raise errors.Invalid(f"url is invalid: got {self.url!r:.60}, expected https://HOST[:PORT][/PATH]")
        if not re.fullmatch("[!-~]{1,128}", self.token):
            raise errors.Invalid("token is invalid: expected 1 to 128 printable ASCII characters without spaces")

        if self.ca_file is not None and not os.path.isfile(self.ca_file):
            raise errors.Invalid(f"ca_file is invalid: there is no file {self.ca_file!r:.200}")

    def tls(self) -> ssl.SSLContext:
        """What verifies the bus; Invalid if ca_file holds no certificate."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise errors.Invalid(f"ca_file is invalid: {self.ca_file!r:.200}: {error.strerror or error}") from None

    @property
    def base(self) -> str:
        """The URL before the paths of the API."""
        return self.url.rstrip("/")

    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        credential = base64.b64encode(f"{self.token}:".encode()).decode()
        return {
            "Authorization": f"Basic {credential}",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"routemaster-client/{__version__}",
        }


@dataclass
class Repetition:
    """Whether to attempt a call again: only where nothing was stored, or where the user asked for more."""

    settings: Settings
    chance: Callable[[], float]  #: returns numbers from 0 to 1
    failures: int = 0
    longest: float = 30.0        #: seconds between two attempts

    def after(self, error: BusError) -> float:
        """Seconds to wait before the next attempt; raises the error if there is none."""
        self.failures += 1
        repeated = (Unavailable, OutcomeUnknown) if self.settings.retry_unknown else Unavailable
        again = isinstance(error, repeated)
        wait = max(error.retry_after or 0.0, 0.1 * 2.0 ** (self.failures - 1) * (0.5 + self.chance()))
        if not again or self.failures > self.settings.retries or wait > self.longest:
            raise error
        return wait


def certificates(pem: bytes) -> list[bytes]:
    """The certificates of a PEM file, one by one; Invalid if there is none."""
    found = _PEM.findall(pem)
    if not found:
        raise errors.Invalid("ca_file is invalid: it holds no certificate in PEM")
    return found


def _retry_after(response: Response) -> float | None:
    """Seconds after which the bus wants to be asked again, if it says so."""
    text = response.headers.get("retry-after", "")
    return float(text) if re.fullmatch("[0-9]{1,6}", text) else None


def _too_many(response: Response) -> str:
    """What to do about a 429."""
    after = _retry_after(response)
    when = "later" if after is None else f"in {after:g} s"
    return f"nothing was stored: try again {when}, with fewer requests at once, and without wrong tokens"


def _object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _origin(location: str) -> str:
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme else location[:100]
