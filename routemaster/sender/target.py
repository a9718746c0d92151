"""A callback and a uuid, parsed once: where to connect, and the request's path, URL and headers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

from attrs import evolve, field, frozen
from hyperlink import EncodedURL
from twisted.web.http_headers import Headers

from routemaster.callback_url import parse_callback
from routemaster.model import Signing
from routemaster.sender.signature import masked_forms, signature_headers


class BadCallback(ValueError):
    """The callback is not a URL for deliveries; the message says why."""


class PreparedURL(EncodedURL):
    """An ASCII URL that treq sends unchanged, instead of converting it for each request."""

    _text: str

    @classmethod
    def prepare(cls, text: str) -> PreparedURL:
        """Parse `text`, an ASCII URL."""
        url = cls.from_text(text)
        assert isinstance(url, cls)  # noqa: S101  # hyperlink returns an object of the same class
        url._text = text
        return url

    def to_uri(self) -> PreparedURL:
        """The URL itself."""
        return self

    def to_text(self, with_password: bool = False) -> str:
        """The text that was parsed."""
        return self._text


@frozen
class Target:
    """All of a request but its body."""

    host: str                      #: to resolve, with a trailing dot if given: lower case, without brackets
    port: int
    path: bytes
    url: PreparedURL
    headers: Headers = field(repr=False)  #: with the uuid, a secret
    secrets: tuple[str, ...] = field(repr=False)  #: texts that must not appear in an error

    @property
    def key(self) -> tuple[str, int]:
        """Connections with the same key are interchangeable."""
        return self.host, self.port

    def signed(self, signing: Signing, body: bytes) -> Target:
        """The same for one request, with the signature of its body."""
        headers = self.headers.copy()
        for name, value in signature_headers(signing, body):
            headers.addRawHeader(name, value)
        return evolve(self, headers=headers, secrets=(*self.secrets, *masked_forms(signing)))

    def extended(self, more: Mapping[bytes, bytes]) -> Target:
        """The same for one request, with more headers."""
        headers = self.headers.copy()
        for name, value in more.items():
            headers.setRawHeaders(name, [value])
        return evolve(self, headers=headers)

    @classmethod
    def parse(cls, callback: str, uuid: str | None, user_agent: str) -> Target:
        """Parse a callback (see `routemaster.callback_url`); raises `BadCallback`.

        Everything comes from one parse, so that the bus connects to the host
        that it has checked. The uuid is both user name and password (Basic
        authentication, RFC 7617).
        """
        parts = parse_callback(callback)
        if parts is None:
            raise BadCallback("callback is invalid: expected an https:// URL without user, query and fragment")
        headers = Headers({
            b"Host": [parts.netloc.encode("ascii")],
            b"Content-Type": [b"application/json"],
            b"Accept": [b"*/*"],
            b"User-Agent": [user_agent.encode("ascii", "replace")],
        })
        secrets: tuple[str, ...] = ()
        if uuid is not None:
            credentials = b64encode(f"{uuid}:{uuid}".encode())
            headers.addRawHeader(b"Authorization", b"Basic " + credentials)
            secrets = (credentials.decode("ascii"), uuid)
        url = PreparedURL.prepare(f"https://{parts.netloc}{parts.path}")
        return cls(parts.host, parts.port, parts.path.encode("ascii"), url, headers, secrets)
