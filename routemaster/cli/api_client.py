"""A blocking client of the bus's API.

Network and TLS errors are raised as `BusError`: one line that says what is wrong
and what to do. An answer of the bus, refusals included, is an `Answer`; `want`
raises refusals as well.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Collection
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from routemaster.errors import ConfigError, RoutemasterError
from routemaster.validation import shown

TIMEOUT = 10.0  #: seconds for an answer
SELF_MADE = ("localhost.crt", "localhost.key")  #: in the state directory, made by a daemon without a certificate


class BusError(RoutemasterError):
    """The bus cannot be reached, or refuses the request."""


@frozen
class Answer:
    """An answer; `body` is None if it is empty, `now` is the time of the bus."""

    status: int
    body: Any
    now: float
    text: bytes = b""  #: the body as it came


class Bus:
    """One bus at one URL."""

    def __init__(self, url: str, trust: ssl.SSLContext, timeout: float = TIMEOUT) -> None:
        """`url` is an https:// origin."""
        parts = urlsplit(url)
        self.url = url
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._trust, self._timeout = trust, timeout

    def ask(self, method: str, path: str, who: str | None = None, body: object = None) -> Answer:
        """The answer to one request, whatever its status; `who` is a token or the root key."""
        headers = {"Accept": "application/json"}
        if who is not None:
            headers["Authorization"] = "Basic " + b64encode(f"{who}:".encode()).decode()
        text = None if body is None else json.dumps(body).encode()
        if text is not None:
            headers["Content-Type"] = "application/json"
        with closing(self._connection()) as connection:
            try:
                connection.request(method, path, text, headers)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise BusError(self._why(error)) from None
            return Answer(response.status, self._parsed(response.status, content), _date(response), content)

    def want(
        self, method: str, path: str, who: str | None = None, body: object = None,
        statuses: Collection[int] = (200, 201, 204),
    ) -> Answer:  # fmt: skip
        """The answer, which must have one of these statuses."""
        answer = self.ask(method, path, who, body)
        if answer.status not in statuses:
            raise BusError(self.refusal(answer))
        return answer

    def refusal(self, answer: Answer) -> str:
        """A refusal as one line."""
        if answer.status == 401:
            return (
                "the bus answered 401, the credential is unknown: "
                "use the one from the bus's configuration (--config, --root-key-file, environment)"
            )
        said = answer.body.get("error") if isinstance(answer.body, dict) else None
        if not isinstance(said, str):
            said = f"an unexpected answer; is {self.url} the right --url?"
        unknown = isinstance(answer.body, dict) and answer.body.get("outcome") == "unknown"
        end = " (the outcome is unknown: check before you repeat the request)" if unknown else ""
        return f"the bus answered {answer.status}: {said}{end}"

    def certificate(self) -> bytes:
        """The certificate of the bus, DER."""
        with closing(self._connection()) as connection:
            try:
                connection.connect()
                presented: bytes | None = connection.sock.getpeercert(binary_form=True)
            except OSError as error:
                raise BusError(self._why(error)) from None
        return presented or b""

    def _connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._trust, timeout=self._timeout)

    def _parsed(self, status: int, content: bytes) -> Any:
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise BusError(
                f"{self.url} answered {status} without JSON; is it the right --url?"
            ) from None

    def _why(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self.url} is not trusted ({error.verify_message}): "
                "pass its authority with --ca-file"
            )
        if isinstance(error, ssl.SSLError):
            return f"TLS with {self.url} failed ({error.reason}); is it the right --url?"
        if isinstance(error, socket.gaierror):
            return f"the host of {self.url} does not resolve: check --url"
        if isinstance(error, TimeoutError):
            return f"{self.url} did not answer within {self._timeout:g} s: see the daemon's log"
        if isinstance(error, ConnectionRefusedError):
            return f"{self.url} refused the connection: start the daemon, or pass its address with --url"
        detail = shown(str(error) or type(error).__name__)
        return f"the connection to {self.url} broke ({detail}): see the daemon's log"


def trusting(ca_file: Path | None, state_dir: Path) -> ssl.SSLContext:
    """A TLS context that trusts the system's roots and `ca_file`, or the certificate that the bus made itself."""
    context = ssl.create_default_context()
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except ssl.SSLError:
        raise ConfigError(f"--ca-file {ca_file}: holds no PEM certificate") from None
    except OSError as error:
        raise ConfigError(f"--ca-file {ca_file}: cannot be read: {error.strerror}") from None
    if ca_file is None:
        with suppress(OSError):  # missing, unreadable or broken: then the handshake reports it
            context.load_verify_locations(state_dir / SELF_MADE[0])
    return context


def _date(response: http.client.HTTPResponse) -> float:
    """The time of the bus, so that ages do not depend on the clock here."""
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return time.time()
