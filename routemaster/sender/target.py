"""A callback and a uuid, parsed once: where to connect, and the request's path, URL and headers."""

from __future__ import annotations

import re
from base64 import b64encode
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from attrs import field, frozen
from hyperlink import EncodedURL
from twisted.web.http_headers import Headers

_CALLBACK = re.compile(
    r"https://"
    r"(?P<netloc>(?:(?P<name>[A-Za-z0-9._-]{1,253})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>/[!\"$->@-~]*)?"  # printable ASCII without # and ?
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


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

    host: str                      #: to resolve, connect to and verify: lower case, without brackets
    port: int
    path: bytes
    url: PreparedURL
    headers: Headers = field(repr=False)  #: with the uuid, a secret

    @property
    def key(self) -> tuple[str, int]:
        """Connections with the same key are interchangeable."""
        return self.host, self.port

    @classmethod
    def parse(cls, callback: str, uuid: str | None, user_agent: str) -> Target:
        """Parse a callback: https, a host in ASCII, no user info, query or fragment; raises `BadCallback`.

        Everything comes from one parse, so that the bus connects to the host
        that it has checked. The uuid is both user name and password (Basic
        authentication, RFC 7617).
        """
        found = _CALLBACK.fullmatch(callback)
        if found is None:
            raise BadCallback("callback is invalid: expected an https:// URL without user, query and fragment")
        port = int(found["port"] or 443)
        if not 0 < port < 65536:
            raise BadCallback(f"callback is invalid: got port {port}, expected 1 to 65535")
        host = _address(found["v6"], IPv6Address) if found["v6"] else found["name"].lower().rstrip(".")
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            host = _address(host, IPv4Address)
        path = (found["path"] or "/").encode("ascii")
        headers = Headers({
            b"Host": [found["netloc"].encode("ascii")],
            b"Content-Type": [b"application/json"],
            b"User-Agent": [user_agent.encode("ascii", "replace")],
        })
        if uuid is not None:
            headers.addRawHeader(b"Authorization", b"Basic " + b64encode(f"{uuid}:{uuid}".encode()))
        return cls(host, port, path, PreparedURL.prepare(callback), headers)


def _address(text: str, kind: type[IPv4Address] | type[IPv6Address]) -> str:
    try:
        return str(kind(text))
    except AddressValueError:
        raise BadCallback(f"callback is invalid: got host {text}, expected a name or a full IP address") from None
