"""The parser of callback URLs, for the API that accepts them and for the sender that connects to them.

The grammar is a narrow part of RFC 3986 on purpose: all URL parsers read an
accepted text alike, and no host name is an IP address in another notation
(`0x7f.1`, `2130706433`).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

MAX_URL = 1024  #: characters

_CALLBACK = re.compile(
    r"[Hh][Tt][Tt][Pp][Ss]://"  # written out: under IGNORECASE the long s matches `s`
    r"(?P<netloc>(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4})?)?)"
    r"(?P<path>/[!\"$->@-\[\]-~]*)?"  # printable ASCII without # ? and backslash
)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[Xx][0-9A-Fa-f]*")


@frozen
class CallbackURL:
    """The parts of a valid callback."""

    netloc: str  #: for the Host header: host and port as given, without the host's trailing dot and an empty port
    host: str    #: to resolve: lower case, without brackets, with a trailing dot if one is given
    port: int
    path: str    #: begins with a slash


def parse_callback(url: object) -> CallbackURL | None:
    """The parts of a callback; None if it is invalid.

    A callback is an https:// URL (the scheme in any case) of at most 1,024
    characters with a host in ASCII, an optional port from 1 to 65535 (none behind
    the colon is 443), and no user info, query or fragment. A
    trailing dot of the host (a name that the resolver completes with no suffix) is
    for DNS only: TLS and HTTP name the host without it.
    """
    match = _CALLBACK.fullmatch(url) if isinstance(url, str) and len(url) <= MAX_URL else None
    if match is None:
        return None
    host, port = parse_host(match["host"]), int(match["port"] or 443)
    if host is None or port > 65535:
        return None
    netloc = match["netloc"].removesuffix(":")
    if host.endswith("."):
        netloc = match["host"][:-1] + netloc[len(match["host"]):]
    return CallbackURL(netloc, host, port, match["path"] or "/")


def parse_host(text: str) -> str | None:
    """A host name in lower case, or an IP address in its canonical notation; None if it is neither.

    `text`: as in a URL, an IPv6 address in brackets.
    """
    labels = text.removesuffix(".").split(".")
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        if _NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(text))
    except ValueError:
        return None
    return text.lower() if len(text.removesuffix(".")) <= 253 and all(map(_LABEL.fullmatch, labels)) else None
