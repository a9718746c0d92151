"""A callback and a uuid, parsed once: where to connect, what to ask, what to say at the head."""

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
    r"(?P<path>/[!-~]*)?"
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class BadCallback(ValueError):
    """The callback is no URL that a delivery can be sent to; the sentence says why."""


class PreparedURL(EncodedURL):
    """A URL that is already what treq would make of it.

    treq converts and encodes its URL for each request; this one answers from
    what it has.
    """

    _text: str

    @classmethod
    def prepare(cls, text: str) -> PreparedURL:
        """Parse `text`, an ASCII URL."""
        url = cls.from_text(text)
        assert isinstance(url, cls)  # noqa: S101  # hyperlink makes one of its own class
        url._text = text
        return url

    def to_uri(self) -> PreparedURL:
        """The URL itself: it is ASCII."""
        return self

    def to_text(self, with_password: bool = False) -> str:
        """The text it was made of."""
        return self._text


@frozen
class Target:
    """All of a request but its body."""

    host: str                      #: as resolved, connected to and verified: lower case, without brackets
    port: int
    path: bytes
    url: PreparedURL
    headers: Headers = field(repr=False)  #: holds the uuid

    @property
    def key(self) -> tuple[str, int]:
        """What makes connections interchangeable."""
        return self.host, self.port

    @classmethod
    def parse(cls, callback: str, uuid: str | None, user_agent: str) -> Target:
        """Read a callback by the grammar of the contract (section 2.2); raises `BadCallback`.

        One parse decides for all: what is connected to is what was checked.
        """
        found = _CALLBACK.fullmatch(callback)
        if found is None or any(sign in callback for sign in "?#"):
            raise BadCallback("the callback is not an https:// URL without user, query and fragment")
        port = int(found["port"] or 443)
        if not 0 < port < 65536:
            raise BadCallback(f"the callback's port {port} is not between 1 and 65535")
        host = _literal(found["v6"], IPv6Address) if found["v6"] else found["name"].lower().rstrip(".")
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            host = _literal(host, IPv4Address)
        path = (found["path"] or "/").encode("ascii")
        headers = Headers({
            b"Host": [found["netloc"].encode("ascii")],
            b"Content-Type": [b"application/json"],
            b"User-Agent": [user_agent.encode("ascii", "replace")],
        })
        if uuid is not None:
            headers.addRawHeader(b"Authorization", b"Basic " + b64encode(f"{uuid}:{uuid}".encode()))
        return cls(host, port, path, PreparedURL.prepare(callback), headers)


def _literal(text: str, kind: type[IPv4Address] | type[IPv6Address]) -> str:
    try:
        return str(kind(text))
    except AddressValueError:
        raise BadCallback(f"the callback's host {text} is not a name and not a full IP address") from None
